"""What Slurm and the disk said, and when. Pure values: `observe.py` makes one, `decide.py` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.contract import Outcome
from orchestrator.slurm.states import SlurmState


@dataclass(frozen=True, kw_only=True)
class TaskSeen:
    """One array task, or one local process, as its executor describes it."""

    state: SlurmState
    reason: str = ""
    nodes: str = ""
    """Slurm's host list; empty when it has none (yet)."""
    exit: str = ""
    """`code:signal` by sacct; empty when it was not asked."""


@dataclass(frozen=True, kw_only=True)
class DiskSeen:
    """What a run directory holds."""

    outcome: Outcome | None = None
    newest_attempt: int = 0
    attempt_token: str = ""
    attempt_job: str = ""
    step: int = 0
    """Of the newest journal entry: progress, not a promise."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One look at the world."""

    at: float
    """Seconds since the epoch."""
    queue: Mapping[str, TaskSeen] | None
    """job (`<array>_<task>`) -> what squeue says; None when Slurm was not asked: it says nothing about any job then."""
    local: Mapping[str, TaskSeen] = field(default_factory=dict)
    """job (`local:...`) -> a process of this machine that lives, or one that we cannot see from here."""
    arrays: Mapping[str, str] = field(default_factory=dict)
    """Submission token -> array job id, for every orch job that squeue (or sacct) knows by name."""
    history: Mapping[str, TaskSeen] | None = None
    """job -> final state by sacct; None when accounting is off or was not asked."""
    disk: Mapping[str, DiskSeen] = field(default_factory=dict)
    """run id -> its directory; only runs for which looking was worth it."""
