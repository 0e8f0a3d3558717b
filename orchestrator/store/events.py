"""What happened, in order: one line per fact. Append-only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """One fact about a run, a submission or a sweep."""

    at: float
    subject: str
    what: str
    detail: str = ""


def append(connection: sqlite3.Connection, events: Iterable[Event]) -> None:
    """Add events (inside the caller's transaction)."""
    connection.executemany(
        "INSERT INTO events (at, subject, what, detail) VALUES (?, ?, ?, ?)",
        ((event.at, event.subject, event.what, event.detail) for event in events),
    )


def of_subject(connection: sqlite3.Connection, subject: str) -> list[Event]:
    """All events about one subject, oldest first."""
    rows = connection.execute("SELECT * FROM events WHERE subject = ? ORDER BY rowid", (subject,))
    return [Event(at=row["at"], subject=row["subject"], what=row["what"], detail=row["detail"]) for row in rows]


def of_kind(connection: sqlite3.Connection, what: str, *, since: float) -> list[Event]:
    """All events that say the same of any subject, after a time, oldest first. Reads the whole log: for rare questions."""
    rows = connection.execute("SELECT * FROM events WHERE what = ? AND at > ? ORDER BY rowid", (what, since))
    return [Event(at=row["at"], subject=row["subject"], what=row["what"], detail=row["detail"]) for row in rows]
