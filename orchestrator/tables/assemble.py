"""Turns a sweep's record and the scores of its runs into a table. Pure; knows neither MLflow nor text layout."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.errors import Problem, UserError
from orchestrator.goodput import SHARED, Usage, worded
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Table, Value
from orchestrator.tables.effects import HOW_PAIRED, against_base
from orchestrator.tables.factorial import HOW_CROSSED, Factor, Point, crossed
from orchestrator.tables.hypotheses import HOW_TESTED, tested
from orchestrator.tables.model import Block, Effects, Gap, Heading, HypothesisResult, Mark, Sample, TableCell, TableModel
from orchestrator.tracking.record import CellEntry, SweepRecord

Values = Mapping[str, Mapping[str, float]]
"""run id -> metric -> value."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the table and where its cells lie (axis -> option)."""

    heading: Heading
    at: Mapping[str, str]


def metrics_of(record: SweepRecord) -> tuple[str, ...]:
    """Every metric that the table of a sweep shows."""
    table = _table(record)
    return tuple(dict.fromkeys(value.metric for value in (table.value, *table.more)))


def assemble(record: SweepRecord, values: Values) -> TableModel:
    """The table of a sweep; raises UserError when its file declares none.

    Only finished runs count: a running one has a metric already, and it is not the number that was asked for. A further metric
    that finished runs do not have, and none does, is named in a note and has no block.
    """
    table = _table(record)
    rows = _rows(record, table)
    columns = (Heading(option="", label=""),) if table.columns is None else _headings(record, table.columns)
    there = _by_place(record, table, rows)
    every = [_block(record, values, table, value, rows, columns, there) for value in (table.value, *table.more)]
    absent = [block.metric for block in every[1:] if _absent(block)]
    blocks = _said_once([every[0], *(block for block in every[1:] if block.metric not in absent)])
    paper = f"paper: {table.paper_source or 'no source given'}" if table.paper else ""
    protocols = _protocols(table, columns) if table.paper else []
    hypotheses = _hypotheses(record, table, rows, columns, every)
    without = f"no value of: {', '.join(absent)}" if absent else ""
    usage = sum((one.usage for one in record.runs.values() if one.usage is not None), Usage())
    used = f"{worded(usage)}; {SHARED}" if usage else ""
    how = HOW_CROSSED if table.factorial is not None else HOW_PAIRED if table.base is not None else ""
    return TableModel(
        sweep=record.name,
        title=record.title,
        comment=record.comment,
        rows=tuple(row.heading for row in rows),
        columns=columns,
        blocks=blocks,
        notes=tuple(
            note for note in (how, HOW_TESTED if hypotheses else "", without, paper, *protocols, record.note, used) if note
        ),
        hypotheses=hypotheses,
        usage=usage or None,
        means_shown=table.factorial is None,
    )


def _no_value(metric: str) -> str:
    return f"no value of {metric}"


def _absent(block: Block) -> bool:
    """Whether no run has the number, though one that should is finished."""
    cells = [cell for line in block.cells for cell in line]
    finished = any(gap.reason == _no_value(block.metric) for cell in cells for gap in cell.gaps)
    return finished and not any(cell.samples for cell in cells)


def _hypotheses(
    record: SweepRecord, table: Table, rows: Sequence[_Row], columns: Sequence[Heading], blocks: Sequence[Block]
) -> tuple[HypothesisResult, ...]:
    if table.rows is None:
        return ()
    labels = {name: option.label or name for name, option in record.axes[table.rows].options.items()}
    return tested(table.hypotheses, labels, [row.heading for row in rows], columns, blocks)


def _said_once(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The same blocks, each without the footnotes that stand below an earlier one."""
    said: set[str] = set()
    kept: list[Block] = []
    for block in blocks:
        kept.append(replace(block, footnotes=tuple(note for note in block.footnotes if note not in said)))
        said.update(block.footnotes)
        if block.effects is not None:
            notes = block.effects.footnotes
            kept[-1] = replace(
                kept[-1], effects=replace(block.effects, footnotes=tuple(note for note in notes if note not in said))
            )
            said.update(notes)
    return tuple(kept)


def _protocols(table: Table, columns: Sequence[Heading]) -> list[str]:
    """How the paper measured, a line per column when it differs."""
    if isinstance(table.protocol, str):
        return [f"the paper's protocol: {table.protocol}"] if table.protocol else []
    found = [(column.label, table.protocol[column.option]) for column in columns if column.option in table.protocol]
    return [f"the paper's protocol ({label}): {text}" for label, text in found]


def _table(record: SweepRecord) -> Table:
    if record.table is None:
        hint = "add `table:` with `rows`, `columns` and `value` to the sweep file and submit it again: finished runs stay"
        raise UserError(Problem(what=f"sweep `{record.name}` declares no table", hint=hint))
    return record.table


def _headings(record: SweepRecord, axis: str) -> tuple[Heading, ...]:
    """The options of an axis that some cell uses, in the order of the file."""
    used = {cell.coordinates[axis] for cell in record.cells}
    options = record.axes[axis].options
    return tuple(
        Heading(option=name, label=option.label or name, note=option.note) for name, option in options.items() if name in used
    )


def _rows(record: SweepRecord, table: Table) -> list[_Row]:
    """The options of the row axis, or the combinations of the factors, that some cell uses."""
    if table.rows is not None:
        return [_Row(heading=heading, at={table.rows: heading.option}) for heading in _headings(record, table.rows)]
    factors = () if table.factorial is None else table.factorial.factors
    points = dict.fromkeys(tuple(cell.coordinates[factor] for factor in factors) for cell in record.cells)
    found = []
    for point in points:
        at = dict(zip(factors, point, strict=True))
        label = ", ".join(record.axes[factor].options[option].label for factor, option in at.items())
        found.append(_Row(heading=Heading(option=",".join(f"{key}={one}" for key, one in at.items()), label=label), at=at))
    return found


def _block(
    record: SweepRecord,
    values: Values,
    table: Table,
    value: Value,
    rows: Sequence[_Row],
    columns: Sequence[Heading],
    there: Mapping[tuple[str, ...], Sequence[CellEntry]],
) -> Block:
    """`there`: as `_by_place`."""
    main = value is table.value
    grid: list[list[TableCell]] = []
    footnotes: list[str] = []
    for row in rows:
        line: list[TableCell] = []
        for column in columns:
            members = [
                cell
                for cell in there.get((*row.at.values(), column.option), ())
                if not cell.runs or value.step in cell.runs  # a cell without this step has no such number
            ]
            paper = table.paper.get(row.heading.option, {}).get(column.option) if main else None
            shown = _cell(record, values, table, value, members, paper=paper)
            where = ", ".join(part for part in (row.heading.label, column.label) if part)
            footnotes.extend(f"{where}: {text}" for text in _remarks(record, shown, members))
            line.append(shown)
        grid.append(line)
    return Block(
        metric=value.metric,
        label=value.label or value.metric,
        better=value.better,
        digits=value.digits,
        cells=_with_best(grid, better=value.better),
        footnotes=tuple(footnotes),
        effects=_effects(record, table, rows, columns, grid),
    )


def _by_place(record: SweepRecord, table: Table, rows: Sequence[_Row]) -> dict[tuple[str, ...], list[CellEntry]]:
    """Sweep cells by their row's options, as in `_Row.at`, and their column's: a table may have thousands of rows."""
    axes = tuple(rows[0].at) if rows else ()
    found: dict[tuple[str, ...], list[CellEntry]] = {}
    for cell in record.cells:
        column = "" if table.columns is None else cell.coordinates[table.columns]
        found.setdefault((*(cell.coordinates[axis] for axis in axes), column), []).append(cell)
    return found


def _effects(
    record: SweepRecord, table: Table, rows: Sequence[_Row], columns: Sequence[Heading], grid: Sequence[Sequence[TableCell]]
) -> Effects | None:
    """What the table asks for besides means."""
    if table.factorial is not None:
        factors = [_factor(record, name) for name in table.factorial.factors]
        points = [Point(at=row.at, cell=line[0]) for row, line in zip(rows, grid, strict=True)]
        return crossed(factors, points, table.factorial.within)
    if table.base is None or table.rows is None:
        return None
    label = record.axes[table.rows].options[table.base].label or table.base
    return against_base([row.heading for row in rows], columns, grid, table.base, label)


def _factor(record: SweepRecord, name: str) -> Factor:
    low, high = (Heading(option=option.name, label=option.label or option.name) for option in record.axes[name].options.values())
    return Factor(name=name, low=low, high=high)


def _cell(
    record: SweepRecord, values: Values, table: Table, value: Value, members: Sequence[CellEntry], *, paper: float | None
) -> TableCell:
    """One table cell from the sweep cells that fall into it."""
    cited = [cell for cell in members if cell.cite is not None]
    if cited:  # a citation stands for the main number alone, and is in table units
        if value is not table.value:
            return TableCell(expected=0)
        return TableCell(expected=0, cited=cited[0].cite, source=cited[0].source, paper=paper, marks=(Mark.CITED,))
    found = [_sample_or_gap(record, values, table, value, cell) for cell in members]
    samples = tuple(one for one in found if isinstance(one, Sample))
    gaps = tuple(one for one in found if isinstance(one, Gap))
    mean = statistics.fmean(one.value for one in samples) if samples else None
    counted = [cell for cell, one in zip(members, found, strict=True) if isinstance(one, Sample)]
    return TableCell(
        expected=len(members),
        samples=samples,
        gaps=gaps,
        mean=mean,
        sd=statistics.stdev(one.value for one in samples) if len(samples) > 1 else None,
        paper=paper,
        delta=None if mean is None or paper is None else mean - paper,
        marks=tuple(_marks(record, counted, missing=bool(gaps))),
    )


def _sample_or_gap(record: SweepRecord, values: Values, table: Table, value: Value, cell: CellEntry) -> Sample | Gap:
    apart = ",".join(f"{axis}={option}" for axis, option in cell.coordinates.items() if axis not in table.shown)
    run = cell.runs.get(value.step, "")
    if not _done(record, run):
        return Gap(cell=apart, run=run, reason=_hold_up(record, cell, value.step))
    number = values.get(run, {}).get(value.metric)
    if number is None:
        return Gap(cell=apart, run=run, reason=_no_value(value.metric))
    if not math.isfinite(number):
        return Gap(cell=apart, run=run, reason=f"the value is {number}")
    return Sample(cell=apart, run=run, value=number * value.scale)


def _hold_up(record: SweepRecord, cell: CellEntry, last: str) -> str:
    """Why there is no number yet: the first unfinished step that `last` waits for, since a pipeline lists needs first."""
    behind = _behind(record, cell.runs.get(last, ""))
    for step, run in cell.runs.items():
        summary = record.runs.get(run)
        if summary is None:
            break
        if behind is not None and run not in behind:
            continue
        if summary.state is not RunState.DONE:
            return summary.reason or summary.state.value
        if step == last:
            break
    return "not submitted"


def _behind(record: SweepRecord, run: str) -> set[str] | None:
    """A run and every run that it needs, directly or not; None when the record does not say what runs need."""
    found: set[str] = set()
    left = [run]
    while left:
        one = left.pop()
        summary = record.runs.get(one)
        if summary is None or summary.needs is None:
            return None
        if one not in found:
            found.add(one)
            left += summary.needs
    return found


def _done(record: SweepRecord, run: str) -> bool:
    summary = record.runs.get(run)
    return summary is not None and summary.state is RunState.DONE


def _distinct(record: SweepRecord, cells: Sequence[CellEntry], attribute: str) -> dict[str, list[str]]:
    """step name -> the different values of an attribute of the runs behind one number, where there are several."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for step, run in cell.runs.items():
            if run in record.runs:
                found.setdefault(step, {})[str(getattr(record.runs[run], attribute))] = None
    return {step: list(values) for step, values in found.items() if len(values) > 1}


def _marks(record: SweepRecord, counted: Sequence[CellEntry], *, missing: bool) -> Iterator[Mark]:
    if counted and missing:
        yield Mark.FEWER
    if _distinct(record, counted, "code_tree"):
        yield Mark.CODE
    if _distinct(record, counted, "steps"):
        yield Mark.BUDGET


def _remarks(record: SweepRecord, cell: TableCell, members: Sequence[CellEntry]) -> Iterator[str]:
    """What stands below the table about one cell."""
    if cell.cited is not None:
        yield f"{Mark.CITED.value}: {cell.source}" if cell.source else Mark.CITED.value
    counted = [one for one in members if set(one.runs.values()) & {sample.run for sample in cell.samples}]
    for mark in cell.marks:
        match mark:
            case Mark.CITED:
                continue
            case Mark.FEWER:
                missing = "; ".join(f"{gap.cell}: {gap.reason}" if gap.cell else gap.reason for gap in cell.gaps)
                yield f"{cell.n} of {cell.expected} runs ({missing})"
            case Mark.CODE:
                for step, trees in _distinct(record, counted, "code_tree").items():
                    yield f"{mark.value} in {step}: {', '.join(tree[:10] or 'unknown' for tree in trees)}"
            case Mark.BUDGET:
                for step, steps in _distinct(record, counted, "steps").items():
                    yield f"{mark.value} in {step}: {', '.join(steps)} steps"


def _with_best(grid: Sequence[Sequence[TableCell]], *, better: str) -> tuple[tuple[TableCell, ...], ...]:
    """Mark the best mean of each column that has several; cited numbers do not compete, nor do neutral ones."""
    marked = [list(row) for row in grid]
    for j in range(len(grid[0]) if grid and better != "neutral" else 0):
        means = [row[j].mean for row in grid]
        known = [mean for mean in means if mean is not None]
        if len(known) > 1:
            best = max(known) if better == "higher" else min(known)
            for i, mean in enumerate(means):
                marked[i][j] = replace(marked[i][j], best=mean == best)
    return tuple(tuple(row) for row in marked)
