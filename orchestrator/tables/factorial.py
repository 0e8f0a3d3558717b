"""Main effects and pairwise interactions of a two-level factorial, by least squares on the single runs. Pure.

A run's number is modelled as intercept + sum_j b_j x_j + sum_(j<k) b_jk x_j x_k with x = -1 for a factor's first option and +1
for its second. Then 2 b_j is the difference of the means, and 2 b_jk half the difference of j's effects at k's two options.

    R: runs   T: terms, the intercept first   C: cells
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.tables.effects import with_interval
from orchestrator.tables.layout import reasons
from orchestrator.tables.model import Effect, EffectKind, Effects, Estimate, Heading, Mark, TableCell

HOW_CROSSED = (
    "effects: least squares on all runs; a factor's effect is the mean at its second option minus that at its first, an "
    "interaction half the difference between a factor's effects at the other's two options; 95 % intervals by Student's t, "
    "bold where they leave out 0; each stands for itself, not corrected for their number"
)
EVERYTHING = "all cells"
_ESTIMABLE = 1e-6
"""How far a term may stick out of what the cells span, and still be rounding."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """An axis of two options."""

    name: str
    low: Heading
    high: Heading

    @property
    def label(self) -> str:
        """`slots: 7 → 3`."""
        return f"{self.name}: {self.low.label} → {self.high.label}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell of the factorial: where it lies (factor -> option), and its numbers."""

    at: Mapping[str, str]
    cell: TableCell


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The effects of one part of the cells: term (one or two factors) -> estimate."""

    found: Mapping[tuple[str, ...], Estimate]
    footnotes: tuple[str, ...]


def crossed(factors: Sequence[Factor], points: Sequence[Point], within: Mapping[str, Sequence[str]]) -> Effects:
    """Effects over all cells, then over the cells with each option that `within` names; interactions by falling size."""
    by_name = {factor.name: factor for factor in factors}
    parts = [(Heading(option="", label=EVERYTHING), list(factors), list(points))]
    for name, options in within.items():
        for option in options:
            level = by_name[name].low if by_name[name].low.option == option else by_name[name].high
            heading = Heading(option=f"{name}={option}", label=f"{name}: {level.label}")
            rest = [factor for factor in factors if factor.name != name]
            parts.append((heading, rest, [point for point in points if point.at[name] == option]))
    fits = [_fit(own, cells, 2 ** len(own)) for _, own, cells in parts]
    terms = [*((factor.name,) for factor in factors), *itertools.combinations(by_name, 2)]
    lines = [
        Effect(
            kind=EffectKind.MAIN if len(term) == 1 else EffectKind.INTERACTION,
            option=":".join(term),
            label=by_name[term[0]].label if len(term) == 1 else " × ".join(term),
            estimates=tuple(fit.found.get(term, Estimate()) for fit in fits),
        )
        for term in terms
    ]
    mains, pairs = lines[: len(factors)], lines[len(factors) :]
    pairs.sort(key=lambda line: -max((abs(one.value) for one in line.estimates if one.value is not None), default=0.0))
    notes = [f"{heading.label}: {note}" for (heading, _, _), fit in zip(parts, fits, strict=True) for note in fit.footnotes]
    return Effects(
        title="effects of the factors",
        columns=tuple(heading for heading, _, _ in parts),
        lines=(*mains, *pairs),
        footnotes=tuple(notes),
    )


def _fit(factors: Sequence[Factor], points: Sequence[Point], full: int) -> _Fit:
    """`full`: cells of the whole design, of which some may be missing."""
    import numpy as np  # imported late: only tables need it

    filled = [point for point in points if point.cell.samples]
    footnotes = list(_missing(points, full))
    if not filled:
        return _Fit(found={}, footnotes=tuple(footnotes))
    present = {factor.name: {point.at[factor.name] for point in filled} for factor in factors}
    varied = [factor for factor in factors if len(present[factor.name]) == 2]
    for factor in factors:
        if factor not in varied:
            footnotes.append(f"no effect of {factor.name}: all numbers there are have {next(iter(present[factor.name]))}")
    names = [factor.name for factor in varied]
    terms: list[tuple[str, ...]] = [*((name,) for name in names), *itertools.combinations(names, 2)]
    if not terms:
        return _Fit(found={}, footnotes=tuple(footnotes))
    signs = {factor.name: {factor.low.option: -1.0, factor.high.option: 1.0} for factor in varied}
    coded = [[1.0, *(math.prod(signs[name][point.at[name]] for name in term) for term in terms)] for point in filled]
    counts = [point.cell.n for point in filled]
    design_RT = np.repeat(np.array(coded), counts, axis=0)
    numbers_R = np.array([sample.value for point in filled for sample in point.cell.samples])
    inverse_TR = np.linalg.pinv(design_RT)
    coefficients_T = inverse_TR @ numbers_R
    planned = sum(point.cell.expected for point in points)
    spanned_T = np.diag(inverse_TR @ design_RT)  # 1 for a term that the cells determine
    spread_T = np.sqrt(np.einsum("tr,tr->t", inverse_TR, inverse_TR))  # standard error of a coefficient per unit of noise
    rank = int(np.linalg.matrix_rank(design_RT))
    noise, dof, source = _noise(filled, numbers_R - design_RT @ coefficients_T, rank)
    footnotes.append(source)
    products_TT = design_RT.T @ design_RT
    if np.any(products_TT != np.diag(np.diag(products_TT))):
        footnotes.append("the cells are uneven, so the effects are not independent of each other")
    found: dict[tuple[str, ...], Estimate] = {}
    for j, term in enumerate(terms, start=1):
        if spanned_T[j] < 1 - _ESTIMABLE:
            found[term] = Estimate(n=len(numbers_R), expected=planned, note="cannot be told apart from other effects")
            continue
        value = 2 * float(coefficients_T[j])
        estimate = with_interval(value, 2 * noise * float(spread_T[j]), dof) if dof else Estimate(value=value)
        found[term] = replace(estimate, n=len(numbers_R), expected=planned)
    blurred = [" × ".join(term) for term, one in found.items() if one.value is None]
    if blurred:
        footnotes.append(f"cannot be told apart from other effects in the cells that are there: {', '.join(blurred)}")
    return _Fit(found=found, footnotes=tuple(footnotes))


def _noise(filled: Sequence[Point], residual_R: Any, rank: int) -> tuple[float, int, str]:
    """The sd of one run with its degrees of freedom, and in words where it comes from.

    Repeated runs alone are asked once they have as many degrees of freedom as main effects and pairs leave over: a few would
    give all intervals one bad guess in common.
    """
    dof = sum(point.cell.n - 1 for point in filled)
    left = len(residual_R) - rank
    if dof and dof >= left - dof:
        squares = sum(
            sum((sample.value - statistics.fmean(one.value for one in point.cell.samples)) ** 2 for sample in point.cell.samples)
            for point in filled
        )
        what = "intervals from the spread of repeated runs, pooled over cells"
        return math.sqrt(squares / dof), dof, f"{what} ({dof} degrees of freedom)"
    if left:
        few = "few cells have two runs" if dof else "no cell has two runs"
        what = f"{few}, so intervals take what main effects and pairwise interactions leave over for noise"
        return math.sqrt(float(residual_R @ residual_R) / left), left, f"{what} ({left} degrees of freedom)"
    return math.nan, 0, "no cell has two runs and no cell is left over: effects without intervals"


def _missing(points: Sequence[Point], full: int) -> Iterator[str]:
    """What a reader must know of the cells before trusting an effect."""
    filled = sum(bool(point.cell.samples) for point in points)
    why = reasons([gap for point in points for gap in point.cell.gaps])
    if filled < full:
        yield f"{filled} of {full} cells have numbers, {full - filled} missing" + (f" ({why})" if why else "")
    elif why:
        yield f"runs without a number: {why}"
    for mark in (Mark.CITED, Mark.FEWER, Mark.CODE, Mark.BUDGET):
        marked = sum(mark in point.cell.marks for point in points)
        if marked:
            yield f"{mark.value}: {marked} of {full} cells"
