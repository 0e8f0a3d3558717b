"""Rows against a base row: paired by seed, with what is missing said."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.sweep.model import Axis, Option, Table, Value
from orchestrator.tables.assemble import assemble
from orchestrator.tables.model import EffectKind
from orchestrator.tables.render import CSV_EFFECTS, Format, render
from orchestrator.tracking.record import CellEntry, SweepRecord
from tests.orchestrator.tables.sweeps import DONE, numbered

MORE = Value(metric="kept", step="evaluate", better="neutral", over="seed", label="kept slots")


def against(table: dict[str, list[float | None] | str], base: str = "base", **more) -> SweepRecord:
    """Row -> a number per seed (None: not run), or the source of a cited number."""
    rows = {name: Option(name=name, label=name.upper(), note="should try" if name == "a" else "") for name in table}
    cells, runs = [], {}
    for name, numbers in table.items():
        for seed, number in enumerate(numbers if isinstance(numbers, list) else [None, None]):
            at = {"row": name, "seed": str(seed)}
            if isinstance(numbers, str):
                cells.append(CellEntry(coordinates=at, cite=3.0, source=numbers))
                continue
            cells.append(CellEntry(coordinates=at, runs={"evaluate": f"{name}-{seed}"}))
            if number is not None:
                runs[f"{name}-{seed}"] = DONE
    value = Value(metric="score", step="evaluate", scale=100, digits=1, over="seed", label="Score")
    return SweepRecord(
        name="s",
        title="t",
        axes={"row": Axis(name="row", options=rows)},
        cells=tuple(cells),
        table=Table(rows="row", columns=None, value=value, base=base, **more),
        runs=runs,
    )


def scores(table: dict[str, list[float | None] | str], metric: str = "score") -> dict[str, dict[str, float]]:
    return numbered({f"{name}-{i}": x for name, row in table.items() if isinstance(row, list) for i, x in enumerate(row)}, metric)


def effects(table, **more):
    return assemble(against(table, **more), scores(table)).blocks[0].effects


def effect(table, row: str = "a"):
    return next(line for line in effects(table).lines if line.option == row).estimates[0]


number = st.floats(-10, 10, width=32)


@given(pairs=st.lists(st.tuples(number, number), min_size=2, max_size=6))
def test_that_an_effect_is_the_paired_difference_with_scipys_interval(pairs):
    found = effect({"base": [base for base, _ in pairs], "a": [mine for _, mine in pairs]})
    differences = np.array([100 * mine - 100 * base for base, mine in pairs])
    assert found.value == pytest.approx(differences.mean(), abs=1e-9)
    assert (found.n, found.expected, found.dof, found.note) == (len(pairs), len(pairs), len(pairs) - 1, "")
    if differences.std() > 1e-6:
        low, high = stats.t.interval(0.95, len(pairs) - 1, loc=differences.mean(), scale=stats.sem(differences))
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.clear == (low > 0 or high < 0)


def test_that_seeds_are_paired_and_not_averaged_first():
    found = effect({"base": [0.1, 0.5, 0.9], "a": [0.11, 0.51, 0.91]})
    assert (found.value, found.clear) == (pytest.approx(1.0), True)  # unpaired, the spread of the seeds would hide it


def test_that_a_seed_missing_on_either_side_is_left_out_and_said():
    found = effect({"base": [0.1, None, 0.3, 0.4], "a": [0.2, 0.3, None, 0.6]})
    assert (found.value, found.n, found.expected) == (pytest.approx(15.0), 2, 4)
    assert found.note == "2 of 4 pairs (the row lacks seed=2; the base lacks seed=1)"


def test_that_one_pair_has_a_difference_and_no_interval():
    found = effect({"base": [0.1], "a": [0.3]})
    assert (found.value, found.se, found.low, found.high) == (pytest.approx(20.0), None, None, None)
    assert found.note == "one pair, so no interval"
    assert not found.clear


def test_that_rows_without_a_common_seed_have_no_effect_and_say_so():
    assert effect({"base": [0.1, None], "a": [None, 0.3]}).value is None
    assert effect({"base": [0.1, None], "a": [None, 0.3]}).note == "0 of 2 pairs (the row lacks seed=0; the base lacks seed=1)"


def test_that_a_row_without_any_number_is_explained_once_by_its_mean():
    found = effects({"base": [0.1, 0.2], "a": [None, None], "b": [0.3, None]})
    assert found.footnotes == ("effect of B: 1 of 2 pairs (the row lacks seed=1); one pair, so no interval",)
    assert found.lines[0].estimates[0].note == "0 of 2 pairs (the row lacks seed=0, seed=1)"


def test_that_cited_rows_have_no_effect_and_say_so():
    assert effect({"base": [0.1, 0.2], "a": "a paper"}).note == "the row is cited, not run"
    assert effect({"base": "a paper", "a": [0.1, 0.2]}).note == "the base is cited, not run"


def test_that_the_base_row_is_not_compared_with_itself_and_must_be_there():
    found = effects({"base": [0.1], "a": [0.3], "b": [0.4]})
    assert [line.option for line in found.lines] == ["a", "b"]
    record = against({"base": [0.1], "a": [0.3]})
    partial = SweepRecord(**{**vars(record), "cells": tuple(one for one in record.cells if one.coordinates["row"] == "a")})
    absent = assemble(partial, scores({"a": [0.3]})).blocks[0].effects
    assert (absent.lines, absent.footnotes) == ((), ("no effects: no cell of the base row, BASE, was submitted",))


TABLE = {"base": [0.10, 0.20, 0.30], "a": [0.40, 0.52, 0.60], "b": [0.11, None, 0.28], "gone": "p. 3"}


def test_that_every_format_has_the_effects_of_every_metric():
    record = against(TABLE, more=(MORE,))
    values = {run: {"score": one["score"], "kept": 10 * one["score"]} for run, one in scores(TABLE).items()}
    model = assemble(record, values)
    texts = {form: render(model, form) for form in Format}
    for form in (Format.MARKDOWN, Format.LATEX, Format.HTML):
        assert texts[form].count("difference from BASE") == 2
        assert "+30.7" in texts[form]
        assert "2/3" in texts[form]
        assert texts[form].count("effect of B: 2 of 3 pairs (the row lacks seed=1)") == 1  # not again for the second metric
        assert texts[form].count("effect of GONE: the row is cited, not run") == 1
        assert texts[form].count("should try") == 4  # two grids of means, two of effects
    assert "| A    | **+30.7 [+27.8, +33.5] (3)** | should try |" in texts[Format.MARKDOWN]
    rows = list(csv.DictReader(io.StringIO(texts[Format.CSV])))
    assert [row["kind"] for row in rows[:7]] == ["mean"] * 4 + ["row"] * 3
    first = model.blocks[0].effects.lines[0].estimates[0]
    read = rows[4]
    assert [float(read[key]) for key in ("effect", "se", "low", "high")] == [first.value, first.se, first.low, first.high]
    assert (read["row"], read["n"], read["expected"], read["dof"]) == ("a", "3", "3", "2")
    assert rows[6]["missing"] == "the row is cited, not run"
    whole = json.loads(texts[Format.JSON])["blocks"][1]["effects"]["lines"][0]
    assert (whole["kind"], whole["option"], whole["note"]) == (EffectKind.ROW, "a", "should try")


def test_that_a_table_without_effects_keeps_its_columns(record, values):
    header = render(assemble(record, values), Format.CSV).splitlines()[0].split(",")
    assert not set(header) & set(CSV_EFFECTS)


def test_that_a_neutral_number_is_neither_best_nor_better():
    table = {"base": [0.1, 0.2], "a": [0.3, 0.5]}
    model = assemble(against(table, more=(MORE,)), {run: {**one, "kept": 3.0} for run, one in scores(table).items()})
    best = [any(row[0].best for row in block.cells) for block in model.blocks]
    assert best == [True, False]
    text = render(model, Format.MARKDOWN)
    assert ("## kept slots\n" in text, "neutral" in text, "Score (higher is better)" in text) == (True, False, True)
