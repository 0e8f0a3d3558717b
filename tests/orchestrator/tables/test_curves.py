"""Learning curves: whose points they are, what is averaged, and what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.table import command, write_pictures
from orchestrator.errors import UserError
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Axis, Factorial, Option, Table, Value
from orchestrator.tables.curves import curves, draw, runs_with
from orchestrator.tracking.record import CellEntry, RunSummary, SweepRecord
from orchestrator.workspace import Root

METRIC = "valid/fg_ari"


def trained(rows: dict[str, str], seeds: int = 3) -> SweepRecord:
    """Row -> name of its training runs (rows may share them); one evaluation each."""
    cells = [
        CellEntry(
            coordinates={"method": row, "seed": str(seed)},
            runs={"prepare": "p", "train": f"{name}-{seed}", "evaluate": f"e-{row}-{seed}"},
        )
        for row, name in rows.items()
        for seed in range(seeds)
    ]
    kinds = {run: step for cell in cells for step, run in cell.runs.items()}
    return SweepRecord(
        name="s",
        title="t",
        axes={"method": Axis(name="method", options={row: Option(name=row, label=row.upper()) for row in rows})},
        cells=tuple(cells),
        table=Table(rows="method", columns=None, value=Value(metric="eval/fg_ari", step="evaluate", over="seed")),
        runs={run: RunSummary(kind=kind, state=RunState.RUNNING, reason="running") for run, kind in kinds.items()},
    )


def crossed() -> SweepRecord:
    """The same with a factorial table."""
    table = Table(
        rows=None, columns=None, value=Value(metric=METRIC, step="train"), factorial=Factorial(factors=("method", "seed"))
    )
    return replace(trained({"a": "a"}), table=table)


def history(*values: float, every: int = 10) -> tuple[tuple[int, float], ...]:
    return tuple((every * (i + 1), value) for i, value in enumerate(values))


def test_that_a_curve_is_mean_and_sample_sd_over_a_rows_runs():
    numbers = np.random.default_rng(0).random((3, 4))
    record = trained({"a": "a"})
    assert runs_with(record, METRIC) == ("a-0", "a-1", "a-2")
    ((curve,),) = curves(record, {f"a-{i}": history(*line) for i, line in enumerate(numbers)}, METRIC).values()
    assert curve.steps == (10, 20, 30, 40)
    np.testing.assert_allclose(curve.mean, numbers.mean(0))
    np.testing.assert_allclose(curve.sd, numbers.std(0, ddof=1))
    assert (curve.n, curve.expected, curve.label) == (3, 3, "A")


def test_that_a_curve_ends_where_its_slowest_run_is_and_says_which_runs_have_no_point():
    record = trained({"a": "a"})
    found = {"a-0": history(0.1, 0.2, 0.3), "a-2": history(0.3, float("nan"))}
    ((curve,),) = curves(record, found, METRIC).values()
    assert (curve.steps, curve.mean, curve.n, curve.expected) == ((10,), (pytest.approx(0.2),), 2, 3)
    assert [text.get_text() for text in draw(record, {"": (curve,)}, METRIC).legends[0].get_texts()] == ["A (2/3 runs)"]


def test_that_rows_that_share_their_training_share_a_curve():
    record = trained({"v0": "v0", "v1": "v0", "v3": "v3"}, seeds=1)
    (lines,) = curves(record, {"v0-0": history(0.5), "v3-0": history(0.7)}, METRIC).values()
    assert [line.label for line in lines] == ["V0 = V1", "V3"]
    assert [line.sd for line in lines] == [(0.0,), (0.0,)]


def test_that_a_metric_of_the_evaluation_comes_from_the_evaluation():
    assert runs_with(trained({"a": "a", "b": "a"}, seeds=1), "eval/fg_ari") == ("e-a-0", "e-b-0")


def test_that_columns_are_panels_and_a_line_lies_where_its_points_are():
    record = trained({"a": "a", "b": "b"}, seeds=2)
    axes = {**record.axes, "seed": Axis(name="seed", options={x: Option(name=x, label=f"seed {x}") for x in "01"})}
    wide = replace(record, axes=axes, table=replace(record.table, columns="seed"))
    found = curves(wide, {"a-0": history(0.1, 0.2), "b-0": history(0.3), "a-1": history(0.4)}, METRIC)
    panels = draw(wide, found, METRIC).axes
    assert [panel.get_title() for panel in panels] == ["seed 0", "seed 1"]
    drawn = [[(list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines] for panel in panels]
    assert drawn[0] == [([10, 20], [0.1, 0.2]), ([10], [0.3])]
    assert drawn[1][0] == ([10], [0.4])
    assert panels[0].lines[1].get_marker() == "."  # else a single point would not be seen
    assert panels[0].lines[0].get_color() == panels[1].lines[0].get_color()  # one row, one colour


def test_that_many_rows_have_a_panel_each_before_the_others_in_grey():
    names = {f"r{i}": f"r{i}" for i in range(12)}
    record = trained(names, seeds=1)
    figure = draw(record, curves(record, {f"r{i}-0": history(float(i)) for i in range(12)}, METRIC), METRIC)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [f"R{i}" for i in range(12)]
    assert [list(axes.lines[-1].get_ydata()) for axes in panels] == [[float(i)] for i in range(12)]
    assert {len(axes.lines) for axes in panels} == {13}
    assert not figure.legends


def test_that_what_cannot_be_drawn_is_the_users_to_mend():
    record = trained({"a": "a"})
    with pytest.raises(UserError, match="no run of this sweep writes this metric") as told:
        runs_with(record, "valid/fgari")
    assert told.value.problems[0].hint == f"did you mean `{METRIC}`?"
    with pytest.raises(UserError, match="no point of valid/fg_ari yet"):
        draw(record, curves(record, {}, METRIC), METRIC)
    with pytest.raises(UserError, match="declares no table"):
        runs_with(replace(record, table=None), METRIC)
    with pytest.raises(UserError, match="factorial table"):
        runs_with(crossed(), METRIC)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--curves", "c.png"], "go together"),
        (["--metric", METRIC], "go together"),
        (["--curves", "c.jpeg", "--metric", METRIC], "is no format of a plot"),
    ],
)
def test_that_curves_need_a_file_and_a_metric_before_anything_is_read(tmp_path: Path, options: list[str], what: str):
    with pytest.raises(UserError, match=what) as told:
        command.main(["s", *options], obj=tmp_path, standalone_mode=False)
    assert told.value.problems[0].where.startswith("--curves")


def test_that_a_factorial_says_that_it_has_no_pictures_by_design(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_pictures(Root(tmp_path), crossed(), tmp_path / "p.png")
    assert "a factorial table has none by design" in capsys.readouterr().err
    assert not (tmp_path / "p.png").exists()
    write_pictures(Root(tmp_path), trained({"a": "a"}), tmp_path / "p.png")
    assert "no pictures yet" in capsys.readouterr().err
