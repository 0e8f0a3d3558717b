"""Run jobs in forks of one warm process: a rehearsal needs dozens of attempts, and a cold start of torch each would take hours.

The warm process imports torch and computes nothing, so a fork inherits no thread and no device context.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import __main__ as entry
from jobs.contract import RunDir
from jobs.spec import FrozenRun

Hook = Callable[[], None]


def warm() -> None:
    """Import everything that a job of any kind imports."""
    for kind in ("count", "prepare", "embed", "train", "evaluate"):
        entry.job_function(kind)


def make_run(root: Path, run_id: str, config: Mapping[str, Any], needs: Mapping[str, str]) -> RunDir:
    """A run directory for a rehearsal: a frozen spec, no code snapshot (the warm process has its code)."""
    run_dir = RunDir(root / run_id)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    frozen = FrozenRun.model_validate({"id": run_id, "config": dict(config), "needs": dict(needs)})
    run_dir.spec.write_text(json.dumps(frozen.model_dump(mode="json")), encoding="utf-8")
    return run_dir


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a fork ended."""

    code: int
    """Exit code, or minus the signal."""
    peak_mib: float
    """Largest resident size of the fork, in MiB (the warm process's own pages included)."""
    seconds: float


def _child(run_dir: RunDir, environment: Mapping[str, str], hook: Hook | None) -> None:
    code = 1
    try:
        os.setsid()
        log = os.open(run_dir.path / "rehearsal.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            del os.environ[name]
        os.environ.update(environment)
        os.chdir(run_dir.path)
        if hook is not None:
            hook()
        code = entry.main([str(run_dir.path)])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(run_dir: RunDir, *, environment: Mapping[str, str] | None = None, hook: Hook | None = None) -> int:
    """Fork a process that executes the run; its pid. `hook` runs in the fork before the job."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _child(run_dir, environment or {}, hook)
    return pid


def wait(pid: int) -> Ended:
    """Wait for a fork to end."""
    begun = time.monotonic()
    _, status, usage = os.wait4(pid, 0)
    return Ended(code=os.waitstatus_to_exitcode(status), peak_mib=usage.ru_maxrss / 1024, seconds=time.monotonic() - begun)


def run_group(run_dir: RunDir, *, ranks: int, launch: str, hook: Hook | None = None) -> list[int]:
    """Fork all ranks of one attempt; their pids."""
    environment = [
        {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "ORCH_LAUNCH": launch} for rank in range(ranks)
    ]
    return [start(run_dir, environment=one, hook=hook) for one in environment]


def end_group(pids: list[int], *, grace_s: float = 20.0) -> list[Ended]:
    """Wait for all ranks; once one has ended badly, the others get a grace and are killed (as srun does)."""
    ended: dict[int, Ended] = {}
    deadline: float | None = None
    while len(ended) < len(pids):
        for pid in pids:
            if pid in ended:
                continue
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                ended[pid] = Ended(code=os.waitstatus_to_exitcode(status), peak_mib=usage.ru_maxrss / 1024, seconds=0.0)
                if ended[pid].code != 0 and deadline is None:
                    deadline = time.monotonic() + grace_s
        if deadline is not None and time.monotonic() > deadline:
            for pid in set(pids) - set(ended):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [ended[pid] for pid in pids]
