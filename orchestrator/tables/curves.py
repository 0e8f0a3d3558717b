"""Learning curves: one metric over the steps of training, per row of a table. Draws; writes no file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from jobs.metrics import METRICS
from orchestrator.errors import Problem, UserError
from orchestrator.sweep.document import did_you_mean, listed
from orchestrator.tracking.record import CellEntry, SweepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TOGETHER = 10
"""Lines in one panel: as many as there are colours."""
PANELS_ACROSS = 5
MOST_DOTS = 20
"""Points of a line up to which each is marked."""
PANEL_INCHES = (6.4, 4.4)
SMALL_INCHES = (2.5, 1.9)
LEGEND_INCHES_PER_LETTER = 0.075
TITLE_LETTERS_PER_INCH = 13


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean and sample sd over the runs of a row, at every step that all of its runs with any point have."""

    label: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    """0 for a single run."""
    n: int
    expected: int


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Rows of one column that the same runs serve."""

    rows: tuple[str, ...]
    column: str
    runs: tuple[str, ...]
    """Ids; of a cell that was never submitted the empty string."""


def runs_with(record: SweepRecord, metric: str) -> tuple[str, ...]:
    """The runs whose curves a sweep's rows are; raises UserError for an unknown metric or a table without rows."""
    return tuple(dict.fromkeys(run for line in _lines(record, metric) for run in line.runs if run))


def curves(
    record: SweepRecord, histories: Mapping[str, Sequence[tuple[int, float]]], metric: str
) -> dict[str, tuple[Curve, ...]]:
    """Column label -> a curve per row; rows that differ in evaluation alone share one. `histories`: run -> (step, value).

    Points that are not finite are left out.
    """
    found: dict[str, list[Curve]] = {}
    for line in _lines(record, metric):
        known = [{step: value for step, value in histories.get(run, ()) if math.isfinite(value)} for run in line.runs]
        drawn = [points for points in known if points]
        steps = sorted(set.intersection(*(set(points) for points in drawn))) if drawn else []
        values = [[points[step] for points in drawn] for step in steps]
        curve = Curve(
            label=" = ".join(line.rows),
            steps=tuple(steps),
            mean=tuple(statistics.fmean(one) for one in values),
            sd=tuple(statistics.stdev(one) if len(one) > 1 else 0.0 for one in values),
            n=len(drawn),
            expected=len(line.runs),
        )
        found.setdefault(line.column, []).append(curve)
    return {column: tuple(lines) for column, lines in found.items()}


def _lines(record: SweepRecord, metric: str) -> Iterator[_Line]:
    table = record.table
    if table is None or table.rows is None:
        what = "declares no table" if table is None else "has a factorial table, and learning curves are drawn by row"
        raise UserError(Problem(what=f"sweep `{record.name}` {what}"))
    kinds = {summary.kind for summary in record.runs.values()}
    known = [name for kind in METRICS for name in METRICS[kind] if kind in kinds]
    if metric not in known:
        raise UserError(
            Problem(
                what="no run of this sweep writes this metric",
                where="--metric",
                value=metric,
                allowed=listed(known) or "none: nothing was submitted yet",
                hint=did_you_mean(metric, known),
            )
        )
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    columns = {"": ""} if table.columns is None else {k: one.label or k for k, one in record.axes[table.columns].options.items()}
    for column, column_label in columns.items():
        for row, option in record.axes[table.rows].options.items():
            members = [
                cell
                for cell in record.cells
                if cell.coordinates[table.rows] == row
                and (table.columns is None or cell.coordinates[table.columns] == column)
                and cell.cite is None
            ]
            runs = tuple(_writer(record, cell, metric) for cell in members)
            if any(runs):
                grouped.setdefault((column_label, runs), []).append(option.label or row)
    for (column_label, runs), labels in grouped.items():
        yield _Line(rows=tuple(labels), column=column_label, runs=runs)


def _writer(record: SweepRecord, cell: CellEntry, metric: str) -> str:
    """The last run of a cell's pipeline whose kind writes the metric; empty without one."""
    for run in reversed(list(cell.runs.values())):
        summary = record.runs.get(run)
        if summary is not None and metric in METRICS.get(summary.kind, {}):
            return run
    return ""


def draw(record: SweepRecord, found: Mapping[str, Sequence[Curve]], metric: str) -> Figure:
    """Lines with a band of one sd on both sides; raises UserError without any point.

    A few rows share one panel per column; many have one each, in front of all others in grey.
    """
    from matplotlib.figure import Figure  # loads fonts: only where there is something to draw

    if not any(curve.steps for lines in found.values() for curve in lines):
        hint = "training ships its metrics as its checkpoints are written: try again later, or without `--no-ship`"
        raise UserError(Problem(what=f"the tracker has no point of {metric} yet", where=f"sweep `{record.name}`", hint=hint))
    rows = list(dict.fromkeys(curve.label for lines in found.values() for curve in lines))
    apart = len(rows) > MOST_TOGETHER
    panels = [(column, [curve]) for column, lines in found.items() for curve in lines] if apart else list(found.items())
    across = min(len(panels), PANELS_ACROSS)
    down = math.ceil(len(panels) / across)
    inches = SMALL_INCHES if apart else PANEL_INCHES
    words = [] if apart else [_legend(curve) for lines in found.values() for curve in lines]
    width = inches[0] * across + (max(map(len, words)) * LEGEND_INCHES_PER_LETTER + 0.8 if words else 0.0)
    figure = Figure(figsize=(width, inches[1] * down + 0.5), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    handles: dict[str, Any] = {}
    for axes, (column, lines) in zip(grid, panels, strict=False):
        for other in found[column] if apart else ():
            axes.plot(other.steps, other.mean, color="0.85", linewidth=0.7, zorder=1)
        for curve in lines:
            handles.setdefault(_legend(curve), _plot(axes, curve, f"C{0 if apart else rows.index(curve.label) % 10}"))
        name = ": ".join(part for part in (column, _legend(lines[0]) if apart else "") if part)
        axes.set_title(fill(name, int(inches[0] * TITLE_LETTERS_PER_INCH)), fontsize=8 if apart else 10, parse_math=False)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92", linewidth=0.8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel(metric, fontsize=9, parse_math=False)
    title = fill(f"{record.title}: mean and sd over runs", int(width * TITLE_LETTERS_PER_INCH))
    figure.suptitle(title, fontsize=11, parse_math=False)
    if not apart:
        legend = figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8.5)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a label is text, also with a dollar sign
    return figure


def _plot(axes: Axes, curve: Curve, colour: str) -> Any:
    marker = "" if len(curve.steps) > MOST_DOTS else "."  # a single point has no line
    (handle,) = axes.plot(curve.steps, curve.mean, color=colour, marker=marker, linewidth=1.5, zorder=3)
    low = [mean - sd for mean, sd in zip(curve.mean, curve.sd, strict=True)]
    high = [mean + sd for mean, sd in zip(curve.mean, curve.sd, strict=True)]
    axes.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)
    return handle


def _legend(curve: Curve) -> str:
    """`label`, and how many of its runs have points where some have none."""
    return curve.label if curve.n == curve.expected else f"{curve.label} ({curve.n}/{curve.expected} runs)"
