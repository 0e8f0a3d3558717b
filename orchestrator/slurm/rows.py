"""Owns what Slurm's answers are once they are read: rows, replies, facts about the cluster. Pure values.

Times are seconds since the epoch, None where Slurm says N/A or Unknown. Job ids are texts as Slurm takes them:
`12_3` for a task of an array, `12` for a job outside arrays.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.slurm.states import SlurmState

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed(Generic[Row]):
    """What a parser made of a text: the rows it understood and the lines it did not."""

    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueRow:
    """One job or array task that slurmctld knows; ended ones stay for MinJobAge (300 s by default)."""

    id: str
    array_id: str
    """Id of the array; for a job outside arrays its own id."""
    task_index: int | None
    name: str
    state: SlurmState
    state_text: str
    reason: str
    """Why it waits (`Dependency`, `DependencyNeverSatisfied`, `BeginTime`, ...) or ended (`TimeLimit`); else `None`."""
    partition: str
    nodes: str
    submit_time: float | None
    """Of this life: a requeue renews it."""
    start_time: float | None
    """Expected, while the job waits."""
    end_time: float | None
    """Expected (start + time limit), while the job runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """One answer of squeue. Empty is a fact to be doubted (it can be a transient fault), a failure is a ClusterError."""

    rows: tuple[QueueRow, ...]
    problems: tuple[str, ...] = ()
    asked_at: float = 0.0

    def by_id(self) -> dict[str, QueueRow]:
        """id -> row."""
        return {row.id: row for row in self.rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryRow:
    """One job or array task in the accounting database; of a requeued job only its latest life."""

    id: str
    array_id: str
    task_index: int | None
    name: str
    """Not to be relied on: while the database lags behind, it says `allocation` for a job that has just ended."""
    state: SlurmState
    state_text: str
    cancelled_by: int | None
    """User id."""
    exit_code: int
    exit_signal: int
    partition: str
    nodes: str
    submit_time: float | None
    start_time: float | None
    end_time: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """One answer of sacct. Absence means nothing: the database lags by seconds, and sites purge it."""

    rows: tuple[HistoryRow, ...]
    problems: tuple[str, ...] = ()
    asked_at: float = 0.0

    def by_id(self) -> dict[str, HistoryRow]:
        """id -> row."""
        return {row.id: row for row in self.rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryUnavailable:
    """There is no history to ask: accounting is off at this site, or its database does not answer now."""

    reason: str
    permanent: bool
    """True when the site has no accounting at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDetail:
    """What `scontrol show job` says of one job or task."""

    id: str
    array_id: str
    task_index: int | None
    name: str
    state: SlurmState
    state_text: str
    reason: str
    dependency: str
    restarts: int
    partition: str
    nodes: str
    submit_time: float | None
    start_time: float | None
    end_time: float | None
    preempt_time: float | None
    fields: Mapping[str, str] = field(default_factory=dict)
    """Everything, as Slurm wrote it."""


class Verdict(enum.Enum):
    """What became of a request to change one job."""

    DONE = "done"
    """Slurm accepted it."""
    UNKNOWN_JOB = "unknown job"
    """Slurm does not know the id (any more)."""
    REFUSED = "refused"
    """Slurm knows the job and declined; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Slurm's answer to a request to change one job."""

    verdict: Verdict
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionFacts:
    """One partition as `scontrol show partition` has it. None = no limit."""

    name: str
    state: str
    """UP, DOWN (queues, starts nothing), DRAIN and INACTIVE (refuse new jobs)."""
    default: bool
    total_nodes: int
    max_nodes: int | None
    max_time_s: int | None
    priority_tier: int
    preempt_mode: str
    grace_s: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """One node as `scontrol show node` has it."""

    name: str
    partitions: tuple[str, ...]
    cpus: int
    gpus: int
    memory_mib: int
    state: str
    """IDLE, MIXED, ALLOCATED, DOWN, IDLE+DRAIN, ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QosFacts:
    """One quality of service as sacctmgr has it."""

    name: str
    preempts: tuple[str, ...]
    """Names of the QOS whose jobs it may evict."""
    preempt_mode: str
    grace_s: int
    max_submit_jobs: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterFacts:
    """Everything that `orch doctor` reads of a cluster, before it is made a site profile."""

    config: Mapping[str, str]
    partitions: tuple[PartitionFacts, ...] = ()
    nodes: tuple[NodeFacts, ...] = ()
    qos: tuple[QosFacts, ...] = ()
    max_submit_jobs: int | None = None
    """The smallest MaxSubmitJobs of the user's associations."""
    accounting: bool = False
    """Whether sacct answers."""
    problems: tuple[str, ...] = ()
