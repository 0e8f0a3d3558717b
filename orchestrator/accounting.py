"""Reads from run directories what runs have used, and keeps it in the store. Judges nothing: `goodput.py` does.

Killed before the record: the run is still marked as to be read, and the next look reads it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from jobs.times import read_times
from orchestrator.goodput import Usage, usage_of
from orchestrator.lifecycle import RunState
from orchestrator.records import RunRecord
from orchestrator.resources import demand
from orchestrator.store import usages
from orchestrator.store.runs import Store
from orchestrator.store.schema import transaction
from orchestrator.workspace import Root

AT_ONCE = 500
"""Runs that one look reads at most, of those that stopped running; a store of an earlier version has all of them to read."""


def read_usage(root: Root, store: Store, record: RunRecord) -> Usage:
    """What one run has used until now: the head and the end of each attempt's journal, and its submissions."""
    submitted_ms = [round(1000 * one.at) for one in store.events_of(record.id) if one.what == RunState.SUBMITTING.value]
    try:
        gpus = demand(record.resources).gpus
    except (ValueError, TypeError):  # of an archive: nothing was ever submitted with it here
        gpus = 0
    times = read_times(root.run_dir(record.id))
    return usage_of(times, submitted_ms, with_gpus=gpus > 0, runs_per_gpu=record.runs_per_task)


def renew(root: Root, store: Store, runs: Iterable[str]) -> None:
    """Read these runs and record what they have used."""
    records = store.runs(runs)
    if records:
        found = {run: read_usage(root, store, record) for run, record in records.items()}
        with transaction(store.connection):
            usages.put(store.connection, found, records, at=time.time())


def renew_stopped(root: Root, store: Store) -> None:
    """Of runs that stopped running since they were last read; `AT_ONCE` at most."""
    renew(root, store, usages.stale(store.connection, limit=AT_ONCE))
