"""Finished runs once more, from their frozen code and configuration, below a root of their own; then both side by side.

Only reads the original root. What is on disk if we die: a root like any other, which the same command goes on with.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import Attempt, RunDir, read_attempts, write_atomically
from jobs.journal import Journal, read_journal
from orchestrator import likeness, tick, workspace
from orchestrator.errors import Problem, UserError
from orchestrator.lifecycle import RESUMABLE, RunState
from orchestrator.likeness import Fact, Likeness, plain
from orchestrator.records import CellRecord, RunRecord
from orchestrator.rehearsal import in_warm_process
from orchestrator.store.runs import Change, Store
from orchestrator.submission import ENVIRONMENTS, record_environment
from orchestrator.workspace import Root, tree_hash

PLACE = "reproductions"
"""Below the original root, unless another place is named."""
NOTE = "reproduction.json"
"""ROOT/reproduction.json: what is reproduced here."""
COUNTED = ("train", "count")
"""Kinds that make steps, and so may be stopped early."""
WHOLE = ("prepare", "embed")
"""Kinds whose output must come again byte for byte."""
WEIGHTS = "model.pt"


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """What was laid out."""

    runs: tuple[str, ...]
    stopped_at: Mapping[str, int]
    """run -> step, of those that are stopped early."""
    left_out: tuple[str, ...]
    """Runs that need one that is stopped early."""


def _spec(run_dir: RunDir) -> dict[str, Any]:
    try:
        raw = json.loads(run_dir.spec.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and isinstance(raw.get("config"), dict):
            return raw
        what = "is no specification of a run"
    except (OSError, ValueError) as error:
        what = f"the run's specification cannot be read: {error}"
    raise UserError(Problem(what=what, where=str(run_dir.spec)))


def choose(records: Mapping[str, RunRecord], *, steps: int | None) -> Reproduced:
    """Which of some runs (needs first) to run, and how far. Raises UserError when one of them is not done. Pure."""
    undone = [f"{run} ({record.state.value})" for run, record in records.items() if record.state is not RunState.DONE]
    if undone:
        hint = "only finished runs can be compared; `orch status` shows where they stand"
        raise UserError(Problem(what="is not done", value=", ".join(undone[:4]), hint=hint))
    stopped = {
        run: steps for run, record in records.items() if steps is not None and record.kind in COUNTED and steps < record.steps
    }
    left: list[str] = []
    for run, record in records.items():
        if any(need in stopped or need in left for need in record.needs.values()):
            left.append(run)
    kept = tuple(run for run in records if run not in left)
    return Reproduced(runs=kept, stopped_at={run: at for run, at in stopped.items() if run in kept}, left_out=tuple(left))


def lay_out(root: Root, place: Root, chosen: Reproduced, records: Mapping[str, RunRecord], *, name: str) -> None:
    """Freeze the runs below `place`: the same code and configuration. Can run again. Raises UserError."""
    told = {"runs": list(chosen.runs), "stopped_at": dict(chosen.stopped_at)}
    note = place.path / NOTE
    if place.path.exists() and any(place.path.iterdir()) and (not note.is_file() or json.loads(note.read_text()) != told):
        raise UserError(
            Problem(what="something else is there already", where=str(place.path), hint="`--into DIR` names a new folder")
        )
    try:
        place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(note, json.dumps(told, indent=1) + "\n")
    except OSError as error:
        raise workspace.unwritable(place.path, error) from error
    place.create()
    specs = {run: _spec(root.run_dir(run)) for run in chosen.runs}
    for tree in dict.fromkeys(str(spec.get("code_tree", "")) for spec in specs.values()):
        _copy_snapshot(root, place, tree)
    for run, spec in specs.items():
        if run in chosen.stopped_at:
            spec = spec | {"config": spec["config"] | {"steps": chosen.stopped_at[run]}}
        workspace.freeze(place, run, spec, tree=str(spec["code_tree"]))
    record_environment(place)
    store = Store(place.store)
    try:
        store.add(
            name=name, path=str(place.path / f"{name}.yaml"), title="", definition="", comment="", partial=False,
            cells=[CellRecord(coordinates={"run": run}, runs={"run": run}) for run in chosen.runs],
            runs=[
                RunRecord(
                    id=run, kind=records[run].kind, state=RunState.PLANNED, needs=records[run].needs,
                    code_tree=str(specs[run]["code_tree"]), steps=chosen.stopped_at.get(run, records[run].steps),
                )
                for run in chosen.runs
            ],
        )  # fmt: skip
        tick.look(place, store, None)
        again = [run for run, record in store.runs(chosen.runs).items() if record.state in RESUMABLE]
        store.apply([Change(run=run, state=RunState.PLANNED, reason="again") for run in again], now=time.time())
    finally:
        store.close()


def _copy_snapshot(root: Root, place: Root, tree: str) -> None:
    source, target = root.snapshots / tree, place.snapshots / tree
    if not tree or not source.is_dir():
        raise UserError(Problem(what="the code of a run is not there any more", where=str(source)))
    if not target.is_dir():
        temporary = place.snapshots / f".{tree}.{uuid.uuid4().hex}"
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns("__pycache__"))
        os.rename(temporary, target)
    if tree_hash(target) != tree:
        what = "the code snapshot is not the one that the run was frozen with: somebody changed it"
        raise UserError(Problem(what=what, where=str(source)))


def compare(root: Root, place: Root, chosen: Reproduced, records: Mapping[str, RunRecord]) -> list[Likeness]:
    """Each run beside its reproduction; torch is asked for weights in a process of its own."""
    pairs = [
        {"id": run, "one": str(root.run_dir(run).output / WEIGHTS), "other": str(place.run_dir(run).output / WEIGHTS)}
        for run in chosen.runs
        if records[run].kind == "train" and run not in chosen.stopped_at
    ]
    pairs = [pair for pair in pairs if Path(pair["one"]).is_file() and Path(pair["other"]).is_file()]
    reports: dict[str, Any] = {}
    if pairs:
        reports = {one["id"]: one for one in in_warm_process("jobs.weights_alike", lambda folder: {"pairs": pairs})}
    return [
        Likeness(
            run=run,
            kind=records[run].kind,
            facts=tuple(_facts(root, place, run, records[run].kind, chosen.stopped_at.get(run), reports.get(run))),
        )
        for run in chosen.runs
    ]


def _facts(root: Root, place: Root, run: str, kind: str, stopped_at: int | None, report: Mapping[str, Any] | None) -> list[Fact]:
    one, other = root.run_dir(run), place.run_dir(run)
    specs = [_spec(one), _spec(other)]
    journals = [read_journal(one.journals), read_journal(other.journals)]
    attempts = [_last(one), _last(other)]
    starts = [_start(journal) for journal in journals]
    trees = [str(specs[0].get("code_tree", "")), tree_hash(other.code)]
    prints = [attempt.environment or str(spec.get("environment", "")) for attempt, spec in zip(attempts, specs, strict=True)]
    packages = (_packages(root, prints[0]), _packages(place, prints[1]))
    before, after = (likeness.series_of(journal, kind) for journal in journals)
    found = [
        likeness.configuration(specs[0]["config"], specs[1]["config"], stopped_at=stopped_at),
        plain("code", *trees, judged=True),
        likeness.environment(prints[0], prints[1], packages),
        plain("cpu", *(start.get("cpu", "") for start in starts)),
        plain("device", *(start.get("device", "") for start in starts)),
        plain(
            "world size", *(start.get("world_size") or str(one.world_size) for start, one in zip(starts, attempts, strict=True))
        ),
        plain("threads", *(start.get("threads") or _threads(spec) for start, spec in zip(starts, specs, strict=True))),
        likeness.metrics(before, after, stopped_at=stopped_at),
    ]
    if kind == "train":
        found.append(_weights(one, report, stopped_at))
    if kind in WHOLE:
        found.append(_outputs(one, other))
    return found


def _weights(one: RunDir, report: Mapping[str, Any] | None, stopped_at: int | None) -> Fact:
    if stopped_at is not None:
        return likeness.weights(None, why_not="stopped early")
    if report is not None and "error" in report:
        return likeness.weights(None, why_not=str(report["error"]))
    absent = "the original's weights are not here" if not (one.output / WEIGHTS).is_file() else "the run has written none"
    return likeness.weights(report, why_not=absent)


def _outputs(one: RunDir, other: RunDir) -> Fact:
    names = [path.relative_to(other.output).as_posix() for path in other.output.rglob("*") if path.is_file()]
    there = {name for name in names if (one.output / name).is_file()}
    same = {name for name in there if filecmp.cmp(one.output / name, other.output / name, shallow=False)}
    return likeness.outputs(same, there - same, set(names) - there)


def _last(run_dir: RunDir) -> Attempt:
    return next(reversed(read_attempts(run_dir)), Attempt(number=0, claimant=""))


def _start(journal: Journal) -> dict[str, str]:
    """What the attempts said of their machine when they began; each different answer once."""
    found: dict[str, dict[str, None]] = {}
    for attempt in journal.attempts:
        for entry in attempt.entries:
            if entry.event == "start":
                for key in ("cpu", "device", "world_size", "threads"):
                    if key in entry.detail:
                        found.setdefault(key, {})[str(entry.detail[key])] = None
    return {key: ", ".join(values) for key, values in found.items()}


def _threads(spec: Mapping[str, Any]) -> str:
    return str(spec["config"].get("runtime", {}).get("threads", ""))


def _packages(root: Root, fingerprint: str) -> Sequence[str] | None:
    try:
        raw = json.loads((root.path / ENVIRONMENTS / f"{fingerprint}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [str(one) for one in raw] if isinstance(raw, list) else None
