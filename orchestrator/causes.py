"""Why a run ended without finishing: Slurm's state and reason, the outcome, the end of the log -> one `Trouble`. Pure.

An outcome in which the run itself says why comes first, then what Slurm saw, then the log; what none explains is LOST.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.contract import Cause, Outcome, Status, place_in_code
from orchestrator.lifecycle import RunState
from orchestrator.policy import Trouble
from orchestrator.slurm.states import SlurmState, read_state
from orchestrator.snapshot import TaskSeen

SLURM = "slurm"
"""Event of a run: how Slurm saw its job end (`slurm_line`)."""


@dataclass(frozen=True, kw_only=True)
class AttemptSeen:
    """One attempt, as far as retrying goes."""

    number: int
    saved_step: int | None = None
    """Step of its newest checkpoint; None when it wrote none."""
    node: str = ""
    """The name that the node has for itself."""
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The facts of a run that ended without finishing."""

    run: str
    state: RunState
    reason: str = ""
    """As the store has it."""
    local: bool = False
    """It ran on this machine, outside Slurm."""
    cancel_mark: bool = False
    slurm: TaskSeen | None = None
    """How Slurm saw the last submission end."""
    outcome: Outcome | None = None
    """Of the last submission."""
    log: Sequence[str] = ()
    """The last lines of the last submission's logs, rank after rank."""
    attempts: Sequence[AttemptSeen] = ()
    """All of them, oldest first."""
    after_attempt: int = 0
    """The newest attempt before the last submission."""

    @property
    def newest_attempt(self) -> int:
        """0 when there was none."""
        return max((attempt.number for attempt in self.attempts), default=0)

    @property
    def progress(self) -> tuple[int, int]:
        """(the newest attempt that saved a step which none had saved before, that step); (0, 0) when none did."""
        attempt, step = 0, 0
        for one in self.attempts:
            if one.saved_step is not None and one.saved_step > step:
                attempt, step = one.number, one.saved_step
        return attempt, step


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was the trouble, in one line, and what follows from it."""

    trouble: Trouble
    what: str
    bug: str = ""
    """Exception type and place in the code: equal for equal bugs; empty when that is not known."""
    nodes: str = ""
    """Slurm's names of the nodes under suspicion, as a host list; a failure of one of several accuses them all."""
    hint: str = ""
    unexplained: bool = False
    """Nothing says that the job is over, except that nobody knows it."""


# --- what Slurm said, as one line of the event log -----------------------------------------------------------------------


def slurm_line(task: TaskSeen) -> str:
    """`NODE_FAIL nodes=n[1-2] exit=0:9 reason=NodeDown`; unknown parts are left out."""
    parts = (("nodes", task.nodes), ("exit", task.exit), ("reason", task.reason if task.reason != "None" else ""))
    return " ".join([task.state.value, *(f"{name}={value}" for name, value in parts if value and " " not in value)])


def read_slurm_line(text: str) -> TaskSeen:
    """The inverse of `slurm_line`; an unknown word is UNKNOWN."""
    state, *words = text.split()[:8] or [""]
    parts = {name: value for name, _, value in (word.partition("=") for word in words)}
    return TaskSeen(
        state=read_state(state).state, reason=parts.get("reason", ""), nodes=parts.get("nodes", ""), exit=parts.get("exit", "")
    )


# --- words of exceptions ------------------------------------------------------------------------------------------------

_DEVICE_MEMORY = re.compile(r"OutOfMemoryError|(CUDA|HIP|XPU)( error:)? out of memory|CU(DNN|BLAS)_STATUS_ALLOC_FAILED")
_HOST_MEMORY = re.compile(
    r"MemoryError|DefaultCPUAllocator|[Cc]an(not|'t) allocate memory|bad_alloc|oom[-_ ]kill|killed by signal: (Killed|Bus)|"
    r"Out Of Memory"
)
_DEVICE_FAILED = re.compile(
    r"uncorrectable ECC|fallen off the bus|CUDA-capable device|CUDA error: (unknown error|hardware)|NVLink error|"
    r"no NVIDIA driver|NVML_SUCCESS"
)
_COLLECTIVE = re.compile(
    r"NCCL|Dist(Backend|Network|Store)Error|gloo/transport|Timed out waiting|Connection (closed|reset) by peer|Broken pipe"
)
_DISK = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error|Stale file handle|"
    r"[Ff]ile too large"
)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\s*$")
_FRAME = re.compile(r'\s+File "([^"]+)", line (\d+)')
_RAISED = re.compile(r"[A-Za-z_][\w.]*(: .*)?$")
_AFTER = re.compile(r"ended with exit code|^\s*$|srun: |slurmstepd: |^\S+: task \d+:")


@dataclass(frozen=True, kw_only=True)
class Raised:
    """A traceback at the end of a log."""

    line: str
    """`ValueError: no such colour`."""
    place: str
    """`jobs/count.py:52`; empty when no frame is in our packages."""


def last_traceback(log: Sequence[str]) -> Raised | None:
    """The traceback with which a log ends; None when the process went on after the last one, or there is none."""
    start = max((number for number, line in enumerate(log) if _TRACEBACK.search(line)), default=None)
    if start is None:
        return None
    place = ""
    for number in range(start + 1, len(log)):
        line = log[number]
        frame = _FRAME.match(line)
        if frame is not None:
            place = place_in_code(frame[1], int(frame[2])) or place
        elif not line.startswith(" ") and _RAISED.match(line):
            rest = log[number + 1 :]
            return Raised(line=line[:500], place=place) if all(_AFTER.search(one) for one in rest) else None
    return None


def exception_name(text: str) -> str:
    """`ValueError` of `ValueError: no such colour`, without its module."""
    return text.strip().partition(":")[0].split("(")[0].strip().rpartition(".")[2]


def _of_exception(text: str, place: str) -> Finding:
    """What an exception that nothing else explains means."""
    if _DEVICE_FAILED.search(text):
        return Finding(trouble=Trouble.NODE_FAILURE, what=f"the device failed: {text}")
    if _DEVICE_MEMORY.search(text):
        return _memory(Trouble.DEVICE_MEMORY, text)
    if _HOST_MEMORY.search(text):
        return _memory(Trouble.HOST_MEMORY, text)
    if _COLLECTIVE.search(text):
        return Finding(trouble=Trouble.HANG, what=text, hint="the logs of all ranks: `orch logs RUN`")
    if _DISK.search(text):
        return Finding(trouble=Trouble.DATA, what=text, hint="make room, or mend the file system, then `orch resume`")
    if text.startswith("FloatingPointError"):
        return Finding(trouble=Trouble.DIVERGED, what=text)
    name = exception_name(text)
    return Finding(
        trouble=Trouble.BUG,
        what=f"{text} ({place})" if place else text,
        bug=f"{name} at {place}" if name and place else "",
        hint="mend the code or the configuration; `orch resume --new-code` takes the present code",
    )


def _memory(trouble: Trouble, what: str) -> Finding:
    if trouble is Trouble.DEVICE_MEMORY:
        hint = "a larger `runtime.accumulation` keeps the batch and takes less memory of the device (same run, same id)"
    else:
        hint = "raise `resources: mem_gb`, or lower `runtime.workers`; then submit again and `orch resume`"
    return Finding(trouble=trouble, what=what, hint=hint)


# --- the verdict on one ending ------------------------------------------------------------------------------------------

_OWN_WORDS = frozenset({Cause.EXCEPTION, Cause.OUT_OF_MEMORY, Cause.DIVERGED, Cause.NO_PROGRESS, Cause.DATA, Cause.REFUSED})
"""Causes that the run itself knows for sure; of the others it only saw the effect."""


def _of_outcome(outcome: Outcome) -> Finding:
    reason = outcome.reason.strip().split("\n")[0] or "no reason given"
    match outcome.cause:
        case Cause.OUT_OF_MEMORY:
            return _memory(Trouble.DEVICE_MEMORY if _DEVICE_MEMORY.search(reason) else Trouble.HOST_MEMORY, reason)
        case Cause.DIVERGED:
            return Finding(trouble=Trouble.DIVERGED, what=reason, hint="a smaller learning rate, or `optimizer.grad_clip`")
        case Cause.DATA:
            return Finding(trouble=Trouble.DATA, what=reason, hint="mend the data, then `orch resume`")
        case Cause.NO_PROGRESS:
            hint = "checkpoint more often (`runtime.checkpoint_every_s`), or ask for more time; then `orch resume`"
            return Finding(trouble=Trouble.NO_PROGRESS, what=reason, hint=hint)
        case Cause.REFUSED:
            return Finding(trouble=Trouble.BUG, what=reason, hint="`orch resume --new-code`, if the code is what does not fit")
        case Cause.HANG | Cause.RANK_DIED:
            return Finding(trouble=Trouble.HANG, what=reason, hint="the logs of all ranks: `orch logs RUN`")
        case Cause.UNEXPLAINED:
            return Finding(trouble=Trouble.LOST, what=f"{reason}, and its log does not explain it")
        case Cause.EXCEPTION | None:
            return _of_exception(reason, outcome.place)


def _timed_out(ended: Ended) -> Finding:
    attempt, step = ended.progress
    if attempt > ended.after_attempt:
        return Finding(trouble=Trouble.TIMED_OUT, what=f"Slurm's time limit, after a checkpoint at step {step}")
    return Finding(
        trouble=Trouble.TIMED_OUT_STUCK,
        what="Slurm's time limit struck before a new checkpoint",
        hint="raise `resources: timeout_min`, or checkpoint more often (`runtime.checkpoint_every_s`)",
    )


def _of_log(log: Sequence[str]) -> Finding | None:
    """What a log says of a process that left no outcome."""
    for line in reversed(log):
        if _DEVICE_FAILED.search(line):
            return Finding(trouble=Trouble.NODE_FAILURE, what=f"the device failed: {line.strip()[:300]}")
        if "oom" in line.lower() and _HOST_MEMORY.search(line):
            return _memory(Trouble.HOST_MEMORY, line.strip()[:300])
    return None


def _of_slurm(task: TaskSeen) -> Finding | None:
    """What Slurm alone explains."""
    match task.state:
        case SlurmState.NODE_FAIL | SlurmState.BOOT_FAIL:
            where = f" on {task.nodes}" if task.nodes else ""
            return Finding(trouble=Trouble.NODE_FAILURE, what=f"Slurm says {task.state.value}{where}", nodes=task.nodes)
        case SlurmState.OUT_OF_MEMORY:
            return _memory(Trouble.HOST_MEMORY, "killed by Slurm for its use of memory (OUT_OF_MEMORY)")
        case SlurmState.PREEMPTED:
            return Finding(trouble=Trouble.PREEMPTED, what="evicted, and this site does not queue again what it evicts")
        case SlurmState.FAILED if task.reason == "OutOfMemory":
            return _memory(Trouble.HOST_MEMORY, "killed by Slurm for its use of memory (OutOfMemory)")
        case SlurmState.FAILED if task.reason in ("NodeDown", "NodeFail"):
            return Finding(trouble=Trouble.NODE_FAILURE, what=f"Slurm says {task.reason}", nodes=task.nodes)
        case _:
            return None


def diagnose(ended: Ended) -> Finding:
    """The trouble of a run that ended without finishing."""
    outcome, slurm = ended.outcome, ended.slurm
    if ended.state is RunState.CANCELLED or ended.cancel_mark:
        return Finding(trouble=Trouble.CANCELLED, what=ended.reason or "cancelled")
    if ended.local and ended.state is RunState.STOPPED:
        return Finding(trouble=Trouble.CANCELLED, what=ended.reason or "stopped on this machine")
    if outcome is not None and outcome.status is Status.FAILED and (outcome.cause in _OWN_WORDS or outcome.cause is None):
        found = _of_outcome(outcome)
        known = found.trouble is Trouble.NODE_FAILURE and slurm is not None
        return found if not known or slurm is None else _with_nodes(found, slurm.nodes)
    by_slurm = None if slurm is None else _of_slurm(slurm)
    if by_slurm is not None:
        return by_slurm
    if ended.state is RunState.TIMED_OUT or (slurm is not None and slurm.state in (SlurmState.TIMEOUT, SlurmState.DEADLINE)):
        return _timed_out(ended)
    by_log = _of_log(ended.log)
    if by_log is not None:
        return _with_nodes(by_log, slurm.nodes) if by_log.trouble is Trouble.NODE_FAILURE and slurm is not None else by_log
    if outcome is not None and outcome.status is Status.FAILED and outcome.cause is not Cause.UNEXPLAINED:
        return _of_outcome(outcome)
    if ended.state is RunState.STOPPED:
        return Finding(trouble=Trouble.PREEMPTED, what=ended.reason or "told to leave after a checkpoint")
    raised = last_traceback(ended.log)
    if raised is not None:
        return _of_exception(raised.line, raised.place)
    if outcome is not None and outcome.status is Status.FAILED:
        return _of_outcome(outcome)
    if slurm is None or slurm.state is SlurmState.UNKNOWN:
        return Finding(trouble=Trouble.LOST, what=ended.reason or "nobody knows it", unexplained=not ended.local)
    said = f"Slurm says {slurm.state.value}" + (f" (exit {slurm.exit})" if slurm.exit else "")
    return Finding(trouble=Trouble.LOST, what=f"{said}, and neither an outcome nor the log explains it")


def _with_nodes(found: Finding, nodes: str) -> Finding:
    return Finding(trouble=found.trouble, what=found.what, bug=found.bug, nodes=nodes, hint=found.hint)


# --- host lists ---------------------------------------------------------------------------------------------------------

_MOST_NODES = 4096
_ONE = r"[\w.][\w.\-]*(?:\[[\d,\-]+\])?"
_HOST_LIST = re.compile(rf"{_ONE}(?:,{_ONE})*", re.ASCII)


def expand_nodes(text: str) -> list[str]:
    """`n[1-3,07],login` -> n1 n2 n3 n07 login. Empty for what is no host list, or one of more than 4096 names."""
    names: list[str] = []
    for one in re.findall(_ONE, text, re.ASCII) if _HOST_LIST.fullmatch(text) else ():
        prefix, bracket, inside = one.partition("[")
        if not bracket:
            names.append(one)
            continue
        for part in inside.rstrip("]").split(","):
            low, dash, high = part.partition("-")
            if not low.isdecimal() or (dash and not high.isdecimal()):
                return []
            last = int(high) if dash else int(low)
            if last - int(low) + len(names) >= _MOST_NODES:
                return []
            names += [f"{prefix}{number:0{len(low)}d}" for number in range(int(low), last + 1)]
    return names
