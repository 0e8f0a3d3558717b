"""What a sweep file means, as values: axes, options, cells, pipeline, table. Pure; the parser is `grammar.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Option:
    """One named option of an axis: what it is called in tables and which Hydra overrides it sets."""

    name: str
    label: str
    set: tuple[str, ...] = ()
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
    skip: bool = False
    cite: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the pipeline: a job kind, the steps that it needs, and overrides of its own."""

    name: str
    job: str
    needs: tuple[str, ...] = ()
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Value:
    """Which number a table cell shows."""

    metric: str
    step: str
    """The pipeline step whose run carries the metric (default: the last one)."""
    scale: float = 1.0
    digits: int = 2
    better: str = "higher"
    """`higher` or `lower`."""
    over: str | None = None
    """The axis that mean and sd run over (usually `seed`)."""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """How cells become a table; `rows` and `columns` are axis names."""

    rows: str
    columns: str | None
    value: Value
    more: tuple[Value, ...] = ()
    """Further numbers for every cell, printed below the main table."""
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """row option -> column option (`` without columns) -> the published number, in table units (already scaled)."""
    paper_source: str = ""
    protocol: str = ""
    """How the paper's number was measured, where it differs from ours."""


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
    cite: float | None = None
    source: str = ""

    @property
    def name(self) -> str:
        """`method=covloss,seed=0`: unique within its sweep."""
        return ",".join(f"{axis}={option}" for axis, option in self.coordinates.items())
