"""Carries journals, states, configurations and artifacts into the tracker, each point exactly once. Never acts on a run.

Order for each run: bind it to the tracker's run, send a batch, then move the cursor. Killed between any two of these,
the next shipping finds the run by its tag and asks the tracker what has arrived, so nothing is lost or doubled.
The caller holds the root lock: one shipper at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.contract import RunDir
from jobs.journal import Journal, read_journal
from orchestrator.goodput import in_seconds
from orchestrator.lifecycle import RunState
from orchestrator.tracking.cursors import Cursors, Marks, files_below, run_mark, sweep_mark
from orchestrator.tracking.names import MAX_TAG, params, shorten
from orchestrator.tracking.points import Point, covered_points, unseen
from orchestrator.tracking.record import RunFacts, SweepRecord
from orchestrator.tracking.tracker import (
    ENDED,
    KIND,
    MAX_POINTS,
    MAX_TAGS,
    NOTE,
    RUN_ID,
    SWEEP,
    SWEEP_FILE,
    SWEEP_KIND,
    RejectedError,
    TrackedRun,
    Tracker,
    TrackerStatus,
)

Connect = Callable[[], Tracker]
SPEC_FILE = "spec.json"
PICTURES = (".png", ".gif")
"""What of a run's artifacts stands beside a table; the film of a video is a GIF."""


@dataclass(kw_only=True)
class ShipReport:
    """What one shipping did."""

    runs: int = 0
    """Runs that were looked at in the tracker."""
    unchanged: int = 0
    """Runs with nothing new since they were last shipped whole."""
    points: int = 0
    artifacts: int = 0
    sweeps: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    """Run id or sweep name -> what the tracker did not accept; everything else was shipped."""


def ship(
    tracking_uri: str,
    root: Path,
    facts: Iterable[RunFacts],
    cursors: Cursors,
    sweeps: Iterable[SweepRecord] = (),
    *,
    timeout_s: int = 10,
) -> ShipReport:
    """Bring the tracker up to date; raises TrackerError when it does not answer within `timeout_s` per request.

    What arrived before an outage stays, and the next call goes on from there. MLflow is imported only when something
    changed since the last call.
    """
    connection: list[Tracker] = []

    def connect() -> Tracker:
        if not connection:
            from orchestrator.tracking.mlflow_store import MlflowTracker, initialise

            initialise(tracking_uri, root)
            connection.append(MlflowTracker(tracking_uri, root, timeout_s=timeout_s))
        return connection[0]

    shipper = _Shipper(connect=connect, cursors=cursors, marks=Marks.load(root, tracking_uri))
    try:
        for one in facts:
            shipper.run(one)
        for record in sweeps:
            shipper.sweep(record)
    finally:
        shipper.marks.save(root)
    return shipper.report


def ship_run(tracker: Tracker, facts: RunFacts, cursors: Cursors, report: ShipReport, *, batch: int = MAX_POINTS) -> TrackedRun:
    """Ship one run whole, `batch` points per request; what it raises leaves a cursor that is safe to go on from."""
    journal = read_journal(RunDir(facts.run_dir).journals)
    tracked = _bind(tracker, facts, cursors, journal)
    for chunk in _batches(_fresh_points(tracker, tracked, journal, cursors.get(facts.run_id).step), batch):
        tracker.log(tracked.id, points=chunk)
        report.points += len(chunk)
        _advance(cursors, facts.run_id, chunk[-1].step)
    _advance(cursors, facts.run_id, journal.covered_step)
    _ship_description(tracker, tracked, facts)
    _ship_artifacts(tracker, tracked, facts, report)
    _ship_status(tracker, tracked, facts, journal)
    return tracked


class _Shipper:
    """One shipping: the connection is made when the first change is met."""

    def __init__(self, *, connect: Connect, cursors: Cursors, marks: Marks) -> None:
        self._connect = connect
        self._cursors = cursors
        self._places: dict[str, Path] = {}
        self.marks = marks
        self.report = ShipReport()

    def run(self, facts: RunFacts) -> None:
        """Ship a run unless it has not changed, or was never started."""
        self._places[facts.run_id] = facts.run_dir
        mark = run_mark(facts)
        if self.marks.runs.get(facts.run_id) == mark:
            self.report.unchanged += 1
            return
        if not facts.attempts and not RunDir(facts.run_dir).journals.exists():
            return
        self.report.runs += 1
        try:
            ship_run(self._connect(), facts, self._cursors, self.report)
        except RejectedError as error:
            self.report.rejected[facts.run_id] = str(error)
        else:
            self.marks.runs[facts.run_id] = mark
            self.marks.changed = True

    def sweep(self, record: SweepRecord) -> None:
        """Renew a sweep's record, with the tracker's ids of its runs filled in, unless it has not changed."""
        bound = {run: self._cursors.get(run).tracker_run or "" for run in record.runs}
        whole = replace(record, runs={run: replace(one, tracker_run=bound[run]) for run, one in record.runs.items()})
        mark = sweep_mark(whole)
        if self.marks.sweeps.get(record.name) == mark:
            return
        self.report.sweeps += 1
        try:
            _ship_sweep(self._connect(), whole, self._places, self.report)
        except RejectedError as error:
            self.report.rejected[record.name] = str(error)
        else:
            self.marks.sweeps[record.name] = mark
            self.marks.changed = True


def _bind(tracker: Tracker, facts: RunFacts, cursors: Cursors, journal: Journal) -> TrackedRun:
    """The tracker's run: by the cursor, else by its tag (the cursor was lost, or the last call died here), else new."""
    bound = cursors.get(facts.run_id).tracker_run
    tracked = None if bound is None else tracker.get(bound)
    if tracked is None:
        tracked = tracker.find(RUN_ID, facts.run_id)
        if tracked is None:
            first = next((entry.time_ms for attempt in journal.attempts for entry in attempt.entries), None)
            started_ms = int(time.time() * 1000) if first is None else first
            tracked = tracker.create(f"{facts.kind} {facts.run_id}", started_ms=started_ms, tags=run_tags(facts))
        cursors.set_run(facts.run_id, tracked.id)
    return tracked


def _fresh_points(tracker: Tracker, tracked: TrackedRun, journal: Journal, cursor: int) -> list[Point]:
    """What is covered by a checkpoint and not there yet, by step. The cursor's own step is looked at again: lines of that
    step may have been written after the checkpoint event that covered it."""
    points = covered_points(journal, from_step=cursor)
    return unseen(points, latest=tracked.latest, steps_of=lambda name: tracker.steps_of(tracked.id, name))


def _batches(points: Sequence[Point], length: int) -> Iterator[Sequence[Point]]:
    for start in range(0, len(points), length):
        yield points[start : start + length]


def _advance(cursors: Cursors, run_id: str, step: int) -> None:
    if step > cursors.get(run_id).step:
        cursors.advance(run_id, step)


def run_tags(facts: RunFacts) -> dict[str, str]:
    """Everything about a run that is no parameter, metric or artifact."""
    told = {
        RUN_ID: facts.run_id,
        KIND: facts.kind,
        "orch.code_tree": facts.code_tree,
        "orch.commit": facts.code_commit,
        "orch.dirty": str(facts.code_dirty).lower(),
        "orch.environment": facts.environment,
        "orch.slurm_jobs": " ".join(dict.fromkeys(one.job_id for one in facts.attempts if one.job_id)),
        "orch.restarts": str(max(0, len(facts.attempts) - 1)),
        "orch.nodes": " ".join(dict.fromkeys(one.node for one in facts.attempts if one.node)),
        "orch.needs": " ".join(f"{kind}={run}" for kind, run in facts.needs.items()),
        "orch.state": facts.state.value,
        "orch.reason": facts.reason,
        "orch.usage": json.dumps(in_seconds(facts.usage), separators=(",", ":")) if facts.usage else "",
    }
    return {key: shorten(value, MAX_TAG) for key, value in told.items()}


def _ship_description(tracker: Tracker, tracked: TrackedRun, facts: RunFacts) -> None:
    """Parameters that are not there yet (the tracker never changes one) and tags that differ."""
    changed = {key: value for key, value in run_tags(facts).items() if value != tracked.tags.get(key, "")}
    missing = [(key, value) for key, value in params(facts.config).items() if key not in tracked.params]
    for start in range(0, len(missing), MAX_TAGS):
        tracker.log(tracked.id, params=dict(missing[start : start + MAX_TAGS]))
    if changed:
        tracker.log(tracked.id, tags=changed)


def _ship_artifacts(tracker: Tracker, tracked: TrackedRun, facts: RunFacts, report: ShipReport) -> None:
    """The resolved configuration once, and every file below `artifacts/` that is missing there or has another size."""
    place = RunDir(facts.run_dir).artifacts
    known = tracker.artifacts(tracked.id)
    if SPEC_FILE not in known and facts.config:
        tracker.upload_text(tracked.id, json.dumps(dict(facts.config), indent=1), path=SPEC_FILE)
        report.artifacts += 1
    for name, found in files_below(place):
        if known.get(name) != found.st_size and name != SPEC_FILE:
            tracker.upload(tracked.id, place / name, folder=str(Path(name).parent) if "/" in name else "")
            report.artifacts += 1


def tracker_status(state: RunState) -> TrackerStatus:
    """What the tracker calls a state."""
    match state:
        case RunState.PLANNED | RunState.SUBMITTING | RunState.QUEUED:
            return TrackerStatus.SCHEDULED
        case RunState.RUNNING:
            return TrackerStatus.RUNNING
        case RunState.DONE:
            return TrackerStatus.FINISHED
        case RunState.FAILED | RunState.TIMED_OUT | RunState.LOST:
            return TrackerStatus.FAILED
        case RunState.CANCELLED | RunState.STOPPED:
            return TrackerStatus.KILLED


def _ship_status(tracker: Tracker, tracked: TrackedRun, facts: RunFacts, journal: Journal) -> None:
    """The state last, so that a run which the tracker calls finished has all its points there."""
    status = tracker_status(facts.state)
    if status is tracked.status:
        return
    ended_ms = None
    if status in ENDED:
        last = max((entry.time_ms for attempt in journal.attempts for entry in attempt.entries), default=None)
        now_ms = int(time.time() * 1000)
        ended_ms = int(facts.ended_at * 1000) if facts.ended_at else now_ms if last is None else last
    tracker.set_status(tracked.id, status, ended_ms=ended_ms)


def _ship_sweep(tracker: Tracker, record: SweepRecord, places: Mapping[str, Path], report: ShipReport) -> None:
    """Renew the record: the tracker's run with tag `orch.sweep`, its note, `sweep.json` and one folder of panels per row."""
    note = "\n\n".join(part for part in (record.title, record.note, record.comment) if part)
    tags = {KIND: SWEEP_KIND, SWEEP: record.name, NOTE: shorten(note, MAX_TAG)}
    tracked = tracker.find(SWEEP, record.name)
    if tracked is None:
        tracked = tracker.create(f"sweep {record.name}", started_ms=int(time.time() * 1000), tags=tags)
    changed = {key: value for key, value in tags.items() if value != tracked.tags.get(key, "")}
    if changed:
        tracker.log(tracked.id, tags=changed)
    tracker.upload_text(tracked.id, record.to_json(), path=SWEEP_FILE)
    known = tracker.artifacts(tracked.id)
    for folder, file in _row_panels(record, places):
        path = f"{folder}/{file.name}"
        if known.get(path) != file.stat().st_size:
            tracker.upload(tracked.id, file, folder=folder)
            report.artifacts += 1
    alive = any(tracker_status(run.state) not in ENDED for run in record.runs.values())
    status = TrackerStatus.RUNNING if alive else TrackerStatus.FINISHED
    if status is not tracked.status:
        tracker.set_status(tracked.id, status, ended_ms=None if alive else int(time.time() * 1000))


def _row_panels(record: SweepRecord, places: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """For each row of the table, the pictures of the first cell that has some: (`panels/<row>`, file). None without rows."""
    if record.table is None or record.table.rows is None:
        return []
    found: dict[str, list[Path]] = {}
    for cell in record.cells:
        row = cell.coordinates[record.table.rows]
        run = cell.runs.get(record.table.value.step, "")
        if row not in found and run in places:
            folder = RunDir(places[run]).artifacts
            pictures = [folder / name for name, _ in files_below(folder) if name.endswith(PICTURES) and "/" not in name]
            if pictures:
                found[row] = pictures
    return [(f"panels/{row}", picture) for row, pictures in found.items() for picture in pictures]
