"""Drives the real `orch` command against a private cluster and one root, and waits for facts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import RunDir, Status, read_outcome
from jobs.journal import Journal, read_journal
from tests.slurm.cluster import SlurmCluster, comes_true

FULL = os.environ.get("ORCH_FULL") == "1"
"""Also the longest tests, and all rows of those that else have fewer."""
COUNT = """
title: counting
base: [step_s={step_s}, steps={steps}, runtime.checkpoint_every_steps={every}, label={label}]
axes:
  seed: {{key: seed, values: {seeds}}}
pipeline:
  count: {{job: count}}
resources:
  count: {{partition: {partition}, timeout_min: {minutes}, signal_delay_s: {signal_delay}, cpus_per_task: 1}}
table:
  rows: seed
  value: {{metric: count/value, step: count, digits: 0}}
"""


def write_count_sweep(folder: Path, name: str, **values: Any) -> Path:
    """A sweep of counting runs; unnamed values take quiet defaults."""
    defaults = {"step_s": 0.1, "steps": 60, "every": 1000, "label": name, "seeds": [0], "partition": "low"}
    defaults |= {"minutes": 10, "signal_delay": 30}
    path = folder / f"{name}.yaml"
    path.write_text(COUNT.format(**(defaults | values)))
    return path


def processes_of(runs: Collection[str]) -> list[int]:
    """Every rank of these runs on this machine: `python -m jobs .../RUN`."""
    found: list[int] = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"jobs" in command and command[-2].decode().rpartition("/")[2] in runs:
            found.append(int(pid))
    return found


def signalled(pid: int, signum: signal.Signals) -> bool:
    """Send a signal; whether the process was there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
        return True
    return False


@dataclass(frozen=True, kw_only=True)
class Orch:
    """The command on one root."""

    cluster: SlurmCluster
    root: Path

    def __call__(self, *arguments: str | Path, expect: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Run `orch ARGUMENTS`; its stdout. Fails the test on another exit code or any traceback."""
        environment = os.environ | self.cluster.env | {"ORCH_ROOT": str(self.root)} | dict(env or {})
        done = subprocess.run(
            [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *map(str, arguments)],
            capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip
        words = f"orch {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, words
        assert done.returncode == expect, f"exit {done.returncode}, expected {expect}: {words}"
        return done.stdout

    def runs(self, *what: str) -> dict[str, dict[str, Any]]:
        """`orch status --json` by run id."""
        return {run["id"]: run for run in json.loads(self("status", *what, "--json"))}

    def only_run(self, *what: str) -> dict[str, Any]:
        """The one run of a sweep."""
        (run,) = self.runs(*what).values()
        return run

    def run_dir(self, run_id: str) -> RunDir:
        """Its directory."""
        return RunDir(self.root / "runs" / run_id)

    def step(self, run_id: str) -> int:
        """The last journalled step of a run (-1: none)."""
        entries = [entry.step for attempt in self.journal(run_id).attempts for entry in attempt.entries]
        return entries[-1] if entries else -1

    def journal(self, run_id: str) -> Journal:
        """All attempts of a run."""
        return read_journal(self.run_dir(run_id).journals)

    def wait_for_step(self, run_id: str, step: int, timeout_s: float = 60.0) -> None:
        """Until the run's journal has reached a step."""
        self.until(lambda: self.step(run_id) >= step, timeout_s, f"{run_id} did not reach step {step}")

    def has_stepped(self, run_id: str, attempt: int) -> bool:
        """Whether this attempt or a later one has made a step of its own; fails the test when the run has failed."""
        outcome = read_outcome(self.run_dir(run_id))
        assert outcome is None or outcome.status is not Status.FAILED, f"{run_id} failed: {outcome}"
        attempts = self.journal(run_id).attempts
        return bool(attempts) and attempts[-1].attempt >= attempt and bool(attempts[-1].entries)

    def wait_for_attempt(self, run_id: str, number: int, timeout_s: float = 90.0) -> None:
        """Until attempt `number` has made a step of its own."""
        self.until(lambda: self.has_stepped(run_id, number), timeout_s, f"{run_id} made no step in attempt {number}")

    @contextmanager
    def standing(self, run_id: str, attempt: int) -> Iterator[list[int]]:
        """From its first step of an attempt on the run stands still (SIGSTOP), so that it cannot end; its processes."""
        self.wait_for_attempt(run_id, attempt)
        found = [pid for pid in processes_of([run_id]) if signalled(pid, signal.SIGSTOP)]
        try:
            yield found
        finally:
            for pid in found:
                signalled(pid, signal.SIGCONT)

    def gather(self, runs: Collection[str], attempt: int, timeout_s: float = 300.0) -> None:
        """Until all of them are at work in an attempt. Who is there first stands still (SIGSTOP), or it could end too soon."""
        waiting, held = set(runs), list[int]()

        def arrived() -> bool:
            for run in [run for run in waiting if self.has_stepped(run, attempt)]:
                waiting.discard(run)
                held.extend(pid for pid in processes_of([run]) if signalled(pid, signal.SIGSTOP))
            return not waiting

        try:
            self.until(arrived, timeout_s, f"no step in attempt {attempt}", lambda: str(sorted(waiting)))
        finally:
            for pid in held:
                signalled(pid, signal.SIGCONT)

    def wait_for_state(self, what: str, states: Sequence[str], timeout_s: float = 90.0) -> dict[str, dict[str, Any]]:
        """Until every run of a sweep is in one of `states`, by `orch status`."""
        found: dict[str, dict[str, Any]] = {}

        def arrived() -> bool:
            found.clear()
            found.update(self.runs(what))
            return all(run["state"] in states for run in found.values())

        self.until(arrived, timeout_s, f"{what} did not reach {states}", lambda: json.dumps(found, indent=1))
        return found

    @staticmethod
    def until(fact: Callable[[], object], timeout_s: float, otherwise: str, detail: Callable[[], str] = lambda: "") -> None:
        """Poll for a fact; an AssertionError when it does not come true in time."""
        assert comes_true(fact, timeout_s, pause_s=0.2), f"{otherwise} within {timeout_s:.0f} s {detail()}"


def series(journal: Journal) -> list[tuple[int, str, float]]:
    """(step, metric, value) of every counting entry."""
    return [(entry.step, name, value) for entry in journal.counting() for name, value in entry.metrics.items()]
