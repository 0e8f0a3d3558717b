"""Owns the reading of a step's resources: what one job asks for, in the launcher's vocabulary. Pure.

The vocabulary is hydra-submitit-launcher's (timeout_min, nodes, gpus_per_node, mem_gb, ...); `site.py` says whether the
cluster has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.elastic import KEY as ELASTIC
from orchestrator.elastic import node_range, world_sizes
from orchestrator.errors import Problem
from orchestrator.slurm.parse import count_gpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What one job asks for, per node, from the launcher's vocabulary."""

    nodes: int
    gpus: int
    cpus: int
    memory_mib: int
    time_s: int


def demand(resources: Mapping[str, Any]) -> Demand:
    """Read launcher values (timeout_min, nodes, gpus_per_node, gpus_per_task, gres, cpus_per_task, mem_gb, ...); of several world
    sizes the smallest, with which a job can start.

    One task per GPU unless `tasks_per_node` says more, as submit has it.
    """
    tasks = _whole(resources, "tasks_per_node", 1)
    gpus = max(
        _whole(resources, "gpus_per_node", 0),
        _whole(resources, "gpus_per_task", 0) * tasks,
        count_gpus(str(resources.get("gres") or "")),
    )
    tasks = max(tasks, gpus) if tasks == 1 else tasks
    cpus = max(tasks * _whole(resources, "cpus_per_task", 1), gpus * _whole(resources, "cpus_per_gpu", 0))
    memory = (
        _mebibytes(resources.get("mem_gb"), unit="G"),
        _mebibytes(resources.get("mem_per_cpu")) * cpus,
        _mebibytes(resources.get("mem_per_gpu")) * gpus,
    )
    return Demand(
        nodes=node_range(resources)[0],
        gpus=gpus,
        cpus=cpus,
        memory_mib=max(memory),
        time_s=60 * _whole(resources, "timeout_min", 0),
    )


_WHOLE_KEYS = {
    "timeout_min": 1,
    "nodes": 1,
    "tasks_per_node": 1,
    "gpus_per_node": 0,
    "gpus_per_task": 0,
    "cpus_per_task": 1,
    "cpus_per_gpu": 0,
    "runs_per_gpu": 1,
}
_MEMORY_KEYS = ("mem_gb", "mem_per_cpu", "mem_per_gpu")
_UNITS_MIB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}


def unreadable(resources: Mapping[str, Any], where: str) -> list[Problem]:
    """Values that `demand` cannot read: not whole, out of range, not an amount of memory."""
    found = []
    for key, least in _WHOLE_KEYS.items():
        value = resources.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            found.append(
                Problem(what="not a whole number in range", where=f"{where}.{key}", value=str(value), allowed=f"at least {least}")
            )
    for key in _MEMORY_KEYS:
        value = resources.get(key)
        try:
            negative = value is not None and _mebibytes(value) <= 0
        except ValueError:
            negative = True
        if negative:
            found.append(
                Problem(what="not an amount of memory", where=f"{where}.{key}", value=str(value), allowed="16, 4000M, 16G")
            )
    return found


def runs_per_task(resources: Mapping[str, Any]) -> int:
    """How many runs share a task, and so its GPU if it has one."""
    return _whole(resources, "runs_per_gpu", 1)


def unpackable(resources: Mapping[str, Any], where: str) -> list[Problem]:
    """Why runs that ask for this cannot share a task: each of them would need more than one."""
    if unreadable(resources, where) or runs_per_task(resources) == 1:
        return []
    asked = {
        "nodes": _whole(resources, "nodes", 1),
        "tasks_per_node": _whole(resources, "tasks_per_node", 1),
        "gpus_per_node": _whole(resources, "gpus_per_node", 0),
        "gpus_per_task": _whole(resources, "gpus_per_task", 0),
        "gres": count_gpus(str(resources.get("gres") or "")),
        ELASTIC: len(world_sizes(resources)),
    }
    return [
        Problem(
            what=f"{runs_per_task(resources)} runs share a task (runs_per_gpu), and such a task has one node and at most one GPU",
            where=f"{where}.{key}",
            value=str(resources[key]),
            allowed="no such key" if key == ELASTIC else "1",
            hint="leave `runs_per_gpu` out for runs of several tasks, nodes or GPUs",
        )
        for key, amount in asked.items()
        if amount > (0 if key == ELASTIC else 1)
    ]


def _whole(resources: Mapping[str, Any], key: str, default: int) -> int:
    value = resources.get(key)
    return default if value is None else int(value)


def _mebibytes(value: Any, *, unit: str = "M") -> int:
    """Slurm's units are powers of 1024: `16` with unit G, `4000M`, `16G`, `16GB`."""
    if value is None:
        return 0
    text = str(value).strip().upper().removesuffix("B")
    if text and text[-1] in _UNITS_MIB:
        text, unit = text[:-1], text[-1]
    amount = float(text) * _UNITS_MIB[unit]
    if not 0 <= amount < 1e15:  # also nan and infinity
        raise ValueError(f"not an amount of memory: {value!r}")
    return int(amount)
