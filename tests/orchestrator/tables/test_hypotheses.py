"""Verdicts: what an interval says about a claim, claims about a hypothesis, and every format about both."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.sweep.model import Axis, Claim, Hypothesis, Join, Option, Relation, Value
from orchestrator.tables.assemble import assemble
from orchestrator.tables.hypotheses import HOW_TESTED, joined, verdict
from orchestrator.tables.model import Estimate, Verdict
from orchestrator.tables.render import CSV_VERDICT, Format, render
from tests.orchestrator.tables.test_effects import MORE, against, number, scores

SUPPORTED, REFUTED, UNDECIDED, NOT_TESTED = Verdict


def claim(relation: str = "higher", margin: float = 0.0, left: str = "a", right: str = "base", metric: str = "score") -> Claim:
    return Claim(left=left, right=right, metric=metric, relation=Relation(relation), margin=margin)


def supposed(*claims: Claim, join: Join = Join.ALL, name: str = "H1") -> Hypothesis:
    return Hypothesis(name=name, text="what was expected", join=join, claims=claims)


def results(table, *hypotheses: Hypothesis, **more):
    return assemble(against(table, hypotheses=hypotheses, **more), scores(table)).hypotheses


CASES = [
    # relation, margin, interval of left minus right, verdict
    ("higher", 0, (0.1, 2), SUPPORTED),
    ("higher", 0, (-2, -0.1), REFUTED),
    ("higher", 0, (-0.1, 2), UNDECIDED),
    ("higher", 0, (0, 2), UNDECIDED),  # touches
    ("higher", 1, (0.1, 2), UNDECIDED),
    ("higher", 1, (1.1, 2), SUPPORTED),
    ("higher", 1, (0.1, 0.9), REFUTED),  # higher, but not by so much
    ("lower", 0, (-2, -0.1), SUPPORTED),
    ("lower", 0, (0.1, 2), REFUTED),
    ("lower", 0, (-2, 0.1), UNDECIDED),
    ("lower", 1, (-2, -1.1), SUPPORTED),
    ("lower", 1, (-0.9, -0.1), REFUTED),
    ("equal", 1, (-0.9, 0.9), SUPPORTED),
    ("equal", 1, (-0.9, 1.0), UNDECIDED),
    ("equal", 1, (-3, 3), UNDECIDED),  # many seeds apart from a proof, and no difference either
    ("equal", 1, (1.1, 3), REFUTED),
    ("equal", 1, (-3, -1.1), REFUTED),
    ("different", 0, (0.1, 3), SUPPORTED),
    ("different", 0, (-3, -0.1), SUPPORTED),
    ("different", 0, (-0.1, 0.1), UNDECIDED),  # without a margin nothing refutes a difference
    ("different", 1, (-0.9, 0.9), REFUTED),
    ("different", 1, (0.1, 3), UNDECIDED),
    ("different", 1, (1.1, 3), SUPPORTED),
]


@pytest.mark.parametrize(("relation", "margin", "interval", "expected"), CASES)
def test_that_a_verdict_is_where_the_interval_lies(relation, margin, interval, expected):
    assert verdict(claim(relation, margin), Estimate(value=sum(interval) / 2, low=interval[0], high=interval[1])) is expected


@pytest.mark.parametrize("relation", list(Relation))
def test_that_without_an_interval_nothing_is_tested(relation):
    assert verdict(claim(relation, 1.0), Estimate(value=3.0)) is NOT_TESTED
    assert verdict(claim(relation, 1.0), Estimate()) is NOT_TESTED


@given(low=number, width=st.floats(0, 5), margin=st.floats(0.01, 5))
def test_that_relations_mirror_each_other(low, width, margin):
    opposite = {SUPPORTED: REFUTED, REFUTED: SUPPORTED, UNDECIDED: UNDECIDED}
    one, turned = Estimate(value=low, low=low, high=low + width), Estimate(value=-low, low=-low - width, high=-low)
    assert verdict(claim("lower", margin), turned) is verdict(claim("higher", margin), one)
    assert verdict(claim("different", margin), one) is opposite[verdict(claim("equal", margin), one)]
    assert verdict(claim("equal", margin), one) is verdict(claim("equal", margin), turned)


@given(found=st.lists(st.sampled_from(list(Verdict)), min_size=1, max_size=4))
def test_that_claims_join_as_in_logic_where_all_are_decided_and_say_what_holds_them_up_otherwise(found):
    every, some = joined(found, Join.ALL), joined(found, Join.ANY)
    if {*found} <= {SUPPORTED, REFUTED}:
        assert every is (SUPPORTED if all(one is SUPPORTED for one in found) else REFUTED)
        assert some is (SUPPORTED if any(one is SUPPORTED for one in found) else REFUTED)
    assert (every is REFUTED) == (REFUTED in found)
    assert (some is SUPPORTED) == (SUPPORTED in found)
    for one in (every, some):
        assert one in found
        assert one is not UNDECIDED or NOT_TESTED not in found


@given(pairs=st.lists(st.tuples(number, number), min_size=2, max_size=5), others=st.integers(1, 6))
def test_that_where_any_claim_is_enough_intervals_are_scipys_at_bonferronis_level(pairs, others):
    table = {"base": [base for base, _ in pairs], "a": [mine for _, mine in pairs]}
    (found,) = results(table, supposed(*[claim()] * others, join=Join.ANY))
    assert found.level == pytest.approx(1 - 0.05 / others)
    assert joined([found.claims[0].verdicts[0]], Join.ALL) is found.verdicts[0]
    differences = np.array([100 * mine - 100 * base for base, mine in pairs])
    if differences.std() > 1e-6:
        one = found.claims[0].estimates[0]
        low, high = stats.t.interval(found.level, len(pairs) - 1, loc=differences.mean(), scale=stats.sem(differences))
        assert (one.low, one.high) == pytest.approx((low, high))
    (plain,) = results(table, supposed(*[claim()] * others))
    assert plain.level == 0.95


TABLE = {"base": [0.10, 0.20, 0.30], "a": [0.40, 0.52, 0.60], "b": [0.11, None, None], "gone": "p. 3"}
ALL = (
    supposed(claim(), claim("equal", 5.0), name="H1"),
    supposed(claim("different", 1.0), claim("lower", left="b"), join=Join.ANY, name="H2"),
    supposed(claim("lower", left="b"), name="H3"),
    supposed(claim(left="gone"), name="H4"),
)


def test_that_runs_that_are_missing_are_named_under_the_verdict():
    found = results(TABLE, *ALL)
    assert [one.verdicts[0] for one in found] == [REFUTED, SUPPORTED, NOT_TESTED, NOT_TESTED]
    assert found[2].footnotes == ("H3: B against BASE: 1 of 3 pairs (left lacks seed=1, seed=2); one pair, so no interval",)
    assert found[3].footnotes == ("H4: GONE against BASE: left is cited, not run",)
    assert found[0].footnotes == ()


def test_that_seeds_missing_from_a_tested_claim_are_named_too():
    twice = supposed(claim(), claim("different"))  # both lack the same run: said once
    (found,) = results({"base": [0.1, 0.2, 0.3], "a": [0.4, 0.52, None]}, twice)
    assert (found.verdicts, found.footnotes) == (
        (SUPPORTED,),
        ("H1: A against BASE: 2 of 3 pairs (left lacks seed=2)",),
    )


def test_that_a_row_that_was_not_submitted_leaves_its_hypotheses_untested():
    record = against(TABLE, hypotheses=(supposed(claim()),))
    partial = replace(record, cells=tuple(one for one in record.cells if one.coordinates["row"] != "a"))
    (found,) = assemble(partial, scores(TABLE)).hypotheses
    assert found.verdicts == (NOT_TESTED,)
    assert found.footnotes == ("H1: A against BASE: no cell of A was submitted",)


def test_that_a_claim_about_a_further_number_is_in_its_units_and_each_column_has_its_verdict():
    table = {"base": [0.1, 0.2], "a": [0.3, 0.41]}
    record = against(table, more=(MORE,), hypotheses=(supposed(claim("higher", 5.0, metric="kept")),))
    kept = {run: {"kept": 100 * one["score"]} for run, one in scores(table).items()}
    (found,) = assemble(record, kept).hypotheses
    assert found.claims[0].text == "kept slots: A higher than BASE by more than 5"
    assert found.claims[0].estimates[0].value == pytest.approx(20.5)
    wide = replace(
        record,
        axes={**record.axes, "data": Axis(name="data", options={x: Option(name=x, label=x.upper()) for x in ("x", "y")})},
        cells=tuple(
            replace(one, coordinates={**one.coordinates, "data": "x" if one.coordinates["seed"] == "0" else "y"})
            for one in record.cells
        ),
        table=replace(record.table, columns="data"),
    )
    (found,) = assemble(wide, kept).hypotheses
    assert found.verdicts == (NOT_TESTED, NOT_TESTED)
    assert found.footnotes[1].startswith("H1: A against BASE, Y: one pair")


def test_that_of_a_metric_shown_twice_the_first_is_meant():
    again = Value(metric="score", step="evaluate", scale=1, label="again")
    (found,) = results({"base": [0.1, 0.2], "a": [0.3, 0.41]}, supposed(claim()), more=(again,))
    assert found.claims[0].estimates[0].value == pytest.approx(20.5)


def test_that_every_format_has_the_verdicts():
    model = assemble(against(TABLE, hypotheses=ALL, more=(MORE,)), scores(TABLE))
    texts = {form: render(model, form) for form in Format}
    for form in (Format.MARKDOWN, Format.LATEX, Format.HTML):
        for text in ("H1: what was expected", "refuted", "supported", "not tested", "+30.7", "equal to BASE within 5"):
            assert text in texts[form], (form, text)
        assert "Bonferroni" in texts[form]
    assert HOW_TESTED in texts[Format.MARKDOWN]
    lines = [" ".join(line.split()) for line in texts[Format.MARKDOWN].splitlines()]
    assert "| H1: what was expected | **refuted** | |" in lines
    assert "| · and Score: A equal to BASE within 5 | refuted | +30.7 [+27.8, +33.5] (3) |" in lines
    assert "| · or Score: B lower than BASE | not tested | +1.0 (1/3) |" in lines
    rows = list(csv.DictReader(io.StringIO(texts[Format.CSV])))
    assert {row["kind"]: row["verdict"] for row in rows[:4]} == {"mean": ""}
    judged = [row for row in rows if row["kind"] in ("hypothesis", "claim")]
    assert [" ".join((row["kind"], row["row"], row["verdict"])) for row in judged[:4]] == [
        *("hypothesis H1 refuted", "claim H1 supported", "claim H1 refuted", "hypothesis H2 supported"),
    ]
    first = model.hypotheses[0].claims[0].estimates[0]
    assert [float(judged[1][key]) for key in ("effect", "low", "high")] == [first.value, first.low, first.high]
    assert judged[1]["row_label"] == "Score: A higher than BASE"
    assert all(None not in row and None not in row.values() for row in rows)  # every line has every column
    read = json.loads(texts[Format.JSON])["hypotheses"][0]
    assert (read["verdicts"], read["claims"][0]["verdicts"]) == (["refuted"], ["supported"])


def test_that_effects_and_verdicts_share_a_file():
    model = assemble(against(TABLE, base="base", hypotheses=ALL), scores(TABLE))
    assert model.blocks[0].effects is not None
    rows = list(csv.DictReader(io.StringIO(render(model, Format.CSV))))
    assert {row["kind"] for row in rows} == {"mean", "row", "hypothesis", "claim"}
    assert all(None not in row and None not in row.values() for row in rows)


def test_that_a_table_without_hypotheses_has_no_verdicts(record, values):
    model = assemble(record, values)
    assert model.hypotheses == ()
    assert CSV_VERDICT not in render(model, Format.CSV).splitlines()[0].split(",")
    assert "hypotheses" not in render(model, Format.MARKDOWN)
