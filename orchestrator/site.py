"""Owns the site profile: what `orch doctor` found out about this cluster and `orch submit` checks resources against.

The profile is one JSON file, ROOT/site.json, written whole. Pure but for `load` and `save`; asks Slurm nothing itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.contract import write_atomically
from orchestrator.elastic import KEY as ELASTIC
from orchestrator.elastic import world_sizes
from orchestrator.errors import Problem, UserError
from orchestrator.resources import Demand, demand, unreadable
from orchestrator.slurm.client import Slurm
from orchestrator.slurm.parse import parse_count, parse_duration_s
from orchestrator.slurm.rows import ClusterFacts, NodeFacts, PartitionFacts, QosFacts

SCHEMA = 1
DOCTOR = "`orch doctor` writes it anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeShape:
    """A kind of node in a partition, and how many there are."""

    count: int
    cpus: int
    gpus: int
    memory_mib: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """One partition. None = no limit."""

    name: str
    state: str
    default: bool
    max_nodes: int
    max_time_s: int | None
    priority_tier: int
    preempt_mode: str
    """OFF, REQUEUE, CANCEL, SUSPEND, ...: what happens to a job here when a higher tier wants its nodes."""
    grace_s: int
    shapes: tuple[NodeShape, ...]

    @property
    def takes_jobs(self) -> bool:
        """Whether sbatch is accepted; in state DOWN nothing starts until an administrator raises it."""
        return self.state in ("UP", "DOWN")


@dataclass(frozen=True, kw_only=True, slots=True)
class Qos:
    """One quality of service; with preempt/qos the mode and the grace that count stand here."""

    name: str
    preempts: tuple[str, ...]
    preempt_mode: str
    grace_s: int
    max_submit_jobs: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What we know of this cluster. Times in seconds."""

    schema: int = SCHEMA
    probed_at: float
    cluster: str
    slurm_version: str
    partitions: tuple[Partition, ...]
    qos: tuple[Qos, ...]
    """Empty when sacctmgr does not answer."""
    preempt_type: str
    """`preempt/none`, `preempt/partition_prio` or `preempt/qos`."""
    user_signal_on_preemption: bool
    """Whether an eviction delivers the `--signal` of the job (else SIGTERM)."""
    requeue_allowed: bool
    """JobRequeue; `--requeue` overrides it."""
    requeue_delay_s: int
    """How long a requeued job waits in BeginTime: cred_expire, 120 s where it is not set."""
    max_array_size: int
    """Caps the array *index*: a chunk has at most this many tasks, 0 .. max_array_size - 1."""
    max_job_count: int
    max_submit_jobs: int | None
    kill_wait_s: int
    min_job_age_s: int
    accounting: bool

    @property
    def default_partition(self) -> Partition | None:
        """Where a job goes that names no partition."""
        return next((partition for partition in self.partitions if partition.default), None)

    @property
    def largest_chunk(self) -> int:
        """The most tasks that one array may have."""
        limits = (self.max_array_size, self.max_job_count, self.max_submit_jobs)
        return max(1, min(limit for limit in limits if limit))

    def preemption(self, partition: str, qos: str | None = None) -> tuple[str, int]:
        """Preempt mode and grace in seconds of a job in this partition and QOS; (`OFF`, 0) when nobody evicts it."""
        if self.preempt_type == "preempt/none":
            return "OFF", 0
        found = next((one for one in self.partitions if one.name == partition), None)
        mode, grace_s = ("OFF", 0) if found is None else (found.preempt_mode, found.grace_s)
        if self.preempt_type == "preempt/qos":
            level = next((one for one in self.qos if one.name == (qos or "normal")), None)
            if level is not None:
                own = level.preempt_mode.upper()
                mode, grace_s = (mode if own in ("", "CLUSTER") else own), level.grace_s
        return mode, grace_s


# --- from a cluster ---------------------------------------------------------------------------------------------------


def probe(slurm: Slurm, *, user: str, clock: Callable[[], float] = time.time) -> Site:
    """Ask the cluster; raises ClusterError when it does not answer."""
    return site_from_facts(slurm.facts(user), probed_at=clock())


def site_from_facts(facts: ClusterFacts, *, probed_at: float) -> Site:
    """The profile of a cluster that said this. Missing keys take Slurm's own defaults."""
    config = facts.config
    options = config.get("SlurmctldParameters", "").split(",") + config.get("PreemptParameters", "").split(",")
    return Site(
        probed_at=probed_at,
        cluster=config.get("ClusterName", ""),
        slurm_version=config.get("SLURM_VERSION", ""),
        partitions=tuple(_partition(one, facts.nodes) for one in facts.partitions),
        qos=tuple(_qos(one) for one in facts.qos),
        preempt_type=config.get("PreemptType", "preempt/none"),
        user_signal_on_preemption=any(
            option.split("=")[0] in ("preempt_send_user_signal", "send_user_signal") for option in options
        ),
        requeue_allowed=config.get("JobRequeue", "1") != "0",
        requeue_delay_s=_requeue_delay_s(config.get("AuthInfo", "")),
        max_array_size=_count(config, "MaxArraySize", 1001),
        max_job_count=_count(config, "MaxJobCount", 10_000),
        max_submit_jobs=facts.max_submit_jobs,
        kill_wait_s=_seconds(config, "KillWait", 30),
        min_job_age_s=_seconds(config, "MinJobAge", 300),
        accounting=facts.accounting,
    )


def _count(config: Mapping[str, str], key: str, default: int) -> int:
    found = parse_count(config.get(key, ""))
    return default if found is None else found


def _seconds(config: Mapping[str, str], key: str, default: int) -> int:
    found = parse_duration_s(config.get(key, ""))
    return default if found is None else found


def _requeue_delay_s(auth_info: str) -> int:
    for option in auth_info.split(","):
        key, _, value = option.partition("=")
        if key.strip() == "cred_expire" and (found := parse_count(value.strip() or "0")) is not None:
            return found if found >= 5 else 120  # Slurm refuses less than 5 and takes its default
    return 120


def _partition(facts: PartitionFacts, nodes: Iterable[NodeFacts]) -> Partition:
    counts: dict[tuple[int, int, int], int] = {}
    for node in nodes:
        if facts.name in node.partitions:
            shape = (node.cpus, node.gpus, node.memory_mib)
            counts[shape] = counts.get(shape, 0) + 1
    total = sum(counts.values()) or facts.total_nodes
    return Partition(
        name=facts.name,
        state=facts.state,
        default=facts.default,
        max_nodes=total if facts.max_nodes is None else min(total, facts.max_nodes),
        max_time_s=facts.max_time_s,
        priority_tier=facts.priority_tier,
        preempt_mode=facts.preempt_mode,
        grace_s=facts.grace_s,
        shapes=tuple(
            NodeShape(count=count, cpus=cpus, gpus=gpus, memory_mib=memory_mib)
            for (cpus, gpus, memory_mib), count in sorted(counts.items())
        ),
    )


def _qos(facts: QosFacts) -> Qos:
    return Qos(
        name=facts.name,
        preempts=facts.preempts,
        preempt_mode=facts.preempt_mode,
        grace_s=facts.grace_s,
        max_submit_jobs=facts.max_submit_jobs,
    )


# --- on disk ----------------------------------------------------------------------------------------------------------


def to_json(site: Site) -> str:
    """The profile as the text of site.json."""
    return json.dumps(asdict(site), indent=1) + "\n"


def from_json(text: str) -> Site:
    """Read a profile; raises ValueError when the text is not one that this version wrote."""
    try:
        raw = json.loads(text)
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']!r}, this version reads {SCHEMA}")
        partitions = tuple(
            Partition(**{**one, "shapes": tuple(NodeShape(**shape) for shape in one["shapes"])}) for one in raw["partitions"]
        )
        qos = tuple(Qos(**{**one, "preempts": tuple(one["preempts"])}) for one in raw["qos"])
        return Site(**{**raw, "partitions": partitions, "qos": qos})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a site profile: {error}") from error


def save(site: Site, path: Path) -> None:
    """Write ROOT/site.json, whole or not at all."""
    write_atomically(path, to_json(site))


def load(path: Path) -> Site | None:
    """The saved profile, None when there is none; raises UserError for a file that cannot be read."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(Problem(what="the site profile cannot be read", where=str(path), value=str(error), hint=DOCTOR)) from None


# --- what may be asked for --------------------------------------------------------------------------------------------


def check_resources(site: Site, resources: Mapping[str, Any], *, where: str = "resources") -> list[Problem]:
    """What Slurm would refuse or queue for ever, each with the values that are allowed. Pure."""
    misread = unreadable(resources, where)
    if misread:
        return misread
    names = [name for name in str(resources.get("partition") or "").split(",") if name]
    by_name = {partition.name: partition for partition in site.partitions}
    listed = ", ".join(one.name for one in site.partitions if one.takes_jobs)
    if not names:
        if site.default_partition is None:
            return [
                Problem(what="no partition is named and this cluster has no default", where=f"{where}.partition", allowed=listed)
            ]
        names = [site.default_partition.name]
    unknown = [name for name in names if name not in by_name]
    if unknown:
        return [Problem(what="no such partition", where=f"{where}.partition", value=",".join(unknown), allowed=listed)]
    wanted = demand(resources)
    problems = [_partition_problems(by_name[name], wanted, resources, where, listed) for name in names]
    # of several partitions Slurm takes any that fits
    return [] if any(not found for found in problems) else problems[0]


def most_nodes(site: Site, resources: Mapping[str, Any]) -> int:
    """The most nodes that the site can ever give a job, of a kind that each has all that it asks for; 0 when it cannot start."""
    default = site.default_partition.name if site.default_partition else ""
    named = str(resources.get("partition") or default).split(",")
    wanted = demand(resources)
    able = [one for one in site.partitions if one.name in named and not _partition_problems(one, wanted, resources, "", "")]
    return max((min(one.max_nodes, _fitting_nodes(one, wanted)) if one.shapes else one.max_nodes for one in able), default=0)


def _fitting_nodes(partition: Partition, wanted: Demand) -> int:
    return sum(
        shape.count
        for shape in partition.shapes
        if shape.gpus >= wanted.gpus and shape.cpus >= wanted.cpus and shape.memory_mib >= wanted.memory_mib
    )


def _partition_problems(
    partition: Partition, wanted: Demand, resources: Mapping[str, Any], where: str, listed: str
) -> list[Problem]:
    name = partition.name
    found: list[Problem] = []
    if not partition.takes_jobs:
        found.append(
            Problem(
                what=f"partition {name} takes no jobs: its state is {partition.state}",
                where=f"{where}.partition",
                value=name,
                allowed=listed,
                hint="`orch doctor` looks again",
            )
        )
    if partition.max_time_s is not None and wanted.time_s > partition.max_time_s:
        limit = partition.max_time_s // 60
        found.append(
            Problem(
                what=f"above the time limit of partition {name}",
                where=f"{where}.timeout_min",
                value=str(resources.get("timeout_min")),
                allowed=f"at most {limit}",
            )
        )
    if wanted.nodes > partition.max_nodes:
        found.append(
            Problem(
                what=f"partition {name} gives a job at most {partition.max_nodes} nodes",
                where=f"{where}.{ELASTIC if world_sizes(resources) else 'nodes'}",
                value=str(wanted.nodes),
                allowed=f"1 to {partition.max_nodes}",
            )
        )
    return found + (_shape_problems(partition, wanted, where) if partition.shapes else [])


def _shape_problems(partition: Partition, wanted: Demand, where: str) -> list[Problem]:
    shapes = partition.shapes
    measures = (
        ("GPUs", "gpus_per_node", wanted.gpus, max(shape.gpus for shape in shapes), ""),
        ("CPUs", "cpus_per_task", wanted.cpus, max(shape.cpus for shape in shapes), " per node, over all its tasks"),
        ("MiB of memory", "mem_gb", wanted.memory_mib, max(shape.memory_mib for shape in shapes), " MiB per node"),
    )
    found = [
        Problem(
            what=f"no node of partition {partition.name} has {amount} {noun}",
            where=f"{where}.{key}",
            value=f"{amount}{unit}",
            allowed=f"at most {most}{unit}",
        )
        for noun, key, amount, most, unit in measures
        if amount > most
    ]
    fitting = _fitting_nodes(partition, wanted)
    if not found and fitting < min(wanted.nodes, partition.max_nodes):
        kinds = "; ".join(f"{shape.count} x {shape.gpus} GPUs, {shape.cpus} CPUs, {shape.memory_mib} MiB" for shape in shapes)
        found.append(
            Problem(
                what=f"only {fitting} nodes of partition {partition.name} have all of this at once",
                where=where,
                value=f"{wanted.nodes} nodes with {wanted.gpus} GPUs, {wanted.cpus} CPUs, {wanted.memory_mib} MiB each",
                allowed=kinds,
            )
        )
    return found
