"""Names of local jobs, `local:<node>:<pid>`, and what can be asked and told of such a process."""

from __future__ import annotations

import contextlib
import os
import platform
import signal

LOCAL_JOB = "local:"


def local_job(pid: int) -> str:
    """The job name of a process on this machine."""
    return f"{LOCAL_JOB}{platform.node()}:{pid}"


def _pid(job: str) -> int | None:
    """The process id, when the job is on this machine."""
    node, _, pid = job.removeprefix(LOCAL_JOB).rpartition(":")
    return int(pid) if node == platform.node() and pid.isdecimal() else None


def alive(job: str) -> bool | None:
    """Whether a local job's process lives; None when it is on another machine."""
    pid = _pid(job)
    if pid is None:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def terminate(job: str) -> None:
    """Ask a local job on this machine to checkpoint and stop."""
    pid = _pid(job)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
