"""The same protocol on this machine: planned runs as processes, needs first, as many at once as fit. No Slurm.

Ctrl-C asks every process to checkpoint and stop (SIGTERM); `orch resume` goes on. A second Ctrl-C kills them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobs.contract import Status, read_outcome
from jobs.journal import announced_steps, last_entry
from orchestrator.apply import newest_attempt
from orchestrator.batches import waits_for
from orchestrator.decide import outcome_reason, state_of
from orchestrator.lifecycle import RunState
from orchestrator.local_process import local_job
from orchestrator.records import RunRecord
from orchestrator.slurm.submit import clean_environment
from orchestrator.store.runs import Change, Store
from orchestrator.workspace import Root

KEPT = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one running process has reached."""

    run: str
    kind: str
    step: int
    steps: int
    loss: float | None
    elapsed_s: float


@dataclass(kw_only=True)
class _Process:
    record: RunRecord
    popen: subprocess.Popen[bytes]
    started: float
    after_attempt: int


@contextmanager
def _notice_blocked() -> Iterator[None]:
    """Block SIGTERM for a child's first instructions (it inherits the mask): before it listens, the signal would kill it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_parallel() -> int:
    """How many runs at once: one on a machine with a GPU, else as many as there are cores for us."""
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            listed = None
        if listed is not None and listed.returncode == 0 and "GPU" in listed.stdout:
            return 1
    return len(os.sched_getaffinity(0))


@dataclass(kw_only=True)
class LocalRunner:
    """Runs planned runs to their end, or to the first Ctrl-C."""

    root: Root
    store: Store
    parallel: int
    report: Callable[[Sequence[Progress], int, int], None] = lambda running, ended, total: None
    """Told about twice a second: running processes, runs ended, runs in all."""
    poll_s: float = 0.1
    _running: dict[str, _Process] = field(default_factory=dict)
    _stopping: int = 0

    def run(self, ids: Sequence[str]) -> dict[str, RunRecord]:
        """Execute the planned runs among `ids`; their records afterwards."""
        wanted, token = list(ids), f"local-{secrets.token_hex(6)}"
        previous = signal.signal(signal.SIGINT, self._interrupt)
        previous_term = signal.signal(signal.SIGTERM, self._interrupt)
        reported = 0.0
        try:
            changed = True
            while True:
                if changed:
                    records = self.store.runs()
                waiting = [run for run in wanted if records[run].state is RunState.PLANNED]
                if changed and not self._stopping:
                    self._start_ready(waiting, records, token)
                if not self._running:
                    break
                changed = self._reap()
                if time.monotonic() - reported > 0.5:
                    reported = time.monotonic()
                    over = sum(1 for run in wanted if run not in self._running and run not in waiting)
                    self.report(self._progress(), over, len(wanted))
                time.sleep(self.poll_s)
        finally:
            signal.signal(signal.SIGINT, previous)
            signal.signal(signal.SIGTERM, previous_term)
            for process in self._running.values():  # only after an error of ours
                process.popen.kill()
                process.popen.wait()
        return self.store.runs(wanted)

    def _start_ready(self, waiting: Sequence[str], records: Mapping[str, RunRecord], token: str) -> None:
        for run in waiting:
            if len(self._running) >= self.parallel:
                return
            record = records[run]
            reason = waits_for(record, records)
            if reason and reason != record.reason:
                self.store.apply([Change(run=run, state=RunState.PLANNED, reason=reason)], now=time.time())
            if all(records[need].state is RunState.DONE for need in record.needs.values() if need in records):
                self._start(record, token)

    def _start(self, record: RunRecord, token: str) -> None:
        run_dir = self.root.run_dir(record.id)
        run_dir.cancel_mark.unlink(missing_ok=True)
        after = newest_attempt(self.root, record.id)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment = clean_environment(os.environ) | kept
        environment |= {
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": str(run_dir.code.absolute()),
            "PYTHONUNBUFFERED": "1",
            "ORCH_TOKEN": token,
        }
        run_dir.logs.mkdir(exist_ok=True)
        with open(run_dir.logs / f"local.{after + 1:04d}.log", "ab") as log, _notice_blocked():
            popen = subprocess.Popen(
                [sys.executable, "-m", "jobs", str(run_dir.path.absolute())],
                cwd=run_dir.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.store.apply(
            [Change(run=record.id, state=RunState.RUNNING, job=local_job(popen.pid), token=token, after_attempt=after)],
            now=time.time(),
        )
        self._running[record.id] = _Process(record=record, popen=popen, started=time.monotonic(), after_attempt=after)
        if self._stopping:  # Ctrl-C came while it was being started
            popen.send_signal(signal.SIGTERM)

    def _reap(self) -> bool:
        """Record the processes that have ended; whether there were any."""
        ended: list[Change] = []
        for run, process in list(self._running.items()):
            code = process.popen.poll()
            if code is None:
                continue
            del self._running[run]
            outcome = read_outcome(self.root.run_dir(run))
            if outcome is not None and (outcome.attempt > process.after_attempt or code == 0):
                blocked = outcome.status is Status.BLOCKED  # its needs are done by our records: trying again would not help
                state = RunState.FAILED if blocked else state_of(outcome)
                ended.append(Change(run=run, state=state, reason=outcome_reason(outcome)))
            else:
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                ended.append(Change(run=run, state=RunState.LOST, reason=f"its process ended with {how} and no outcome"))
        now = self.store.runs([change.run for change in ended])
        ended = [change for change in ended if now[change.run].state is RunState.RUNNING]  # `orch status` may have been faster
        self.store.apply(ended, now=time.time())
        return bool(ended)

    def _progress(self) -> list[Progress]:
        found: list[Progress] = []
        for run, process in self._running.items():
            journals = self.root.run_dir(run).journals
            entry = last_entry(journals)
            loss = None if entry is None else entry.metrics.get("train/loss")
            found.append(
                Progress(
                    run=run,
                    kind=process.record.kind,
                    step=0 if entry is None else entry.step,
                    steps=process.record.steps or announced_steps(journals),
                    loss=loss,
                    elapsed_s=time.monotonic() - process.started,
                )
            )
        return found

    def _interrupt(self, _number: int, _frame: object) -> None:
        self._stopping += 1
        for process in self._running.values():
            process.popen.send_signal(signal.SIGTERM if self._stopping == 1 else signal.SIGKILL)
