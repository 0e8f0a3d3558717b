"""Effects of a table's main number as a dot plot with intervals. Draws; writes no file."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Problem, UserError
from orchestrator.tables.layout import direction
from orchestrator.tables.model import Effect, EffectKind, Effects, Estimate, TableModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
COLOURS = {EffectKind.ROW: "#1f5fa8", EffectKind.MAIN: "#1f5fa8", EffectKind.INTERACTION: "#c06a1a"}
LINE_INCHES = 0.27
PANEL_INCHES = 4.2
LABEL_INCHES_PER_LETTER = 0.075
TITLE_LETTERS_PER_INCH = 10


def draw(model: TableModel) -> Figure:
    """One panel per column of the main block's effects; raises UserError when the table has none.

    A filled dot has an interval that leaves zero out; an open one has not, or has no interval. Rows stay in the table's
    order, a factorial's effects are sorted by size in each panel.
    """
    from matplotlib.figure import Figure  # loads fonts: only where there is something to draw

    block = model.blocks[0]
    effects = block.effects
    if effects is None or not effects.lines:
        hint = "`effects: {base: OPTION}` or `factorial: {factors: [...]}` below `table:`; see README.md"
        raise UserError(Problem(what=f"the table of sweep `{model.sweep}` has no effects to draw", hint=hint))
    crossed = any(line.kind is not EffectKind.ROW for line in effects.lines)
    panels = [_panel(effects, j, crossed=crossed) for j in range(len(effects.columns))]
    rows = max(len(panel) for panel in panels)
    longest = max(len(_label(line)) for line in effects.lines)
    labels = longest * LABEL_INCHES_PER_LETTER
    tall = LINE_INCHES * rows + (1.7 if crossed else 1.3)
    width = len(panels) * (PANEL_INCHES + (labels if crossed else 0)) + (0 if crossed else labels)
    figure = Figure(figsize=(width, tall), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=crossed, sharey=not crossed)[0]
    for axes, column, panel in zip(grid, effects.columns, panels, strict=True):
        _fill(axes, panel)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_title(column.label, fontsize=10, parse_math=False)
        axes.set_xlabel(f"effect on {block.label}{direction(block)}, 95 % interval", fontsize=9, parse_math=False)
    title = model.title if crossed else f"{model.title}: {effects.title}"
    figure.suptitle(fill(title, int(width * TITLE_LETTERS_PER_INCH)), fontsize=11, parse_math=False)
    if crossed:
        _legend(figure)
    return figure


def _panel(effects: Effects, column: int, *, crossed: bool) -> list[tuple[Effect, Estimate]]:
    """Lines with their estimate in one column; of a factorial those that have one, the largest first."""
    found = [(line, line.estimates[column]) for line in effects.lines]
    if not crossed:
        return found
    return sorted((pair for pair in found if pair[1].value is not None), key=lambda pair: -abs(pair[1].value or 0.0))


def _label(line: Effect) -> str:
    return f"{line.label}  ({line.note})" if line.note else line.label


def _fill(axes: Axes, panel: Sequence[tuple[Effect, Estimate]]) -> None:
    axes.axvline(0.0, color="0.45", linewidth=0.9, zorder=1)
    for y, (line, one) in enumerate(panel):
        colour = COLOURS[line.kind]
        if one.value is None:
            axes.annotate("no number", (0.0, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5, color="0.45")
            continue
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
        face = colour if one.clear else "white"
        axes.plot([one.value], [y], marker="o", markersize=5.5, color=colour, markerfacecolor=face, zorder=3)
    axes.set_yticks(range(len(panel)), [_label(line) for line, _ in panel], fontsize=8.5)
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)  # a label is text, also with a dollar sign
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    kinds = {EffectKind.MAIN: "main effect", EffectKind.INTERACTION: "interaction"}
    handles = [Line2D([], [], color=COLOURS[kind], marker="o", markersize=5.5, label=label) for kind, label in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
