"""Tables can be rebuilt by anyone who reaches the tracker: no run directory, no control plane."""

from __future__ import annotations

import math
import shutil

import pytest

from jobs.journal import END
from orchestrator.cli.table import write_curves
from orchestrator.errors import TrackerError, UserError
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Axis, Option, Table, Value
from orchestrator.tables.assemble import assemble, metrics_of
from orchestrator.tables.layout import number
from orchestrator.tracking.mlflow_store import default_uri
from orchestrator.tracking.reader import read_histories, read_sweep, read_values
from orchestrator.tracking.record import CellEntry, SweepRecord, summary
from orchestrator.tracking.shipper import ship


def record(facts, name="table1") -> SweepRecord:
    option = Option(name="a", label="A")
    return SweepRecord(
        name=name,
        title="Table 1",
        axes={"method": Axis(name="method", options={"a": option})},
        cells=tuple(CellEntry(coordinates={"method": "a", "seed": one.run_id}, runs={"train": one.run_id}) for one in facts),
        table=Table(rows="method", columns=None, value=Value(metric="train/loss", step="train", over="seed")),
        runs={one.run_id: summary(one) for one in facts},
    )


def test_that_a_table_is_rebuilt_from_the_tracker_alone_without_a_word(uri, root, make, memory_cursors, capfd):
    for run, last in (("r1", 2), ("r2", 4), ("r3", 4)):
        make.steps(run, last=last)
    facts = [make.facts("r1"), make.facts("r2"), make.facts("r3", RunState.RUNNING, progress=0.63)]
    ship(uri, root, facts, memory_cursors, [record(facts), record(facts[:1], "other")])
    shutil.rmtree(root / "runs")
    read = read_sweep(uri, "table1")
    values = read_values(uri, read, metrics_of(read))
    assert values == {"r1": {"train/loss": 0.5}, "r2": {"train/loss": 0.25}, "r3": {"train/loss": 0.25}}
    cell = assemble(read, values).blocks[0].cells[0][0]
    assert number(cell, digits=3) == "0.375 ± 0.177 (2/3)"
    assert cell.gaps[0].reason == "running 63 %"
    assert tuple(capfd.readouterr()) == ("", "")


def test_that_values_come_in_pages_and_only_for_the_runs_of_the_sweep(uri, root, make, memory_cursors, monkeypatch):
    monkeypatch.setattr("orchestrator.tracking.reader._IDS_PER_REQUEST", 4)
    monkeypatch.setattr("orchestrator.tracking.mlflow_store.PAGE", 3)
    facts = [make.facts(f"r{i}") for i in range(9)]
    for i, one in enumerate(facts):
        make.steps(one.run_id, last=i + 1)
    ship(uri, root, facts, memory_cursors, [record(facts[:8])])
    values = read_values(uri, read_sweep(uri, "table1"), ["train/loss", "never/logged"])
    assert values == {f"r{i}": {"train/loss": 1 / (i + 1)} for i in range(8)}


def test_that_an_unknown_sweep_names_the_known_ones(uri, root, make, memory_cursors):
    make.steps("r1", last=2)
    facts = [make.facts("r1")]
    ship(uri, root, facts, memory_cursors, [record(facts, "table1"), record(facts, "dinosaur")])
    with pytest.raises(UserError, match="`dinosaur`, `table1`"):
        read_sweep(uri, "tabel1")


def test_that_a_missing_store_is_not_created_by_reading(tmp_path):
    with pytest.raises(TrackerError, match="no tracker store"):
        read_sweep(default_uri(tmp_path), "table1")
    assert list(tmp_path.iterdir()) == []


def test_that_infinite_and_missing_values_come_back_as_such(uri, root, make, memory_cursors):
    for run, value in (("r1", math.inf), ("r2", -math.inf), ("r3", math.nan)):
        make.journal(run, 1, 0, [{"s": 1, "t": 1, "m": {"train/loss": value}}, {"s": 1, "t": 1, "e": END, "d": {}}])
    facts = [make.facts(run) for run in ("r1", "r2", "r3")]
    ship(uri, root, facts, memory_cursors, [record(facts)])
    values = read_values(uri, read_sweep(uri, "table1"), ["train/loss"])
    assert [values[run]["train/loss"] for run in ("r1", "r2")] == [math.inf, -math.inf]
    assert math.isnan(values["r3"]["train/loss"])


def test_that_a_curve_has_every_point_that_was_shipped(uri, root, make, memory_cursors, tmp_path):
    facts = [make.facts(f"r{i}") for i in range(3)]
    for i, one in enumerate(facts[:2]):
        make.steps(one.run_id, last=3 + i)
    ship(uri, root, facts, memory_cursors, [record(facts)])
    read = read_sweep(uri, "table1")
    found = read_histories(uri, read, ["r0", "r1", "r2", "unknown"], "train/loss")
    assert found == {f"r{i}": tuple((step, 1 / step) for step in range(1, 4 + i)) for i in range(2)}
    write_curves(uri, read, "train/loss", tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
