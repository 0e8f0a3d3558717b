"""How patient the control plane is, and how often it tries again, by cause. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


class Trouble(enum.StrEnum):
    """Why a run ended without finishing, as far as the facts tell. Its value is also how the event log says it."""

    PREEMPTED = "preempted"
    """Evicted, or told to leave after a checkpoint, and nobody has queued it again."""
    TIMED_OUT = "timed out"
    """The time limit struck, and the last submission had saved something new."""
    TIMED_OUT_STUCK = "timed out without progress"
    """The time limit struck before the first new checkpoint."""
    NODE_FAILURE = "node failure"
    """Slurm says that a node failed, or the device did."""
    HOST_MEMORY = "out of host memory"
    """Killed by the kernel or Slurm, or an allocation on the CPU failed."""
    DEVICE_MEMORY = "out of device memory"
    """An allocation on the GPU failed."""
    HANG = "hang"
    """A rank finished no step, a collective failed or another rank ended without a word."""
    DIVERGED = "diverged"
    """The loss is not finite."""
    BUG = "bug"
    """A traceback, or a run that cannot be executed as it stands."""
    DATA = "data"
    """An input is missing or damaged, or the disk is full or cannot be written."""
    NO_PROGRESS = "no progress"
    """The job itself gave up after too many attempts without a checkpoint."""
    CANCELLED = "cancelled"
    """Somebody cancelled it, or pressed Ctrl-C."""
    LOST = "lost"
    """It ended without a word, and nothing explains it."""


BUDGETS: Mapping[Trouble, int] = MappingProxyType(
    {
        Trouble.PREEMPTED: 20,
        Trouble.TIMED_OUT: 5,
        Trouble.TIMED_OUT_STUCK: 1,
        Trouble.NODE_FAILURE: 5,
        Trouble.HOST_MEMORY: 1,
        Trouble.DEVICE_MEMORY: 1,
        Trouble.HANG: 3,
        Trouble.DIVERGED: 1,
        Trouble.BUG: 0,
        Trouble.DATA: 0,
        Trouble.NO_PROGRESS: 0,
        Trouble.CANCELLED: 0,
        Trouble.LOST: 3,
    }
)
"""Retries of one run, per cause, since its last new checkpoint. A resumed run repeats its last steps exactly: what it brought
about itself (divergence, memory) is tried once, in case the machine was at fault, and what a bug brought about never."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Waiting times are in seconds; those of looking are about not mistaking a transient answer for a fact."""

    intent_age_s: float = 180.0
    """An intent without a job is withdrawn only when it is older than this (sbatch may still be under way)."""
    missing_s: float = 30.0
    """A job that squeue does not list and sacct does not explain is lost only after this long."""
    budgets: Mapping[Trouble, int] = field(default_factory=lambda: BUDGETS)
    lost_age_s: float = 120.0
    """A lost run that nothing explains is queued again only after this long: Slurm may find its job again."""
    same_bug_runs: int = 3
    """So many runs of a sweep killed by one bug stop the sweep: none of its other runs is queued again."""
    avoid_node_s: float = 6 * 3600.0
    """A node that failed is left out of new submissions for so long."""
    avoid_nodes: int = 8
    """At most so many nodes are left out at once, those that failed last."""
    halve_micro_batch: bool = False
    """Whether a training run that ran out of device memory is resumed with twice the accumulation (the same global batch)."""
