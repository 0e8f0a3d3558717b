"""Planned runs -> sbatch arrays: one per distinct resources and dependency, cut at the site's limits. Pure.

Dependencies are hints that save a node from starting a job that could only end as blocked; the job verifies its needs.
`afterok` names the tasks that a whole batch waits for; `aftercorr` is used only between identical index tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.local_process import LOCAL_JOB
from orchestrator.records import RunRecord


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the site takes."""

    max_array_size: int = 1001
    """Slurm's MaxArraySize: the largest index plus one."""
    max_tasks: int | None = None
    """Tasks that may still be queued; None when nothing is known."""
    avoidable_nodes: int | None = None
    """At most so many nodes may be left out: half of the smallest partition of several; None when nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of an earlier batch of the same list."""

    batch: int
    index: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One future sbatch call."""

    runs: tuple[str, ...]
    """By array index."""
    resources: Mapping[str, Any]
    after: tuple[str | Task, ...] = ()
    """What every task waits for: jobs that Slurm has already, and tasks of earlier batches."""
    aligned_with: int | None = None
    """Earlier batch with the identical index table: task i waits for its task i."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The batches to submit now, and the runs that have to wait, each with its reason."""

    batches: tuple[Batch, ...]
    held: Mapping[str, str]


def waits_for(run: RunRecord, records: Mapping[str, RunRecord]) -> str:
    """Why a planned run cannot be submitted although it was asked for; empty when it can."""
    for need in run.needs.values():
        state = records[need].state if need in records else None
        if state is None or (state is not RunState.DONE and state is not RunState.PLANNED and state not in ACTIVE):
            return f"waits for {need} ({state.value if state else 'unknown'}): `orch resume {need}`"
    return ""


def _levels(runs: Sequence[RunRecord]) -> dict[str, int]:
    """Depth of each run below the others of the list."""
    chosen = {run.id: run for run in runs}
    depth: dict[str, int] = {}

    def level(run_id: str) -> int:
        if run_id not in depth:
            depth[run_id] = 1 + max((level(need) for need in chosen[run_id].needs.values() if need in chosen), default=-1)
        return depth[run_id]

    for run_id in chosen:
        level(run_id)
    return depth


def _upstream(run: RunRecord, records: Mapping[str, RunRecord], placed: Mapping[str, Task]) -> tuple[str | Task, ...]:
    """What a run waits for: needs that are not done yet, as tasks of this list or as known jobs.

    A need of another need is left out: the one cannot be done before the other.
    """
    waiting = [need for need in run.needs.values() if records[need].state is not RunState.DONE]
    named = {need: name for need in waiting if (name := placed.get(need) or records[need].job)}
    implied = {deeper for need in named for deeper in records[need].needs.values()}
    return tuple(sorted((name for need, name in named.items() if need not in implied), key=str))


def _aligned(pairs: Sequence[tuple[Task, RunRecord]]) -> list[RunRecord] | None:
    """The runs by the index of the one task that each waits for, if those indices are exactly 0 .. n-1."""
    ordered = sorted(pairs, key=lambda pair: pair[0].index)
    return [run for _, run in ordered] if [task.index for task, _ in ordered] == list(range(len(ordered))) else None


def _pieces(group: Sequence[RunRecord], records: Mapping[str, RunRecord], batches: Sequence[Batch], size: int) -> list[Batch]:
    """Cut runs of one level and one resource set so that each piece has one dependency form."""
    placed = {run: Task(batch=b, index=i) for b, batch in enumerate(batches) for i, run in enumerate(batch.runs)}
    upstream = {run.id: _upstream(run, records, placed) for run in group}
    common = tuple(one for one in upstream[group[0].id] if all(one in mine for mine in upstream.values()))
    by_own: dict[tuple[str | Task, ...], list[RunRecord]] = {}
    for run in group:
        by_own.setdefault(tuple(one for one in upstream[run.id] if one not in common), []).append(run)
    per_batch: dict[int, list[tuple[Task, RunRecord]]] = {}
    found: list[Batch] = []
    resources = group[0].resources
    for own, members in by_own.items():
        if len(own) == 1 and len(members) == 1 and isinstance(own[0], Task):
            per_batch.setdefault(own[0].batch, []).append((own[0], members[0]))
            continue
        for start in range(0, len(members), size):
            ids = tuple(run.id for run in members[start : start + size])
            found.append(Batch(runs=ids, resources=resources, after=common + own))
    for batch, pairs in sorted(per_batch.items()):
        ordered = _aligned(pairs)
        if ordered is not None:
            ids = tuple(run.id for run in ordered)
            found.append(Batch(runs=ids, resources=resources, after=common, aligned_with=batch))
        else:
            found += [Batch(runs=(run.id,), resources=resources, after=(*common, task)) for task, run in pairs]
    return found


def _held(planned: Sequence[RunRecord], records: Mapping[str, RunRecord]) -> dict[str, str]:
    """Runs that cannot be submitted now, each with its reason; whoever needs one of them is held as well."""
    asked, levels = {run.id for run in planned}, _levels(planned)
    held: dict[str, str] = {}
    for run in sorted(planned, key=lambda one: levels[one.id]):
        reason = waits_for(run, records)
        for need in () if reason else run.needs.values():
            upstream = records[need]
            if need in held:
                reason = f"waits for {need}, which is held back"
            elif upstream.state is RunState.PLANNED and need not in asked:
                reason = f"waits for {need} (planned, not asked for)"
            elif upstream.state in ACTIVE and upstream.job.startswith(LOCAL_JOB):
                reason = f"waits for {need}, which runs outside Slurm; `orch resume` goes on later"
        if reason:
            held[run.id] = reason
    return held


def cut(planned: Sequence[RunRecord], records: Mapping[str, RunRecord], limits: Limits) -> Cut:
    """Group planned runs into arrays, needs first. `records` holds every run that they need."""
    held = _held(planned, records)
    levels = _levels([run for run in planned if run.id not in held])
    batches: list[Batch] = []
    room = limits.max_tasks
    for level in sorted(set(levels.values())):
        groups: dict[str, list[RunRecord]] = {}
        for run in planned:
            if levels.get(run.id) != level:
                continue
            if any(need in held for need in run.needs.values()):
                held[run.id] = "waits for runs held back by the site's limit"
            else:
                groups.setdefault(json.dumps(dict(run.resources), sort_keys=True), []).append(run)
        for group in groups.values():
            for piece in _pieces(group, records, batches, limits.max_array_size):
                fitting = piece.runs if room is None else piece.runs[:room]
                over = piece.runs[len(fitting) :]
                held |= dict.fromkeys(over, "the site's limit of queued jobs; `orch watch` or `orch resume` goes on later")
                room = None if room is None else room - len(fitting)
                if fitting:
                    batches.append(replace(piece, runs=fitting))
    return Cut(batches=tuple(batches), held=held)


def avoiding(resources: Mapping[str, Any], nodes: Sequence[str]) -> Mapping[str, Any]:
    """Resources that also leave out these nodes; as they are when there are none, or when they name the nodes they want."""
    named = {"nodelist", "exclude"} & set(resources.get("additional_parameters") or {})
    if not nodes or named:
        return resources
    own = [resources["exclude"]] if resources.get("exclude") else []
    return {**resources, "exclude": ",".join([*own, *sorted(nodes)])}


def dependency(batch: Batch, jobs: Sequence[str]) -> str:
    """The `--dependency` text; `jobs[b]` is the array job id of batch b. Empty without dependencies."""
    names = [f"{jobs[one.batch]}_{one.index}" if isinstance(one, Task) else one for one in batch.after]
    parts = ["afterok:" + ":".join(names)] if names else []
    if batch.aligned_with is not None:
        parts.append(f"aftercorr:{jobs[batch.aligned_with]}")
    return ",".join(parts)
