"""Owns Slurm's words for the state of a job. Pure; an unknown word is a value, never an error.

What a state means for a run is decided elsewhere (`decide.py`): nothing here says that a run is done.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class SlurmState(enum.StrEnum):
    """One state as squeue, sacct and scontrol write it (job_state_string of 22.05 and later)."""

    PENDING = "PENDING"
    """Waiting: for resources, a dependency, its begin time after a requeue, or for ever (see the reason)."""
    RUNNING = "RUNNING"
    """Has an allocation; its processes may still be starting."""
    SUSPENDED = "SUSPENDED"
    """Has an allocation, but its processes are stopped (gang scheduling, or an administrator)."""
    STOPPED = "STOPPED"
    """Stopped by SIGSTOP; it keeps its CPUs."""
    CONFIGURING = "CONFIGURING"
    """Allocated; its nodes are being booted or set up."""
    POWER_UP_NODE = "POWER_UP_NODE"
    """Allocated; waits for powered-down nodes."""
    COMPLETING = "COMPLETING"
    """Being ended, or being taken down before a requeue: its processes may still live until KillWait is over."""
    SIGNALING = "SIGNALING"
    """A signal is on its way to it."""
    RESIZING = "RESIZING"
    """About to change its size."""
    STAGE_OUT = "STAGE_OUT"
    """Its processes have ended; a burst buffer is being copied out."""
    REQUEUED = "REQUEUED"
    """Ended to be run again. In sacct: this record is an earlier life of a job that was requeued."""
    REQUEUE_FED = "REQUEUE_FED"
    """Being requeued by a federation."""
    REQUEUE_HOLD = "REQUEUE_HOLD"
    """Requeued and held: a person must release it (Slurm does this after repeated launch failures)."""
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    """Held because its reservation was deleted."""
    SPECIAL_EXIT = "SPECIAL_EXIT"
    """Requeued in a special state, held (RequeueExitHold)."""
    LAUNCH_FAILED = "LAUNCH_FAILED"
    """Its node could not start it; Slurm requeues it."""
    RECONFIG_FAIL = "RECONFIG_FAIL"
    """Reconfiguring its nodes failed; Slurm requeues it or ends it as FAILED."""
    COMPLETED = "COMPLETED"
    """Every process of the batch step ended with exit code 0. Not yet a proof that the run is done."""
    FAILED = "FAILED"
    """Ended with a non-zero exit code or another failure."""
    CANCELLED = "CANCELLED"
    """Cancelled by a user or an administrator (or by a dependency that can never be satisfied)."""
    TIMEOUT = "TIMEOUT"
    """Ended at its time limit."""
    DEADLINE = "DEADLINE"
    """Ended at its deadline."""
    PREEMPTED = "PREEMPTED"
    """Ended to make room (PreemptMode=CANCEL); a requeueing site shows PENDING instead."""
    NODE_FAIL = "NODE_FAIL"
    """One of its nodes failed and it was not requeued."""
    BOOT_FAIL = "BOOT_FAIL"
    """Its nodes could not be booted."""
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    """The kernel or Slurm ended it for using too much memory."""
    REVOKED = "REVOKED"
    """Another cluster of the federation has started it."""
    UNKNOWN = "UNKNOWN"
    """A word that this list lacks; the text is kept beside it. It says nothing: wait or ask."""


WAITING = frozenset(
    {
        SlurmState.PENDING,
        SlurmState.SUSPENDED,
        SlurmState.STOPPED,
        SlurmState.CONFIGURING,
        SlurmState.POWER_UP_NODE,
        SlurmState.REQUEUED,
        SlurmState.REQUEUE_FED,
        SlurmState.REQUEUE_HOLD,
        SlurmState.RESV_DEL_HOLD,
        SlurmState.SPECIAL_EXIT,
        SlurmState.LAUNCH_FAILED,
        SlurmState.RECONFIG_FAIL,
    }
)
"""Slurm has the job and no process of it makes progress."""
EXECUTING = frozenset(
    {SlurmState.RUNNING, SlurmState.COMPLETING, SlurmState.SIGNALING, SlurmState.RESIZING, SlurmState.STAGE_OUT}
)
"""Processes of the job may be alive."""
ENDED = frozenset(
    {
        SlurmState.COMPLETED,
        SlurmState.FAILED,
        SlurmState.CANCELLED,
        SlurmState.TIMEOUT,
        SlurmState.DEADLINE,
        SlurmState.PREEMPTED,
        SlurmState.NODE_FAIL,
        SlurmState.BOOT_FAIL,
        SlurmState.OUT_OF_MEMORY,
        SlurmState.REVOKED,
    }
)
"""Slurm will not run it again unless somebody asks. UNKNOWN is in none of the three sets."""

LAUNCH_FAILED = "launch failed requeued held"
"""Slurm's reason for a waiting job that it holds itself, since its node could not launch it: it would wait for ever."""


def held_by_slurm(reason: str) -> bool:
    """Whether a waiting job's reason is that one (newer versions join its words)."""
    return reason.replace("_", " ") == LAUNCH_FAILED


_CANCELLED_BY = re.compile(r"CANCELLED by (\d{1,10})")
_WORD = re.compile(r"[A-Z][A-Z_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class StateReading:
    """A state as it was read: the member, the text as Slurm wrote it, and who cancelled."""

    state: SlurmState
    text: str
    cancelled_by: int | None = None
    """User id from `CANCELLED by 1000` (sacct)."""


_KNOWN = {state.value: StateReading(state=state, text=state.value) for state in SlurmState}


def read_state(text: str) -> StateReading:
    """Read one state; never raises.

    Newer versions may join flags (`COMPLETING,NODE_FAIL` or `PENDING+REQUEUED`): the first known word counts. sacct
    without `-P` cuts words (`CANCELLED+`), which is why a trailing `+` is ignored.
    """
    stripped = text.strip()
    exact = _KNOWN.get(stripped)
    if exact is not None:
        return exact
    if by := _CANCELLED_BY.fullmatch(stripped):
        return StateReading(state=SlurmState.CANCELLED, text=stripped, cancelled_by=int(by[1]))
    for word in _WORD.findall(stripped) if re.fullmatch(r"[A-Z_]+([+,][A-Z_]+)*\+?", stripped) else ():
        if word in _KNOWN:
            return StateReading(state=SlurmState(word), text=stripped)
    return StateReading(state=SlurmState.UNKNOWN, text=stripped)
