"""`orch watch` as a small Slurm job of its own, which requeues itself at its time limit: the script, and whether one is there.

One job per root and set of sweeps, known by its name; a second one would do no harm, only cost a core.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.slurm.rows import Queue
from orchestrator.slurm.states import ENDED

WATCH_PREFIX = "orchwatch-"
MEMORY_MIB = 2048
"""Of which MLflow's client takes the most."""
NOTICE_S = 60
"""How long before its time limit the job requeues itself."""


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    """One watching job, before it is submitted; renders itself without I/O."""

    root: Path
    """Absolute."""
    sweeps: tuple[str, ...]
    every_s: float
    halve_micro_batch: bool = False
    partition: str | None = None
    tracking_uri: str | None = None
    """Of a team's server; None: the root's own store. Without a password: the script is a file."""
    python: str = sys.executable

    @property
    def name(self) -> str:
        """Of the job."""
        watched = "\0".join([str(self.root), *sorted(self.sweeps)])
        return f"{WATCH_PREFIX}{hashlib.sha256(watched.encode()).hexdigest()[:12]}"

    @property
    def folder(self) -> Path:
        """Where its script and its log lie."""
        return self.root / "slurm" / self.name

    def command(self) -> str:
        """What the job runs."""
        words = [self.python, "-c", "from orchestrator.cli.main import main; main()", "--root", str(self.root), "watch"]
        words += ["--every", f"{self.every_s:g}", *(["--halve-micro-batch"] if self.halve_micro_batch else []), *self.sweeps]
        return shlex.join(words)

    def script(self) -> str:
        """The whole sbatch script. A cancelled job stays cancelled: SIGTERM is nobody's wish for another attempt."""
        headers = [
            f"job-name={self.name}",
            *([f"partition={self.partition}"] if self.partition else []),
            "nodes=1",
            "ntasks=1",
            "cpus-per-task=1",
            f"mem={MEMORY_MIB}M",
            "requeue",
            f"signal=B:USR2@{NOTICE_S}",
            "open-mode=append",
            "output=watch.log",
            "error=watch.log",
            "export=ALL",
        ]
        lines = ["#!/bin/bash", *(f"#SBATCH --{header}" for header in headers), ""]
        if self.tracking_uri:
            lines.append(f"export MLFLOW_TRACKING_URI={shlex.quote(self.tracking_uri)}")
        lines += [
            "export PYTHONUNBUFFERED=1",
            "trap 'scontrol requeue \"$SLURM_JOB_ID\"' USR2",
            f"{self.command()} &",
            "watching=$!",
            'while kill -0 "$watching" 2>/dev/null; do wait "$watching"; ended=$?; done',
            'exit "$ended"',
        ]
        return "\n".join(lines) + "\n"


def write_script(request: WatchRequest) -> Path:
    """Write the script into the job's folder; its path."""
    request.folder.mkdir(mode=request.folder.parent.stat().st_mode & 0o770, exist_ok=True)  # private, or the team's
    path = request.folder / "submission.sh"
    path.write_text(request.script(), encoding="utf-8")
    return path


def queued_as(request: WatchRequest, queue: Queue) -> str | None:
    """The job that watches already; None when there is none."""
    found: Sequence[str] = [row.id for row in queue.rows if row.name == request.name and row.state not in ENDED]
    return found[0] if found else None
