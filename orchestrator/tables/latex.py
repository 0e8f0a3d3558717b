"""LaTeX: a `table` environment with booktabs, for `\\input`. Pure."""

from __future__ import annotations

import unicodedata

from orchestrator.tables.layout import Grid, Word, grids, legend, titled
from orchestrator.tables.model import TableModel

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",
    "]": "{]}",
    "*": r"\textasteriskcentered{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\to$",
    "∞": r"$\infty$",
    "°": r"$^\circ$",
    "²": "$^2$",
    "³": "$^3$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\dots{}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "λ": r"$\lambda$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "ø": r"\o{}",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0308": '"',
    "\u030a": "r",
    "\u0327": "c",
    "\u030c": "v",
}
_GREEK = frozenset(
    {
        *("ALPHA", "BETA", "GAMMA", "DELTA", "EPSILON", "ZETA", "ETA", "THETA", "IOTA", "KAPPA", "MU", "NU", "XI", "PI"),
        *("RHO", "SIGMA", "TAU", "UPSILON", "PHI", "CHI", "PSI", "OMEGA"),
    }
)
"""Letters whose Unicode name is also their LaTeX command; lambda is spelt LAMDA in Unicode, omicron has no command."""


def escape(text: str) -> str:
    """Text that pdflatex sets as it reads, with no package; a letter outside its fonts becomes its code point."""
    return "".join(_character(one) for one in unicodedata.normalize("NFC", text)).replace("--", "-{}-")


def _character(one: str) -> str:
    if one in _SPECIAL:
        return _SPECIAL[one]
    if " " <= one <= "~":
        return one
    if one.isspace() or unicodedata.category(one).startswith("C"):
        return " "
    name = unicodedata.name(one, "")
    letter = name.removeprefix("GREEK SMALL LETTER ")
    if letter != name and letter in _GREEK:
        return f"$\\{letter.lower()}$"
    parts = unicodedata.normalize("NFD", one)
    if len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS:
        return f"\\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"\\texttt{{U+{ord(one):04X}}}"


def render(model: TableModel) -> str:
    """The whole table; further blocks follow below the main one, each under its own rule."""
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "  \\centering", f"  \\caption{{{escape(model.title)}}}"]
    for grid in grids(model):
        if titled(model):
            lines.append(f"  \\par\\medskip {escape(grid.title)}\\par\\smallskip")
        lines.extend(_tabular(grid))
    notes = [legend(model), *(note for grid in grids(model) for note in grid.footnotes), *model.notes]
    lines.extend(f"  \\par\\smallskip{{\\footnotesize {escape(note)}}}" for note in dict.fromkeys(notes))
    return "\n".join([*lines, "\\end{table}", ""])


def _tabular(grid: Grid) -> list[str]:
    columns = "".join("l" if j in grid.left else "r" for j in range(len(grid.header)))
    body = [_line(row) for row in grid.rows]
    return [
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        _line(grid.header),
        "    \\midrule",
        *body,
        "    \\bottomrule",
        "  \\end{tabular}",
    ]


def _line(words: tuple[Word, ...]) -> str:
    cells = [f"\\textbf{{{escape(word.text)}}}" if word.bold else escape(word.text) for word in words]
    return "    " + " & ".join(cells) + " \\\\"
