"""What the tests of effects share."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.lifecycle import RunState
from orchestrator.tracking.record import RunSummary

DONE = RunSummary(kind="evaluate", state=RunState.DONE, reason="done")


def numbered(numbers: Mapping[str, float | None], metric: str) -> dict[str, dict[str, float]]:
    """run -> metric -> number, without the runs that have none."""
    return {run: {metric: number} for run, number in numbers.items() if number is not None}
