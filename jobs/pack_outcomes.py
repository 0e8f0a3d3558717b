"""What a pack reads in its runs' directories, and the one thing it writes there: how a run ended that left no word. Torch-free.

A run is over for its pack once an attempt of the pack's own submission has an outcome: whether it is tried again is for the
control plane to say, in another submission. So the pack's requeue never retries what has failed.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import time
import uuid
from pathlib import Path

from jobs.contract import (
    Attempt,
    Cause,
    Outcome,
    RunDir,
    Status,
    claim,
    manifest_problem,
    read_attempts,
    read_outcome,
    write_outcome,
)
from jobs.eviction import Slurm

_NOBODY = Attempt(number=0, claimant="")


def newest_attempt(run_dir: RunDir) -> Attempt:
    """The newest claim on a run; number 0 when there is none."""
    return max(read_attempts(run_dir), key=lambda attempt: attempt.number, default=_NOBODY)


def why_over(run_dir: RunDir, token: str) -> str:
    """Why a pack of this submission leaves a run alone; empty when it shall be started."""
    outcome, attempts = read_outcome(run_dir), read_attempts(run_dir)
    if outcome is not None and outcome.status is Status.DONE and manifest_problem(run_dir) is None:
        return "done"
    if not any(attempt.token == token for attempt in attempts):
        return ""  # whoever claimed it did so before it was given to us
    newest = newest_attempt(run_dir)
    if newest.token != token:
        return f"attempt {newest.number}, of another submission, owns it"
    if outcome is not None and outcome.attempt == newest.number:
        return f"ended as {outcome.status.value}"
    return ""


def how_it_ended(code: int) -> str:
    """A silent end in words; `code`: exit code, or minus the signal."""
    if code >= 0:
        return f"its process ended with exit code {code} and no outcome"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"its process was killed by signal {-code} ({name})"


def speak_for(run_dir: RunDir, slurm: Slurm, *, before: int, status: Status, reason: str, cause: Cause | None = None) -> bool:
    """Write how a run ended whose process is gone, unless it has said so itself, or is another's by now; whether it was written.

    `before`: its newest attempt when its process was started. A process that died before it claimed the run gets an attempt
    in its name, so that the outcome is this submission's. Raises OSError when the disk does not take it.
    """
    outcome, newest = read_outcome(run_dir), newest_attempt(run_dir)
    if outcome is not None and outcome.status is Status.DONE:
        return False
    mine = newest.token == slurm.token
    if not mine and newest.number > before:
        return False
    if not mine or (outcome is not None and outcome.attempt > newest.number):
        newest = claim(run_dir, _attempt(slurm))
    if outcome is not None and outcome.attempt == newest.number:
        return False
    write_outcome(run_dir, Outcome(status=status, attempt=newest.number, reason=reason, cause=cause))
    return True


def _attempt(slurm: Slurm) -> Attempt:
    return Attempt(
        number=0,
        claimant=uuid.uuid4().hex,
        token=slurm.token,
        job_id=slurm.job_id,
        restart_count=slurm.restart_count,
        node=platform.node(),
        pid=os.getpid(),
        started_at=time.time(),
    )


_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes of this task the kernel has killed for their memory, as its control group counts; 0 without one."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
        unified = [mounted / path.lstrip("/") / "memory.events" for _, controllers, path in lines if not controllers]
        legacy = [
            mounted / "memory" / path.lstrip("/") / "memory.oom_control"
            for _, controllers, path in lines
            if "memory" in controllers.split(",")
        ]
        counters = [file.read_text(encoding="utf-8") for file in [*unified, *legacy] if file.is_file()]
    except (OSError, ValueError):
        return 0
    return sum(int(found) for text in counters for found in _OOM_KILLS.findall(text))
