"""What the tracker is told: facts about one run, and the record of one sweep. Pure values; the standard library only.

The sweep's record is written into the tracker as `sweep.json`, and tables are built from it and from metrics alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.goodput import Usage, from_plain
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Axis, Cell, Claim, Factorial, Hypothesis, Join, Option, Relation, Sweep, Table, Value

FORMAT = 1
"""Raised when a reader of older records would misread a new one."""


@dataclass(frozen=True, kw_only=True)
class AttemptFacts:
    """One time a run was started."""

    job_id: str = ""
    """`<array>_<task>`; empty for a local run."""
    restart_count: int = 0
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the control plane knows about one run at the moment of shipping."""

    run_id: str
    kind: str
    state: RunState
    run_dir: Path
    reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration, as in `spec.json`."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Kind of the needed run -> its id."""
    code_tree: str = ""
    code_commit: str = ""
    code_dirty: bool = False
    environment: str = ""
    attempts: tuple[AttemptFacts, ...] = ()
    progress: float | None = None
    """Fraction of the run's steps that is done, in [0, 1]."""
    steps: int | None = None
    """The run's budget; None for kinds that have none."""
    ended_at: float | None = None
    """Seconds since the epoch, from the outcome; None while unknown."""
    usage: Usage | None = None
    """None while nobody has read it."""

    def to_json(self) -> str:
        """One JSON object; `from_json` gives an equal value back."""
        return json.dumps(asdict(self) | {"run_dir": str(self.run_dir)})

    @classmethod
    def from_json(cls, text: str) -> RunFacts:
        """Read what `to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
        raw = json.loads(text)
        raw["state"] = RunState(raw["state"])
        raw["run_dir"] = Path(raw["run_dir"])
        raw["attempts"] = tuple(AttemptFacts(**one) for one in raw["attempts"])
        raw["usage"] = None if raw.get("usage") is None else from_plain(raw["usage"])
        return cls(**raw)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a table must know about a run besides its metrics."""

    kind: str
    state: RunState
    reason: str
    """For a person: `running 63 %`, `failed: out of memory`, `queued`, `done`."""
    code_tree: str = ""
    steps: int | None = None
    needs: tuple[str, ...] | None = None
    """Ids of the runs that it needs; None in records that do not say."""
    usage: Usage | None = None
    """None in records that do not say."""
    tracker_run: str = ""
    """The tracker's own id of the run; filled in by the shipper, empty while the tracker has not seen the run."""


@dataclass(frozen=True, kw_only=True)
class CellEntry:
    """One cell: the runs that serve it, or the number that is cited instead."""

    coordinates: Mapping[str, str]
    """axis -> option name."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """step name -> run id, in pipeline order (needs first)."""
    cite: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """Everything about a sweep that a table needs, besides the metrics."""

    name: str
    title: str
    note: str = ""
    comment: str = ""
    """What the user said at submit (`--comment`)."""
    definition: str = ""
    """The sweep file as it was read."""
    axes: Mapping[str, Axis]
    cells: tuple[CellEntry, ...]
    table: Table | None
    runs: Mapping[str, RunSummary] = field(default_factory=dict)
    """run id -> summary; a run without one was never submitted."""

    def to_json(self) -> str:
        """One JSON object; key order is kept, since it is the order of rows, columns and pipeline."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> SweepRecord:
        """Read what `to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
        raw = json.loads(text)
        if raw.pop("format") != FORMAT:
            raise ValueError("the record was written by another version of orch")
        raw["axes"] = {name: _axis(axis) for name, axis in raw["axes"].items()}
        raw["cells"] = tuple(CellEntry(**cell) for cell in raw["cells"])
        raw["table"] = None if raw["table"] is None else _table(raw["table"])
        raw["runs"] = {run: _summary(one) for run, one in raw["runs"].items()}
        return cls(**raw)


def _axis(raw: Mapping[str, Any]) -> Axis:
    return Axis(name=raw["name"], options={name: _option(option) for name, option in raw["options"].items()})


def _option(raw: Mapping[str, Any]) -> Option:
    steps = {step: tuple(own) for step, own in raw.get("steps", {}).items()}  # older records have none
    return Option(**{**raw, "set": tuple(raw["set"]), "steps": steps})


def _table(raw: Mapping[str, Any]) -> Table:
    value, more = Value(**raw["value"]), tuple(Value(**value) for value in raw["more"])
    hypotheses = tuple(_hypothesis(one) for one in raw.get("hypotheses", ()))  # older records have none
    factorial = _factorial(raw.get("factorial"))
    return Table(**{**raw, "value": value, "more": more, "factorial": factorial, "hypotheses": hypotheses})


def _hypothesis(raw: Mapping[str, Any]) -> Hypothesis:
    claims = tuple(Claim(**{**claim, "relation": Relation(claim["relation"])}) for claim in raw["claims"])
    return Hypothesis(**{**raw, "join": Join(raw["join"]), "claims": claims})


def _factorial(raw: Mapping[str, Any] | None) -> Factorial | None:
    if raw is None:  # also in older records
        return None
    within = {factor: tuple(options) for factor, options in raw["within"].items()}
    return Factorial(factors=tuple(raw["factors"]), within=within)


def _summary(raw: Mapping[str, Any]) -> RunSummary:
    needs = None if raw.get("needs") is None else tuple(raw["needs"])
    usage = None if raw.get("usage") is None else from_plain(raw["usage"])
    return RunSummary(**{**raw, "state": RunState(raw["state"]), "needs": needs, "usage": usage})


def describe(facts: RunFacts) -> str:
    """The state in words for a table cell: `queued`, `running 63 %`, `failed: out of memory`."""
    because = f": {facts.reason}" if facts.reason else ""
    match facts.state:
        case RunState.PLANNED:
            return f"waiting{because}" if facts.attempts or facts.reason else "not submitted"
        case RunState.SUBMITTING | RunState.QUEUED:
            return "queued"
        case RunState.RUNNING:
            return "running" if facts.progress is None else f"running {int(100 * facts.progress)} %"
        case RunState.DONE:
            return "done"
        case RunState.TIMED_OUT:
            return f"timed out{because}"
        case RunState.FAILED | RunState.LOST | RunState.CANCELLED | RunState.STOPPED:
            return f"{facts.state.value}{because}"


def sweep_record(
    sweep: Sweep,
    cells: Sequence[Cell],
    cell_runs: Sequence[Mapping[str, str]],
    facts: Mapping[str, RunFacts],
    comment: str = "",
) -> SweepRecord:
    """The record of a sweep. `cell_runs[i]` (step name -> run id) belongs to `cells[i]` and is empty for a cited cell.

    A run without facts counts as not submitted. Raises ValueError when the two sequences differ in length.
    """
    entries = tuple(
        CellEntry(coordinates=dict(cell.coordinates), runs=dict(runs), cite=cell.cite, source=cell.source)
        for cell, runs in zip(cells, cell_runs, strict=True)
    )
    used = dict.fromkeys(run for entry in entries for run in entry.runs.values())
    return SweepRecord(
        name=sweep.name,
        title=sweep.title,
        note=sweep.note,
        comment=comment,
        definition=sweep.text,
        axes=dict(sweep.axes),
        cells=entries,
        table=sweep.table,
        runs={run: summary(facts[run]) for run in used if run in facts},
    )


def summary(facts: RunFacts) -> RunSummary:
    """What a table must know about one run."""
    return RunSummary(
        kind=facts.kind,
        state=facts.state,
        reason=describe(facts),
        code_tree=facts.code_tree,
        steps=facts.steps,
        needs=tuple(facts.needs.values()),
        usage=facts.usage or None,
    )
