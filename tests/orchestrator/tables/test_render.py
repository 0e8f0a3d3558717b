"""The text of every format, golden; `UPDATE_GOLDEN=1` writes the files anew."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tables.assemble import assemble
from orchestrator.tables.latex import escape
from orchestrator.tables.render import Format, markdown, render

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
