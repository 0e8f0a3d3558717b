"""What the shipper and the reader ask of a tracker: a protocol and its values. Pure; the MLflow one is `mlflow_store.py`."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.tracking.points import Point

RUN_ID = "orch.run_id"
KIND = "orch.kind"
SWEEP = "orch.sweep"
SWEEP_KIND = "sweep"
"""The value of tag `orch.kind` on the record of a sweep."""
SWEEP_FILE = "sweep.json"
NOTE = "mlflow.note.content"
"""Tag that MLflow's pages show as a run's description."""

MAX_POINTS = 1000
MAX_TAGS = 100
"""Most metrics, and most params or tags, of one call to the tracker (MLflow refuses more)."""


class TrackerStatus(enum.StrEnum):
    """MLflow's run states."""

    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


ENDED = frozenset({TrackerStatus.FINISHED, TrackerStatus.FAILED, TrackerStatus.KILLED})


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """One run as the tracker has it."""

    id: str
    status: TrackerStatus
    ended_ms: int | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Value at the largest step of each metric."""
    latest: Mapping[str, int] = field(default_factory=dict)
    """That largest step."""


class RejectedError(Exception):
    """The tracker is alive and refuses this one request; other runs may go on. Never leaves this package."""


class Tracker(Protocol):
    """Every method raises TrackerError when the tracker does not answer, and RejectedError when it refuses the content."""

    def get(self, tracker_run: str) -> TrackedRun | None:
        """A run by the tracker's id; None when it is unknown or was deleted there."""

    def find(self, tag: str, value: str) -> TrackedRun | None:
        """The oldest run with this tag."""

    def search(self, condition: str) -> Iterator[TrackedRun]:
        """All runs that meet a condition in MLflow's filter language, oldest first, in pages."""

    def create(self, name: str, *, started_ms: int, tags: Mapping[str, str]) -> TrackedRun:
        """A new run with its tags, in one request."""

    def log(
        self,
        tracker_run: str,
        *,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """One batch; at most `MAX_POINTS` points and `MAX_TAGS` of each other kind."""

    def steps_of(self, tracker_run: str, name: str) -> frozenset[int]:
        """Every step that the tracker holds of one metric."""

    def history(self, tracker_run: str, name: str) -> tuple[tuple[int, float], ...]:
        """(step, value) of every point that the tracker holds of one metric, by step; of a step held twice the later point."""

    def set_status(self, tracker_run: str, status: TrackerStatus, *, ended_ms: int | None) -> None:
        """The run's state; `ended_ms` for the states in `ENDED`."""

    def artifacts(self, tracker_run: str) -> dict[str, int]:
        """Path -> bytes of every artifact."""

    def upload(self, tracker_run: str, file: Path, *, folder: str = "") -> None:
        """Store a file below `folder` under its own name; an older one of that name is replaced."""

    def upload_text(self, tracker_run: str, text: str, *, path: str) -> None:
        """Store a text."""

    def download_text(self, tracker_run: str, path: str) -> str:
        """Read a text artifact."""
