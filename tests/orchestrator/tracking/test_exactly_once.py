"""Whatever kills the job or the shipper, and whenever: every point that counts is in the tracker once."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.journal import CHECKPOINT, END, SAVING, read_journal
from orchestrator.errors import TrackerError
from orchestrator.lifecycle import RunState
from orchestrator.tracking.cursors import Cursor
from orchestrator.tracking.points import Point, covered_points, unseen
from orchestrator.tracking.record import AttemptFacts, RunFacts
from orchestrator.tracking.shipper import ShipReport, ship_run
from orchestrator.tracking.tracker import TrackedRun, TrackerStatus

LAST = 24
"""Steps of the whole run."""


def written(step: int) -> dict[str, float]:
    """What the job logs at a step: the same at every replay."""
    values = {"loss": 100.0 - step} if step % 2 == 0 else {}
    return values | ({"eval": 7.0 * step} if step % 6 == 0 else {})


@dataclass
class Memory:
    """Cursors that can be lost."""

    known: dict[str, Cursor] = field(default_factory=dict)

    def get(self, run_id: str) -> Cursor:
        return self.known.get(run_id, Cursor(None, -1))

    def set_run(self, run_id: str, tracker_run: str) -> None:
        self.known[run_id] = Cursor(tracker_run, -1)

    def advance(self, run_id: str, step: int) -> None:
        self.known[run_id] = Cursor(self.known[run_id].tracker_run, step)


@dataclass
class RowTracker:
    """A tracker in memory. It keeps one row per (metric, time, step, value), as MLflow does, and dies on request."""

    rows: set[tuple[str, int, int, float]] = field(default_factory=set)
    runs: dict[str, dict[str, str]] = field(default_factory=dict)
    calls_left: int | None = None
    """Requests until the outage; None never fails."""
    lost_answer: float = 0.0
    """Share of the last request's content that arrives although its answer does not."""

    def _request(self) -> float:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                return self.lost_answer
        return 2.0

    @staticmethod
    def _answer(share: float) -> None:
        if share <= 1.0:
            raise TrackerError

    def _tracked(self, run: str) -> TrackedRun:
        latest: dict[str, int] = {}
        for name, _, step, _ in self.rows:
            latest[name] = max(step, latest.get(name, step))
        return TrackedRun(id=run, status=TrackerStatus.RUNNING, tags=self.runs[run], latest=latest)

    def get(self, tracker_run: str) -> TrackedRun | None:
        self._answer(self._request())
        return self._tracked(tracker_run) if tracker_run in self.runs else None

    def find(self, tag: str, value: str) -> TrackedRun | None:
        self._answer(self._request())
        return next((self._tracked(run) for run, tags in self.runs.items() if tags.get(tag) == value), None)

    def search(self, condition: str) -> Iterator[TrackedRun]:
        raise NotImplementedError(condition)

    def create(self, name: str, *, started_ms: int, tags: Mapping[str, str]) -> TrackedRun:
        share = self._request()
        if share > 0:
            self.runs[f"t{len(self.runs)}"] = dict(tags)
        self._answer(share)
        return self._tracked(f"t{len(self.runs) - 1}")

    def log(
        self,
        tracker_run: str,
        *,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        share = self._request()
        arrived = points[: int(len(points) * min(share, 1.0))]
        self.rows.update((point.name, point.time_ms, point.step, point.value) for point in arrived)
        self._answer(share)

    def steps_of(self, tracker_run: str, name: str) -> frozenset[int]:
        self._answer(self._request())
        return frozenset(step for one, _, step, _ in self.rows if one == name)

    def set_status(self, tracker_run: str, status: TrackerStatus, *, ended_ms: int | None) -> None:
        self._answer(self._request())

    def artifacts(self, tracker_run: str) -> dict[str, int]:
        self._answer(self._request())
        return {"spec.json": 1}

    def upload(self, tracker_run: str, file: Path, *, folder: str = "") -> None:
        self._answer(self._request())

    def upload_text(self, tracker_run: str, text: str, *, path: str) -> None:
        self._answer(self._request())

    def download_text(self, tracker_run: str, path: str) -> str:
        raise NotImplementedError(path)


class Job:
    """A training job that may be killed after any step, and may find its newest checkpoint corrupt, or not see it this once."""

    def __init__(self, folder: Path) -> None:
        self.journals = folder / "r" / "journal"
        self.journals.mkdir(parents=True)
        self.checkpoints = [0]
        self.attempt = 0
        self.step = 0
        self.clock = 0
        self.restart(corrupt=0)

    def restart(self, *, corrupt: int, unseen: int = 0) -> None:
        for _ in range(min(corrupt, len(self.checkpoints) - 1)):
            self.checkpoints.pop()
        self.step = self.checkpoints[-1 - min(unseen, len(self.checkpoints) - 1)]
        self.attempt += 1
        self._write({"attempt": self.attempt, "restored": self.step, "time": 0.0})

    def _write(self, line: Mapping[str, object]) -> None:
        with open(self.journals / f"{self.attempt:04d}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def _stamp(self) -> int:
        self.clock += 1
        return self.clock

    def work(self, steps: int) -> None:
        for _ in range(min(steps, LAST - self.step)):
            self.step += 1
            if values := written(self.step):
                self._write({"s": self.step, "t": self._stamp(), "m": values})

    def checkpoint(self) -> None:
        if self.step:
            self._write({"s": self.step, "t": self._stamp(), "e": SAVING})
            self.checkpoints = sorted({*self.checkpoints, self.step})
            self._write({"s": self.step, "t": self._stamp(), "e": CHECKPOINT})

    def finish(self) -> None:
        self.work(LAST)
        self._write({"s": self.step, "t": self._stamp(), "e": END})


work = st.tuples(st.just("work"), st.integers(1, 9))
checkpoint = st.tuples(st.just("checkpoint"), st.just(0))
killed = st.tuples(st.just("killed"), st.integers(0, 2))
killed_amid_old_listings = st.tuples(st.just("killed amid old listings"), st.integers(1, 3))
shipping = st.tuples(st.just("ship"), st.one_of(st.none(), st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0]))))
lost_cursors = st.tuples(st.just("lose cursors"), st.just(0))
histories = st.lists(
    st.one_of(work, work, checkpoint, checkpoint, killed, killed_amid_old_listings, shipping, shipping, lost_cursors), max_size=25
)


def facts_of(folder: Path) -> RunFacts:
    return RunFacts(
        run_id="r", kind="train", state=RunState.RUNNING, run_dir=folder / "r", attempts=(AttemptFacts(),), config={"a": 1}
    )


@settings(max_examples=300, deadline=None)
@given(history=histories)
def test_that_any_history_of_kills_and_outages_ends_with_every_point_once(history: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        job, tracker, cursors = Job(folder), RowTracker(), Memory()
        for action, argument in history:
            match action, argument:
                case "work", int(steps):
                    job.work(steps)
                case "checkpoint", _:
                    job.checkpoint()
                case "killed", int(corrupt):
                    job.restart(corrupt=corrupt)
                case "killed amid old listings", int(unseen):
                    job.restart(corrupt=0, unseen=unseen)
                case "lose cursors", _:
                    cursors.known.clear()
                case "ship", None:
                    ship_run(tracker, facts_of(folder), cursors, ShipReport(), batch=3)
                case "ship", (int(calls), float(share)):
                    tracker.calls_left, tracker.lost_answer = calls, share
                    with contextlib.suppress(TrackerError):
                        ship_run(tracker, facts_of(folder), cursors, ShipReport(), batch=3)
                    tracker.calls_left = None
        finish_and_check(folder, job, tracker, cursors)


def finish_and_check(folder: Path, job: Job, tracker: RowTracker, cursors: Memory) -> None:
    """Let the job end and ship without trouble; then every point of the surviving history is there once."""
    job.finish()
    ship_run(tracker, facts_of(folder), cursors, ShipReport(), batch=3)
    expected = {(name, step): value for step in range(1, LAST + 1) for name, value in written(step).items()}
    counted = Counter((name, step) for name, _, step, _ in tracker.rows)
    assert counted == Counter(dict.fromkeys(expected, 1))
    assert {(name, step): value for name, _, step, value in tracker.rows} == expected
    assert len(tracker.runs) == 1
    assert cursors.get("r").step == LAST


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("corrupt", [0, 1])
def test_that_an_outage_at_any_request_followed_by_a_fall_back_costs_nothing(tmp_path: Path, share: float, corrupt: int) -> None:
    for calls in range(12):
        folder = tmp_path / str(calls)
        job, tracker, cursors = Job(folder), RowTracker(calls_left=calls, lost_answer=share), Memory()
        for _ in range(2):
            job.work(9)
            job.checkpoint()
        with contextlib.suppress(TrackerError):
            ship_run(tracker, facts_of(folder), cursors, ShipReport(), batch=3)
        tracker.calls_left = None
        job.restart(corrupt=corrupt)
        finish_and_check(folder, job, tracker, cursors)


def journal_of(folder: Path, lines: list[Mapping[str, object]], *, attempt: int = 1, restored: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    head = {"attempt": attempt, "restored": restored}
    (folder / f"{attempt:04d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [head, *lines]))


def test_that_a_point_without_a_checkpoint_after_it_is_not_sent(tmp_path: Path) -> None:
    lines = [{"s": step, "t": step, "m": {"loss": 1.0}} for step in (1, 2, 3)]
    journal_of(tmp_path / "j", [*lines[:2], {"s": 2, "t": 2, "e": CHECKPOINT}, lines[2]])
    assert [point.step for point in covered_points(read_journal(tmp_path / "j"), from_step=-1)] == [1, 2]


def test_that_a_line_written_after_the_checkpoint_of_its_step_is_sent_later(tmp_path: Path) -> None:
    tracker, cursors = RowTracker(), Memory()
    lines: list[Mapping[str, object]] = [{"s": 2, "t": 1, "m": {"loss": 1.0}}, {"s": 2, "t": 2, "e": CHECKPOINT}]
    (tmp_path / "r").mkdir()
    journal_of(tmp_path / "r" / "journal", lines)
    ship_run(tracker, facts_of(tmp_path), cursors, ShipReport())
    journal_of(tmp_path / "r" / "journal", [*lines, {"s": 2, "t": 3, "m": {"eval": 5.0}}, {"s": 2, "t": 4, "e": END}])
    ship_run(tracker, facts_of(tmp_path), cursors, ShipReport())
    assert tracker.rows == {("loss", 1, 2, 1.0), ("eval", 3, 2, 5.0)}


def test_that_a_step_logged_by_two_attempts_is_one_point(tmp_path: Path) -> None:
    journal_of(tmp_path / "j", [{"s": 0, "t": 1, "m": {"loss": 1.0}}])
    journal_of(tmp_path / "j", [{"s": 0, "t": 9, "m": {"loss": 1.0}}, {"s": 0, "t": 9, "e": END}], attempt=2)
    points = covered_points(read_journal(tmp_path / "j"), from_step=-1)
    assert points == [Point(name="loss", step=0, time_ms=9, value=1.0)]


def test_that_the_tracker_is_asked_for_its_steps_only_when_a_batch_is_in_doubt() -> None:
    points = [Point(name="loss", step=step, time_ms=step, value=0.0) for step in (5, 6, 7)]

    def never(name: str) -> frozenset[int]:
        raise AssertionError(name)

    assert [one.step for one in unseen(points, latest={"loss": 5}, steps_of=never)] == [6, 7]
    assert [one.step for one in unseen(points, latest={}, steps_of=never)] == [5, 6, 7]
    assert [one.step for one in unseen(points, latest={"loss": 6}, steps_of=lambda _: frozenset({6}))] == [5, 7]


def test_that_a_lost_answer_to_create_does_not_make_a_second_run(tmp_path: Path) -> None:
    journal_of(tmp_path / "journal", [])
    tracker, cursors = RowTracker(calls_left=1, lost_answer=1.0), Memory()
    with pytest.raises(TrackerError):
        ship_run(tracker, facts_of(tmp_path), cursors, ShipReport())
    tracker.calls_left = None
    ship_run(tracker, facts_of(tmp_path), cursors, ShipReport())
    assert len(tracker.runs) == 1
