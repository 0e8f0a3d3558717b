"""Shipping into a real MLflow store: rows, tags, states, artifacts, and what unchanged runs cost."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.journal import CHECKPOINT, END
from orchestrator.goodput import Spent, Usage
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Axis, Factorial, Option, Table, Value
from orchestrator.tracking.mlflow_store import MlflowTracker
from orchestrator.tracking.record import AttemptFacts, CellEntry, RunSummary, SweepRecord
from orchestrator.tracking.shipper import ship, tracker_status
from orchestrator.tracking.tracker import ENDED, TrackedRun


def tracked(uri: str, root: Path, run: str) -> TrackedRun:
    found = MlflowTracker(uri, root).find("orch.run_id", run)
    assert found is not None
    return found


def test_that_points_keep_their_steps_times_and_values(uri, root, make, json_cursors, rows):
    make.journal(
        "r1",
        1,
        0,
        [{"s": 5, "t": 1234, "m": {"train/loss": 0.25, "eval/fg_ari": -0.5}}, {"s": 5, "t": 1300, "e": END, "d": {}}],
    )
    report = ship(uri, root, [make.facts("r1")], json_cursors)
    assert rows() == [("r1", "eval/fg_ari", 5, 1234, -0.5), ("r1", "train/loss", 5, 1234, 0.25)]
    assert (report.runs, report.points, report.rejected) == (1, 2, {})
    assert json_cursors.get("r1").step == 5


def test_that_repeating_every_batch_after_losing_the_cursors_changes_nothing(uri, root, make, memory_cursors, rows):
    make.steps("r1", last=1200)
    assert ship(uri, root, [make.facts("r1")], memory_cursors).points == 2400
    before = rows()
    memory_cursors.known.clear()
    (root / "tracker_marks.json").unlink()
    assert ship(uri, root, [make.facts("r1")], memory_cursors).points == 0
    assert rows() == before
    assert len(before) == 2400
    assert len({row[:3] for row in before}) == 2400


def test_that_steps_replayed_after_a_fall_back_are_not_doubled(uri, root, make, memory_cursors, rows):
    make.steps("r1", last=10, event=CHECKPOINT)
    ship(uri, root, [make.facts("r1", RunState.RUNNING)], memory_cursors)
    make.steps("r1", first=6, last=20, attempt=2)  # the checkpoint of step 10 was corrupt; step 5 was restored
    ship(uri, root, [make.facts("r1")], memory_cursors)
    assert sorted((name, step) for _, name, step, _, _ in rows()) == sorted(
        (name, step) for name in ("train/loss", "train/lr") for step in range(1, 21)
    )


def test_that_values_that_are_not_finite_are_kept_and_do_not_block_a_run(uri, root, make, memory_cursors):
    values = [1.0, math.nan, math.inf, -math.inf]
    lines = [{"s": step, "t": step, "m": {"loss": value}} for step, value in enumerate(values)]
    make.journal("r1", 1, 0, [*lines, {"s": 3, "t": 9, "e": END, "d": {}}])
    for _ in range(2):  # sent again from the start: NaN too is one row
        memory_cursors.known.clear()
        (root / "tracker_marks.json").unlink(missing_ok=True)
        ship(uri, root, [make.facts("r1")], memory_cursors)
    tracker = MlflowTracker(uri, root)
    history = tracker._client.get_metric_history(tracked(uri, root, "r1").id, "loss")
    stored = [point.value for point in history]
    assert len(stored) == 4
    assert math.isnan(stored[1])
    assert stored[2:] == [1.7976931348623157e308, -1.7976931348623157e308]


def test_that_a_run_carries_its_configuration_and_its_history_but_no_sweep(uri, root, make, memory_cursors):
    make.steps("r1", last=2)
    attempts = (AttemptFacts(job_id="12_0", node="n1"), AttemptFacts(job_id="12_0", restart_count=1, node="n2"))
    facts = make.facts(
        "r1", attempts=attempts, code_commit="abc", code_dirty=True, config={"kind": "train", "a": {"b": [1, 2], "c": None}}
    )
    ship(uri, root, [facts], memory_cursors)
    run = tracked(uri, root, "r1")
    assert run.params == {"kind": "train", "a.b": "[1, 2]", "a.c": "null"}
    ours = {key: value for key, value in run.tags.items() if key.startswith("orch.") and value}
    assert ours == {
        "orch.run_id": "r1",
        "orch.kind": "train",
        "orch.code_tree": "tree1",
        "orch.commit": "abc",
        "orch.dirty": "true",
        "orch.slurm_jobs": "12_0",
        "orch.restarts": "1",
        "orch.nodes": "n1 n2",
        "orch.state": "done",
    }
    assert run.tags["mlflow.runName"] == "train r1"


def test_that_a_run_carries_what_it_has_used_and_a_later_count_replaces_it(uri, root, make, memory_cursors):
    usage = Usage(gpus=Spent(productive_ms=3000, restarting_ms=1000), queued_ms=500)
    make.steps("r1", last=2, event=CHECKPOINT)
    ship(uri, root, [make.facts("r1", RunState.RUNNING, usage=usage)], memory_cursors)
    told = {"productive": 3.0, "checkpointing": 0.0, "restarting": 1.0, "replayed": 0.0}
    expected = {"goodput": 0.75, "gpu_seconds": told, "queued_seconds": 0.5}
    assert json.loads(tracked(uri, root, "r1").tags["orch.usage"]) == expected
    make.steps("r1", last=3)
    ship(uri, root, [make.facts("r1", usage=usage + usage)], memory_cursors)
    assert json.loads(tracked(uri, root, "r1").tags["orch.usage"])["gpu_seconds"]["productive"] == 6.0


def test_that_counting_the_time_of_a_finished_run_later_ships_no_run_again(uri, root, make, memory_cursors):
    """Runs that were shipped before anybody counted: their sweep's record is renewed once, they are left alone."""
    make.steps("r1", last=2)
    ship(uri, root, [make.facts("r1")], memory_cursors, [record()])
    counted = Usage(tasks=Spent(productive_ms=7))
    runs = {"r1": replace(record().runs["r1"], usage=counted)}
    reports = [ship(uri, root, [make.facts("r1", usage=counted)], memory_cursors, [record(runs=runs)]) for _ in range(2)]
    assert [(one.runs, one.unchanged, one.sweeps) for one in reports] == [(0, 1, 1), (0, 1, 0)]


def test_that_the_configuration_and_pictures_are_stored_once(uri, root, make, memory_cursors):
    make.steps("r1", last=2, event=CHECKPOINT)
    pictures = root / "runs" / "r1" / "artifacts"
    (pictures / "panels").mkdir(parents=True)
    (pictures / "panels" / "000002.png").write_bytes(b"one")
    (pictures / ".half.png").write_bytes(b"being written")
    first = ship(uri, root, [make.facts("r1", RunState.RUNNING)], memory_cursors)
    (pictures / "panels" / "000004.png").write_bytes(b"two")
    second = ship(uri, root, [make.facts("r1", RunState.RUNNING)], memory_cursors)
    tracker = MlflowTracker(uri, root)
    run = tracked(uri, root, "r1")
    assert (first.artifacts, second.artifacts) == (2, 1)
    assert set(tracker.artifacts(run.id)) == {"spec.json", "panels/000002.png", "panels/000004.png"}
    assert json.loads(tracker.download_text(run.id, "spec.json")) == dict(make.facts("r1").config)
    assert list((root / "mlartifacts").glob("*/artifacts/spec.json"))


def test_that_a_dead_run_gets_its_final_status_and_a_resumed_one_runs_again(uri, root, make, memory_cursors):
    make.steps("r1", last=3, event=CHECKPOINT)
    seen = []
    for state in (RunState.RUNNING, RunState.LOST, RunState.QUEUED, RunState.RUNNING, RunState.CANCELLED, RunState.DONE):
        ship(uri, root, [make.facts("r1", state, ended_at=77.5)], memory_cursors)
        seen.append(tracked(uri, root, "r1").status.value)
    assert seen == ["RUNNING", "FAILED", "SCHEDULED", "RUNNING", "KILLED", "FINISHED"]
    assert tracked(uri, root, "r1").ended_ms == 77500


@pytest.mark.parametrize("state", list(RunState))
def test_that_every_state_has_a_status_and_only_dead_runs_end(state):
    active = {RunState.PLANNED, RunState.SUBMITTING, RunState.QUEUED, RunState.RUNNING}
    assert (tracker_status(state) in ENDED) == (state not in active)


def test_that_a_run_that_nobody_started_is_not_in_the_tracker(uri, root, make, memory_cursors):
    report = ship(uri, root, [make.facts("r1", RunState.QUEUED, attempts=())], memory_cursors)
    assert (report.runs, MlflowTracker(uri, root).find("orch.run_id", "r1")) == (0, None)


def test_that_one_refused_run_does_not_stop_the_others(uri, root, make, memory_cursors, rows):
    lines = [{"s": 1, "t": -5, "m": {"loss": 1.0}}, {"s": 1, "t": 2, "e": END, "d": {}}]  # a time before 1970 is refused
    make.journal("bad", 1, 0, lines)
    make.steps("good", last=2)
    report = ship(uri, root, [make.facts("bad"), make.facts("good")], memory_cursors)
    assert list(report.rejected) == ["bad"]
    assert {row[0] for row in rows()} == {"good"}
    assert ship(uri, root, [make.facts("bad"), make.facts("good")], memory_cursors).unchanged == 1


def test_that_a_run_deleted_in_the_tracker_is_rebuilt_from_its_journal(uri, root, make, memory_cursors):
    make.steps("r1", last=3, event=CHECKPOINT)
    ship(uri, root, [make.facts("r1", RunState.RUNNING)], memory_cursors)
    old = tracked(uri, root, "r1")
    MlflowTracker(uri, root)._client.delete_run(old.id)
    make.steps("r1", last=3)
    report = ship(uri, root, [make.facts("r1")], memory_cursors)
    new = tracked(uri, root, "r1")
    assert (report.points, new.latest) == (6, {"train/loss": 3, "train/lr": 3})
    assert new.id != old.id


def test_that_long_and_strange_names_reach_the_tracker(uri, root, make, memory_cursors):
    lines = [{"s": 1, "t": 5, "m": {"a(b)": 1.0, "a[b]": 2.0, "x" * 400: 3.0}}, {"s": 1, "t": 5, "e": END, "d": {}}]
    make.journal("r1", 1, 0, lines)
    facts = make.facts("r1", config={"long": "v" * 9000, "k" * 300: 1, **{f"p{i:03d}": i for i in range(250)}})
    assert ship(uri, root, [facts], memory_cursors).rejected == {}
    run = tracked(uri, root, "r1")
    assert sorted(run.metrics.values()) == [1.0, 2.0, 3.0]
    assert len(run.params) == 252
    assert run.params["long"].endswith("...[cut]")


def test_that_a_second_shipping_of_1000_finished_runs_asks_the_tracker_nothing(uri, root, make, memory_cursors, monkeypatch):
    from orchestrator.tracking.cursors import Marks, run_mark

    facts = [make.facts(f"r{i}") for i in range(1000)]
    marks = Marks(tracking_uri=uri, changed=True)
    for one in facts:
        make.steps(one.run_id, last=3)
        marks.runs[one.run_id] = run_mark(one)
    marks.save(root)
    monkeypatch.setattr("orchestrator.tracking.mlflow_store.MlflowTracker", None)  # any connection would raise
    start = time.perf_counter()
    report = ship(uri, root, facts, memory_cursors)
    assert (report.unchanged, report.runs) == (1000, 0)
    assert time.perf_counter() - start < 2.0


def record(**more) -> SweepRecord:
    option = Option(name="a", label="A")
    told = {
        "name": "table1",
        "title": "Table 1",
        "comment": "first try",
        "axes": {"method": Axis(name="method", options={"a": option})},
        "cells": (CellEntry(coordinates={"method": "a"}, runs={"train": "r1"}),),
        "table": Table(rows="method", columns=None, value=Value(metric="loss", step="train")),
        "runs": {"r1": RunSummary(kind="train", state=RunState.DONE, reason="done")},
    }
    return SweepRecord(**(told | more))


def test_that_a_sweep_has_one_record_with_note_and_pictures_that_is_renewed(uri, root, make, memory_cursors):
    make.steps("r1", last=2)
    (root / "runs" / "r1" / "artifacts").mkdir()
    for name in ("panel.png", "masks.gif", "notes.txt"):
        (root / "runs" / "r1" / "artifacts" / name).write_bytes(b"picture")
    facts = [make.facts("r1")]
    assert ship(uri, root, facts, memory_cursors, [record()]).sweeps == 1
    assert ship(uri, root, facts, memory_cursors, [record()]).sweeps == 0
    assert ship(uri, root, facts, memory_cursors, [record(comment="second try")]).sweeps == 1
    found = list(MlflowTracker(uri, root).search("tags.`orch.kind` = 'sweep'"))
    assert [run.tags["mlflow.note.content"] for run in found] == ["Table 1\n\nsecond try"]
    tracker = MlflowTracker(uri, root)
    stored = SweepRecord.from_json(tracker.download_text(found[0].id, "sweep.json"))
    assert stored.runs["r1"].tracker_run == tracked(uri, root, "r1").id
    assert set(tracker.artifacts(found[0].id)) == {"sweep.json", "panels/a/panel.png", "panels/a/masks.gif"}


def test_that_a_factorial_has_a_record_without_pictures_per_row(uri, root, make, memory_cursors):
    make.steps("r1", last=2)
    (root / "runs" / "r1" / "artifacts").mkdir()
    (root / "runs" / "r1" / "artifacts" / "panel.png").write_bytes(b"picture")
    value = Value(metric="loss", step="train")
    table = Table(rows=None, columns=None, value=value, factorial=Factorial(factors=("method", "kernel")))
    assert ship(uri, root, [make.facts("r1")], memory_cursors, [record(table=table)]).sweeps == 1
    tracker = MlflowTracker(uri, root)
    (found,) = tracker.search("tags.`orch.kind` = 'sweep'")
    assert set(tracker.artifacts(found.id)) == {"sweep.json"}
