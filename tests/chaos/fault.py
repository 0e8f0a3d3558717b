"""Owns what a fault is, and how victims are drawn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.scene import Scene
from tests.slurm.orch import processes_of


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of mischief."""

    name: str
    notice: bool
    """Those struck are told and may save: they must lose no step."""
    strike: Callable[[Scene], list[str] | None]
    """Do it; the runs it is aimed at (all of some nodes: an empty list), or None when there was nothing to strike."""


def victim(scene: Scene) -> str | None:
    """A run that somebody works on."""
    working = scene.working()
    return scene.draw.choice(working) if working else None


def job_of(scene: Scene, *states: str) -> str | None:
    """A job in the queue; without states a running one."""
    found = scene.jobs(states or ("RUNNING",))
    return scene.draw.choice(found) if found else None


def slain(pids: list[int]) -> None:
    """SIGKILL."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_all(scene: Scene, run: str) -> None:
    """SIGKILL to every process of a run."""
    slain(processes_of([run]))
