"""What each run has used, in the store: read from its directory once when it stops running, and added up by SQLite.

A row is *stale* from the moment its run stops running until its directory is read again; numbers read before stay meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from orchestrator.goodput import CLASSES, Spent, Usage
from orchestrator.records import RunRecord

_COLUMNS = (*(f"{unit}_{name}_ms" for unit in ("gpus", "tasks") for name in CLASSES), "queued_ms")
_MOST = 1 << 53
"""What SQLite adds up without an error, whatever a damaged clock says."""


def _values(usage: Usage) -> tuple[int, ...]:
    found = (*(spent.of(name) for spent in (usage.gpus, usage.tasks) for name in CLASSES), usage.queued_ms)
    return tuple(min(one, _MOST) for one in found)


def _usage(row: sqlite3.Row) -> Usage:
    gpus, tasks = (Spent(**{f"{name}_ms": int(row[f"{unit}_{name}_ms"]) for name in CLASSES}) for unit in ("gpus", "tasks"))
    return Usage(gpus=gpus, tasks=tasks, queued_ms=int(row["queued_ms"]))


def mark(connection: sqlite3.Connection, runs: Iterable[str]) -> None:
    """These stopped running: their directories are to be read (inside the caller's transaction)."""
    connection.executemany(
        "INSERT INTO usage (run) VALUES (?) ON CONFLICT (run) DO UPDATE SET stale = 1", ((run,) for run in runs)
    )


def stale(connection: sqlite3.Connection, *, limit: int) -> list[str]:
    """Runs to be read, newer ones first."""
    rows = connection.execute("SELECT run FROM usage WHERE stale ORDER BY rowid DESC LIMIT ?", (limit,))
    return [row["run"] for row in rows]


def running(connection: sqlite3.Connection, *, limit: int) -> list[str]:
    """Running runs, those read longest ago first."""
    rows = connection.execute(
        "SELECT runs.id FROM runs LEFT JOIN usage ON usage.run = runs.id WHERE runs.state = 'running'"
        " ORDER BY coalesce(usage.read_at, 0), runs.rowid LIMIT ?",
        (limit,),
    )
    return [row["id"] for row in rows]


def unread(connection: sqlite3.Connection, runs: Iterable[str]) -> list[str]:
    """Of these runs, the stale and the running ones."""
    wanted = set(runs)
    rows = connection.execute(
        "SELECT runs.id FROM runs LEFT JOIN usage ON usage.run = runs.id WHERE usage.stale OR runs.state = 'running'"
    )
    return [row["id"] for row in rows if row["id"] in wanted]


def put(connection: sqlite3.Connection, found: Mapping[str, Usage], records: Mapping[str, RunRecord], *, at: float) -> None:
    """Record what was read at a time (seconds since the epoch), when the runs were as in `records`; one that has changed since
    stays stale. In the caller's transaction."""
    names = ", ".join(_COLUMNS)
    connection.executemany(
        f"INSERT OR REPLACE INTO usage (run, read_at, stale, {names}) VALUES"
        f" (?1, ?2, EXISTS (SELECT 1 FROM runs WHERE id = ?1 AND updated_at > ?3){', ?' * len(_COLUMNS)})",
        ((run, at, records[run].updated_at, *_values(usage)) for run, usage in found.items()),
    )


def of(connection: sqlite3.Connection, runs: Iterable[str]) -> dict[str, Usage]:
    """What these runs have used, as far as it was ever read."""
    wanted = set(runs)
    rows = connection.execute("SELECT * FROM usage WHERE read_at IS NOT NULL")
    return {row["run"]: _usage(row) for row in rows if row["run"] in wanted}


def total(connection: sqlite3.Connection, *, sweep: str | None = None) -> Usage:
    """What all runs have used, or those that serve a sweep."""
    sums = ", ".join(f"total({name}) AS {name}" for name in _COLUMNS)  # total() never overflows, unlike sum()
    members = "" if sweep is None else " WHERE run IN (SELECT run FROM members WHERE sweep = ?)"
    row = connection.execute(f"SELECT {sums} FROM usage{members}", () if sweep is None else (sweep,)).fetchone()
    return _usage(row)


def missing(connection: sqlite3.Connection) -> int:
    """How many runs that have run, or are running, were never read."""
    row = connection.execute(
        "SELECT count(*) AS n FROM runs LEFT JOIN usage ON usage.run = runs.id"
        " WHERE usage.read_at IS NULL AND (usage.run IS NOT NULL OR runs.state = 'running')"
    ).fetchone()
    return int(row["n"])
