"""What the control plane remembers about shipping: the protocol of the cursors, and marks of unchanged runs.

Cursors belong to the control plane's store. Marks are a cache in ROOT/tracker_marks.json: losing it costs time only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from jobs.contract import RunDir, write_atomically
from orchestrator.tracking.address import shown
from orchestrator.tracking.record import RunFacts, SweepRecord

MARKS = "tracker_marks.json"


class Cursor(NamedTuple):
    """How far one run was shipped."""

    tracker_run: str | None
    """The tracker's id of the run; None before it has one."""
    step: int
    """Everything below this step is in the tracker; -1 when nothing is."""


class Cursors(Protocol):
    """Where the cursors live. Every method is durable when it returns."""

    def get(self, run_id: str) -> Cursor:
        """The cursor of a run; `Cursor(None, -1)` for a run that was never shipped."""

    def set_run(self, run_id: str, tracker_run: str) -> None:
        """Bind a run to the tracker's id of it, and put its cursor back to -1."""

    def advance(self, run_id: str, step: int) -> None:
        """Move the cursor of a bound run."""


@dataclass(kw_only=True)
class Marks:
    """Fingerprints of runs and records as they were when they were last shipped whole to this tracker."""

    tracking_uri: str
    runs: dict[str, str] = field(default_factory=dict)
    sweeps: dict[str, str] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def load(cls, root: Path, tracking_uri: str) -> Marks:
        """Read the cache; empty when there is none, it cannot be read, or it is about another tracker."""
        try:
            raw = json.loads((root / MARKS).read_text(encoding="utf-8"))
            if raw["tracking_uri"] == shown(tracking_uri):
                return cls(tracking_uri=tracking_uri, runs=dict(raw["runs"]), sweeps=dict(raw["sweeps"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # a cache: without it every run is looked at once more
        return cls(tracking_uri=tracking_uri)

    def save(self, root: Path) -> None:
        """Write the cache if it changed (atomic)."""
        if not self.changed:
            return
        content = {"tracking_uri": shown(self.tracking_uri), "runs": self.runs, "sweeps": self.sweeps}
        write_atomically(root / MARKS, json.dumps(content))


def files_below(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Files below a directory as (relative path, stat), sorted; hidden files, still being written, are left out."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            for inner, found in files_below(directory / entry.name):
                yield f"{entry.name}/{inner}", found
            continue
        try:
            yield entry.name, entry.stat()
        except FileNotFoundError:
            continue  # removed since the listing


def run_mark(facts: RunFacts) -> str:
    """Changes whenever there may be something to ship: new facts, a grown journal, a new artifact."""
    place = RunDir(facts.run_dir)
    sizes = [
        (name, stat.st_size, stat.st_mtime_ns)
        for folder in (place.journals, place.artifacts)
        for name, stat in files_below(folder)
    ]
    told = [
        facts.state.value,
        facts.reason,
        facts.attempts,
        facts.code_tree,
        facts.environment,
        facts.ended_at,
        dict(facts.config),
    ]
    return hashlib.sha256(repr((told, sizes)).encode()).hexdigest()[:24]


def sweep_mark(record: SweepRecord) -> str:
    """Changes with anything in the record."""
    return hashlib.sha256(record.to_json().encode()).hexdigest()[:24]
