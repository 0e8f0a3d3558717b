"""Who am I among the processes of this attempt, and where do they meet. Torch-free.

Rank 0 binds a free port and publishes it in a file named after this launch (job id and restart count), together with its
attempt number, or the code to exit with when the attempt is over before it began. No port is ever guessed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.contract import RunDir, write_atomically
from jobs.preemption import Flag


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place in the attempt."""

    rank: int
    world_size: int
    local_rank: int
    launch: str
    """Unique per launch of the whole group; equal in all of its ranks."""
    address: str
    """Where rank 0 listens: an address, since node names need not resolve."""

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Ranks:
        """From Slurm's variables inside a job step, else from RANK, WORLD_SIZE, LOCAL_RANK and ORCH_LAUNCH, else alone."""
        if "SLURM_PROCID" in environ and "SLURM_JOB_ID" in environ:
            restart = environ.get("SLURM_RESTART_COUNT") or "0"
            return Ranks(
                rank=int(environ["SLURM_PROCID"]),
                world_size=int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1),
                local_rank=int(environ.get("SLURM_LOCALID") or 0),
                launch=f"{environ['SLURM_JOB_ID']}.{restart}",
                address=environ.get("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1",
            )
        return Ranks(
            rank=int(environ.get("RANK") or 0),
            world_size=int(environ.get("WORLD_SIZE") or 1),
            local_rank=int(environ.get("LOCAL_RANK") or 0),
            launch=environ.get("ORCH_LAUNCH") or f"local.{os.getpid()}",
            address="127.0.0.1",
        )


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What rank 0 tells the others."""

    attempt: int = 0
    port: int = 0
    exit_code: int | None = None
    """Set when there is nothing to do: every rank ends with it."""


def _path(run_dir: RunDir, ranks: Ranks) -> Path:
    return run_dir.attempts / f".meeting-{ranks.launch}"


def listen() -> socket.socket:
    """A socket on a free port, listening on all addresses."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("", 0))
    listening.listen(1024)
    return listening


def publish(run_dir: RunDir, ranks: Ranks, meeting: Meeting) -> None:
    """Rank 0 tells the others (atomic: they never see half of it). Alone, there is nobody to tell."""
    if ranks.world_size > 1:
        run_dir.attempts.mkdir(parents=True, exist_ok=True)
        _clear_old(run_dir)
        write_atomically(_path(run_dir, ranks), json.dumps(asdict(meeting)))


def _clear_old(run_dir: RunDir) -> None:
    """Remove meeting files that no living launch can still need."""
    for path in run_dir.attempts.glob(".meeting-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def withdraw(run_dir: RunDir, ranks: Ranks) -> None:
    """Remove the meeting file once everybody is there."""
    _path(run_dir, ranks).unlink(missing_ok=True)


def attend(run_dir: RunDir, ranks: Ranks, flag: Flag, *, timeout_s: float = 300.0) -> Meeting:
    """Wait for rank 0's word. Raises TimeoutError, also when a signal asks us to leave before it came."""
    deadline, path = time.monotonic() + timeout_s, _path(run_dir, ranks)
    while time.monotonic() < deadline:
        try:
            return Meeting(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            if flag.terminating:
                raise TimeoutError("told to leave before rank 0 published its address") from None
            time.sleep(0.05)
    raise TimeoutError(f"rank 0 did not publish its address within {timeout_s:.0f} s")
