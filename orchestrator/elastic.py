"""World sizes that a step's runs may have: `resources: {train: {nodes: 4, elastic: [2, 4, 8]}}`. Pure.

Slurm varies the nodes of a job, not the tasks on one: it is asked for a range of nodes, chooses anew whenever the job starts, and
the script takes the largest listed size that the allocation holds. Of a job with a range nothing may count tasks: Slurm 22.05
gives no more nodes than tasks, and multiplies `--ntasks-per-node` by the fewest nodes. Nodes that no listed size needs stay idle:
giving them back makes what is left the fewest nodes that the job will ever start with again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import Problem

KEY = "elastic"
"""Ours, beside the keys of the launcher's schema."""
COUNTED = frozenset({"nodes", "ntasks", "ntasks-per-node"})
"""Options of sbatch that would contradict the range."""


def tasks_per_node(resources: Mapping[str, Any]) -> int:
    """One task per GPU, unless `tasks_per_node` says more."""
    tasks, gpus = int(resources.get("tasks_per_node") or 1), int(resources.get("gpus_per_node") or 0)
    return max(1, gpus) if tasks == 1 else tasks


def world_sizes(resources: Mapping[str, Any]) -> tuple[int, ...]:
    """The sizes in order; none of a step that has one size only."""
    return tuple(sorted(resources.get(KEY) or ()))


def node_range(resources: Mapping[str, Any]) -> tuple[int, int]:
    """Fewest and most nodes that a job may have."""
    sizes, nodes = world_sizes(resources), int(resources.get("nodes") or 1)
    return (sizes[0] // tasks_per_node(resources), sizes[-1] // tasks_per_node(resources)) if sizes else (nodes, nodes)


def planned_tasks(resources: Mapping[str, Any]) -> int:
    """The configured world size of a step with several; 0 of one that has no other."""
    return int(resources.get("nodes") or 1) * tasks_per_node(resources) if world_sizes(resources) else 0


def contradictions(resources: Mapping[str, Any], where: str) -> list[Problem]:
    """What makes the sizes impossible, beside the step's other resources."""
    sizes, per_node, planned = world_sizes(resources), tasks_per_node(resources), planned_tasks(resources)
    if not sizes:
        return []
    place, listed = f"{where}.{KEY}", ", ".join(map(str, sizes))
    problems: list[Problem] = []
    uneven = [size for size in sizes if size % per_node]
    if uneven:
        what, value = f"not a multiple of the {per_node} tasks on a node", ", ".join(map(str, uneven))
        allowed, hint = f"multiples of {per_node}", "Slurm gives a run more or fewer nodes, always with the same tasks on each"
        problems.append(Problem(what=what, where=place, value=value, allowed=allowed, hint=hint))
    if planned not in sizes:
        value = f"{planned} tasks (nodes: {planned // per_node}, {per_node} on each)"
        what, hint = (
            "the configured size is none of the listed ones",
            f"add {planned}, or set `nodes`: `accumulation` is meant for it",
        )
        problems.append(Problem(what=what, where=place, value=value, allowed=listed, hint=hint))
    if resources.get("gpus_per_task"):
        what, value = "does not go with gpus_per_task, which wants a fixed number of tasks", str(resources["gpus_per_task"])
        problems.append(Problem(what=what, where=place, value=value, hint="use gpus_per_node: one task per GPU"))
    if counted := sorted(COUNTED & set(resources.get("additional_parameters") or {})):
        what, value = "does not go with a number of nodes or tasks", ", ".join(counted)
        problems.append(Problem(what=what, where=f"{where}.additional_parameters", value=value, hint="leave it to `elastic`"))
    return problems


def fitted(resources: Mapping[str, Any], *, most_nodes: int) -> Mapping[str, Any]:
    """Resources without the sizes that `most_nodes` cannot hold: a range beyond a partition's own limit would wait for ever."""
    sizes, most = world_sizes(resources), most_nodes * tasks_per_node(resources)
    return resources if not sizes or sizes[-1] <= most else {**resources, KEY: [size for size in sizes if size <= most]}


def sbatch_options(resources: Mapping[str, Any]) -> dict[str, Any]:
    """What asks Slurm for a range of nodes, each with room for its tasks."""
    least, most = node_range(resources)
    by_task = tasks_per_node(resources) * int(resources.get("cpus_per_task") or 1)
    by_gpu = int(resources.get("gpus_per_node") or 0) * int(resources.get("cpus_per_gpu") or 0)
    return {"nodes": f"{least}-{most}", "mincpus": max(by_task, by_gpu)}


def choice(resources: Mapping[str, Any]) -> str:
    """The line of the script that takes the largest size that fits."""
    sizes, room = " ".join(map(str, world_sizes(resources))), f'"$((SLURM_JOB_NUM_NODES * {tasks_per_node(resources)}))"'
    return f'for size in {sizes}; do [ "$size" -gt {room} ] || ORCH_TASKS="$size"; done'


def srun_options(resources: Mapping[str, Any]) -> str:
    """That size for srun, followed by a space; empty where there is one size only."""
    per_node = tasks_per_node(resources)
    options = f'--nodes="$((ORCH_TASKS / {per_node}))" --ntasks="$ORCH_TASKS" --ntasks-per-node={per_node} '
    return options if world_sizes(resources) else ""
