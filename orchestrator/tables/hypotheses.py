"""Verdicts on a sweep's hypotheses: where the interval of a paired difference lies. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from orchestrator.sweep.model import Claim, Hypothesis, Join, Relation
from orchestrator.tables.effects import LEVEL, paired
from orchestrator.tables.model import Block, ClaimResult, Estimate, Heading, HypothesisResult, TableCell, Verdict

HOW_TESTED = (
    "verdicts: supported or refuted where the whole interval of the difference, paired by seed, lies inside or outside what a "
    "claim allows; of `all` claims one that is refuted refutes; where `any` is enough each interval covers 1 - 5 % / claims "
    "(Bonferroni); hypotheses are not corrected for each other"
)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """The table as claims name it."""

    labels: Mapping[str, str]
    """Row option -> label, also of rows that no cell was submitted for."""
    rows: Sequence[Heading]
    columns: Sequence[Heading]
    blocks: Mapping[str, Block]
    """By metric."""


def tested(
    hypotheses: Sequence[Hypothesis],
    labels: Mapping[str, str],
    rows: Sequence[Heading],
    columns: Sequence[Heading],
    blocks: Sequence[Block],
) -> tuple[HypothesisResult, ...]:
    """Each hypothesis against the table's numbers, column by column; of a metric that stands twice the first counts."""
    table = _Shown(labels=labels, rows=rows, columns=columns, blocks={block.metric: block for block in reversed(blocks)})
    return tuple(_tested(one, table) for one in hypotheses)


def _tested(hypothesis: Hypothesis, table: _Shown) -> HypothesisResult:
    level = 1 - (1 - LEVEL) / len(hypothesis.claims) if hypothesis.join is Join.ANY else LEVEL
    claims = tuple(_claim(claim, table, level) for claim in hypothesis.claims)
    return HypothesisResult(
        name=hypothesis.name,
        text=hypothesis.text,
        join=hypothesis.join.value,
        level=level,
        claims=claims,
        verdicts=tuple(joined([claim.verdicts[j] for claim in claims], hypothesis.join) for j in range(len(table.columns))),
        footnotes=tuple(dict.fromkeys(_footnotes(hypothesis.name, claims, table.columns))),
    )


def _claim(claim: Claim, table: _Shown, level: float) -> ClaimResult:
    block, names = table.blocks[claim.metric], (table.labels[claim.left], table.labels[claim.right])
    at = {row.option: i for i, row in enumerate(table.rows)}
    left, right = at.get(claim.left), at.get(claim.right)
    estimates: tuple[Estimate, ...]
    if left is None or right is None:
        absent = ", ".join(name for name, place in zip(names, (left, right), strict=True) if place is None)
        estimates = tuple(Estimate(note=f"no cell of {absent} was submitted") for _ in table.columns)
    else:
        pairs: list[tuple[TableCell, TableCell]] = list(zip(block.cells[left], block.cells[right], strict=True))
        estimates = tuple(paired(mine, theirs, level=level, names=("left", "right")) for mine, theirs in pairs)
    return ClaimResult(
        text=f"{block.label}: {names[0]} {_relation(claim.relation)} {names[1]}{_margin(claim)}",
        compared=f"{names[0]} against {names[1]}",
        metric=claim.metric,
        digits=block.digits,
        estimates=estimates,
        verdicts=tuple(verdict(claim, one) for one in estimates),
    )


def verdict(claim: Claim, one: Estimate) -> Verdict:
    """Where the interval of left minus right lies; a boundary that it touches leaves the claim undecided."""
    if one.low is None or one.high is None:
        return Verdict.NOT_TESTED
    low, high, margin = one.low, one.high, claim.margin
    match claim.relation:
        case Relation.HIGHER:
            return _decided(inside=low > margin, outside=high < margin)
        case Relation.LOWER:
            return _decided(inside=high < -margin, outside=low > -margin)
        case Relation.EQUAL:
            return _decided(inside=-margin < low and high < margin, outside=low > margin or high < -margin)
        case Relation.DIFFERENT:
            return _decided(inside=low > margin or high < -margin, outside=-margin < low and high < margin)
        case _:
            assert_never(claim.relation)


def _decided(*, inside: bool, outside: bool) -> Verdict:
    return Verdict.SUPPORTED if inside else Verdict.REFUTED if outside else Verdict.UNDECIDED


def joined(verdicts: Sequence[Verdict], join: Join) -> Verdict:
    """What several claims say together; the first in the order below that some claim has."""
    match join:
        case Join.ALL:
            order = (Verdict.REFUTED, Verdict.NOT_TESTED, Verdict.UNDECIDED, Verdict.SUPPORTED)
        case Join.ANY:
            order = (Verdict.SUPPORTED, Verdict.NOT_TESTED, Verdict.UNDECIDED, Verdict.REFUTED)
        case _:
            assert_never(join)
    return next(one for one in order if one in verdicts)


def _relation(relation: Relation) -> str:
    match relation:
        case Relation.HIGHER | Relation.LOWER:
            return f"{relation.value} than"
        case Relation.EQUAL:
            return "equal to"
        case Relation.DIFFERENT:
            return "different from"
        case _:
            assert_never(relation)


def _margin(claim: Claim) -> str:
    if not claim.margin:
        return ""
    return f" within {claim.margin:g}" if claim.relation is Relation.EQUAL else f" by more than {claim.margin:g}"


def _footnotes(name: str, claims: Sequence[ClaimResult], columns: Sequence[Heading]) -> Iterator[str]:
    """Which runs are missing, and where."""
    for claim in claims:
        for column, one in zip(columns, claim.estimates, strict=True):
            where = ", ".join(part for part in (claim.compared, column.label) if part)
            note = one.note or ("the sweep has no such runs" if one.value is None else "")
            if note:
                yield f"{name}: {where}: {note}"
