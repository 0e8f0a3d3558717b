"""A finished table as values: every number with what it was made of, every gap with its reason. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mark(enum.StrEnum):
    """What a reader must know before trusting a number."""

    CITED = "cited, not run here"
    """The number was published elsewhere."""
    FEWER = "fewer runs than planned"
    """Some of the planned runs have no number yet, or never will."""
    CODE = "mixed code versions"
    """The runs behind one number were made by different code."""
    BUDGET = "mixed budgets"
    """The runs behind one number took different numbers of steps."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run's contribution to a number."""

    cell: str
    """`seed=0`: what sets it apart within the table cell."""
    run: str
    """The run's id."""
    value: float
    """In table units."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One planned run without a number."""

    cell: str
    run: str
    reason: str
    """`queued`, `running 63 %`, `failed: out of memory`, `not submitted`."""


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One cell; all numbers in table units."""

    expected: int
    """How many runs were planned; 0 where the sweep has no cell."""
    samples: tuple[Sample, ...] = ()
    gaps: tuple[Gap, ...] = ()
    mean: float | None = None
    """Over the samples; None without any."""
    sd: float | None = None
    """Sample standard deviation (n - 1); None for fewer than two samples."""
    cited: float | None = None
    source: str = ""
    """Where the cited number was published."""
    paper: float | None = None
    delta: float | None = None
    """Ours minus the paper's."""
    marks: tuple[Mark, ...] = ()
    best: bool = False
    """Best mean of its column, where there are several."""

    @property
    def n(self) -> int:
        """How many runs the mean is over."""
        return len(self.samples)


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A row or a column."""

    option: str
    """The option's name on its axis; empty for the only column of a table without a column axis."""
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One metric over all rows and columns."""

    metric: str
    label: str
    better: str
    """`higher` or `lower`."""
    digits: int
    cells: tuple[tuple[TableCell, ...], ...]
    """By row, then by column."""
    footnotes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TableModel:
    """A whole table: the main block first, then further numbers for the same cells."""

    sweep: str
    title: str
    comment: str
    rows: tuple[Heading, ...]
    columns: tuple[Heading, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    """Below everything: the paper's source and protocol, the sweep's own note."""
