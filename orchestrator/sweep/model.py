"""What a sweep file means, as values: axes, options, cells, pipeline, table. Pure; the parser is `grammar.py`."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Option:
    """One named option of an axis: what it is called in tables and which Hydra overrides it sets."""

    name: str
    label: str
    set: tuple[str, ...] = ()
    steps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """step name -> overrides for that pipeline step alone."""
    note: str = ""
    """Free text for the table (a verdict, a source)."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the grid. A value axis (`key`, `values`) is an axis whose options set `key=value`."""

    name: str
    options: Mapping[str, Option]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A `where` entry: for cells whose coordinates match `when` (axis -> option names), set, cite or skip."""

    when: Mapping[str, frozenset[str]]
    set: tuple[str, ...] = ()
    steps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """step name -> overrides for that pipeline step alone."""
    skip: bool = False
    cite: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the pipeline: a job kind, the steps that it needs, and overrides of its own."""

    name: str
    job: str
    needs: tuple[str, ...] = ()
    """Steps whose runs it needs, in the cells that have them."""
    choices: tuple[tuple[str, ...], ...] = ()
    """Of each of these, the first step that the cell has."""
    set: tuple[str, ...] = ()
    only: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """axis -> option names: the step belongs to the cells whose coordinates match; empty for all cells."""

    @property
    def named(self) -> tuple[str, ...]:
        """Every step that it may need."""
        return (*self.needs, *(name for choice in self.choices for name in choice))

    def needed(self, present: Collection[str]) -> tuple[str, ...]:
        """The steps that it needs in a cell that has the steps `present`."""
        firsts = (next((name for name in choice if name in present), None) for choice in self.choices)
        return (*(name for name in self.needs if name in present), *(name for name in firsts if name is not None))

    def belongs(self, coordinates: Mapping[str, str]) -> bool:
        """Whether a cell has this step."""
        return all(coordinates[axis] in options for axis, options in self.only.items())


@dataclass(frozen=True, kw_only=True)
class Value:
    """Which number a table cell shows."""

    metric: str
    step: str
    """The pipeline step whose run carries the metric (default: the last one)."""
    scale: float = 1.0
    digits: int = 2
    better: str = "higher"
    """`higher`, `lower` or `neutral` (a number to know, not to win)."""
    over: str | None = None
    """The axis that mean and sd run over (usually `seed`)."""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Factorial:
    """Axes of two options each that are crossed with each other; the table shows their effects instead of rows."""

    factors: tuple[str, ...]
    """The first option of an axis is its low level, the second its high one: an effect is high minus low."""
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """factor -> options: the effects of the other factors again, over the cells with that option alone."""


class Relation(enum.StrEnum):
    """What a claim says of left minus right, in table units."""

    HIGHER = "higher"
    """Above the margin."""
    LOWER = "lower"
    """Below minus the margin."""
    EQUAL = "equal"
    """Between minus the margin and the margin."""
    DIFFERENT = "different"
    """Not between them."""


class Join(enum.StrEnum):
    """When several claims make a hypothesis true."""

    ALL = "all"
    """All of them hold."""
    ANY = "any"
    """At least one holds: intervals are widened for the number of claims."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One comparison of two rows in one number of the table."""

    left: str
    """Row options."""
    right: str
    metric: str
    relation: Relation
    margin: float = 0.0
    """In table units, at least 0."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What a sweep was made to find out, said before its numbers are known."""

    name: str
    text: str
    join: Join
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """How cells become a table; `rows` and `columns` are axis names. Without rows it is a factorial one."""

    rows: str | None
    columns: str | None
    value: Value
    more: tuple[Value, ...] = ()
    """Further numbers for every cell, printed below the main table."""
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """row option -> column option (`` without columns) -> the published number, in table units (already scaled)."""
    paper_source: str = ""
    protocol: str | Mapping[str, str] = ""
    """How the paper's number was measured, where it differs from ours; or that by column option."""
    base: str | None = None
    """A row option: below each number, the other rows' differences from this one."""
    factorial: Factorial | None = None
    hypotheses: tuple[Hypothesis, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The axes that tell the table's cells apart."""
        rows = self.factorial.factors if self.factorial is not None else (self.rows,)
        return tuple(axis for axis in (*rows, self.columns) if axis is not None)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One YAML file, parsed and checked."""

    name: str
    """The file's stem."""
    path: str
    title: str
    note: str
    base: tuple[str, ...]
    axes: Mapping[str, Axis]
    where: tuple[Rule, ...]
    pipeline: Mapping[str, Step]
    """In an order in which needs come first."""
    resources: Mapping[str, Mapping[str, Any]]
    """step name -> values of the launcher's schema (timeout_min, gpus_per_node, ...)."""
    table: Table | None
    text: str
    """The file as it was read: goes into the tracker's record."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the axes. A cited cell has no runs."""

    coordinates: Mapping[str, str]
    """axis -> option name."""
    overrides: tuple[str, ...]
    """base, then the options in axis order, then matching `where` rules in file order."""
    steps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """step name -> overrides for that step alone, from options and rules; they follow `overrides` and the step's own `set`."""
    last: tuple[str, ...] = ()
    """`--set`: after everything in the file."""
    cite: float | None = None
    source: str = ""

    @property
    def name(self) -> str:
        """`method=covloss,seed=0`: unique within its sweep."""
        return ",".join(f"{axis}={option}" for axis, option in self.coordinates.items())
