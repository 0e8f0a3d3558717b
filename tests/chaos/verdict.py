"""Owns what must be true after a storm, and says what is not."""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from jobs.checkpoint import CheckpointStore
from jobs.contract import RunDir, read_outcome
from jobs.count import next_value
from jobs.journal import CHECKPOINT, Journal, read_journal
from tests.chaos.scene import Scene, points

RACE_MS = 1500
"""How long after another's claim a checkpoint may still be renamed: it was asked for before, and is the same content."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """An attempt that ended before its run did."""

    run: str
    ended_ms: int
    """When it journalled its last step."""
    replayed: int
    """Steps that the next attempt did again."""
    again_s: float | None
    """From its last step to the next attempt's first; None when that made none."""


@dataclass(kw_only=True)
class Verdict:
    """What a storm has shown."""

    problems: list[str] = field(default_factory=list)
    attempts: int = 0
    deaths: list[Death] = field(default_factory=list)
    duplicates: int = 0
    differences: int = 0


def judge(scene: Scene, calm: Path | None) -> Verdict:
    """Look at disk, tracker and queue once everything has ended. `calm`: the untouched root, of training runs."""
    found, work = Verdict(), scene.weather.work
    tracked = points(scene.tracker.uri, work.metric, cwd=scene.code, environment=scene.patient)
    runs = scene.run_ids()
    if sum(run.startswith(work.kind) for run in runs) != work.runs:
        found.problems.append(f"frozen are {', '.join(runs)}, the sweep has {work.runs} runs of kind {work.kind}")
    for run in runs:
        _judge_run(scene, run, tracked.get(run, []), calm, found)
    if left := scene.jobs(("RUNNING", "PENDING", "COMPLETING")):
        found.problems.append(f"still in the queue: {', '.join(left)}")
    if working := scene.working():
        found.problems.append(f"processes still at work: {', '.join(working)}")
    return found


def series(journal: Journal, metric: str) -> list[tuple[int, float]]:
    """(step, value) of what counts."""
    return [(entry.step, entry.metrics[metric]) for entry in journal.counting() if metric in entry.metrics]


def _expected(scene: Scene, run: str, calm: Path | None) -> list[tuple[int, float]]:
    """The points of an untouched run."""
    work = scene.weather.work
    if calm is not None:
        return series(read_journal(RunDir(calm / "runs" / run).journals), work.metric)
    seed, value, found = _seed(scene, run), 0, []
    for step in range(1, work.steps + 1):
        value = next_value(value, seed, step)
        found.append((step, float(value % 1_000_003)))
    return found


def _judge_run(scene: Scene, run: str, tracked: list[tuple[int, float]], calm: Path | None, found: Verdict) -> None:
    outcome, work = read_outcome(scene.run_dir(run)), scene.weather.work
    if not scene.done(run):
        found.problems.append(f"{run} is not done: {outcome}")
        return
    if not run.startswith(work.kind):
        return
    expected, journal = _expected(scene, run, calm), scene.journal(run)
    own = series(journal, work.metric)
    if own != expected:
        found.differences += 1
        found.problems.append(f"{run}: its journal is not that of an untouched run ({len(own)} of {work.steps} points)")
    if calm is not None and (other := _weights_differ(scene, run, calm)):
        found.differences += 1
        found.problems.append(f"{run}: {other}")
    if sorted(tracked) != expected:
        missing, extra = len(set(expected) - set(tracked)), len(tracked) - len(set(tracked))
        found.duplicates += extra
        found.problems.append(f"{run}: the tracker lacks {missing} points and holds {extra} twice")
    found.attempts += len(journal.attempts)
    for earlier, later in itertools.pairwise(journal.attempts):
        if earlier.entries:
            last = earlier.entries[-1]
            told = later.entries and not scene.weather.skew_s
            again_s = (later.entries[0].time_ms - last.time_ms) / 1000 if told else None
            replayed = max(0, last.step - later.restored_step)
            found.deaths.append(Death(run=run, ended_ms=last.time_ms, replayed=replayed, again_s=again_s))
        begun = later.entries[0].time_ms if later.entries and not scene.weather.skew_s else None
        late = [one for one in earlier.entries if one.event == CHECKPOINT and begun is not None and one.time_ms > begun + RACE_MS]
        if late:
            found.problems.append(f"{run}: attempt {earlier.attempt} saved {len(late)} times while {later.attempt} owned the run")
    store = CheckpointStore(directory=scene.run_dir(run).checkpoints, config_hash=run)
    newest, _ = store.newest()
    if newest is None:
        found.problems.append(f"{run}: no good checkpoint is left")


def _weights_differ(scene: Scene, run: str, calm: Path) -> str:
    """How the trained weights differ from an untouched run's, byte for byte; empty when they do not."""
    one, other = (folder.output / "model.pt" for folder in (scene.run_dir(run), RunDir(calm / "runs" / run)))
    return "" if one.read_bytes() == other.read_bytes() else "its weights are not those of an untouched run"


def _seed(scene: Scene, run: str) -> int:
    return int(json.loads(scene.run_dir(run).spec.read_text(encoding="utf-8"))["config"]["seed"])


def median(values: list[float]) -> str:
    """In seconds, for tables."""
    return f"{statistics.median(values):.1f}" if values else "-"
