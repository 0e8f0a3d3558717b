"""Reads what the disk and the event log say of runs that ended without finishing; passes verdicts. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.contract import RunDir, read_attempts, read_outcome
from jobs.journal import CHECKPOINT, END
from orchestrator.causes import SLURM, AttemptSeen, Ended, diagnose, read_slurm_line
from orchestrator.lifecycle import RESUMABLE, RunState
from orchestrator.local_process import LOCAL_JOB
from orchestrator.policy import Policy
from orchestrator.records import RunRecord
from orchestrator.retry import Retry, Verdict, judge, ledger, sweep_killer
from orchestrator.store.events import Event
from orchestrator.store.runs import Store
from orchestrator.workspace import Root

LOG_LINES = 40
"""Of each rank's log."""
LOGS = 8
"""At most so many ranks' logs are read: those written last."""

Cache = dict[str, tuple[tuple[float, str], Ended, list[Retry]]]
"""run -> (what its record was then, facts, ledger): an ended run is read once, however long somebody watches it."""


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file (of its last 64 KiB)."""
    with open(path, "rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - 65536))
        return handle.read().decode("utf-8", "replace").splitlines()[-lines:]


def _log_end(run_dir: RunDir, job: str) -> list[str]:
    """The last lines of a job's logs, the log written last at the end; empty when there is none."""
    pattern = "local.*.log" if job.startswith(LOCAL_JOB) else f"{job}.*.log"
    try:
        files = sorted(run_dir.logs.glob(pattern), key=lambda path: path.stat().st_mtime) if job else []
        return [line for path in files[-LOGS:] for line in tail(path, LOG_LINES)]
    except OSError:
        return []


def _saved_step(journal: Path) -> int | None:
    """The newest step that an attempt's journal says was saved; None when none was."""
    saved: int | None = None
    try:
        with open(journal, "rb") as lines:
            for line in lines:
                if (b'"checkpoint"' not in line and b'"end"' not in line) or not line.endswith(b"\n"):
                    continue
                entry = json.loads(line)
                if entry.get("e") in (CHECKPOINT, END):
                    saved = max(int(entry["s"]), saved or 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # what was read so far counts
    return saved


def _attempts(run_dir: RunDir) -> list[AttemptSeen]:
    return [
        AttemptSeen(
            number=one.number,
            saved_step=_saved_step(run_dir.journals / f"{one.number:04d}.jsonl"),
            node=one.node,
            world_size=one.world_size,
        )
        for one in read_attempts(run_dir)
    ]


def gather(root: Root, record: RunRecord, events: Iterable[Event]) -> Ended:
    """Everything that is known of how a run's last submission ended."""
    run_dir = root.run_dir(record.id)
    last_slurm = ""
    for event in events:
        if event.what == SLURM:
            last_slurm = event.detail
        elif event.what == RunState.SUBMITTING.value:
            last_slurm = ""
    outcome = read_outcome(run_dir)
    local = record.job.startswith(LOCAL_JOB)
    return Ended(
        run=record.id,
        state=record.state,
        reason=record.reason,
        local=local,
        cancel_mark=run_dir.cancel_mark.exists(),
        slurm=read_slurm_line(last_slurm) if last_slurm and not local else None,
        outcome=outcome if outcome is not None and outcome.attempt > record.after_attempt else None,
        log=_log_end(run_dir, record.job),
        attempts=_attempts(run_dir),
        after_attempt=record.after_attempt,
    )


def more_accumulation(root: Root, ended: Ended) -> int | None:
    """Twice a training run's accumulation; None when its ranks' batches cannot be cut further. Every objective of a training
    run decomposes over micro-batches or pools the global batch, so the step stays the same up to reduction order."""
    try:
        spec: Mapping[str, Any] = json.loads(root.run_dir(ended.run).spec.read_text(encoding="utf-8"))
        config = spec["config"]
        if config["kind"] != "train":
            return None
        ranks = spec.get("planned_tasks") or (ended.attempts[-1].world_size if ended.attempts else 1)
        twice = 2 * int(config["runtime"]["accumulation"])
        return twice if twice * ranks <= int(config["batch_size"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verdicts(
    root: Root, store: Store, sweeps: Iterable[str], policy: Policy, *, now: float, cache: Cache | None = None
) -> tuple[dict[str, Verdict], dict[str, str]]:
    """(run -> verdict, sweep -> why it is stopped), for every run of these sweeps that ended without finishing."""
    known: Cache = {} if cache is None else cache
    members = {name: store.of_sweep(name) for name in sweeps}
    records = {run: record for runs in members.values() for run, record in runs.items() if record.state in RESUMABLE}
    for run, record in records.items():
        key = (record.updated_at, record.state.value)
        if run not in known or known[run][0] != key:
            events = store.events_of(run)
            facts = gather(root, record, events)
            known[run] = (key, facts, ledger((event.what, event.detail) for event in events))
    bugs = {run: diagnose(known[run][1]).bug for run in records}
    killers = {name: why for name, runs in members.items() if (why := sweep_killer(bugs, runs, policy))}
    found: dict[str, Verdict] = {}
    for run, record in records.items():
        _, ended, retries = known[run]
        mine = [name for name, runs in members.items() if run in runs]
        stopped = "; ".join(killers[name] for name in mine) if all(name in killers for name in mine) else ""
        more = more_accumulation(root, ended) if policy.halve_micro_batch else None
        found[run] = judge(ended, retries, policy, age_s=now - record.updated_at, more_accumulation=more, stopped=stopped)
    return found, killers
