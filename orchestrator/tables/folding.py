"""Says an equal reason once for many rows, effects or claims, in formats for people. Pure; CSV and JSON keep every one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.tables.model import Block, Effects, Heading, HypothesisResult, TableCell

FOLDED_FROM = 4
"""So many equal reasons become one line."""
NAMED = 3
"""So many of them are named."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What a footnote is about: it starts with `SUBJECT: `."""

    name: str
    of: str = ""
    """The hypothesis of a claim."""


def absent_rows(rows: Sequence[Heading], block: Block) -> dict[str, list[Heading]]:
    """Reason -> rows without any number, where it is one reason for many rows.

    A row with a published number, or with several reasons, stays in its place.
    """
    found: dict[str, list[Heading]] = {}
    for row, cells in zip(rows, block.cells, strict=True):
        reasons = {gap.reason for cell in cells for gap in cell.gaps}
        if len(reasons) == 1 and not any(_known(cell) for cell in cells):
            found.setdefault(reasons.pop(), []).append(row)
    return {reason: absent for reason, absent in found.items() if len(absent) >= FOLDED_FROM}


def _known(cell: TableCell) -> bool:
    return bool(cell.samples) or cell.cited is not None or cell.paper is not None


def absent_notes(absent: Mapping[str, Sequence[Heading]]) -> Iterator[str]:
    """What stands below the numbers instead of those rows."""
    for reason, rows in absent.items():
        yield f"{len(rows)} rows, {reason}: {_few([row.label for row in rows])}"


def mean_notes(block: Block, rows: Sequence[Heading], columns: Sequence[Heading]) -> tuple[str, ...]:
    """The footnotes of a block's means."""
    subjects = {f"{place}: ": _Subject(name=place) for place in _places(rows, columns)}
    return _folded(block.footnotes, subjects, "rows" if len(columns) == 1 else "cells")


def effect_notes(effects: Effects, rows: Sequence[Heading]) -> tuple[str, ...]:
    """The footnotes of a block's effects."""
    subjects = {f"effect of {place}: ": _Subject(name=place) for place in _places(rows, effects.columns)}
    return _folded(effects.footnotes, subjects, "effects")


def verdict_notes(hypotheses: Sequence[HypothesisResult], columns: Sequence[Heading]) -> tuple[str, ...]:
    """The footnotes of all hypotheses together."""
    subjects: dict[str, _Subject] = {}
    for one in hypotheses:
        for claim in one.claims:
            for place in _places([Heading(option="", label=claim.compared)], columns):
                subjects[f"{one.name}: {place}: "] = _Subject(name=place, of=one.name)
    return _folded([note for one in hypotheses for note in one.footnotes], subjects, "claims")


def _places(rows: Sequence[Heading], columns: Sequence[Heading]) -> Iterator[str]:
    """Row and column as footnotes name them."""
    for row in rows:
        for column in columns:
            yield ", ".join(part for part in (row.label, column.label) if part)


def _folded(notes: Sequence[str], subjects: Mapping[str, _Subject], counted: str) -> tuple[str, ...]:
    """The notes, of those that say the same about many subjects one line, where the first of them stood."""
    about: dict[str, tuple[str, _Subject]] = {}
    for note in notes:
        if prefixes := [prefix for prefix in subjects if note.startswith(prefix)]:
            prefix = max(prefixes, key=len)
            about[note] = (note[len(prefix) :], subjects[prefix])
    together: dict[str, list[_Subject]] = {}
    for reason, subject in about.values():
        together.setdefault(reason, []).append(subject)
    lines: dict[str, None] = {}
    for note in notes:
        reason = about[note][0] if note in about else ""
        same = together.get(reason, [])
        if len(same) < FOLDED_FROM:
            lines[note] = None
            continue
        of = ", ".join(dict.fromkeys(subject.of for subject in same if subject.of))
        names = list(dict.fromkeys(subject.name for subject in same))
        lines[f"{of}{': ' if of else ''}{len(same)} {counted}, {reason}: {_few(names)}"] = None
    return tuple(lines)


def _few(names: Sequence[str]) -> str:
    """`A, B, C and 28 more`."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
