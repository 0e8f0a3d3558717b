"""The states of a run and the legal steps between them. Pure.

PLANNED -> SUBMITTING -> QUEUED <-> RUNNING -> DONE
   ^           |            |          |
   |           v            v          +-> FAILED | TIMED_OUT | LOST | CANCELLED | STOPPED
   +-----------+------------+----------------(resume, or a blocked run going back)
"""

from __future__ import annotations

import enum


class RunState(enum.StrEnum):
    """What the control plane believes about a run. Members carry how one gets there."""

    PLANNED = "planned"
    """Frozen on disk and in the store; nobody was asked to run it (or it was blocked and goes back)."""
    SUBMITTING = "submitting"
    """The intent is recorded under a token; sbatch may or may not have been reached."""
    QUEUED = "queued"
    """Slurm has it: pending, requeued, suspended, configuring."""
    RUNNING = "running"
    """Slurm, or this machine, is executing it."""
    DONE = "done"
    """Its outcome file says so. Nothing else ever leads here."""
    FAILED = "failed"
    """Its outcome file says so, with a cause."""
    TIMED_OUT = "timed_out"
    """Slurm ended it at its time limit before it could requeue itself."""
    LOST = "lost"
    """Slurm no longer knows it and the run directory holds no outcome."""
    CANCELLED = "cancelled"
    """Somebody cancelled it."""
    STOPPED = "stopped"
    """It checkpointed and stopped (Ctrl-C in local mode)."""


ACTIVE = frozenset({RunState.SUBMITTING, RunState.QUEUED, RunState.RUNNING})
"""Somebody may be working on it: observe it."""
RESUMABLE = frozenset({RunState.FAILED, RunState.TIMED_OUT, RunState.LOST, RunState.CANCELLED, RunState.STOPPED})
"""`orch resume` continues these from their last checkpoint."""
TERMINAL = RESUMABLE | {RunState.DONE}
"""No longer observed."""

LEGAL: dict[RunState, frozenset[RunState]] = {
    RunState.PLANNED: frozenset({RunState.SUBMITTING, RunState.RUNNING, RunState.QUEUED, RunState.CANCELLED, RunState.DONE}),
    RunState.SUBMITTING: frozenset({RunState.PLANNED, RunState.QUEUED, RunState.RUNNING, *TERMINAL}),
    RunState.QUEUED: frozenset({RunState.PLANNED, RunState.RUNNING, *TERMINAL}),
    RunState.RUNNING: frozenset({RunState.PLANNED, RunState.QUEUED, *TERMINAL}),
    RunState.DONE: frozenset({RunState.PLANNED}),
    RunState.FAILED: frozenset({RunState.PLANNED}),
    RunState.TIMED_OUT: frozenset({RunState.PLANNED}),
    RunState.LOST: frozenset({RunState.PLANNED, RunState.QUEUED, RunState.RUNNING, *TERMINAL}),
    RunState.CANCELLED: frozenset({RunState.PLANNED}),
    RunState.STOPPED: frozenset({RunState.PLANNED}),
}
"""state -> states that may follow. LOST may be found again: an outcome or a job that turns up late wins.
DONE is planned again only when `orch resume` finds its output damaged."""


def check_transition(old: RunState, new: RunState) -> None:
    """Raise ValueError for a step that no run may make (our bug, never the user's)."""
    if new is not old and new not in LEGAL[old]:
        raise ValueError(f"a run cannot go from {old.value} to {new.value}")
