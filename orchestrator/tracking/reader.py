"""Reads sweeps and scores back from the tracker alone; never opens a run directory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.errors import Problem, TrackerError, UserError
from orchestrator.tracking.address import shown
from orchestrator.tracking.mlflow_store import MlflowTracker, initialised
from orchestrator.tracking.names import tracker_key
from orchestrator.tracking.record import SweepRecord
from orchestrator.tracking.tracker import KIND, SWEEP, SWEEP_FILE, SWEEP_KIND, RejectedError, TrackedRun, Tracker

_LARGEST = 1.7976931348623157e308
"""MLflow's SQL store keeps an infinite value as the largest double."""
_IDS_PER_REQUEST = 100
History = tuple[tuple[int, float], ...]
"""(step, value) of one metric of one run, by step."""


def read_sweep(tracking_uri: str, name: str) -> SweepRecord:
    """The record of a sweep. Raises UserError for an unknown sweep (naming the known ones), TrackerError otherwise."""
    tracker = _connect(tracking_uri)
    known: dict[str, TrackedRun] = {}
    for run in _searched(tracker, f"tags.`{KIND}` = '{SWEEP_KIND}'", tracking_uri):
        known.setdefault(run.tags.get(SWEEP, ""), run)
    if name not in known:
        raise UserError(
            Problem(
                what=f"the tracker has no sweep `{name}`",
                where=shown(tracking_uri),
                allowed=", ".join(f"`{one}`" for one in sorted(known)) or "none: nothing was submitted or shipped yet",
                hint="`orch submit SWEEP` submits it; `--root DIR` or MLFLOW_TRACKING_URI choose another tracker",
            )
        )
    try:
        return SweepRecord.from_json(tracker.download_text(known[name].id, SWEEP_FILE))
    except (RejectedError, ValueError, KeyError, TypeError) as error:
        raise TrackerError(
            Problem(
                what=f"the record of sweep `{name}` cannot be read: {error}",
                where=shown(tracking_uri),
                hint="it may be being renewed: try again; `orch table` where it was submitted writes it anew",
            )
        ) from error


def read_values(tracking_uri: str, record: SweepRecord, metrics: Iterable[str]) -> dict[str, dict[str, float]]:
    """run id -> metric -> value at its largest step, for the runs of a sweep; what the tracker lacks is left out.

    Raises TrackerError when the tracker does not answer.
    """
    keys = {metric: tracker_key(metric) for metric in metrics}
    run_of = {summary.tracker_run: run for run, summary in record.runs.items() if summary.tracker_run}
    if not run_of:
        return {}
    tracker = _connect(tracking_uri)
    found: dict[str, dict[str, float]] = {}
    for ids in _slices(list(run_of), _IDS_PER_REQUEST):
        listed = ", ".join(f"'{one}'" for one in ids)
        for tracked in _searched(tracker, f"attributes.run_id IN ({listed})", tracking_uri):
            found[run_of[tracked.id]] = {
                metric: _finite_or_inf(tracked.metrics[key]) for metric, key in keys.items() if key in tracked.metrics
            }
    return found


def read_histories(tracking_uri: str, record: SweepRecord, runs: Iterable[str], metric: str) -> dict[str, History]:
    """run id -> (step, value) by step, of some runs of a sweep; what the tracker lacks is left out.

    Raises TrackerError when the tracker does not answer.
    """
    known = {run: record.runs[run].tracker_run for run in runs if run in record.runs and record.runs[run].tracker_run}
    if not known:
        return {}
    tracker, found = _connect(tracking_uri), {}
    for run, tracker_run in known.items():
        try:
            points = tracker.history(tracker_run, tracker_key(metric))
        except RejectedError:  # deleted there
            continue
        if points:
            found[run] = tuple((step, _finite_or_inf(value)) for step, value in points)
    return found


def _connect(tracking_uri: str) -> Tracker:
    if not initialised(tracking_uri):
        raise TrackerError(
            Problem(
                what="there is no tracker store here",
                where=shown(tracking_uri),
                hint="`orch submit SWEEP` creates it; `--root DIR` or MLFLOW_TRACKING_URI choose another one",
            )
        )
    return MlflowTracker(tracking_uri, None)


def _searched(tracker: Tracker, condition: str, tracking_uri: str) -> Iterator[TrackedRun]:
    try:
        yield from tracker.search(condition)
    except RejectedError as error:
        raise TrackerError(Problem(what=f"the tracker refused a search: {error}", where=shown(tracking_uri))) from error


def _slices(values: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), length):
        yield values[start : start + length]


def _finite_or_inf(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value
