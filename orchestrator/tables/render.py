"""Tables as text: Markdown, CSV, HTML and JSON here, LaTeX in `latex.py`. Pure."""

from __future__ import annotations

import csv
import enum
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from typing import assert_never

from orchestrator.tables import latex
from orchestrator.tables.layout import Grid, Word, gaps, grids, legend, titled
from orchestrator.tables.model import Block, Estimate, HypothesisResult, TableModel


class Format(enum.StrEnum):
    """What `orch table --format` accepts."""

    MARKDOWN = "md"
    LATEX = "tex"
    CSV = "csv"
    HTML = "html"
    JSON = "json"


def render(model: TableModel, form: Format) -> str:
    """The table in one format, ending in a newline."""
    match form:
        case Format.MARKDOWN:
            return markdown(model)
        case Format.LATEX:
            return latex.render(model)
        case Format.CSV:
            return as_csv(model)
        case Format.HTML:
            return html(model)
        case Format.JSON:
            return as_json(model)
        case _:
            assert_never(form)


def markdown(model: TableModel) -> str:
    """Pipe tables whose columns also line up in a terminal."""
    lines = [f"# {_one_line(model.title)}", ""]
    if model.comment:
        lines.extend([_one_line(model.comment), ""])
    for grid in grids(model):
        if titled(model):
            lines.extend([f"## {_one_line(grid.title)}", ""])
        lines.extend([*_pipes(grid), ""])
        lines.extend(f"- {_one_line(note)}" for note in grid.footnotes)
        if grid.footnotes:
            lines.append("")
    lines.extend(_one_line(note) + "  " for note in (legend(model), *model.notes))
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _pipes(grid: Grid) -> list[str]:
    table = [[_pipe_cell(word) for word in row] for row in (grid.header, *grid.rows)]
    widths = [max(3, *(_width(row[j]) for row in table)) for j in range(len(grid.header))]

    def line(row: Sequence[str]) -> str:
        padded = [_pad(text, widths[j], left=j in grid.left) for j, text in enumerate(row)]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (width - 1) if j in grid.left else "-" * (width - 1) + ":" for j, width in enumerate(widths)]
    return [line(table[0]), f"| {' | '.join(rule)} |", *(line(row) for row in table[1:])]


def _pipe_cell(word: Word) -> str:
    text = _one_line(word.text).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
    return f"**{text}**" if word.bold else text


def _width(text: str) -> int:
    """Columns that a terminal uses."""
    return sum(0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


CSV_COLUMNS = (
    *("metric", "row", "row_label", "column", "column_label", "mean", "sd", "n", "expected", "paper", "delta"),
    *("cited", "source", "best", "marks", "missing", "values", "runs"),
)
CSV_EFFECTS = ("kind", "effect", "se", "low", "high", "dof")
"""Further columns of a table with effects; `kind` is `mean` for its numbers, and else what the effect compares."""
CSV_VERDICT = "verdict"
"""Last column of a table with hypotheses; `kind` is `hypothesis`, or `claim` for the differences behind it."""


def as_csv(model: TableModel) -> str:
    """One line per number, at full precision, in table units; lists are separated by spaces, reasons by semicolons.

    The lines of a metric's effects follow those of its means, those of hypotheses and their claims everything else.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    extended = any(block.effects is not None for block in model.blocks) or bool(model.hypotheses)
    writer.writerow([*CSV_COLUMNS, *(CSV_EFFECTS if extended else ()), *([CSV_VERDICT] if model.hypotheses else [])])
    unjudged = [""] if model.hypotheses else []
    for block in model.blocks:
        for line in _csv_means(model, block):
            writer.writerow([*line, *(("mean", *("" for _ in CSV_EFFECTS[1:])) if extended else ()), *unjudged])
        writer.writerows([*line, *unjudged] for line in _csv_effects(block))
    for one in model.hypotheses:
        writer.writerows(_csv_hypothesis(model, one))
    return out.getvalue()


def _csv_means(model: TableModel, block: Block) -> Iterator[list[object]]:
    for row, cells in zip(model.rows, block.cells, strict=True):
        for column, cell in zip(model.columns, cells, strict=True):
            yield [
                *(block.metric, row.option, row.label, column.option, column.label),
                *(_raw(one) for one in (cell.mean, cell.sd)),
                *(cell.n, cell.expected),
                *(_raw(one) for one in (cell.paper, cell.delta, cell.cited)),
                *(cell.source, "yes" if cell.best else "", "; ".join(mark.value for mark in cell.marks), gaps(cell)),
                " ".join(repr(sample.value) for sample in cell.samples),
                " ".join(sample.run for sample in cell.samples),
            ]


def _csv_effects(block: Block) -> Iterator[list[object]]:
    effects = block.effects
    for line in effects.lines if effects is not None else ():
        for column, one in zip(effects.columns if effects is not None else (), line.estimates, strict=True):
            if one.value is None and not one.note:  # no such effect in this part
                continue
            start = [block.metric, line.option, line.label, column.option, column.label]
            yield [*_csv_estimate(start, one), line.kind.value, *_csv_interval(one)]


def _csv_hypothesis(model: TableModel, found: HypothesisResult) -> Iterator[list[object]]:
    for j, column in enumerate(model.columns):
        start = ["", found.name, found.text, column.option, column.label]
        blank: list[object] = ["" for _ in CSV_EFFECTS[1:]]
        yield [*start, *("" for _ in CSV_COLUMNS[len(start) :]), "hypothesis", *blank, found.verdicts[j].value]
        for claim in found.claims:
            one = claim.estimates[j]
            start = [claim.metric, found.name, claim.text, column.option, column.label]
            yield [*_csv_estimate(start, one), "claim", *_csv_interval(one), claim.verdicts[j].value]


def _csv_estimate(start: Sequence[str], one: Estimate) -> list[object]:
    """The columns of `CSV_COLUMNS` that a difference fills."""
    counted: list[object] = [*start, "", "", one.n, one.expected]
    return [*counted, *(one.note if name == "missing" else "" for name in CSV_COLUMNS[len(counted) :])]


def _csv_interval(one: Estimate) -> list[object]:
    return [*(_raw(number) for number in (one.value, one.se, one.low, one.high)), one.dof]


def _raw(value: float | None) -> str:
    return "" if value is None else repr(value)


def as_json(model: TableModel) -> str:
    """Everything that the table knows."""
    return json.dumps(asdict(model), indent=1, ensure_ascii=False) + "\n"


_STYLE = """
body { font-family: sans-serif; margin: 2em; }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; }
th { border-bottom: 1px solid; }
th, td { padding: 0.2em 0.8em; text-align: right; }
.left { text-align: left; }
p, li { font-size: 85%; max-width: 60em; }
"""


def html(model: TableModel) -> str:
    """A page of its own; pointing at a number shows the runs behind it."""
    title = escape(model.title)
    lines = ["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', f"<title>{title}</title>"]
    lines.extend([f"<style>{_STYLE}</style>", "</head>", "<body>", f"<h1>{title}</h1>"])
    if model.comment:
        lines.append(f"<p>{escape(model.comment)}</p>")
    for grid in grids(model):
        lines.extend([f"<h2>{escape(grid.title)}</h2>", "<table>"])
        lines.extend(_html_row(row, grid, tag) for tag, row in (("th", grid.header), *(("td", row) for row in grid.rows)))
        lines.append("</table>")
        if grid.footnotes:
            lines.extend(["<ul>", *(f"<li>{escape(note)}</li>" for note in grid.footnotes), "</ul>"])
    lines.extend(f"<p>{escape(note)}</p>" for note in (legend(model), *model.notes))
    return "\n".join([*lines, "</body>", "</html>", ""])


def _html_row(row: Sequence[Word], grid: Grid, tag: str) -> str:
    cells: list[str] = []
    for j, word in enumerate(row):
        text = f"<b>{escape(word.text)}</b>" if word.bold else escape(word.text)
        attributes = ' class="left"' if j in grid.left else ""
        attributes += f' title="{escape(word.hint)}"' if word.hint else ""
        cells.append(f"<{tag}{attributes}>{text}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"
