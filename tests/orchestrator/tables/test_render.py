"""The text of every format, golden; `UPDATE_GOLDEN=1` writes the files anew."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.model import Claim, Hypothesis, Join, Relation
from orchestrator.tables.assemble import assemble
from orchestrator.tables.folding import mean_notes
from orchestrator.tables.latex import escape
from orchestrator.tables.model import Gap, Heading, TableModel
from orchestrator.tables.render import Format, markdown, render
from tests.orchestrator.tables.test_effects import MORE, against, scores

GOLDEN = Path(__file__).parent / "golden"
BOOKTABS = r"\providecommand{\toprule}{\hline}\providecommand{\midrule}{\hline}\providecommand{\bottomrule}{\hline}"
"""Stands in for the package where it is not installed."""


@pytest.mark.parametrize("form", list(Format))
def test_that_a_table_prints_as_its_golden_file(record, values, form):
    text = render(assemble(record, values), form)
    path = GOLDEN / f"table1.{form.value}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


GOODPUT = (
    "goodput 90 % of 44.0 GPU-hours (productive 40.0, checkpointing 0.5, restarting 2.5, replayed 1.0); queued 10.0 h; "
    "a run that serves several sweeps counts in each"
)


def test_that_a_table_ends_with_what_became_of_its_time(record, values):
    model = assemble(record, values)
    assert markdown(model).splitlines()[-1].strip() == GOODPUT
    assert f"<p>{GOODPUT}</p>\n</body>" in render(model, Format.HTML)
    assert escape(GOODPUT) in render(model, Format.LATEX).splitlines()[-2]
    assert json.loads(render(model, Format.JSON))["usage"]["gpus"]["productive_ms"] == 40 * 3_600_000
    assert "goodput" not in render(model, Format.CSV)


def test_that_a_table_of_runs_that_nobody_has_read_tells_nothing_of_their_time(record, values):
    silent = replace(record, runs={run: replace(one, usage=None) for run, one in record.runs.items()})
    model = assemble(silent, values)
    assert (model.usage, model.notes[-1]) == (None, record.note)


def test_that_markdown_lines_up_in_a_terminal(record, values):
    lines = [line for line in markdown(assemble(record, values)).splitlines() if line.startswith("|")]
    blocks = [lines[:6], lines[6:]]
    for block in blocks:
        assert len({len(line) for line in block}) == 1
        assert len({tuple(i for i, one in enumerate(line) if one == "|" and line[i - 1] != "\\") for line in block}) == 1


def test_that_csv_keeps_full_precision_and_reads_back(record, values):
    rows = list(csv.DictReader(io.StringIO(render(assemble(record, values), Format.CSV))))
    first = rows[0]
    assert (first["row"], first["column"], first["n"], first["best"]) == ("slot_attn", "mds", "3", "yes")
    assert [float(one) for one in first["values"].split()] == [0.9123456789 * 100, 0.9 * 100, 0.92 * 100]
    assert float(first["mean"]) == assemble(record, values).blocks[0].cells[0][0].mean
    missing = {row["row"]: row["missing"] for row in rows if row["metric"] == "eval/fg_ari" and row["column"] == "mds"}
    assert missing["cosine"] == "failed: out of memory; queued x 2"
    assert rows[1]["cited"] == "20.0"


def test_that_json_is_valid_and_whole(record, values):
    read = json.loads(render(assemble(record, values), Format.JSON))
    assert read["blocks"][0]["cells"][1][0]["gaps"] == [{"cell": "seed=2", "run": "ev-covloss-2", "reason": "running 63 %"}]
    assert read["blocks"][0]["cells"][0][0]["samples"][0]["run"] == "ev-slot_attn-0"


FOR_PEOPLE = (Format.MARKDOWN, Format.LATEX, Format.HTML)


def many(numbers: Mapping[str, Sequence[float | None]], rows: int = 12, **more: Any) -> TableModel:
    """`base` and further rows with numbers, then rows that nothing was submitted for, R2, R3, ..."""
    table = dict(numbers) | {f"r{i}": [None] * 3 for i in range(len(numbers), rows)}
    return assemble(against(table, **more), scores(table))


def test_that_rows_that_nothing_was_submitted_for_are_one_line_for_people():
    numbers = {"base": [0.1, 0.2, 0.3], "r1": [0.2, 0.3, 0.4]}
    model = many(numbers, more=(MORE,))
    for form in FOR_PEOPLE:
        text = render(model, form)
        assert text.count("10 rows, not submitted: R2, R3, R4 and 7 more") == 1  # though there are two metrics
        assert "R5" not in text
        assert ("R1" in text, text.count("BASE") > 1) == (True, True)
    assert {row["row"] for row in csv.DictReader(io.StringIO(render(model, Format.CSV)))} == {row.option for row in model.rows}
    assert len(json.loads(render(model, Format.JSON))["blocks"][0]["cells"]) == 12
    few = many(numbers, rows=5)
    assert "| R4 " in markdown(few)
    assert "3 rows" not in markdown(few)
    assert "4 rows, not submitted: R2, R3, R4 and 1 more" in markdown(many(numbers, rows=6))


def test_that_rows_with_a_published_number_or_another_reason_stay():
    model = many({"base": [0.1, 0.2, 0.3], "gone": "p. 3"})
    block = model.blocks[0]
    failed = replace(block.cells[4][0], gaps=(*block.cells[4][0].gaps[:2], Gap(cell="seed=2", run="x", reason="failed: a bug")))
    printed = replace(block.cells[5][0], paper=12.5)
    cells = (*block.cells[:4], (failed,), (printed,), *block.cells[6:])
    text = markdown(replace(model, blocks=(replace(block, cells=cells),)))
    assert "8 rows, not submitted: R2, R3, R6 and 5 more" in text
    assert "| R4 " in text
    assert "| R5 " in text
    assert "| GONE " in text


def test_that_equal_notes_on_many_rows_effects_and_claims_are_one_line_for_people():
    numbers = {"base": [0.1, 0.2, None]} | {f"r{i}": [0.2 + 0.1 * i, None, None] for i in range(1, 9)}
    claims = tuple(Claim(left=f"r{i}", right="base", metric="score", relation=Relation.HIGHER, margin=0.0) for i in range(1, 9))
    asked = [
        Hypothesis(name=name, text="t", join=Join.ANY, claims=part) for name, part in (("H1", claims[:3]), ("H2", claims[3:]))
    ]
    model = many(numbers, rows=9, hypotheses=tuple(asked))
    for form in FOR_PEOPLE:
        text = render(model, form)
        assert text.count("8 rows, 1 of 3 runs (seed=1: not submitted; seed=2: not submitted): R1, R2, R3 and 5 more") == 1
        assert "BASE: 2 of 3 runs (seed=2: not submitted)" in text
        lacking = "seed=1, seed=2; the base lacks seed=2); one pair, so no interval"
        assert text.count(f"8 effects, 1 of 3 pairs (the row lacks {lacking}: R1, R2, R3 and 5 more") == 1
        assert text.count("H1, H2: 8 claims, 1 of 3 pairs (left lacks") == 1
        assert "R1 against BASE, R2 against BASE, R3 against BASE and 5 more" in text
    assert len(json.loads(render(model, Format.JSON))["blocks"][0]["footnotes"]) == 9


def test_that_a_label_that_begins_like_another_keeps_its_own_notes():
    names = {"a": "R", "b": "R: 1", "c": "R: 1 of 3 runs", "d": "R, x"}
    block = many({name: [0.1, None, None] for name in ("base", *names)}, rows=5).blocks[0]
    rows = [Heading(option=name, label=label) for name, label in names.items()]
    notes = tuple(f"{label}: not submitted" for label in names.values())
    assert mean_notes(replace(block, footnotes=notes), rows, [Heading(option="", label="")]) == (
        "4 rows, not submitted: R, R: 1, R: 1 of 3 runs and 1 more",
    )


def test_that_a_table_without_any_number_says_so_once():
    text = markdown(many({"base": [None] * 3}, rows=6))
    assert [line for line in text.splitlines() if "submitted" in line] == ["- 6 rows, not submitted: BASE, R1, R2 and 3 more"]
    assert "difference from" not in text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_that_html_is_balanced_and_labels_cannot_become_tags(record, values):
    page = Tags()
    page.feed(render(assemble(record, values), Format.HTML))
    assert page.open == []
    assert "Cosine|Loss <b>" in page.text


def compile_latex(body: str, folder: Path) -> None:
    """Run pdflatex over a document with `body`; fails with the log."""
    has_booktabs = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode == 0
    preamble = r"\usepackage{booktabs}" if has_booktabs else BOOKTABS
    document = f"\\documentclass{{article}}\n{preamble}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (folder / "table.tex").write_text(document, encoding="utf-8")
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"], cwd=folder, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stdout.decode(errors="replace")[-3000:]
    assert (folder / "table.pdf").exists()


needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


@needs_latex
def test_that_latex_compiles(record, values, tmp_path):
    compile_latex(render(assemble(record, values), Format.LATEX), tmp_path)


@needs_latex
def test_that_every_character_of_a_label_compiles(tmp_path):
    characters = [chr(i) for i in range(1, 0x2300)] + list("中文🙂\n\t[*-`'")
    rows = "\n".join(f"{escape(one + one)} & x \\\\" for one in characters)
    chunks = rows.splitlines()
    pages = [
        "\\begin{tabular}{ll}\n" + "\n".join(chunks[i : i + 40]) + "\n\\end{tabular}\\newpage" for i in range(0, len(chunks), 40)
    ]
    compile_latex("\n".join(pages), tmp_path)


@given(st.text())
def test_that_no_label_reaches_latex_unescaped(text):
    escaped = escape(text)
    assert escaped.isascii()
    depth = 0
    plain = escaped.replace("\\{", "").replace("\\}", "")
    for one in plain:
        depth += (one == "{") - (one == "}")
        assert depth >= 0
    assert depth == 0
    for special in "&%#_":
        assert plain.count(special) == plain.count("\\" + special)
