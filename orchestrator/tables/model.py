"""A finished table as values: every number with what it was made of, every gap with its reason. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from orchestrator.goodput import Usage


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
    """Best mean of its column, where there are several and one direction is better."""

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
class Estimate:
    """One effect, in table units; what cannot be known is None, and the note says why."""

    value: float | None = None
    se: float | None = None
    """Standard error; None where nothing was repeated."""
    low: float | None = None
    high: float | None = None
    """The 95 % interval by Student's t."""
    dof: int = 0
    """Degrees of freedom of the standard error."""
    n: int = 0
    """Pairs of runs behind it; of a factorial effect: runs."""
    expected: int = 0
    """How many there would be if nothing was missing."""
    note: str = ""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class EffectKind(enum.StrEnum):
    """What an effect compares."""

    ROW = "row"
    """A row with the base row: the mean of the differences by seed."""
    MAIN = "main"
    """A factor's second option with its first: the difference of the means."""
    INTERACTION = "interaction"
    """Half of what a factor's effect gains when another factor takes its second option."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One line of effects."""

    kind: EffectKind
    option: str
    """The row's option, the factor, or `factor:factor`."""
    label: str
    note: str = ""
    """The row's own."""
    estimates: tuple[Estimate, ...]
    """By column of the effects."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What the numbers of one block say about the sweep's question."""

    title: str
    columns: tuple[Heading, ...]
    """The table's columns; of a factorial: everything, then each part of it."""
    lines: tuple[Effect, ...]
    footnotes: tuple[str, ...] = ()


class Verdict(enum.StrEnum):
    """What the runs say about a claim or a hypothesis."""

    SUPPORTED = "supported"
    """The whole interval lies where the claim says."""
    REFUTED = "refuted"
    """The whole interval lies elsewhere."""
    UNDECIDED = "undecided"
    """The interval reaches over a boundary: more seeds may tell."""
    NOT_TESTED = "not tested"
    """No interval: runs are missing, or there is one pair."""


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """One claim and its paired differences, left minus right."""

    text: str
    compared: str
    """`left against right`, by their labels."""
    metric: str
    digits: int
    estimates: tuple[Estimate, ...]
    """By column of the table."""
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, kw_only=True)
class HypothesisResult:
    """One hypothesis, its claims, and what follows for it in each column of the table."""

    name: str
    text: str
    join: str
    """`all` or `any` of the claims make it true."""
    level: float
    """Coverage of each claim's interval."""
    claims: tuple[ClaimResult, ...]
    verdicts: tuple[Verdict, ...]
    footnotes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Block:
    """One metric over all rows and columns."""

    metric: str
    label: str
    better: str
    """`higher`, `lower` or `neutral`."""
    digits: int
    cells: tuple[tuple[TableCell, ...], ...]
    """By row, then by column."""
    footnotes: tuple[str, ...] = ()
    effects: Effects | None = None


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
    """Below everything: how effects were estimated, the paper's source and protocol, the sweep's own note, goodput."""
    hypotheses: tuple[HypothesisResult, ...] = ()
    usage: Usage | None = None
    """Of all runs of the sweep; None where the record does not say."""
    means_shown: bool = True
    """False for a factorial table: its many means go into CSV and JSON alone."""
