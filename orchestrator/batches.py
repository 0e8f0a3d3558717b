"""Planned runs -> sbatch arrays: one per distinct resources and dependency, cut at the site's limits. Pure.

Dependencies are hints that save a node from starting a job that could only end as blocked; the job verifies its needs.
`afterok` names the tasks that a whole batch waits for; `aftercorr` is used only between identical index tables.
Packed runs share a task in the order of the index table, and an array only with runs of their own code tree: a pack's supervisor
comes from its first run's code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.local_process import LOCAL_JOB
from orchestrator.records import RunRecord
from orchestrator.resources import runs_per_task


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
    """In the order of the index table; task i has those from i * runs_per_task on."""
    runs_per_task: int = 1
    resources: Mapping[str, Any]
    after: tuple[str | Task, ...] = ()
    """What every task waits for: jobs that Slurm has already, and tasks of earlier batches."""
    aligned_with: int | None = None
    """Earlier batch with the identical index table: task i waits for its task i."""

    @property
    def tasks(self) -> int:
        """Of the array; the last one may have fewer runs than the others."""
        return math.ceil(len(self.runs) / self.runs_per_task)


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
    return tuple(sorted({name for need, name in named.items() if need not in implied}, key=str))


@dataclass(frozen=True, kw_only=True)
class _Follower:
    """A run that waits, apart from what all of its group wait for, for one task of an earlier batch."""

    task: Task
    position: int
    """Of the needed run in that batch's index table."""
    run: RunRecord


def _following(followers: Sequence[_Follower], batch: int, common: tuple[str | Task, ...]) -> list[Batch]:
    """Batches of the runs that follow an earlier batch: one if both index tables are identical, else one for each task."""
    ordered = sorted(followers, key=lambda one: one.position)
    ids = tuple(one.run.id for one in ordered)
    resources, each = ordered[0].run.resources, runs_per_task(ordered[0].run.resources)
    if all(one.position == i and one.task.index == i // each for i, one in enumerate(ordered)):
        return [Batch(runs=ids, runs_per_task=each, resources=resources, after=common, aligned_with=batch)]
    found = []
    for start in range(0, len(ordered), each):
        tasks = tuple(dict.fromkeys(one.task for one in ordered[start : start + each]))
        found.append(Batch(runs=ids[start : start + each], runs_per_task=each, resources=resources, after=common + tasks))
    return found


def _pieces(group: Sequence[RunRecord], records: Mapping[str, RunRecord], batches: Sequence[Batch], size: int) -> list[Batch]:
    """Cut runs of one level and one resource set so that each piece has one dependency form and at most `size` tasks."""
    positions = {run: i for batch in batches for i, run in enumerate(batch.runs)}
    placed = {
        run: Task(batch=b, index=i // batch.runs_per_task) for b, batch in enumerate(batches) for i, run in enumerate(batch.runs)
    }
    upstream = {run.id: _upstream(run, records, placed) for run in group}
    common = tuple(one for one in upstream[group[0].id] if all(one in mine for mine in upstream.values()))
    by_own: dict[tuple[str | Task, ...], list[RunRecord]] = {}
    for run in group:
        by_own.setdefault(tuple(one for one in upstream[run.id] if one not in common), []).append(run)
    following: dict[int, list[_Follower]] = {}
    found: list[Batch] = []
    resources, each = group[0].resources, runs_per_task(group[0].resources)
    for own, members in by_own.items():
        if len(own) == 1 and isinstance(own[0], Task) and len(members) <= each:
            for run in members:
                position = min(positions[need] for need in run.needs.values() if placed.get(need) == own[0])
                following.setdefault(own[0].batch, []).append(_Follower(task=own[0], position=position, run=run))
            continue
        for start in range(0, len(members), size * each):
            ids = tuple(run.id for run in members[start : start + size * each])
            found.append(Batch(runs=ids, runs_per_task=each, resources=resources, after=common + own))
    for batch, followers in sorted(following.items()):
        found += _following(followers, batch, common)
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
                code = run.code_tree if runs_per_task(run.resources) > 1 else ""
                groups.setdefault(json.dumps([dict(run.resources), code], sort_keys=True), []).append(run)
        for group in groups.values():
            for piece in _pieces(group, records, batches, limits.max_array_size):
                fitting = piece.runs if room is None else piece.runs[: room * piece.runs_per_task]
                over = piece.runs[len(fitting) :]
                held |= dict.fromkeys(over, "the site's limit of queued jobs; `orch watch` or `orch resume` goes on later")
                if fitting:  # one run alone is no pack
                    batches.append(replace(piece, runs=fitting, runs_per_task=min(piece.runs_per_task, len(fitting))))
                    room = None if room is None else room - batches[-1].tasks
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
