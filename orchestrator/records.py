"""What the control plane believes about a run and a submission: plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.lifecycle import RunState


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One row of the store."""

    id: str
    kind: str
    state: RunState
    reason: str = ""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Kind of the needed run -> its id."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Values of the launcher's schema."""
    code_tree: str = ""
    steps: int = 0
    """Steps of the whole run; 0 when it has none."""
    token: str = ""
    """Of the newest submission; `local-...` for one on this machine."""
    job: str = ""
    """`<array>_<task>`, once Slurm has said it."""
    after_attempt: int = 0
    """Newest attempt at the time of submission: an outcome counts only if it comes from a later one."""
    runs_per_task: int = 1
    """How many runs share a task of the newest submission; above 1 the run is packed, and others may have the same job."""
    missing_since: float | None = None
    """When Slurm was first seen not to know it (seconds since the epoch)."""
    updated_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SubmissionRecord:
    """One sbatch call, from its intent on."""

    token: str
    state: str
    """`intended`, `submitted` or `withdrawn`."""
    job: str
    tasks: int
    created_at: float


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One cell of a submitted sweep: where it stands and which runs serve it (step name -> run id)."""

    coordinates: Mapping[str, str]
    runs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class KnownSweep:
    """A submitted sweep as the store has it, whole: enough to put it back."""

    row: Mapping[str, Any]
    """The columns of its row."""
    cells: tuple[CellRecord, ...]
