"""Names of local jobs, `local:<node>:<pid>:<start>`, and what can be asked and told of such a process.

`start` is the process's start time in the kernel's ticks: process ids are used again, the pair is not.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
from pathlib import Path

LOCAL_JOB = "local:"


def _start_of(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat; None when there is no such process, or only a zombie of one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def local_job(pid: int) -> str:
    """The job name of a process on this machine."""
    return f"{LOCAL_JOB}{platform.node()}:{pid}:{_start_of(pid) or '?'}"


def _parts(job: str) -> tuple[str, str, str]:
    """(node, pid, start); empty texts for a name of another form."""
    parts = job.removeprefix(LOCAL_JOB).rsplit(":", 2)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", "")


def _pid(job: str) -> int | None:
    """The process id when the job is on this machine and lives; None otherwise."""
    node, pid, start = _parts(job)
    return int(pid) if node == platform.node() and pid.isdecimal() and _start_of(int(pid)) == start else None


def alive(job: str) -> bool | None:
    """Whether a local job's process lives; None when it is on another machine."""
    return _pid(job) is not None if _parts(job)[0] == platform.node() else None


def terminate(job: str) -> None:
    """Ask a local job on this machine to checkpoint and stop."""
    pid = _pid(job)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
