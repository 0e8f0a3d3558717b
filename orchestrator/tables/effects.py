"""Differences from a base row, paired by seed, and the interval of any estimate. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.tables.model import Effect, EffectKind, Effects, Estimate, Heading, TableCell

LEVEL = 0.95
"""Coverage of every interval."""
HOW_PAIRED = (
    "effects: mean of the differences from the base row over the seeds that both have, 95 % interval by Student's t (number "
    "of pairs); bold where it leaves out 0; each interval stands for itself, not corrected for the number of rows"
)


def with_interval(value: float, se: float, dof: int, *, level: float = LEVEL) -> Estimate:
    """An estimate with its t interval; `dof` is at least 1, `level` in (0, 1)."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # no annotations; imported late: takes a while

    half = float(stdtrit(dof, (1 + level) / 2)) * se
    return Estimate(value=value, se=se, low=value - half, high=value + half, dof=dof)


def against_base(
    rows: Sequence[Heading], columns: Sequence[Heading], cells: Sequence[Sequence[TableCell]], base: str, base_label: str
) -> Effects:
    """Every row but the base against the base, column by column."""
    at = next((i for i, row in enumerate(rows) if row.option == base), None)
    lines: list[Effect] = []
    footnotes: list[str] = [] if at is not None else [f"no effects: no cell of the base row, {base_label}, was submitted"]
    for row, line in zip(rows, cells, strict=True) if at is not None else ():
        if row.option == base:
            continue
        found = tuple(paired(cell, against) for cell, against in zip(line, cells[at or 0], strict=True))
        lines.append(Effect(kind=EffectKind.ROW, option=row.option, label=row.label, note=row.note, estimates=found))
        for column, cell, estimate in zip(columns, line, found, strict=True):
            where = ", ".join(part for part in (row.label, column.label) if part)
            unexplained = cell.samples or cell.cited is not None  # else the means above say why there is nothing
            footnotes.extend([f"effect of {where}: {estimate.note}"] if estimate.note and unexplained else [])
    return Effects(title=f"difference from {base_label}", columns=tuple(columns), lines=tuple(lines), footnotes=tuple(footnotes))


def paired(
    cell: TableCell, base: TableCell, *, level: float = LEVEL, names: tuple[str, str] = ("the row", "the base")
) -> Estimate:
    """The mean difference over the seeds (what tells runs of one table cell apart) that both cells have.

    `names` say in notes which of the two lacks a run.
    """
    planned = dict.fromkeys([*_planned(cell), *_planned(base)])
    if not planned or cell.cited is not None or base.cited is not None:
        cited = f"{names[0]} is cited" if cell.cited is not None else f"{names[1]} is cited" if base.cited is not None else ""
        return Estimate(note=f"{cited}, not run" if cited else "")
    mine, theirs = ({sample.cell: sample.value for sample in one.samples} for one in (cell, base))
    differences = [mine[name] - theirs[name] for name in planned if name in mine and name in theirs]
    n, expected = len(differences), len(planned)
    notes = [f"{n} of {expected} pairs ({'; '.join(_lacking(planned, names, (mine, theirs)))})"] if n < expected else []
    if n == 0:
        return Estimate(expected=expected, note="; ".join(notes))
    mean = statistics.fmean(differences)
    if n == 1:
        return Estimate(value=mean, n=1, expected=expected, note="; ".join([*notes, "one pair, so no interval"]))
    found = with_interval(mean, statistics.stdev(differences) / math.sqrt(n), n - 1, level=level)
    return replace(found, n=n, expected=expected, note="; ".join(notes))


def _planned(cell: TableCell) -> Iterator[str]:
    yield from (sample.cell for sample in cell.samples)
    yield from (gap.cell for gap in cell.gaps)


def _lacking(planned: Iterable[str], names: tuple[str, str], both: tuple[Mapping[str, float], ...]) -> Iterator[str]:
    for who, known in zip(names, both, strict=True):
        missing = [name or "its run" for name in planned if name not in known]
        if missing:
            yield f"{who} lacks {', '.join(missing)}"
