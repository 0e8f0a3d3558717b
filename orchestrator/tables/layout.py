"""Lays a table out as a grid of words, the same for every text format. Pure; escapes nothing."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.tables.folding import absent_notes, absent_rows, effect_notes, mean_notes, verdict_notes
from orchestrator.tables.model import (
    Block,
    EffectKind,
    Effects,
    Estimate,
    Gap,
    Heading,
    HypothesisResult,
    Mark,
    TableCell,
    TableModel,
    Verdict,
)

SYMBOLS = {Mark.CITED: "¶", Mark.FEWER: "†", Mark.CODE: "‡", Mark.BUDGET: "§"}


@dataclass(frozen=True, kw_only=True)
class Word:
    """One field of the grid."""

    text: str
    bold: bool = False
    hint: str = ""
    """The runs behind it, for formats that can show more on demand."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One block: the first column is left-aligned, as are notes; numbers are right-aligned."""

    title: str
    header: tuple[Word, ...]
    rows: tuple[tuple[Word, ...], ...]
    left: frozenset[int]
    """Left-aligned columns."""
    footnotes: tuple[str, ...]


def grids(model: TableModel) -> list[Grid]:
    """One grid per block, the main one first, each followed by its effects; a factorial table is its effects alone.

    Many rows that have no number for one and the same reason are a footnote, which stands once.
    """
    found: list[Grid] = []
    for block in model.blocks:
        absent = absent_rows(model.rows, block) if model.means_shown else {}
        left_out = frozenset(row.option for rows in absent.values() for row in rows)
        if model.means_shown:
            notes = (*absent_notes(absent), *mean_notes(block, model.rows, model.columns))
            found.append(_grid(model, block, left_out, notes))
        if block.effects is not None:
            grid = _effects_grid(block, block.effects, left_out, effect_notes(block.effects, model.rows))
            found.extend([grid] if grid.rows or grid.footnotes else [])  # without any number the means say why
    if model.hypotheses:
        found.append(_verdicts_grid(model.hypotheses, model.columns))
    said: set[str] = set()
    for i, grid in enumerate(found):
        found[i] = replace(grid, footnotes=tuple(note for note in grid.footnotes if note not in said))
        said.update(grid.footnotes)
    return found


def titled(model: TableModel) -> bool:
    """Whether a reader needs each grid's title: with one grid of means the header names the metric."""
    return len(model.blocks) > 1 or bool(model.hypotheses) or model.blocks[0].effects is not None


def legend(model: TableModel) -> str:
    """What the notation and the marks in use mean, in one line."""
    if not model.means_shown:
        return "the means of the cells: --format csv or --format json"
    used = {mark for block in model.blocks for row in block.cells for cell in row for mark in cell.marks}
    words = ["mean ± sample sd (number of runs)"]
    words.extend(f"{symbol} {mark.value}" for mark, symbol in SYMBOLS.items() if mark in used)
    return "; ".join(words)


def _grid(model: TableModel, block: Block, left_out: Container[str], footnotes: tuple[str, ...]) -> Grid:
    with_paper = {j for j in range(len(model.columns)) if any(row[j].paper is not None for row in block.cells)}
    with_notes = any(row.note for row in model.rows)
    header = [Word(text="")]
    for j, column in enumerate(model.columns):
        header.append(Word(text=column.label or block.label))
        if j in with_paper:
            header.extend([Word(text="paper"), Word(text="delta")])
    rows: list[tuple[Word, ...]] = []
    for heading, cells in zip(model.rows, block.cells, strict=True):
        if heading.option in left_out:
            continue
        line = [Word(text=heading.label)]
        for j, cell in enumerate(cells):
            line.extend(_words(cell, digits=block.digits, with_paper=j in with_paper))
        rows.append((*line, Word(text=heading.note)) if with_notes else tuple(line))
    if with_notes:
        header.append(Word(text="note"))
    return Grid(
        title=f"{block.label}{direction(block)}",
        header=tuple(header),
        rows=tuple(rows),
        left=frozenset({0, len(header) - 1} if with_notes else {0}),
        footnotes=footnotes,
    )


def direction(block: Block) -> str:
    """Which way a number is better, if any."""
    return "" if block.better == "neutral" else f" ({block.better} is better)"


def _effects_grid(block: Block, effects: Effects, left_out: Container[str], footnotes: tuple[str, ...]) -> Grid:
    with_notes = any(line.note for line in effects.lines)
    header = ["", *(column.label or "difference" for column in effects.columns), *(["note"] if with_notes else [])]
    rows: list[tuple[Word, ...]] = []
    for line in effects.lines:
        paired = line.kind is EffectKind.ROW
        if paired and line.option in left_out:
            continue
        words = [Word(text=line.label)]
        for one in line.estimates:
            hint = "" if one.se is None else f"standard error {one.se!r}, {one.dof} degrees of freedom"
            words.append(Word(text=estimate(one, digits=block.digits, pairs=paired), bold=one.clear, hint=hint or one.note))
        rows.append((*words, Word(text=line.note)) if with_notes else tuple(words))
    return Grid(
        title=f"{block.label}: {effects.title}{direction(block)}",
        header=tuple(Word(text=text) for text in header),
        rows=tuple(rows),
        left=frozenset({0, len(header) - 1} if with_notes else {0}),
        footnotes=footnotes,
    )


def _verdicts_grid(hypotheses: Sequence[HypothesisResult], columns: Sequence[Heading]) -> Grid:
    """Each hypothesis, and below it its claims with their differences."""
    header = [""]
    for column in columns:
        header.extend([column.label or "verdict", "left minus right"])
    rows: list[tuple[Word, ...]] = []
    for one in hypotheses:
        line = [Word(text=f"{one.name}: {one.text}")]
        for found in one.verdicts:
            line.extend([_verdict(found), Word(text="")])
        rows.append(tuple(line))
        joined = "or" if one.join == "any" else "and"
        for i, claim in enumerate(one.claims):
            line = [Word(text=f"· {joined if i else '  '} {claim.text}" if len(one.claims) > 1 else f"· {claim.text}")]
            for found, difference in zip(claim.verdicts, claim.estimates, strict=True):
                shown = Word(text=estimate(difference, digits=claim.digits, pairs=True), hint=difference.note)
                line.extend([Word(text=found.value), shown])
            rows.append(tuple(line))
    return Grid(
        title="hypotheses",
        header=tuple(Word(text=text) for text in header),
        rows=tuple(rows),
        left=frozenset({0, *range(1, len(header), 2)}),
        footnotes=verdict_notes(hypotheses, columns),
    )


def _verdict(found: Verdict) -> Word:
    return Word(text=found.value, bold=found in (Verdict.SUPPORTED, Verdict.REFUTED))


def estimate(one: Estimate, *, digits: int, pairs: bool) -> str:
    """`+1.2 [-0.3, +2.7] (3)`, `+1.2 (1)`, `+1.2 [-0.3, +2.7] (2/3)` with the number of pairs, or `-`."""
    if one.value is None:
        return "-"
    interval = "" if one.low is None or one.high is None else f" [{one.low:+.{digits}f}, {one.high:+.{digits}f}]"
    number_of = f" ({one.n})" if one.n == one.expected else f" ({one.n}/{one.expected})"
    return f"{one.value:+.{digits}f}{interval}{number_of if pairs else ''}"


def _words(cell: TableCell, *, digits: int, with_paper: bool) -> Iterator[Word]:
    hint = "; ".join(_sources(cell))
    yield Word(text=number(cell, digits=digits) + _symbols(cell.marks), bold=cell.best, hint=hint)
    if with_paper:
        yield Word(text="" if cell.paper is None else f"{cell.paper:.{max(digits, _digits(cell.paper))}f}")
        yield Word(text="" if cell.delta is None else f"{cell.delta:+.{digits}f}")


def _digits(value: float) -> int:
    """Decimals that a published number was printed with."""
    return len(repr(value).partition(".")[2].rstrip("0")) if "e" not in repr(value) else 0


def _sources(cell: TableCell) -> Iterator[str]:
    for sample in cell.samples:
        yield f"{sample.cell or 'run'} {sample.run}: {sample.value!r}"
    for gap in cell.gaps:
        yield f"{gap.cell or 'run'} {gap.run}: {gap.reason}"


def _symbols(marks: Sequence[Mark]) -> str:
    symbols = "".join(SYMBOLS[mark] for mark in marks)
    return f" {symbols}" if symbols else ""


def number(cell: TableCell, *, digits: int) -> str:
    """`90.7 ± 0.3 (3)`, `90.7 (1)`, `90.7 ± 0.3 (2/3)`, the cited number, or why there is none."""
    if cell.cited is not None:
        return f"{cell.cited:.{digits}f}"
    if cell.mean is None:
        return gaps(cell) or "-"
    runs = f"{cell.n}" if cell.n == cell.expected else f"{cell.n}/{cell.expected}"
    spread = "" if cell.sd is None else f" ± {cell.sd:.{digits}f}"
    return f"{cell.mean:.{digits}f}{spread} ({runs})"


def gaps(cell: TableCell) -> str:
    """Why runs of one cell have no number."""
    return reasons(cell.gaps)


def reasons(missing: Sequence[Gap]) -> str:
    """The reasons for missing runs, each once with its count: `queued x 2; running 63 %`."""
    found = [gap.reason for gap in missing]
    return "; ".join(
        reason if found.count(reason) == 1 else f"{reason} x {found.count(reason)}" for reason in dict.fromkeys(found)
    )
