"""Owns what happens to the control plane and its tracker: `orch` killed at a moment or a line, several at once, a sick server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from orchestrator import apply, workspace
from orchestrator.slurm import submit
from orchestrator.store.runs import Store
from orchestrator.tracking import shipper
from tests.chaos.fault import Fault
from tests.chaos.mischief import lines_of
from tests.chaos.scene import NAME, Scene

LINES: dict[str, tuple[tuple[str, Callable[..., object]], ...]] = {
    "resume": (
        ("orchestrator.apply:submit_batches", apply.submit_batches),
        ("orchestrator.slurm.submit:write_index", submit.write_index),
        ("orchestrator.slurm.submit:sbatch", submit.sbatch),
        ("orchestrator.store.runs:Store.intend", Store.intend),
        ("orchestrator.store.runs:Store.submitted", Store.submitted),
    ),
    "submit": (
        ("orchestrator.workspace:freeze", workspace.freeze),
        ("orchestrator.store.runs:Store.add", Store.add),
    ),
    "sync": (
        ("orchestrator.tracking.shipper:ship_run", shipper.ship_run),
        ("orchestrator.tracking.shipper:_bind", shipper._bind),
        ("orchestrator.tracking.shipper:_ship_status", shipper._ship_status),
        ("orchestrator.tracking.shipper:_ship_sweep", shipper._ship_sweep),
    ),
}
"""Command -> functions between an intent and its record, or between a batch and its cursor."""


def _words(scene: Scene, verb: str) -> tuple[str, ...]:
    return {"submit": ("submit", str(scene.sweep)), "sync": ("sync",), "watch": ("watch", NAME, "--once")}.get(verb, (verb, NAME))


def _killed(verb: str) -> Callable[[Scene], list[str] | None]:
    def strike(scene: Scene) -> list[str] | None:
        process = scene.orch(*_words(scene, verb), wait=False)
        time.sleep(scene.draw.uniform(0.1, 1.5))
        process.kill()
        process.wait()
        return []

    return strike


def killed_at_a_line(scene: Scene) -> list[str] | None:
    """`orch` dies right before a line between an intent and its record."""
    verb = scene.draw.choice(tuple(LINES) if scene.tracker.answers else ("resume", "submit"))
    name, function = scene.draw.choice(LINES[verb])
    scene.orch(*_words(scene, verb), struck=(name, scene.draw.choice(lines_of(function))))
    return []


def two_people(scene: Scene) -> list[str] | None:
    """Two resume, one submits, one watches and one asks for the table, all at once."""
    verbs = ("resume", "resume", "submit", "watch", "table")
    scene.helpers += [scene.orch(*_words(scene, verb), wait=False) for verb in verbs]
    return []


def sync_killed(scene: Scene) -> list[str] | None:
    """`orch sync` is killed within a second of its first request."""
    proxy = scene.tracker.proxy
    process = scene.orch("sync", wait=False)
    struck = _grows(lambda: proxy.asked, process)
    time.sleep(scene.draw.uniform(0.0, 1.0))
    process.kill()
    process.wait()
    return [] if struck else None


def tracker_dies(scene: Scene) -> list[str] | None:
    """The tracking server is killed as a batch arrives or at any moment, orch ships into nothing, and it comes back."""
    proxy = scene.tracker.proxy
    proxy.ambush = scene.draw.choice(("dead", None))
    met, pause_s = (lambda: proxy.hurt, 0.0) if proxy.ambush else (lambda: proxy.asked, scene.draw.uniform(0.0, 1.0))
    process = scene.orch("sync", wait=False)
    struck = _grows(met, process)
    time.sleep(pause_s)
    scene.tracker.down()
    process.wait(timeout=120)
    proxy.mood, proxy.ambush = "honest", None
    scene.tracker.up()
    return [] if struck else None


def tracker_is_sick(scene: Scene) -> list[str] | None:
    """From a batch on the tracker answers 500 for a while, or too late, or takes what it gets and hangs up before its answer."""
    proxy = scene.tracker.proxy
    proxy.ambush = scene.draw.choice(("failing", "slow", "mute"))
    process = scene.orch("sync", wait=False)
    struck = _grows(lambda: proxy.hurt, process)
    time.sleep(scene.draw.uniform(1.0, 4.0))
    proxy.mood, proxy.ambush = "honest", None
    process.wait(timeout=240)
    return [] if struck else None


def _grows(count: Callable[[], int], process: subprocess.Popen[bytes]) -> bool:
    """Wait for the proxy to count one more; False when the process ends before."""
    before = count()
    while count() == before:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


OF_ORCH = (
    *(Fault(name=f"orch {verb} killed", notice=True, strike=_killed(verb)) for verb in ("submit", "resume", "table", "watch")),
    Fault(name="orch sync killed", notice=True, strike=sync_killed),
    Fault(name="orch killed at a line", notice=True, strike=killed_at_a_line),
    Fault(name="five orch at once", notice=True, strike=two_people),
    Fault(name="tracker killed while shipping", notice=True, strike=tracker_dies),
    Fault(name="tracker fails, dawdles or hangs up", notice=True, strike=tracker_is_sick),
)
