"""Runs, submissions and cells in the store. Every method is one transaction, or says that it needs the caller's."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.lifecycle import ACTIVE, TERMINAL, RunState, check_transition
from orchestrator.records import CellRecord, KnownSweep, RunRecord, SubmissionRecord
from orchestrator.store import events, usages
from orchestrator.store.events import Event
from orchestrator.store.schema import open_store, transaction


@dataclass(frozen=True, kw_only=True)
class Change:
    """A new state of one run, with the fields that change along."""

    run: str
    state: RunState
    reason: str = ""
    job: str | None = None
    token: str | None = None
    after_attempt: int | None = None
    missing_since: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further events of the run, what -> detail: in the same transaction, ahead of the change."""


_UNANSWERED = (RunState.SUBMITTING.value, RunState.PLANNED.value)
"""States of a run whose submission has no recorded answer; planned: withdrawn too early."""
_RUNS = "SELECT runs.*, submissions.runs_per_task FROM runs LEFT JOIN submissions ON submissions.token = runs.token"
"""Rows for `_run`: a run, and how many share a task of its newest submission."""

_OF_A_RUN = (("runs", "id"), ("members", "run"), ("events", "subject"), ("tasks", "run"), ("usage", "run"))
"""Where a run is named: table, column."""


@lru_cache(maxsize=4096)
def _mapping(text: str) -> Mapping[str, Any]:
    """Read-only content of a JSON column; thousands of runs share a few texts."""
    return MappingProxyType(json.loads(text))


def _run(row: sqlite3.Row) -> RunRecord:
    return RunRecord(
        id=row["id"],
        kind=row["kind"],
        state=RunState(row["state"]),
        reason=row["reason"],
        needs=_mapping(row["needs"]),
        resources=_mapping(row["resources"]),
        code_tree=row["code_tree"],
        steps=row["steps"],
        token=row["token"],
        job=row["job"],
        after_attempt=row["after_attempt"],
        runs_per_task=row["runs_per_task"] or 1,
        missing_since=row["missing_since"],
        updated_at=row["updated_at"],
    )


class Store:
    """The control plane's memory. Jobs never open it."""

    def __init__(self, path: Path) -> None:
        self.connection = open_store(path)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def runs(self, ids: Iterable[str] | None = None) -> dict[str, RunRecord]:
        """All runs, or those named; unknown ids are left out."""
        if ids is None:
            rows = self.connection.execute(f"{_RUNS} ORDER BY runs.rowid")
            return {row["id"]: _run(row) for row in rows}
        found: dict[str, RunRecord] = {}
        for one in ids:
            row = self.connection.execute(f"{_RUNS} WHERE runs.id = ?", (one,)).fetchone()
            if row is not None:
                found[one] = _run(row)
        return found

    def of_sweep(self, sweep: str) -> dict[str, RunRecord]:
        """The runs that serve a sweep."""
        rows = self.connection.execute(
            f"{_RUNS} JOIN members ON members.run = runs.id WHERE members.sweep = ? ORDER BY runs.rowid", (sweep,)
        )
        return {row["id"]: _run(row) for row in rows}

    def counts(self, sweep: str | None = None) -> dict[RunState, int]:
        """How many runs are in each state, of one sweep or of all."""
        members = "WHERE id IN (SELECT run FROM members WHERE sweep = ?)" if sweep else ""
        rows = self.connection.execute(
            f"SELECT state, count(*) AS n FROM runs {members} GROUP BY state", (sweep,) if sweep else ()
        )
        return {RunState(row["state"]): row["n"] for row in rows}

    def changed_since(self, at: float) -> set[str]:
        """Runs that were started and whose record changed after a time (seconds since the epoch)."""
        rows = self.connection.execute(
            "SELECT id FROM runs WHERE state NOT IN ('planned', 'queued', 'submitting') AND updated_at > ?", (at,)
        )
        return {row["id"] for row in rows}

    def sweeps_of(self, run: str) -> list[str]:
        """Names of the sweeps that need a run."""
        return [row["sweep"] for row in self.connection.execute("SELECT sweep FROM members WHERE run = ? ORDER BY sweep", (run,))]

    def wanted(self, sweep: str) -> bool:
        """Whether a sweep still needs its runs: it was not cancelled since it was last submitted or resumed."""
        happened = [event.what for event in self.events_of(f"sweep {sweep}")]
        return happened[-1:] != [RunState.CANCELLED.value]

    def sweeps(self) -> list[str]:
        """Names of all submitted sweeps, oldest first."""
        return [row["name"] for row in self.connection.execute("SELECT name FROM sweeps ORDER BY submitted_at")]

    def sweep_row(self, name: str) -> Mapping[str, Any] | None:
        """Path, title, definition, comment and time of a submitted sweep."""
        row = self.connection.execute("SELECT * FROM sweeps WHERE name = ?", (name,)).fetchone()
        return None if row is None else dict(row)

    def known_sweep(self, name: str) -> KnownSweep | None:
        """A submitted sweep, whole; None when it was never submitted."""
        row = self.sweep_row(name)
        return None if row is None else KnownSweep(row=row, cells=tuple(self.cells(name)))

    def cells(self, sweep: str) -> list[CellRecord]:
        """The cells of a sweep as last submitted."""
        rows = self.connection.execute("SELECT coordinates, runs FROM cells WHERE sweep = ? ORDER BY rowid", (sweep,))
        return [CellRecord(coordinates=json.loads(row["coordinates"]), runs=json.loads(row["runs"])) for row in rows]

    def unanswered(self, *, since: float) -> list[SubmissionRecord]:
        """Submissions without a recorded job: all intended ones, and those withdrawn since then (seconds since the epoch)."""
        rows = self.connection.execute(
            "SELECT * FROM submissions WHERE state = 'intended' OR (state = 'withdrawn' AND created_at > ?) ORDER BY created_at",
            (since,),
        )
        return [
            SubmissionRecord(
                token=row["token"], state=row["state"], job=row["job"], tasks=row["tasks"], created_at=row["created_at"]
            )
            for row in rows
        ]

    def tokens(self) -> set[str]:
        """Of all submissions."""
        return {row["token"] for row in self.connection.execute("SELECT token FROM submissions")}

    def tasks(self, token: str) -> list[str]:
        """Run ids of a submission in the order of its index table."""
        rows = self.connection.execute("SELECT run FROM tasks WHERE token = ? ORDER BY position", (token,))
        return [row["run"] for row in rows]

    def events_of(self, subject: str) -> list[Event]:
        """What happened to a run, oldest first."""
        return events.of_subject(self.connection, subject)

    def events_named(self, what: str, *, since: float) -> list[Event]:
        """Events of one kind after a time (seconds since the epoch), oldest first."""
        return events.of_kind(self.connection, what, since=since)

    # -- writing ---------------------------------------------------------------------------------------------------

    def note(self, sweep: str, what: str) -> None:
        """Record that a sweep was submitted, resumed or cancelled."""
        with transaction(self.connection):
            events.append(self.connection, [Event(at=time.time(), subject=f"sweep {sweep}", what=what)])

    def add(
        self,
        *,
        name: str,
        path: str,
        title: str,
        definition: str,
        comment: str,
        cells: Sequence[CellRecord],
        runs: Iterable[RunRecord],
        partial: bool,
    ) -> list[str]:
        """Put a planned sweep into the store; returns the ids that are new.

        Known runs keep their state; what they ask of Slurm is renewed unless they are in its hands.

        `partial`: cells that are not given keep what they had; otherwise they are forgotten.
        """
        now = time.time()
        row = {
            "name": name, "path": path, "title": title, "definition": definition, "comment": comment, "submitted_at": now,
        }  # fmt: skip
        with transaction(self.connection):
            if not partial:
                for table in ("cells", "members"):
                    self.connection.execute(f"DELETE FROM {table} WHERE sweep = ?", (name,))
            self._put_sweep(KnownSweep(row=row, cells=tuple(cells)))
            known = {row["id"]: RunState(row["state"]) for row in self.connection.execute("SELECT id, state FROM runs")}
            given = list(runs)
            fresh = [run for run in given if run.id not in known]
            self.connection.executemany(
                "UPDATE runs SET resources = ? WHERE id = ?",
                (
                    (json.dumps(dict(run.resources), sort_keys=True), run.id)
                    for run in given
                    if run.id in known and known[run.id] not in ACTIVE
                ),
            )
            self.connection.executemany(
                "INSERT INTO runs (id, kind, state, reason, needs, resources, code_tree, steps, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        run.id,
                        run.kind,
                        run.state.value,
                        run.reason,
                        json.dumps(dict(run.needs), sort_keys=True),
                        json.dumps(dict(run.resources), sort_keys=True),
                        run.code_tree,
                        run.steps,
                        now,
                    )
                    for run in fresh
                ),
            )
            usages.mark(self.connection, (run.id for run in fresh if run.state in TERMINAL))
            events.append(self.connection, (Event(at=now, subject=run.id, what="planned", detail=name) for run in fresh))
            events.append(self.connection, [Event(at=now, subject=f"sweep {name}", what="submitted")])
        return [run.id for run in fresh]

    def withdraw(self, sweep: str, runs: Iterable[str], *, before: KnownSweep | None) -> None:
        """Take back an `add` whose submission was refused: the new runs go, the sweep becomes what it was `before`."""
        with transaction(self.connection):
            for run in runs:
                for table, column in _OF_A_RUN:
                    self.connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (run,))
            for table, column in (("sweeps", "name"), ("cells", "sweep"), ("members", "sweep")):
                self.connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (sweep,))
            if before is not None:
                self._put_sweep(before)
            else:
                self.connection.execute("DELETE FROM events WHERE subject = ?", (f"sweep {sweep}",))

    def _put_sweep(self, sweep: KnownSweep) -> None:
        """Write a sweep, its cells and its members (inside the caller's transaction)."""
        name = sweep.row["name"]
        self.connection.execute(
            "INSERT OR REPLACE INTO sweeps (name, path, title, definition, comment, submitted_at)"
            " VALUES (:name, :path, :title, :definition, :comment, :submitted_at)",
            dict(sweep.row),
        )
        self.connection.executemany(
            "INSERT OR REPLACE INTO cells (sweep, coordinates, runs) VALUES (?, ?, ?)",
            ((name, json.dumps(dict(cell.coordinates)), json.dumps(dict(cell.runs))) for cell in sweep.cells),
        )
        members = sorted({run for cell in sweep.cells for run in cell.runs.values()})
        self.connection.executemany("INSERT OR IGNORE INTO members (sweep, run) VALUES (?, ?)", ((name, run) for run in members))

    def apply(self, changes: Sequence[Change], *, now: float) -> None:
        """Move runs to new states, each step checked against the lifecycle, with one event per change of state."""
        if not changes:
            return
        with transaction(self.connection):
            for change in changes:
                row = self.connection.execute("SELECT * FROM runs WHERE id = ?", (change.run,)).fetchone()
                if row is None:
                    continue
                old = RunState(row["state"])
                check_transition(old, change.state)
                further = (Event(at=now, subject=change.run, what=what, detail=detail) for what, detail in change.facts.items())
                events.append(self.connection, further)
                job = row["job"] if change.job is None else change.job
                token = row["token"] if change.token is None else change.token
                after = row["after_attempt"] if change.after_attempt is None else change.after_attempt
                self.connection.execute(
                    "UPDATE runs SET state = ?, reason = ?, job = ?, token = ?, after_attempt = ?, missing_since = ?,"
                    " updated_at = ? WHERE id = ?",
                    (change.state.value, change.reason, job, token, after, change.missing_since, now, change.run),
                )
                if old is not change.state and (old is RunState.RUNNING or change.state in TERMINAL):
                    usages.mark(self.connection, [change.run])
                if old is not change.state or (change.job and change.job != row["job"]):
                    detail = " ".join(part for part in (change.reason, job) if part)
                    events.append(self.connection, [Event(at=now, subject=change.run, what=change.state.value, detail=detail)])

    def refrozen(self, runs: Iterable[str], tree: str, *, now: float) -> None:
        """Record that runs were given another code tree."""
        with transaction(self.connection):
            chosen = list(runs)
            self.connection.executemany("UPDATE runs SET code_tree = ? WHERE id = ?", ((tree, run) for run in chosen))
            events.append(self.connection, (Event(at=now, subject=run, what="new code", detail=tree) for run in chosen))

    def intend(self, token: str, runs: Sequence[str], *, after: Mapping[str, int], now: float, runs_per_task: int = 1) -> None:
        """Record a submission before it is made: its token and which array index is which runs."""
        with transaction(self.connection):
            self.connection.execute(
                "INSERT INTO submissions (token, state, tasks, created_at, runs_per_task) VALUES (?, 'intended', ?, ?, ?)",
                (token, math.ceil(len(runs) / runs_per_task), now, runs_per_task),
            )
            self.connection.executemany(
                "INSERT INTO tasks (token, position, run) VALUES (?, ?, ?)", ((token, i, run) for i, run in enumerate(runs))
            )
            for run in runs:
                row = self.connection.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()
                check_transition(RunState(row["state"]), RunState.SUBMITTING)
                self.connection.execute(
                    "UPDATE runs SET state = ?, reason = '', token = ?, job = '', after_attempt = ?, missing_since = NULL,"
                    " updated_at = ? WHERE id = ?",
                    (RunState.SUBMITTING.value, token, after.get(run, 0), now, run),
                )
            events.append(self.connection, (Event(at=now, subject=run, what="submitting", detail=token) for run in runs))

    def submitted(self, token: str, job: str, *, now: float) -> None:
        """Record Slurm's answer: task i of the submission is `<job>_<i>`. Runs that have moved on stay as they are.

        Runs that share a task share its job.
        """
        with transaction(self.connection):
            self.connection.execute("UPDATE submissions SET state = 'submitted', job = ? WHERE token = ?", (job, token))
            rows = self.connection.execute(
                "SELECT tasks.run, tasks.position / submissions.runs_per_task AS task FROM tasks"
                " JOIN runs ON runs.id = tasks.run JOIN submissions ON submissions.token = tasks.token"
                " WHERE tasks.token = ? AND runs.token = tasks.token AND runs.state IN (?, ?)",
                (token, *_UNANSWERED),
            ).fetchall()
            tasks = {row["run"]: f"{job}_{row['task']}" for row in rows}
            self.connection.executemany(
                "UPDATE runs SET state = ?, reason = '', job = ?, updated_at = ? WHERE id = ?",
                ((RunState.QUEUED.value, task, now, run) for run, task in tasks.items()),
            )
            events.append(
                self.connection, (Event(at=now, subject=run, what="queued", detail=task) for run, task in tasks.items())
            )

    def withdrawn(self, token: str, *, reason: str, now: float) -> None:
        """Record that a submission never happened: its runs are planned again."""
        with transaction(self.connection):
            self.connection.execute("UPDATE submissions SET state = 'withdrawn' WHERE token = ?", (token,))
            rows = self.connection.execute(
                "SELECT id FROM runs WHERE token = ? AND state = ?", (token, RunState.SUBMITTING.value)
            ).fetchall()
            self.connection.executemany(
                "UPDATE runs SET state = ?, reason = ?, updated_at = ? WHERE id = ?",
                ((RunState.PLANNED.value, reason, now, row["id"]) for row in rows),
            )
            events.append(self.connection, (Event(at=now, subject=row["id"], what="planned", detail=reason) for row in rows))
