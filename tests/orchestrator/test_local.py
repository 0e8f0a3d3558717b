"""Local mode with the counting job: the same store, run directories, journals and resume, without Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from jobs.contract import read_attempts, read_outcome
from jobs.count import next_value
from jobs.journal import last_entry, read_journal
from orchestrator import tick
from orchestrator.lifecycle import RunState
from orchestrator.local import LocalRunner, Progress
from orchestrator.local_process import alive, local_job, terminate
from orchestrator.store.runs import Change, Store
from orchestrator.submission import freeze, make_plan
from orchestrator.workspace import Root
from tests.orchestrator.stub import Command

Sweep = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.find_slurm", lambda: None)


def frozen(root: Root, store: Store, sweep: Path) -> list[str]:
    return list(freeze(make_plan(sweep, store), root, store, comment="", partial=False).new)


def runner(root: Root, store: Store, **values: object) -> LocalRunner:
    return LocalRunner(root=root, store=store, **({"parallel": 2, "poll_s": 0.02} | values))  # type: ignore[arg-type]


def value_after(seed: int, steps: int) -> int:
    value = 0
    for step in range(1, steps + 1):
        value = next_value(value, seed, step)
    return value


def counted(root: Root, run: str) -> tuple[int, int]:
    found = json.loads((root.run_dir(run).output / "value.json").read_text())
    return found["step"], found["value"]


def wait_for(fact: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# --- a sweep here ----------------------------------------------------------------------------------------------------


def test_that_a_sweep_runs_here_to_its_end_and_then_there_is_nothing_to_do(
    orch: Command, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "3")  # as inside an interactive job: none of it is the run's business
    assert "2 of 2 runs done" in orch("submit", count_sweep(seeds=[0, 1], steps=5), "--local").out
    runs = orch.runs()
    assert {run["state"] for run in runs.values()} == {"done"}
    root = Root(orch.root)
    assert sorted(counted(root, run) for run in runs) == sorted((5, value_after(seed, 5)) for seed in (0, 1))
    for run in runs:
        (attempt,) = read_attempts(root.run_dir(run))
        assert attempt.job_id == ""
        assert attempt.token.startswith("local-")
        assert (root.run_dir(run).logs / "local.0001.log").exists()
    assert "nothing to do: all 2 runs are done" in orch("submit", count_sweep(seeds=[0, 1], steps=5), "--local").out


def test_that_a_failure_is_exit_4_and_whoever_needs_it_waits_with_a_reason(orch: Command, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "base: [steps=3]\naxes: {seed: {key: seed, values: [0]}}\n"
        "pipeline: {first: {job: count, set: [fail_at=2]}, second: {job: count, needs: [first]}}\n"
        "table: {rows: seed, value: {metric: count/value, step: second, digits: 0}}\n"
    )
    said = orch("submit", path, "--local", expect=4).err
    assert "asks to fail at step 2" in said
    assert "orch resume" in said
    first, second = orch.runs().values()
    assert first["state"] == "failed"
    assert (second["state"], second["reason"]) == ("planned", f"waits for {first['id']} (failed): `orch resume {first['id']}`")
    assert not read_attempts(Root(orch.root).run_dir(second["id"]))


def test_that_needs_run_first(orch: Command, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "base: [steps=3]\naxes: {seed: {key: seed, values: [0]}}\n"
        "pipeline: {first: {job: count}, second: {job: count, needs: [first], set: [label=second]}}\n"
        "table: {rows: seed, value: {metric: count/value, step: second, digits: 0}}\n"
    )
    orch("submit", path, "--local", "--parallel", "2")
    started = [read_attempts(Root(orch.root).run_dir(run))[0].started_at for run in orch.runs()]
    ended = [read_outcome(Root(orch.root).run_dir(run)).finished_at for run in orch.runs()]  # type: ignore[union-attr]
    assert ended[0] <= started[1]


# --- stopping and going on -------------------------------------------------------------------------------------------


def test_that_ctrl_c_checkpoints_and_resume_goes_on_exactly(orch: Command, count_sweep: Sweep) -> None:
    sweep = count_sweep(seeds=[0], steps=60, step_s=0.03)
    environment = os.environ | {
        "ORCH_ROOT": str(orch.root),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    script = (
        "from orchestrator import shipping; shipping.try_to_ship = lambda *_: ''\nfrom orchestrator.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "submit", str(sweep), "--local"], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    root = Root(orch.root)
    try:
        wait_for(lambda: root.runs.is_dir() and any(root.runs.iterdir()), "no run directory")
        run = next(root.runs.iterdir()).name
        wait_for(lambda: (last_entry(root.run_dir(run).journals) or 0) != 0, "no step")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "`orch resume counting --local` goes on" in err
    stopped_at = read_outcome(root.run_dir(run)).step  # type: ignore[union-attr]
    assert 0 < stopped_at < 60
    assert orch.runs()[run]["state"] == "stopped"
    orch("resume", "counting", "--local")
    assert counted(root, run) == (60, value_after(0, 60))
    journals = read_journal(root.run_dir(run).journals)
    assert [one.restored_step for one in journals.attempts] == [0, stopped_at]
    assert [entry.step for entry in journals.counting() if entry.metrics] == list(range(1, 61))


def test_that_ctrl_c_while_a_run_is_being_started_stops_it_too(
    root: Root, store: Store, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: the process exists, does not listen yet, and is not in our list of processes."""
    (run,) = frozen(root, store, count_sweep(seeds=[0], steps=10_000, step_s=0.05))
    record = store.apply

    def interrupted(changes: Sequence[Change], *, now: float) -> None:
        record(changes, now=now)
        if any(change.state is RunState.RUNNING for change in changes):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(store, "apply", interrupted)
    after = runner(root, store).run([run])
    assert (after[run].state, after[run].reason) == (
        RunState.STOPPED, "stopped by a signal after a checkpoint; resumable",
    )  # fmt: skip


def test_that_a_killed_process_is_lost_and_can_be_resumed(root: Root, store: Store, count_sweep: Sweep) -> None:
    (run,) = frozen(root, store, count_sweep(seeds=[0], steps=10_000, step_s=0.05))
    killed: list[int] = []

    def kill(running: Sequence[Progress], ended: int, total: int) -> None:
        attempts = read_attempts(root.run_dir(run))
        if attempts and not killed:
            killed.append(attempts[0].pid)
            os.kill(attempts[0].pid, signal.SIGKILL)

    after = runner(root, store, report=kill).run([run])
    assert (after[run].state, after[run].reason) == (RunState.LOST, "its process ended with signal 9 and no outcome")
    tick.look(root, store, None)
    assert store.runs()[run].reason == "its process ended with signal 9 and no outcome"


def test_that_a_crash_of_orch_leaves_no_process_behind(root: Root, store: Store, count_sweep: Sweep) -> None:
    (run,) = frozen(root, store, count_sweep(seeds=[0], steps=10_000, step_s=0.05))

    class Crash(BaseException):
        pass

    def crash(running: Sequence[Progress], ended: int, total: int) -> None:
        if read_attempts(root.run_dir(run)):
            raise Crash

    with pytest.raises(Crash):
        runner(root, store, report=crash).run([run])
    assert alive(store.runs()[run].job) is False
    tick.look(root, store, None, now=1e9)
    assert store.runs()[run].state is RunState.RUNNING
    tick.look(root, store, None, now=2e9)
    assert store.runs()[run].state is RunState.LOST


def test_that_a_run_whose_orch_was_killed_goes_on_and_its_outcome_is_found(root: Root, store: Store, count_sweep: Sweep) -> None:
    (run,) = frozen(root, store, count_sweep(seeds=[0], steps=3))
    run_dir = root.run_dir(run)
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(run_dir.code)}
    process = subprocess.Popen([sys.executable, "-m", "jobs", str(run_dir.path)], cwd=run_dir.path, env=environment)
    store.apply([Change(run=run, state=RunState.RUNNING, job=local_job(process.pid), token="local-x")], now=time.time())
    tick.look(root, store, None)
    assert process.wait(timeout=60) == 0
    tick.look(root, store, None)
    assert store.runs()[run].state is RunState.DONE


# --- how many at once ------------------------------------------------------------------------------------------------


def test_that_no_more_runs_than_asked_for_run_at_once(root: Root, store: Store, count_sweep: Sweep) -> None:
    runs = frozen(root, store, count_sweep(seeds=[0, 1, 2], steps=3))
    most: list[int] = []
    started = store.apply
    running: set[str] = set()

    def watch(changes: Sequence[Change], *, now: float) -> None:
        started(changes, now=now)
        for change in changes:
            (running.add if change.state is RunState.RUNNING else running.discard)(change.run)
        most.append(len(running))

    store.apply = watch  # type: ignore[method-assign]
    after = runner(root, store, parallel=1).run(runs)
    assert max(most) == 1
    assert {record.state for record in after.values()} == {RunState.DONE}


# --- processes by name -----------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_that_a_process_is_found_by_its_job_name_on_this_machine_only(sleeper: subprocess.Popen[bytes]) -> None:
    job = local_job(sleeper.pid)
    assert alive(job) is True
    assert alive(f"local:elsewhere:{sleeper.pid}:1") is None
    assert alive("local:broken") is None
    terminate(f"local:elsewhere:{sleeper.pid}:1")
    assert sleeper.poll() is None
    terminate(job)
    assert sleeper.wait(timeout=10) == -signal.SIGTERM
    assert alive(job) is False
    terminate(job)
