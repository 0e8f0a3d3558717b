"""From the store and the run directories to the tracker: gathers facts and sweep records, ships them under the root lock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.contract import read_attempts, read_outcome
from jobs.journal import announced_steps, last_entry
from orchestrator import accounting
from orchestrator.errors import TrackerError
from orchestrator.goodput import Usage
from orchestrator.lifecycle import RunState
from orchestrator.records import RunRecord
from orchestrator.store import usages
from orchestrator.store.cursors import StoredCursors
from orchestrator.store.runs import Store
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import parse_sweep
from orchestrator.tracking.record import AttemptFacts, RunFacts, SweepRecord, sweep_record
from orchestrator.tracking.shipper import ShipReport, ship
from orchestrator.workspace import Root


def _spec(root: Root, run: str) -> dict[str, Any]:
    try:
        raw = json.loads(root.run_dir(run).spec.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def run_facts(root: Root, record: RunRecord, usage: Usage | None) -> RunFacts:
    """What the tracker is told about one run; `usage`: as the store has it."""
    run_dir, spec = root.run_dir(record.id), _spec(root, record.id)
    outcome = read_outcome(run_dir)
    progress = None
    if record.state is RunState.RUNNING and (steps := record.steps or announced_steps(run_dir.journals)):
        entry = last_entry(run_dir.journals)
        progress = None if entry is None else min(1.0, entry.step / steps)
    return RunFacts(
        run_id=record.id,
        kind=record.kind,
        state=record.state,
        run_dir=run_dir.path,
        reason=record.reason,
        config=spec.get("config", {}),
        needs=record.needs,
        code_tree=str(spec.get("code_tree", "")),
        code_commit=str(spec.get("code_commit", "")),
        code_dirty=bool(spec.get("code_dirty", False)),
        environment=str(spec.get("environment", "")),
        attempts=tuple(
            AttemptFacts(job_id=one.job_id, restart_count=one.restart_count, node=one.node) for one in read_attempts(run_dir)
        ),
        progress=progress,
        steps=record.steps or None,
        ended_at=outcome.finished_at if outcome is not None else None,
        usage=usage,
    )


def gather_sweep(store: Store, name: str, facts: Mapping[str, RunFacts]) -> SweepRecord | None:
    """The record of a submitted sweep from its definition and the runs that serve its cells; None when it is unknown."""
    row = store.sweep_row(name)
    if row is None:
        return None
    sweep = parse_sweep(row["definition"], row["path"])
    cells = expand(sweep)
    runs = {json.dumps(dict(cell.coordinates)): cell.runs for cell in store.cells(name)}
    cell_runs = [runs.get(json.dumps(dict(cell.coordinates)), {}) for cell in cells]
    return sweep_record(sweep, cells, cell_runs, facts, comment=row["comment"])


def ship_sweeps(root: Root, store: Store, tracking_uri: str, names: Iterable[str], *, timeout_s: int = 10) -> ShipReport:
    """Ship the runs of some sweeps and renew the sweeps' records; raises TrackerError. The caller holds the root lock."""
    chosen = list(names)
    records: dict[str, RunRecord] = {}
    for name in chosen:
        records |= store.of_sweep(name)
    accounting.renew(root, store, usages.unread(store.connection, records))
    used = usages.of(store.connection, records)
    facts = {run: run_facts(root, record, used.get(run)) for run, record in records.items()}
    sweeps = [found for name in chosen if (found := gather_sweep(store, name, facts)) is not None]
    return ship(tracking_uri, root.path, facts.values(), StoredCursors(store.connection), sweeps, timeout_s=timeout_s)


def try_to_ship(root: Root, store: Store, tracking_uri: str, names: Iterable[str]) -> str:
    """Ship if the tracker answers; otherwise why it did not, in one line. No point is lost: the journals keep them."""
    try:
        ship_sweeps(root, store, tracking_uri, names)
    except TrackerError as error:
        return str(error.problems[0].what)
    return ""
