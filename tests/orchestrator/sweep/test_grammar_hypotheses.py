"""The grammar of hypotheses: what is read, and a person's mistakes with their place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.sweep.grammar import parse_sweep
from orchestrator.sweep.model import Claim, Hypothesis, Join, Relation

Complaint = Callable[[Callable[[], object]], str]

GRID = """
title: a grid
axes:
  method:
    one: {label: One, set: [objective=reconstruction], note: the first}
    two: {set: [objective=covariance]}
  data:
    small: {set: [data=mdsprites_easy]}
    large: {set: [data=mdsprites_generated]}
  seed: {key: seed, values: [0, 1]}
"""


def about(hypotheses: str) -> str:
    """GRID's table with some hypotheses."""
    value = "value: {metric: eval/ari, over: seed}, more: [{metric: eval/mbo}]"
    return f"table: {{rows: method, columns: data, {value}, {hypotheses}}}\n"


RIGHT = "right: one, metric: eval/ari, relation: higher"
HYPOTHESES = [
    ("hypotheses: {H1: x}", "table.hypotheses: is not a list", "write `hypotheses: ["),
    ("hypotheses: [H1]", "table.hypotheses[0]: is not a mapping", "name, text, claim, all, any"),
    ("hypotheses: [{}]", "table.hypotheses[0]: lacks the key `name`", "claims nothing"),
    ("hypotheses: [{name: H1, text: t, clam: {}}]", "table.hypotheses[0].clam: unknown key", "did you mean `claim`?"),
    (f"hypotheses: [{{name: a b, text: t, claim: {{left: two, {RIGHT}}}}}]", "is not a name for a hypothesis", "A-Z"),
    (
        f"hypotheses: [{{name: H, text: t, claim: {{left: two, {RIGHT}}}}}, {{name: H, text: t, claim: {{left: two, {RIGHT}}}}}]",
        "table.hypotheses[1].name: is the name of an earlier hypothesis",
        "",
    ),
    (
        f"hypotheses: [{{name: H, text: t, claim: {{left: two, {RIGHT}}}, any: []}}]",
        "gives its claims in two ways",
        "one of claim, all, any",
    ),
    ("hypotheses: [{name: H, text: t, any: []}]", "table.hypotheses[0].any: has no claim", ""),
    ("hypotheses: [{name: H, text: t, all: {left: two}}]", "table.hypotheses[0].all: is not a list", "write `all: ["),
    ("hypotheses: [{name: H, text: t, claim: {left: two}}]", "table.hypotheses[0].claim: lacks the key `right`", "`relation`"),
    (f"hypotheses: [{{name: H, text: t, claim: {{left: tow, {RIGHT}}}}}]", "claim.left: unknown row", "did you mean `two`?"),
    (f"hypotheses: [{{name: H, text: t, claim: {{left: one, {RIGHT}}}}}]", "claim.right: is compared with itself", ""),
    (f"hypotheses: [{{name: H, text: t, claim: {{left: [two], {RIGHT}}}}}]", "claim.left: is a list", "instead of `claim:`"),
    (f"hypotheses: [{{name: H, text: t, all: [{{left: [], {RIGHT}}}]}}]", "all[0].left: names nothing", "one, two"),
    (f"hypotheses: [{{name: H, text: t, all: [{{left: [two, two], {RIGHT}}}]}}]", "all[0].left: names one twice", ""),
    (
        "hypotheses: [{name: H, text: t, claim: {left: two, right: won, metric: eval/ari, relation: higher}}]",
        "claim.right: unknown row",
        "allowed: one, two",
    ),
    (
        "hypotheses: [{name: H, text: t, claim: {left: two, right: one, metric: eval/fg_ari, relation: higher}}]",
        "claim.metric: is no number of this table",
        "allowed: eval/ari, eval/mbo",
    ),
    (
        "hypotheses: [{name: H, text: t, claim: {left: two, right: one, metric: eval/ari, relation: highr}}]",
        "claim.relation: unknown relation",
        "did you mean `higher`?",
    ),
    (
        "hypotheses: [{name: H, text: t, claim: {left: two, right: one, metric: eval/ari, relation: equal}}]",
        "claim: `relation: equal` needs a `margin` above 0",
        "in the table's units",
    ),
    (f"hypotheses: [{{name: H, text: t, claim: {{left: two, {RIGHT}, margin: -1}}}}]", "claim.margin: is below 0", "lower"),
    (f"hypotheses: [{{name: H, text: t, claim: {{left: two, {RIGHT}, margin: x}}}}]", "claim.margin: is not a number", ""),
]


@pytest.mark.parametrize(("text", "what", "detail"), HYPOTHESES)
def test_that_a_mistake_in_a_hypothesis_is_named_with_its_place(text: str, what: str, detail: str, complaint: Complaint) -> None:
    said = complaint(lambda: parse_sweep(GRID + about(text), "s.yaml"))
    assert "s.yaml:11: table.hypotheses" in said
    assert what in said
    assert detail in said


def test_that_hypotheses_are_about_rows(complaint: Complaint) -> None:
    text = "table: {factorial: {factors: [method, data]}, value: {metric: eval/ari, over: seed}, hypotheses: []}\n"
    assert "table.hypotheses: does not go with `factorial`" in complaint(lambda: parse_sweep(GRID + text, "s.yaml"))


def test_that_lists_make_a_claim_each() -> None:
    wide = GRID.replace("  data:", "    three: {set: [objective=cosine]}\n  data:")
    claims = "{left: [two, three], right: one, metric: [eval/ari, eval/mbo], relation: different}"
    text = f"hypotheses: [{{name: H3, text: t, any: [{claims}]}}]"
    table = parse_sweep(wide + about(text), "s.yaml").table
    assert table is not None
    (found,) = table.hypotheses
    assert (found.name, found.join) == ("H3", Join.ANY)
    assert [(one.left, one.right, one.metric) for one in found.claims] == [
        ("two", "one", "eval/ari"), ("two", "one", "eval/mbo"), ("three", "one", "eval/ari"), ("three", "one", "eval/mbo"),
    ]  # fmt: skip


def test_that_one_claim_is_read_as_written() -> None:
    text = (
        "hypotheses: [{name: H1, text: a text, claim: {left: two, right: one, metric: eval/mbo, relation: equal, margin: 1e-1}}]"
    )
    table = parse_sweep(GRID + about(text), "s.yaml").table
    assert table is not None
    claim = Claim(left="two", right="one", metric="eval/mbo", relation=Relation.EQUAL, margin=0.1)
    assert table.hypotheses == (Hypothesis(name="H1", text="a text", join=Join.ALL, claims=(claim,)),)
