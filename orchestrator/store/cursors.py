"""How far each run was shipped, in the control plane's store (tracking.cursors.Cursors)."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from orchestrator.tracking.cursors import Cursor


@dataclass(frozen=True)
class StoredCursors:
    """Cursors in SQLite; every method is durable when it returns."""

    connection: sqlite3.Connection

    def get(self, run_id: str) -> Cursor:
        """The cursor of a run; `Cursor(None, -1)` for a run that was never shipped."""
        row = self.connection.execute("SELECT tracker_run, step FROM cursors WHERE run = ?", (run_id,)).fetchone()
        return Cursor(None, -1) if row is None else Cursor(row["tracker_run"], row["step"])

    def set_run(self, run_id: str, tracker_run: str) -> None:
        """Bind a run to the tracker's id of it, and put its cursor back to -1."""
        self.connection.execute(
            "INSERT OR REPLACE INTO cursors (run, tracker_run, step) VALUES (?, ?, -1)", (run_id, tracker_run)
        )

    def advance(self, run_id: str, step: int) -> None:
        """Move the cursor of a bound run."""
        self.connection.execute("UPDATE cursors SET step = ? WHERE run = ?", (step, run_id))
