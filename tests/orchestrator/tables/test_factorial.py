"""Effects of a two-level factorial against known truths and plain least squares."""

from __future__ import annotations

import csv
import io
import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Axis, Factorial, Option, Table, Value
from orchestrator.tables.assemble import assemble
from orchestrator.tables.model import EffectKind, Estimate
from orchestrator.tables.render import Format, render
from orchestrator.tracking.record import CellEntry, RunSummary, SweepRecord
from tests.orchestrator.tables.sweeps import DONE, numbered

FACTORS = ("slots", "kernel", "init")
Numbers = dict[str, float | None]
"""`001-2`, levels and seed -> number; None where the run failed."""


def grid(truth: Callable[..., float], *, seeds: int, noise: float, factors: int = 3) -> Numbers:
    """`truth` takes a sign per factor, in table units."""
    rng = random.Random(0)
    points = itertools.product("01", repeat=factors)
    return {
        f"{''.join(point)}-{seed}": truth(*(2 * int(one) - 1 for one in point)) + rng.gauss(0, noise)
        for point in points
        for seed in range(seeds)
    }


def crossed(numbers: Numbers, within: dict[str, tuple[str, ...]] | None = None, factors: tuple[str, ...] = FACTORS):
    axes = {
        name: Axis(name=name, options={one: Option(name=one, label={"0": "few", "1": "many"}[one]) for one in "01"})
        for name in factors
    }
    failed = RunSummary(kind="evaluate", state=RunState.FAILED, reason="failed: out of memory")
    cells = []
    for name in numbers:
        levels, _, seed = name.partition("-")
        at = dict(zip(factors, levels, strict=True)) | {"seed": seed}
        cells.append(CellEntry(coordinates=at, runs={"evaluate": name}))
    table = Table(
        rows=None,
        columns=None,
        value=Value(metric="m", step="evaluate", digits=2, over="seed", label="Score"),
        factorial=Factorial(factors=factors, within=within or {}),
    )
    record = SweepRecord(
        name="s",
        title="t",
        axes=axes,
        cells=tuple(cells),
        table=table,
        runs={name: failed if number is None else DONE for name, number in numbers.items()},
    )
    return assemble(record, numbered(numbers, "m"))


def estimates(model, column: int = 0) -> dict[str, Estimate]:
    return {line.option: line.estimates[column] for line in model.blocks[0].effects.lines}


def ols(numbers: Numbers) -> tuple[dict[str, float], np.ndarray, float]:
    """Term -> effect by the normal equations with -1 and +1, the inverse of X'X, and the rest's sum of squares."""
    rows, y = [], []
    for name, number in numbers.items():
        if number is None:
            continue
        a, b, c = (2 * int(one) - 1 for one in name[:3])
        rows.append([1, a, b, c, a * b, a * c, b * c])
        y.append(number)
    X, z = np.array(rows, dtype=float), np.array(y)
    beta = np.linalg.solve(X.T @ X, X.T @ z)
    terms = ("slots", "kernel", "init", "slots:kernel", "slots:init", "kernel:init")
    return dict(zip(terms, 2 * beta[1:], strict=True)), np.linalg.inv(X.T @ X), float(((z - X @ beta) ** 2).sum())


def pooled(numbers: Numbers) -> tuple[float, int]:
    """Variance within cells and its degrees of freedom."""
    squares, dof = 0.0, 0
    for cell in {name[:3] for name in numbers}:
        found = [one for name, one in numbers.items() if name[:3] == cell and one is not None]
        if found:
            squares += sum((one - np.mean(found)) ** 2 for one in found)
            dof += len(found) - 1
    return squares / dof, dof


def test_that_known_effects_come_back_without_noise():
    found = estimates(crossed(grid(lambda a, b, c: 50 + 3 * a - 1.5 * b + 0.5 * a * c, seeds=2, noise=0.0)))
    values = {term: round(one.value, 9) for term, one in found.items()}
    assert values == {"slots": 6, "kernel": -3, "init": 0, "slots:kernel": 0, "slots:init": 1, "kernel:init": 0}


def test_that_an_effect_is_a_difference_of_means_and_an_interaction_half_the_difference_of_effects():
    numbers = grid(lambda a, b, c: 10 + a - 2 * b + 0.7 * a * b, seeds=3, noise=1.0)
    found = estimates(crossed(numbers))

    def mean(**at: str) -> float:
        places = {FACTORS.index(name): level for name, level in at.items()}
        return float(np.mean([one for name, one in numbers.items() if all(name[i] == level for i, level in places.items())]))

    assert found["slots"].value == pytest.approx(mean(slots="1") - mean(slots="0"))
    at_many, at_few = (mean(slots="1", kernel=one) - mean(slots="0", kernel=one) for one in "10")
    assert found["slots:kernel"].value == pytest.approx((at_many - at_few) / 2)


@pytest.mark.parametrize("lost", [(), ("010-0",), ("010-0", "010-1", "010-2"), ("000-1", "111-0", "101-2", "101-1")])
def test_that_estimates_and_intervals_are_those_of_ordinary_least_squares(lost):
    numbers = grid(lambda a, b, c: 10 + a - 2 * b + 0.7 * a * b, seeds=3, noise=1.0)
    numbers |= dict.fromkeys(lost)
    found = estimates(crossed(numbers))
    expected, inverse, _ = ols(numbers)
    variance, dof = pooled(numbers)
    for j, (term, value) in enumerate(expected.items(), start=1):
        one = found[term]
        se = 2 * np.sqrt(variance * inverse[j, j])
        low, high = stats.t.interval(0.95, dof, loc=value, scale=se)
        assert (one.value, one.se, one.low, one.high) == pytest.approx((value, se, low, high)), term
        assert (one.dof, one.n, one.expected) == (dof, 24 - len(lost), 24)


def test_that_without_repeated_runs_the_rest_is_the_noise_and_the_table_says_so():
    numbers = grid(lambda a, b, c: 10 + a, seeds=1, noise=1.0)
    model = crossed(numbers)
    expected, inverse, rest = ols(numbers)
    found = estimates(model)["slots"]
    assert (found.value, found.dof) == (pytest.approx(expected["slots"]), 1)
    assert found.se == pytest.approx(2 * np.sqrt(rest / 1 * inverse[1, 1]))
    assert any("no cell has two runs, so intervals take" in note for note in model.blocks[0].effects.footnotes)


def test_that_a_few_repeated_runs_do_not_decide_all_intervals() -> None:
    numbers = grid(lambda *signs: 0.0, seeds=1, noise=1.0, factors=4)
    once = estimates(crossed(numbers, factors=("a", "b", "c", "d")))["a"]
    numbers["0000-1"] = numbers["0000-0"]  # a lucky pair: the spread of repeated runs alone would be 0
    model = crossed(numbers, factors=("a", "b", "c", "d"))
    twice = estimates(model)["a"]
    assert (once.dof, twice.dof) == (5, 6)
    assert twice.se > 0.05
    assert any("few cells have two runs" in note for note in model.blocks[0].effects.footnotes)


def test_that_with_nothing_left_over_effects_have_no_interval():
    numbers = {"00-0": 1.0, "01-0": 2.0, "10-0": 4.0, "11-0": 7.0}
    model = crossed(numbers, factors=("a", "b"))
    found = estimates(model)
    assert {term: one.value for term, one in found.items()} == pytest.approx({"a": 4.0, "b": 2.0, "a:b": 1.0})
    assert {one.low for one in found.values()} == {None}
    assert any("effects without intervals" in note for note in model.blocks[0].effects.footnotes)


def test_that_missing_cells_are_counted_and_lost_balance_is_said():
    numbers = grid(lambda a, b, c: 10 + a, seeds=2, noise=1.0)
    whole = crossed(numbers).blocks[0].effects.footnotes
    assert not any("missing" in note or "uneven" in note for note in whole)
    holes = crossed(numbers | dict.fromkeys(("010-0", "010-1", "111-0"))).blocks[0].effects.footnotes
    assert "all cells: 7 of 8 cells have numbers, 1 missing (failed: out of memory x 3)" in holes
    assert "all cells: the cells are uneven, so the effects are not independent of each other" in holes
    assert "all cells: fewer runs than planned: 1 of 8 cells" in holes
    skipped = crossed({name: one for name, one in numbers.items() if not name.startswith("11")}).blocks[0].effects.footnotes
    assert "all cells: 6 of 8 cells have numbers, 2 missing" in skipped


def test_that_what_the_cells_cannot_tell_apart_has_no_number():
    numbers = grid(lambda a, b, c: 10 + a, seeds=2, noise=1.0)
    half = {name: one for name, one in numbers.items() if name[0] != name[1]}  # slots and kernel are never set alike
    model = crossed(half)
    found = estimates(model)
    assert {term for term, one in found.items() if one.value is None} == {
        *("slots", "kernel", "slots:kernel", "slots:init", "kernel:init")
    }
    assert found["init"].value is not None
    note = "all cells: cannot be told apart from other effects in the cells that are there: slots, kernel, "
    assert any(one.startswith(note) for one in model.blocks[0].effects.footnotes)


def test_that_a_factor_of_which_one_option_ran_is_left_out_and_the_others_stay():
    numbers = grid(lambda a, b, c: 10 + a - b, seeds=2, noise=0.0)
    model = crossed({name: one for name, one in numbers.items() if name[2] == "0"})
    found = estimates(model)
    assert (found["slots"].value, found["kernel"].value) == pytest.approx((2.0, -2.0))
    assert (found["init"].value, found["slots:init"].value) == (None, None)
    assert "all cells: no effect of init: all numbers there are have 0" in model.blocks[0].effects.footnotes


def test_that_within_an_option_the_other_factors_are_estimated_from_its_cells_alone():
    numbers = grid(lambda a, b, c: 10 + (b if c < 0 else 0) + 5 * c, seeds=3, noise=0.2)
    model = crossed(numbers, within={"init": ("0", "1")})
    effects = model.blocks[0].effects
    assert [column.label for column in effects.columns] == ["all cells", "init: few", "init: many"]
    everything, few, many = (estimates(model, column) for column in range(3))
    only = {name: one for name, one in numbers.items() if name[2] == "0"}
    mine = {level: np.mean([one for name, one in only.items() if name[1] == level]) for level in "01"}
    assert few["kernel"].value == pytest.approx(mine["1"] - mine["0"])
    assert (few["kernel"].clear, many["kernel"].clear) == (True, False)
    assert everything["kernel"].value == pytest.approx((few["kernel"].value + many["kernel"].value) / 2)
    assert (few["kernel"].n, few["kernel"].dof) == (12, 8)
    assert (few["init"], few["kernel:init"]) == (Estimate(), Estimate())


def test_that_factors_stand_in_their_order_and_interactions_by_size():
    model = crossed(grid(lambda a, b, c: a * b + 3 * b * c - 2 * a * c, seeds=1, noise=0.0))
    lines = model.blocks[0].effects.lines
    assert [line.option for line in lines] == ["slots", "kernel", "init", "kernel:init", "slots:init", "slots:kernel"]
    assert [line.kind for line in lines] == [EffectKind.MAIN] * 3 + [EffectKind.INTERACTION] * 3
    assert (lines[0].label, lines[3].label) == ("slots: few → many", "kernel × init")


def test_that_nothing_finished_is_a_table_without_numbers():
    model = crossed(dict.fromkeys(grid(lambda a, b, c: 0.0, seeds=1, noise=0.0)), within={"init": ("0",)})
    text = render(model, Format.MARKDOWN)
    assert "0 of 8 cells have numbers, 8 missing (failed: out of memory x 8)" in text
    assert "0 of 4 cells have numbers, 4 missing (failed: out of memory x 4)" in text


def test_that_text_shows_effects_and_csv_and_json_the_means_too():
    model = crossed(grid(lambda a, b, c: 10 + a, seeds=2, noise=0.1), within={"init": ("0",)})
    texts = {form: render(model, form) for form in Format}
    for form in (Format.MARKDOWN, Format.LATEX, Format.HTML):
        assert "Score: effects of the factors (higher is better)" in texts[form]
        assert "slots=0,kernel=0" not in texts[form]
        assert "pooled over cells (8 degrees of freedom)" in texts[form]
    rows = list(csv.DictReader(io.StringIO(texts[Format.CSV])))
    assert [row["kind"] for row in rows] == ["mean"] * 8 + ["main"] * 5 + ["interaction"] * 4
    assert rows[0]["row"] == "slots=0,kernel=0,init=0"
    assert rows[0]["row_label"] == "few, few, few"
    assert '"option": "slots=0,kernel=0,init=0"' in texts[Format.JSON]
