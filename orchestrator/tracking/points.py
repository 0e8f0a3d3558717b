"""Which points of a run's journal the tracker must be sent. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from jobs.journal import Journal
from orchestrator.tracking.names import tracker_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One value of one metric at one step, with the time at which the job wrote it."""

    name: str
    step: int
    time_ms: int
    value: float


def covered_points(journal: Journal, *, from_step: int) -> list[Point]:
    """Points that count and that a checkpoint or the run's end covers, from `from_step` on, by step.

    Each (name, step) comes once: should a step have been journaled twice, the later line is meant.
    """
    found: dict[tuple[int, str], Point] = {}
    for entry in journal.shippable(after_step=from_step - 1):
        for name, value in entry.metrics.items():
            key = tracker_key(name)
            found[entry.step, key] = Point(name=key, step=entry.step, time_ms=entry.time_ms, value=value)
    return sorted(found.values(), key=lambda point: point.step)


def unseen(points: Iterable[Point], *, latest: Mapping[str, int], steps_of: Callable[[str], frozenset[int]]) -> list[Point]:
    """The points that the tracker does not have, in their order.

    `latest` is the tracker's newest step per metric. Normally no point lies below it. One does when a batch arrived and
    the cursor was not moved (killed in between, or the answer was lost): only then is `steps_of(name)` asked for the
    steps that the tracker holds. A job that fell back meanwhile wrote those steps again with new times, so
    repeating them blindly would make second rows.
    """
    ordered = list(points)
    lowest: dict[str, int] = {}
    for point in ordered:
        lowest[point.name] = min(lowest.get(point.name, point.step), point.step)
    known = {name: steps_of(name) for name, step in lowest.items() if step < latest.get(name, step)}
    return [
        point
        for point in ordered
        if point.name not in latest
        or point.step > latest[point.name]
        or (point.step < latest[point.name] and point.step not in known[point.name])
    ]
