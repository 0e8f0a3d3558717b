"""Why were we told to leave, and what to do about it: Slurm's answer -> a verdict. Only `ask` and `requeue` act.

The table (DESIGN.md, Preemption is a flag), each row seen on a real Slurm:

    RUNNING, PreemptTime set, or RUNNING close to EndTime     requeue ourselves, exit 0
    COMPLETING, Reason=TimeLimit                              requeue ourselves, exit 0
    Restarts above our SLURM_RESTART_COUNT                    Slurm has requeued us already: exit 0
    any other COMPLETING, or a cancel mark in the run dir     cancelled: never requeue
    RUNNING and none of these, after SIGTERM                  another rank died: fail with its reason
    RUNNING and none of these, after SIGUSR2 alone            a warning: checkpointed, go on
    no answer                                                 ask again, then wait; never exit 0
"""

from __future__ import annotations

import enum
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

PATIENCE_S = 120.0
"""How long a job waits for a controller that does not answer, in seconds: grace plus KillWait on ordinary sites."""
PACK = "ORCH_PACK"
"""Variable of a packed run: the process id of its pack."""


class Verdict(enum.Enum):
    """What the job does after its checkpoint."""

    REQUEUE = "requeue"
    """Ask Slurm to requeue this task, exit 0."""
    LEAVE = "leave"
    """Somebody has requeued us already: exit 0."""
    CANCELLED = "cancelled"
    """Somebody cancelled us: record it, exit, never requeue."""
    RANK_DIED = "rank_died"
    """Another rank of this attempt is gone: fail."""
    GO_ON = "go_on"
    """Only a warning: go on computing."""
    UNKNOWN = "unknown"
    """No usable answer: ask again."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The fields of `scontrol show job -o` that decide; times in seconds since the epoch."""

    state: str
    reason: str = ""
    restarts: int = 0
    preempt_time: float | None = None
    end_time: float | None = None


_FIELD = re.compile(r"(?:^|\s)([A-Za-z_:/]+)=(\S*)")


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # None, Unknown, N/A
        return None


def parse_answer(text: str) -> Answer | None:
    """Parse one line of `scontrol show job -o`; None when it holds no job state."""
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        fields.setdefault(name, value)
    if "JobState" not in fields:
        return None
    try:
        restarts = int(fields.get("Restarts", "0"))
    except ValueError:
        restarts = 0
    return Answer(
        state=fields["JobState"],
        reason=fields.get("Reason", ""),
        restarts=restarts,
        preempt_time=_seconds(fields.get("PreemptTime", "")),
        end_time=_seconds(fields.get("EndTime", "")),
    )


def judge(
    answer: Answer | None, *, restart_count: int, cancel_mark: bool, terminating: bool, near_end_s: float, now: float
) -> Verdict:
    """The table above. `near_end_s`: how close to EndTime the site's warning signal may come, in seconds."""
    if cancel_mark:
        return Verdict.CANCELLED
    if answer is None:
        return Verdict.UNKNOWN
    if answer.restarts > restart_count:
        return Verdict.LEAVE
    if answer.state == "COMPLETING":
        return Verdict.REQUEUE if answer.reason == "TimeLimit" else Verdict.CANCELLED
    if answer.state == "RUNNING":
        if answer.preempt_time is not None:
            return Verdict.REQUEUE
        if answer.end_time is not None and answer.end_time - now <= near_end_s:
            return Verdict.REQUEUE
        return Verdict.RANK_DIED if terminating else Verdict.GO_ON
    if answer.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        return Verdict.LEAVE
    if answer.state in ("TIMEOUT", "PREEMPTED", "NODE_FAIL"):
        return Verdict.REQUEUE
    if answer.state == "CANCELLED":
        return Verdict.CANCELLED
    return Verdict.UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """This task's place in Slurm, from its environment."""

    job_id: str
    """`<array>_<task>`, or the job id outside arrays: what scontrol is asked about and what is requeued."""
    restart_count: int
    token: str
    signal_delay_s: int
    packed: bool = False
    """One of several runs in the task: whoever asks for a requeue is told yes, and the pack does it when all have left."""

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Slurm | None:
        """None outside Slurm."""
        job = environ.get("SLURM_JOB_ID")
        if not job:
            return None
        array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        return Slurm(
            job_id=f"{array}_{task}" if array and task else job,
            restart_count=int(environ.get("SLURM_RESTART_COUNT") or 0),
            token=environ.get("ORCH_TOKEN", ""),
            signal_delay_s=int(environ.get("ORCH_SIGNAL_DELAY_S") or 90),
            packed=PACK in environ,
        )

    def _scontrol(self, *arguments: str) -> str | None:
        """Output of one scontrol call, or None: the signals around an eviction may kill scontrol itself."""
        try:
            done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def ask(self) -> Answer | None:
        """What Slurm says about this task now."""
        said = self._scontrol("show", "job", "-o", self.job_id)
        return None if said is None else parse_answer(said)

    def requeue(self) -> bool:
        """Ask Slurm to requeue this task; whether it said yes. A packed run asks nobody: its siblings are still saving."""
        return self.packed or self._scontrol("requeue", self.job_id) is not None


def settle(
    slurm: Slurm,
    *,
    cancel_mark: Callable[[], bool],
    terminating: Callable[[], bool],
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> Verdict:
    """Ask until there is a verdict and act on it: requeues when that is the verdict.

    `patience_s` bounds the wait for a controller that does not answer; after it the verdict is UNKNOWN and the caller
    must not exit 0. A rank's death is believed only after Slurm has had two seconds to say otherwise.
    """
    deadline, doubts, pause = clock() + patience_s, 4, 0.25
    while True:
        verdict = judge(
            slurm.ask(),
            restart_count=slurm.restart_count,
            cancel_mark=cancel_mark(),
            terminating=terminating(),
            near_end_s=slurm.signal_delay_s + 75.0,
            now=clock(),
        )
        if verdict is Verdict.RANK_DIED and doubts:
            doubts -= 1
            sleep(0.5)
            continue
        if verdict is Verdict.REQUEUE and not cancel_mark() and slurm.requeue():
            return Verdict.REQUEUE
        if verdict not in (Verdict.UNKNOWN, Verdict.REQUEUE):
            return verdict
        if clock() >= deadline:
            return Verdict.UNKNOWN
        sleep(pause)
        pause = min(pause * 2, 5.0)
