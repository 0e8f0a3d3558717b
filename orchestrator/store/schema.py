"""The control plane's SQLite file: numbered migrations, each in one transaction. Opened by the control plane alone."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import Problem, UserError

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sweeps (
        name TEXT PRIMARY KEY, path TEXT NOT NULL, title TEXT NOT NULL, definition TEXT NOT NULL,
        comment TEXT NOT NULL, submitted_at REAL NOT NULL
    );
    CREATE TABLE cells (
        sweep TEXT NOT NULL, coordinates TEXT NOT NULL, runs TEXT NOT NULL, PRIMARY KEY (sweep, coordinates)
    );
    CREATE TABLE members (sweep TEXT NOT NULL, run TEXT NOT NULL, PRIMARY KEY (sweep, run));
    CREATE INDEX members_by_run ON members (run);
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
        needs TEXT NOT NULL DEFAULT '{}', resources TEXT NOT NULL DEFAULT '{}', code_tree TEXT NOT NULL DEFAULT '',
        steps INTEGER NOT NULL DEFAULT 0, token TEXT NOT NULL DEFAULT '', job TEXT NOT NULL DEFAULT '',
        after_attempt INTEGER NOT NULL DEFAULT 0, missing_since REAL, updated_at REAL NOT NULL
    );
    CREATE INDEX runs_by_state ON runs (state);
    CREATE TABLE submissions (
        token TEXT PRIMARY KEY, state TEXT NOT NULL, job TEXT NOT NULL DEFAULT '', tasks INTEGER NOT NULL,
        created_at REAL NOT NULL
    );
    CREATE TABLE tasks (
        token TEXT NOT NULL, position INTEGER NOT NULL, run TEXT NOT NULL, PRIMARY KEY (token, position)
    );
    CREATE TABLE events (at REAL NOT NULL, subject TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '');
    CREATE INDEX events_by_subject ON events (subject);
    CREATE TABLE cursors (run TEXT PRIMARY KEY, tracker_run TEXT NOT NULL, step INTEGER NOT NULL);
    """,
    "ALTER TABLE submissions ADD COLUMN runs_per_task INTEGER NOT NULL DEFAULT 1",
    """
    CREATE TABLE usage (
        run TEXT PRIMARY KEY, stale INTEGER NOT NULL DEFAULT 1, read_at REAL,
        gpus_productive_ms INTEGER NOT NULL DEFAULT 0, gpus_checkpointing_ms INTEGER NOT NULL DEFAULT 0,
        gpus_restarting_ms INTEGER NOT NULL DEFAULT 0, gpus_replayed_ms INTEGER NOT NULL DEFAULT 0,
        tasks_productive_ms INTEGER NOT NULL DEFAULT 0, tasks_checkpointing_ms INTEGER NOT NULL DEFAULT 0,
        tasks_restarting_ms INTEGER NOT NULL DEFAULT 0, tasks_replayed_ms INTEGER NOT NULL DEFAULT 0,
        queued_ms INTEGER NOT NULL DEFAULT 0
    );
    INSERT INTO usage (run)
        SELECT id FROM runs WHERE state NOT IN ('planned', 'submitting', 'queued', 'running') ORDER BY updated_at;
    """,
)


def open_store(path: Path) -> sqlite3.Connection:
    """Open (or create) the store and bring it to the newest schema; raises UserError when the file is no store of ours.

    No WAL: it does not work over network file systems.
    """
    try:
        if not path.exists():
            with contextlib.suppress(OSError):
                path.touch()  # SQLite itself would not let a team's group write
        connection = sqlite3.connect(path, timeout=60.0, isolation_level=None)
        connection.row_factory = sqlite3.Row
        migrate(connection)
    except sqlite3.DatabaseError as error:
        raise UserError(
            Problem(
                what=f"cannot open the store: {error}",
                where=str(path),
                hint="is the root writable and on a file system with room? `--root DIR` or ORCH_ROOT choose another",
            )
        ) from error
    return connection


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the migrations that this file has not seen."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise UserError(
            Problem(
                what=f"the store has schema {version}, this orch knows up to {len(MIGRATIONS)}",
                hint="use the newer orch that wrote it, or another --root",
            )
        )
    for number in range(version, len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] == number:  # nobody else was faster
                for statement in MIGRATIONS[number].split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
