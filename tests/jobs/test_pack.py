"""`python -m jobs.pack RUN_DIR...`: several runs in one task. Real processes and signals, a stand-in for scontrol."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from running import REPOSITORY, outcome_of, until

from jobs import pack
from jobs.contract import Attempt, Cause, ExitCode, Outcome, RunDir, Status, claim, read_attempts, read_outcome, write_outcome
from jobs.count import next_value
from jobs.eviction import Slurm
from jobs.forks import make_run
from jobs.journal import read_journal
from jobs.pack import Pack

EVICTED = "JobState=RUNNING Restarts=0 PreemptTime=2026-01-01T00:00:00"
UNTOUCHED = "JobState=RUNNING Restarts=0"
GONE = "JobState=COMPLETING Restarts=0"
SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/asked
[ "$1" = show ] && cat {folder}/answer
exit 0
"""


@dataclass(kw_only=True)
class Task:
    """Task 3 of array 7 on a pretended Slurm, with run directories and the processes that were started for it."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def says(self, answer: str) -> None:
        """What scontrol shows from now on."""
        (self.folder / "answer").write_text(answer)

    @property
    def requeues(self) -> int:
        """How often scontrol was asked to requeue the task."""
        asked = self.folder / "asked"
        return asked.read_text().splitlines().count("requeue 7_3") if asked.exists() else 0

    def run(self, name: str, **changes: Any) -> RunDir:
        """A counting run, slow enough to be met."""
        config = {"kind": "count", "steps": 2000, "step_s": 0.02, "runtime": {"checkpoint_every_steps": 4}} | changes
        run_dir = make_run(self.folder / "runs", name, config, {})
        if not run_dir.code.is_symlink():
            run_dir.code.symlink_to(REPOSITORY)
        return run_dir

    def runs(self, number: int, **changes: Any) -> list[RunDir]:
        """Several, each with a seed of its own."""
        return [self.run(f"count-{seed}", seed=seed, **changes) for seed in range(number)]

    def start(self, *run_dirs: RunDir, token: str = "t", restart: int = 0) -> subprocess.Popen[str]:
        """The pack's process, as srun starts it."""
        foreign = ("SLURM_", "ORCH_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environment |= {
            "PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHONSAFEPATH": "1", "PYTHONPATH": str(run_dirs[0].code),
            "SLURM_JOB_ID": "10", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_PROCID": "0",
            "SLURM_RESTART_COUNT": str(restart), "SLURM_STEP_NUM_TASKS": "1", "ORCH_TOKEN": token,
        }  # fmt: skip
        command = ["env", "--block-signal=USR2,TERM", sys.executable, "-m", "jobs.pack", *(str(one.path) for one in run_dirs)]
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.started.append(process)
        return process


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    made = Task(folder=tmp_path)
    (tmp_path / "scontrol").write_text(SCONTROL.format(folder=tmp_path))
    (tmp_path / "scontrol").chmod(0o755)
    made.says(UNTOUCHED)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def code_of(process: subprocess.Popen[str]) -> int:
    said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said, said
    return process.returncode


def saved(*run_dirs: RunDir) -> None:
    """Wait until each has a checkpoint."""
    until(lambda: all(list(run_dir.checkpoints.glob("step-*")) for run_dir in run_dirs))


def pid_of(run_dir: RunDir) -> int:
    return read_attempts(run_dir)[-1].pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def hurry(*run_dirs: RunDir, steps: int) -> None:
    """Let runs that were started slowly end soon."""
    for run_dir in run_dirs:
        spec = json.loads(run_dir.spec.read_text())
        spec["config"] |= {"steps": steps, "step_s": 0.0}
        run_dir.spec.write_text(json.dumps(spec))


def assert_counted(run_dir: RunDir, steps: int, *, seed: int) -> None:
    """The hash chain and the whole series are those of a run that nobody touched."""
    value = 0
    for step in range(1, steps + 1):
        value = next_value(value, seed, step)
    assert json.loads((run_dir.output / "value.json").read_text()) == {"step": steps, "value": value}
    counting = [entry.step for entry in read_journal(run_dir.journals).counting() if entry.metrics]
    assert counting == list(range(1, steps + 1))


def test_that_each_run_has_its_own_process_log_and_outcome(task: Task) -> None:
    runs = task.runs(3, steps=10, step_s=0.0)
    assert code_of(task.start(*runs)) == ExitCode.DONE
    for seed, run in enumerate(runs):
        assert_counted(run, 10, seed=seed)
        (attempt,) = read_attempts(run)
        assert (attempt.token, attempt.job_id, attempt.world_size) == ("t", "7_3", 1)
        assert "ended with exit code 0" in (run.logs / "7_3.0.log").read_text()
    assert len({pid_of(run) for run in runs}) == 3
    assert task.requeues == 0


def test_that_a_notice_reaches_every_run_and_the_task_is_requeued_once_when_all_have_saved(task: Task) -> None:
    runs = task.runs(3)
    process = task.start(*runs)
    saved(*runs)
    os.kill(pid_of(runs[0]), signal.SIGSTOP)  # as if it took long to save
    task.says(EVICTED)
    process.send_signal(signal.SIGTERM)
    until(lambda: not alive(pid_of(runs[1])) and not alive(pid_of(runs[2])))
    assert task.requeues == 0
    os.kill(pid_of(runs[0]), signal.SIGCONT)
    assert code_of(process) == ExitCode.DONE
    assert task.requeues == 1
    assert not any(run.outcome.exists() for run in runs)
    reached = [read_journal(run.journals).attempts[-1].entries[-1].step for run in runs]
    hurry(*runs, steps=max(reached) + 10)
    task.says("JobState=RUNNING Restarts=1")
    assert code_of(task.start(*runs, restart=1)) == ExitCode.DONE
    for seed, run in enumerate(runs):
        assert_counted(run, max(reached) + 10, seed=seed)
        assert [one.restored_step for one in read_journal(run.journals).attempts] == [0, reached[seed]]
        assert [one.restart_count for one in read_attempts(run)] == [0, 1]
    assert task.requeues == 1


def test_that_a_warning_that_one_run_alone_took_seriously_takes_the_others_along(task: Task) -> None:
    """The limit came close between two questions: who asked first would compute on beside a GPU that nobody else uses."""
    runs = task.runs(2)
    process = task.start(*runs)
    saved(*runs)
    task.says(EVICTED)
    os.kill(pid_of(runs[0]), signal.SIGUSR2)
    assert code_of(process) == ExitCode.DONE
    assert task.requeues == 1
    assert all(len(read_journal(run.journals).attempts) == 1 and not run.outcome.exists() for run in runs)


def test_that_a_failed_run_leaves_its_siblings_alone_and_is_not_tried_again_by_their_requeue(task: Task) -> None:
    failing, healthy = task.run("failing", fail_at=3, step_s=0.0), task.run("healthy")
    process = task.start(failing, healthy)
    until(lambda: read_outcome(failing))
    saved(healthy)
    task.says(EVICTED)
    process.send_signal(signal.SIGUSR2)
    assert code_of(process) == ExitCode.DONE
    assert task.requeues == 1
    failed = failing.outcome.read_bytes()
    hurry(healthy, steps=500)
    assert code_of(task.start(failing, healthy, restart=1)) == ExitCode.DONE
    assert (failing.outcome.read_bytes(), len(read_attempts(failing))) == (failed, 1)
    assert_counted(healthy, 500, seed=0)


def test_that_a_killed_run_is_told_while_its_siblings_live(task: Task) -> None:
    killed, sibling = task.runs(2)
    process = task.start(killed, sibling)
    saved(killed, sibling)
    os.kill(pid_of(killed), signal.SIGKILL)
    outcome = until(lambda: read_outcome(killed))
    assert (outcome.status, outcome.cause, outcome.attempt) == (Status.FAILED, Cause.UNEXPLAINED, 1)
    assert outcome.reason == "its process was killed by signal 9 (SIGKILL)"
    assert alive(pid_of(sibling))
    task.says(EVICTED)
    process.send_signal(signal.SIGTERM)
    assert code_of(process) == ExitCode.DONE
    assert task.requeues == 1


def test_that_a_run_that_died_just_before_its_pack_was_killed_is_no_failure(task: Task) -> None:
    """Slurm kills the processes of a task one after another: the run goes on when the task does."""
    run, sibling = task.runs(2)
    process = task.start(run, sibling)
    saved(run, sibling)
    os.kill(pid_of(run), signal.SIGKILL)
    time.sleep(1.5)  # more than a kill of all takes, and long enough for the pack to have seen it
    process.kill()
    process.wait()
    hurry(run, sibling, steps=500)
    assert not run.outcome.exists()
    assert code_of(task.start(run, sibling, restart=1)) == ExitCode.DONE
    assert_counted(run, 500, seed=0)


def test_that_the_runs_of_a_killed_pack_die_with_it_and_go_on(task: Task) -> None:
    runs = task.runs(2)
    process = task.start(*runs)
    saved(*runs)
    process.kill()
    process.wait()
    until(lambda: not any(alive(pid_of(run)) for run in runs), timeout_s=5)
    assert not any(run.outcome.exists() for run in runs)
    hurry(*runs, steps=500)
    assert code_of(task.start(*runs, restart=1)) == ExitCode.DONE
    for seed, run in enumerate(runs):
        assert_counted(run, 500, seed=seed)


def test_that_a_cancelled_run_leaves_alone(task: Task) -> None:
    unwanted, wanted = task.runs(2)
    process = task.start(unwanted, wanted)
    saved(unwanted, wanted)
    unwanted.cancel_mark.touch()
    outcome = until(lambda: read_outcome(unwanted))
    assert (outcome.status, outcome.attempt) == (Status.CANCELLED, 1)
    assert list(unwanted.checkpoints.glob(f"step-{outcome.step:010d}"))
    assert alive(pid_of(wanted))
    task.says(EVICTED)
    process.send_signal(signal.SIGTERM)
    assert code_of(process) == ExitCode.DONE
    assert task.requeues == 1
    hurry(unwanted, wanted, steps=500)
    assert code_of(task.start(unwanted, wanted, restart=1)) == ExitCode.DONE
    assert len(read_attempts(unwanted)) == 1
    assert_counted(wanted, 500, seed=1)


def test_that_a_cancelled_run_that_does_not_leave_is_killed(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "CANCEL_PATIENCE_S", 0.0)
    run = task.run("stubborn")
    child = pack._Child(run_dir=run, process=subprocess.Popen(["sleep", "60"]), before=0, cancelled_at=time.monotonic() - 1)
    Pack(slurm=SLURM, living=[child])._cancel()
    assert child.process.wait(timeout=10) == -signal.SIGKILL


def test_that_a_task_whose_runs_are_all_cancelled_is_not_requeued(task: Task) -> None:
    runs = task.runs(2)
    process = task.start(*runs)
    saved(*runs)
    for run in runs:
        run.cancel_mark.touch()
    task.says(GONE)
    process.send_signal(signal.SIGTERM)
    assert code_of(process) == ExitCode.DONE
    assert [outcome_of(run).status for run in runs] == [Status.CANCELLED] * 2
    assert task.requeues == 0


def test_that_a_run_cancelled_before_its_task_began_says_so_and_does_nothing(task: Task) -> None:
    unwanted, wanted = task.runs(2, steps=10, step_s=0.0)
    unwanted.cancel_mark.touch()
    assert code_of(task.start(unwanted, wanted)) == ExitCode.DONE
    assert outcome_of(unwanted).status is Status.CANCELLED
    assert not unwanted.journals.exists()
    assert_counted(wanted, 10, seed=1)


def test_that_a_run_that_another_submission_took_over_stays_with_it(task: Task) -> None:
    taken, own = task.runs(2)
    process = task.start(taken, own)
    saved(taken, own)
    claim(taken, Attempt(number=0, claimant="elsewhere", token="u"))
    task.says(EVICTED)
    until(lambda: not alive(read_attempts(taken)[0].pid))
    process.send_signal(signal.SIGTERM)
    assert code_of(process) == ExitCode.DONE
    hurry(taken, own, steps=500)
    assert code_of(task.start(taken, own, restart=1)) == ExitCode.DONE
    assert [one.token for one in read_attempts(taken)] == ["t", "u"]
    assert not taken.outcome.exists()
    assert_counted(own, 500, seed=1)


def test_that_a_run_that_cannot_be_started_ends_at_once_and_its_siblings_go_on(task: Task) -> None:
    """A refused run claims nothing: its pack does, so that the outcome is this submission's; one without a directory has none."""
    refused, missing, good = task.run("refused"), RunDir(task.folder / "runs" / "missing"), task.run("good", steps=10, step_s=0.0)
    refused.spec.write_text("{}")
    assert code_of(task.start(good, refused, missing)) == ExitCode.FAILED
    assert_counted(good, 10, seed=0)
    (attempt,) = read_attempts(refused)
    assert (outcome_of(refused).cause, outcome_of(refused).attempt, attempt.token) == (Cause.REFUSED, 1, "t")


def test_that_a_run_whose_interpreter_dies_says_so_under_an_attempt_of_its_own(task: Task) -> None:
    run = task.run("broken")
    claim(run, Attempt(number=0, claimant="earlier", token="s"))
    write_outcome(run, Outcome(status=Status.FAILED, attempt=1, reason="of an earlier submission"))
    run.code.unlink()
    (task.folder / "code" / "jobs").mkdir(parents=True)
    (task.folder / "code" / "jobs" / "__main__.py").write_text("import os; os._exit(7)")
    run.code.symlink_to(task.folder / "code")
    sibling = task.run("sibling", steps=10, step_s=0.0)
    assert code_of(task.start(sibling, run)) == ExitCode.DONE
    outcome = outcome_of(run)
    assert (outcome.cause, outcome.reason) == (Cause.UNEXPLAINED, "its process ended with exit code 7 and no outcome")
    assert [(one.number, one.token) for one in read_attempts(run)] == [(1, "s"), (2, "t")]
    assert outcome.attempt == 2


def test_that_runs_inherit_the_mask_of_a_task_of_their_own(task: Task) -> None:
    """Notices are blocked before the first instruction; SIGCHLD, which the pack waits for, is not."""
    run = task.run("masked")
    run.code.unlink()
    (task.folder / "code" / "jobs").mkdir(parents=True)
    (task.folder / "code" / "jobs" / "__main__.py").write_text("import time; time.sleep(60)")
    run.code.symlink_to(task.folder / "code")
    sibling = task.run("sibling")
    process = task.start(sibling, run)
    begun = str(run.path).encode()  # before its exec a child still has the command line of the pack

    def words(pid: str) -> list[bytes]:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")

    (child,) = until(lambda: [pid for pid in children(process.pid) if b"jobs" in words(pid) and begun in words(pid)])
    (line,) = (line for line in Path(f"/proc/{child}/status").read_text().splitlines() if line.startswith("SigBlk"))
    blocked = int(line.split()[1], 16)
    found = {number for number in signal.Signals if blocked & (1 << (number - 1))}
    assert found >= {signal.SIGUSR2, signal.SIGTERM}
    assert signal.SIGCHLD not in found


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_that_a_pack_refuses_to_be_anything_but_the_only_task_of_a_job(task: Task) -> None:
    run = task.run("lonely")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    for environment in ({}, {"SLURM_JOB_ID": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}):
        command = [sys.executable, "-m", "jobs.pack", str(run.path)]
        done = subprocess.run(command, env=clean | environment, cwd=REPOSITORY, capture_output=True, text=True)
        assert (done.returncode, "the only task of a Slurm job" in done.stderr) == (ExitCode.REFUSED, True)
    assert not run.attempts.exists()


# --- when all have left ------------------------------------------------------------------------------------------------

SLURM = Slurm(job_id="7_3", restart_count=0, token="t", signal_delay_s=90)


def left(task: Task, monkeypatch: pytest.MonkeyPatch) -> tuple[Pack, list[RunDir]]:
    """A pack whose two runs have checkpointed and left."""
    monkeypatch.setenv("PATH", f"{task.folder}:{os.environ['PATH']}")
    monkeypatch.setattr(pack, "PATIENCE_S", 0.5)
    runs = task.runs(2)
    for run in runs:
        claim(run, Attempt(number=0, claimant=run.id, token="t", job_id="7_3"))
    process = subprocess.Popen(["true"])
    process.wait()
    return Pack(slurm=SLURM, leaving=[pack._Child(run_dir=run, process=process, before=0) for run in runs]), runs


def statuses(runs: list[RunDir]) -> list[Status | None]:
    found = [read_outcome(run) for run in runs]
    return [one.status if one else None for one in found]


def test_that_a_task_that_slurm_has_requeued_already_is_not_requeued_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    made, runs = left(task, monkeypatch)
    task.says("JobState=COMPLETING Restarts=1")
    assert (made._leave(), task.requeues, statuses(runs)) == (ExitCode.DONE, 0, [None, None])


def test_that_a_task_cancelled_while_its_runs_left_is_not_requeued(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    made, runs = left(task, monkeypatch)
    task.says(GONE)
    assert (made._leave(), task.requeues, statuses(runs)) == (ExitCode.DONE, 0, [Status.CANCELLED] * 2)


def test_that_a_run_cancelled_while_it_left_is_cancelled_and_its_sibling_goes_on(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, runs = left(task, monkeypatch)
    runs[1].cancel_mark.touch()
    task.says(EVICTED)
    assert (made._leave(), task.requeues, statuses(runs)) == (ExitCode.DONE, 1, [None, Status.CANCELLED])


def test_that_a_task_is_not_requeued_for_runs_that_were_all_cancelled_while_they_left(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, runs = left(task, monkeypatch)
    for run in runs:
        run.cancel_mark.touch()
    task.says(EVICTED)
    assert (made._leave(), task.requeues, statuses(runs)) == (ExitCode.DONE, 0, [Status.CANCELLED] * 2)


def test_that_a_controller_that_does_not_answer_stops_the_runs_with_that_reason(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, runs = left(task, monkeypatch)
    (task.folder / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    assert (made._leave(), statuses(runs)) == (ExitCode.STOPPED, [Status.STOPPED] * 2)
    assert outcome_of(runs[0]).reason == "told to leave, and Slurm did not answer; resumable"


def test_that_runs_that_have_left_go_on_though_the_threat_is_over(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    made, runs = left(task, monkeypatch)
    task.says(UNTOUCHED)
    assert (made._leave(), task.requeues, statuses(runs)) == (ExitCode.DONE, 1, [None, None])
