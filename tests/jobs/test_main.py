"""`python -m jobs RUN_DIR` on the counting job: outcomes, exit codes, signals, and what it refuses. Real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from running import REPOSITORY, outcome_of, python_m_jobs, until

from jobs import __main__ as entry
from jobs import eviction
from jobs.attempt import Left, Run
from jobs.contract import Attempt, Cause, ExitCode, Outcome, RunDir, Status, claim, read_attempts, write_outcome
from jobs.count import next_value
from jobs.eviction import Slurm, Verdict
from jobs.forks import make_run
from jobs.journal import CHECKPOINT, LEFT, read_journal
from jobs.preemption import Flag
from jobs.ranks import Ranks
from jobs.spec import FrozenRun


def count_run(root: Path, *, needs: Mapping[str, str] | None = None, **changes: Any) -> RunDir:
    runtime = {"checkpoint_every_steps": 4} | changes.pop("runtime", {})
    return make_run(root, "counted", {"kind": "count", "steps": 10, "runtime": runtime} | changes, needs or {})


def code_of(run_dir: RunDir, **environment: str) -> int:
    process = python_m_jobs(run_dir, environment=environment)
    process.communicate(timeout=60)
    return process.returncode


def expected(steps: int) -> int:
    value = 0
    for step in range(1, steps + 1):
        value = next_value(value, 0, step)
    return value


def assert_counted(run_dir: RunDir, steps: int) -> None:
    assert json.loads((run_dir.output / "value.json").read_text()) == {"step": steps, "value": expected(steps)}
    counting = [line.step for line in read_journal(run_dir.journals).counting() if line.metrics]
    assert counting == list(range(1, steps + 1))


def started(run_dir: RunDir) -> subprocess.Popen[str]:
    """A process that has made a checkpoint and goes on counting."""
    process = python_m_jobs(run_dir)
    until(lambda: list(run_dir.checkpoints.glob("step-*")))
    return process


def test_that_a_run_is_done_and_stays_done(tmp_path: Path) -> None:
    run_dir = count_run(tmp_path)
    assert code_of(run_dir, ORCH_TOKEN="abc") == ExitCode.DONE
    assert_counted(run_dir, 10)
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.step, outcome.attempt) == (Status.DONE, 10, 1)
    assert outcome.values == {"count/value": float(expected(10) % 1_000_003)}
    assert outcome.files == {"output/value.json": (run_dir.output / "value.json").stat().st_size}
    assert [one.token for one in read_attempts(run_dir)] == ["abc"]
    before = run_dir.outcome.read_bytes()
    assert code_of(run_dir) == ExitCode.DONE
    assert run_dir.outcome.read_bytes() == before
    assert len(read_attempts(run_dir)) == 1


def test_that_a_job_that_goes_on_elsewhere_says_when_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = count_run(tmp_path, steps=30, step_s=0.05)
    frozen = FrozenRun.model_validate_json(run_dir.spec.read_text())
    ranks = Ranks(rank=0, world_size=1, local_rank=0, launch="here", address="")
    number = claim(run_dir, Attempt(number=0, claimant="c"))
    slurm = Slurm(job_id="7_0", restart_count=0, token="t", signal_delay_s=30)
    run = Run(run_dir=run_dir, frozen=frozen, attempt=number, ranks=ranks, flag=Flag(), slurm=slurm)
    monkeypatch.setattr(eviction, "settle", lambda *_, **__: time.sleep(0.2) or Verdict.REQUEUE)
    run.restore_point()
    assert run.journal is not None
    run.journal.metrics(3, {"count/value": 1.0})
    run.checkpoint(3, lambda folder: None)
    with pytest.raises(Left) as left:
        run.leave(3)
    assert entry.conclude_left(run, left.value) is ExitCode.DONE
    saved, gone = read_journal(run_dir.journals).attempts[0].entries[-2:]
    assert (saved.event, gone.event, gone.step) == (CHECKPOINT, LEFT, 3)
    assert gone.detail["waited"] >= saved.detail["waited"] + 0.2
    assert gone.time_ms >= saved.time_ms + 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_that_a_signal_outside_slurm_is_a_checkpoint_and_a_stop(number: int, tmp_path: Path) -> None:
    run_dir = count_run(tmp_path, steps=60, step_s=0.05)
    process = started(run_dir)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.STOPPED
    stopped = outcome_of(run_dir)
    assert (stopped.status, stopped.cause) == (Status.STOPPED, None)
    assert 4 <= stopped.step < 60
    assert (run_dir.checkpoints / f"step-{stopped.step:010d}").is_dir()
    run_dir.spec.write_text(run_dir.spec.read_text().replace('"step_s": 0.05', '"step_s": 0.0'))
    assert code_of(run_dir) == ExitCode.DONE
    assert read_journal(run_dir.journals).attempts[1].restored_step == stopped.step
    assert_counted(run_dir, 60)


def test_that_a_killed_run_has_no_outcome_and_goes_on(tmp_path: Path) -> None:
    run_dir = count_run(tmp_path, steps=60, step_s=0.05)
    process = started(run_dir)
    process.kill()
    process.communicate(timeout=30)
    assert not run_dir.outcome.exists()
    run_dir.spec.write_text(run_dir.spec.read_text().replace('"step_s": 0.05', '"step_s": 0.0'))
    assert code_of(run_dir) == ExitCode.DONE
    assert_counted(run_dir, 60)


def test_that_a_run_goes_on_from_its_newest_checkpoint_on_a_node_with_an_old_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has last looked when attempt 1 had just begun: it lists neither attempt 2 nor what was saved since."""
    run_dir = count_run(tmp_path, steps=60, step_s=0.05)
    for begun in (8, 24):
        process = python_m_jobs(run_dir)
        until(lambda at_least=begun: list(run_dir.checkpoints.glob(f"step-*{at_least}")))
        process.kill()
        process.communicate(timeout=30)
    newest = max(int(path.name.removeprefix("step-")) for path in run_dir.checkpoints.glob("step-*"))
    monkeypatch.setattr(os, "listdir", lambda path: ["step-0000000004", "0001.json", "0001.jsonl"])
    frozen = FrozenRun.model_validate_json(run_dir.spec.read_text())
    ranks = Ranks(rank=0, world_size=1, local_rank=0, launch="here", address="")
    attempt = claim(run_dir, Attempt(number=0, claimant="third"))
    assert attempt.number == 3
    run = Run(run_dir=run_dir, frozen=frozen, attempt=attempt, ranks=ranks, flag=Flag(), slurm=None)
    found = run.restore_point()
    assert found is not None
    assert found.step == newest >= 24


def test_that_a_failure_says_why_and_a_new_attempt_takes_it_back(tmp_path: Path) -> None:
    run_dir = count_run(tmp_path, fail_at=6)
    assert code_of(run_dir) == ExitCode.FAILED
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.cause) == (Status.FAILED, Cause.EXCEPTION)
    assert outcome.reason == "ValueError: the configuration asks to fail at step 6"
    assert re.fullmatch(r"jobs/count\.py:\d+", outcome.place)
    count_run(tmp_path)
    assert code_of(run_dir) == ExitCode.DONE
    assert outcome_of(run_dir).attempt == 2
    assert_counted(run_dir, 10)


@pytest.mark.parametrize(
    ("needed", "reason"),
    [
        (None, "run first has no outcome"),
        (Outcome(status=Status.FAILED, attempt=1, reason="odd"), "run first ended as failed: odd"),
        (Outcome(status=Status.DONE, attempt=1, files={"output/x": 3}), "run first lacks output/x"),
    ],
)
def test_that_a_run_whose_needs_are_not_met_is_blocked(needed: Outcome | None, reason: str, tmp_path: Path) -> None:
    run_dir = count_run(tmp_path, needs={"count": "first"})
    first = RunDir(tmp_path / "first")
    first.path.mkdir()
    if needed:
        write_outcome(first, needed)
    assert code_of(run_dir) == ExitCode.BLOCKED
    assert (outcome_of(run_dir).status, outcome_of(run_dir).reason) == (Status.BLOCKED, reason)
    assert not run_dir.journals.exists()
    write_outcome(first, Outcome(status=Status.DONE, attempt=1))
    assert code_of(run_dir) == ExitCode.DONE


def test_that_a_cancel_mark_ends_a_run_before_and_during(tmp_path: Path) -> None:
    run_dir = count_run(tmp_path, steps=60, step_s=0.05)
    process = started(run_dir)
    run_dir.cancel_mark.touch()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.DONE
    assert outcome_of(run_dir).status is Status.CANCELLED
    assert outcome_of(run_dir).step >= 4
    assert code_of(run_dir) == ExitCode.DONE
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.reason) == (Status.CANCELLED, "cancelled before it started")


def test_that_attempts_without_progress_are_limited_per_submission(tmp_path: Path) -> None:
    run_dir = count_run(tmp_path, fail_at=2, runtime={"max_attempts_without_progress": 2})
    assert [code_of(run_dir, ORCH_TOKEN="a") for _ in range(3)] == [ExitCode.FAILED] * 3
    outcome = outcome_of(run_dir)
    assert (outcome.cause, outcome.reason) == (Cause.NO_PROGRESS, "2 attempts in a row ended without a new checkpoint")
    assert code_of(run_dir, ORCH_TOKEN="b") == ExitCode.FAILED
    assert outcome_of(run_dir).cause is Cause.EXCEPTION


def test_that_a_superseded_attempt_ends_quietly_and_commits_nothing(tmp_path: Path) -> None:
    run_dir = count_run(tmp_path, steps=100, step_s=0.05)
    process = started(run_dir)
    claim(run_dir, Attempt(number=0, claimant="newer"))
    process.communicate(timeout=30)
    assert process.returncode == ExitCode.DONE
    assert not run_dir.outcome.exists()
    assert not run_dir.output.exists()


def frozen_code(run_dir: RunDir) -> Path:
    """A snapshot of the code, linked from the run directory as submit does."""
    snapshot = run_dir.path.parent / "abc"
    for package in ("jobs", "models"):
        shutil.copytree(REPOSITORY / package, snapshot / package, ignore=shutil.ignore_patterns("__pycache__"))
    run_dir.code.symlink_to(snapshot)
    spec = json.loads(run_dir.spec.read_text()) | {"code_tree": "abc"}
    run_dir.spec.write_text(json.dumps(spec))
    return snapshot


def test_that_foreign_code_is_refused(tmp_path: Path) -> None:
    run_dir = count_run(tmp_path)
    snapshot = frozen_code(run_dir)
    assert code_of(run_dir) == ExitCode.REFUSED
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.cause) == (Status.FAILED, Cause.REFUSED)
    assert outcome.reason.startswith(f"jobs from {REPOSITORY / 'jobs'}")
    assert code_of(run_dir, PYTHONPATH=str(snapshot)) == ExitCode.DONE
    shutil.rmtree(snapshot / "models")  # a package that is missing falls through to wherever it is installed
    assert code_of(run_dir, PYTHONPATH=str(snapshot)) == ExitCode.REFUSED
    assert outcome_of(run_dir).status is Status.DONE  # what is done stays done


def test_that_a_run_refuses_code_of_another_tree(tmp_path: Path) -> None:
    """An `orch` that died while it pointed the run at newer code left the link and the spec apart."""
    run_dir = count_run(tmp_path)
    snapshot = frozen_code(run_dir)
    spec = json.loads(run_dir.spec.read_text()) | {"code_tree": "other"}
    run_dir.spec.write_text(json.dumps(spec))
    assert code_of(run_dir, PYTHONPATH=str(snapshot)) == ExitCode.REFUSED
    assert "frozen with other" in outcome_of(run_dir).reason


@pytest.mark.parametrize("spec", [None, "", "{}", '{"id": "x", "config": {"kind": "unheard"}}'])
def test_that_a_bad_spec_is_refused(spec: str | None, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "counted")
    run_dir.path.mkdir()
    if spec is not None:
        run_dir.spec.write_text(spec)
    assert code_of(run_dir) == ExitCode.REFUSED
    assert outcome_of(run_dir).cause is Cause.REFUSED


def test_that_signals_from_the_first_instant_are_no_death(tmp_path: Path) -> None:
    """With the mask that the srun line sets (`env --block-signal`), a signal before Python runs is kept for the job."""
    run_dir = count_run(tmp_path, steps=3000, step_s=0.01)
    command = ["env", "--block-signal=USR2,TERM", sys.executable, "-m", "jobs", str(run_dir.path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    until(lambda: "SigBlk" in Path(f"/proc/{process.pid}/status").read_text() and blocked(process.pid))
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.STOPPED
    assert outcome_of(run_dir).status is Status.STOPPED


def blocked(pid: int) -> bool:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    return bool(int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)))


@pytest.mark.parametrize("kind", ["count", "prepare"])
def test_that_counting_and_preparing_load_no_torch(kind: str, tmp_path: Path) -> None:
    program = (
        "import sys; from jobs.__main__ import main, job_function; job_function(sys.argv[1]);"
        "print(*[name for name in ('torch', 'mlflow', 'hydra') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=os.environ)
    assert done.stdout.split() == []
