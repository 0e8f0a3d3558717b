"""Owns what happens to jobs: signals, deaths at a moment or at a line, errors of the disk, damaged checkpoints, rivals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from jobs import checkpoint, contract
from tests.chaos.fault import Fault, job_of, kill_all, slain, victim
from tests.chaos.mischief import ERRORS, ORDER, SLOW, STALE, lines_of
from tests.chaos.scene import Scene
from tests.slurm.orch import processes_of

TARGETS: dict[str, Callable[..., object]] = {
    "CheckpointStore.save": checkpoint.CheckpointStore.save,
    "CheckpointStore.newest": checkpoint.CheckpointStore.newest,
    "claim": contract.claim,
    "write_outcome": contract.write_outcome,
}
AT_THE_START = ("CheckpointStore.newest", "claim")
"""An order for one of these waits for the next attempt, so the run is killed as well."""
LISTINGS_S = 3.0
"""How long listings are old or slow."""


def _signal_job(scene: Scene, *words: str) -> list[str] | None:
    job = job_of(scene)
    if job is None:
        return None
    scene.cluster.run("scancel", *words, job, check=False)
    return []


def warning(scene: Scene) -> list[str] | None:
    """SIGUSR2 to a job that Slurm neither evicts nor ends."""
    return _signal_job(scene, "--signal=USR2")


def polite_end(scene: Scene) -> list[str] | None:
    """SIGTERM to a job's step, from nobody that Slurm knows of."""
    return _signal_job(scene, "--signal=TERM")


def scancel(scene: Scene) -> list[str] | None:
    """A person cancels a job behind orch's back."""
    return _signal_job(scene)


def kill_rank(scene: Scene) -> list[str] | None:
    """SIGKILL to one process of a run, all others live."""
    run = victim(scene)
    if run is None:
        return None
    slain(processes_of([run])[:1])
    return [run]


def kill_everybody(scene: Scene) -> list[str] | None:
    """SIGKILL to every process of every run, at once."""
    runs = scene.working()
    if not runs:
        return None
    slain(processes_of(runs))
    return runs


def kill_batch(scene: Scene) -> list[str] | None:
    """SIGKILL to the batch script around a job's step."""
    return _signal_job(scene, "--signal=KILL", "--batch")


def second_attempt(scene: Scene) -> list[str] | None:
    """Somebody starts a run by hand while Slurm works on it: two processes believe that they own it."""
    run = victim(scene)
    if run is None:
        return None
    clean = {name: value for name, value in scene.environment.items() if not name.startswith("SLURM_")}
    folder = scene.run_dir(run)
    clean |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(folder.code)}
    with open(scene.folder / "by-hand.log", "ab") as log:
        command = [sys.executable, "-m", "jobs", str(folder.path)]
        scene.helpers.append(subprocess.Popen(command, cwd=folder.path, env=clean, stdout=log, stderr=log))
    return [run]


def damage_checkpoint(scene: Scene) -> list[str] | None:
    """The newest checkpoint of a run is cut, flipped or loses its manifest, and the run is killed: it must fall back."""
    run = victim(scene)
    if run is None:
        return None
    folder = scene.run_dir(run).checkpoints
    saved = sorted(folder.glob("step-*"))
    newest, _ = checkpoint.CheckpointStore(directory=folder, config_hash=run).newest()
    if len(saved) < 2 or newest is None or newest.path != saved[-1]:  # damaged before: a second blow might mend it
        return None
    kill_all(scene, run)
    with suppress(OSError):
        (state,) = saved[-1].glob("state.*")
        match scene.draw.choice(("cut", "flip", "manifest")):
            case "cut":
                os.truncate(state, 3)
            case "flip":
                content = bytearray(state.read_bytes())
                content[len(content) // 2] ^= 1
                state.write_bytes(bytes(content))
            case _:
                (saved[-1] / checkpoint.MANIFEST).unlink()
    return [run]


def _ordered(act: Callable[[Scene], str]) -> Callable[[Scene], list[str] | None]:
    def strike(scene: Scene) -> list[str] | None:
        run = victim(scene)
        if run is None:
            return None
        name = scene.draw.choice(tuple(TARGETS))
        order = {"function": name, "line": scene.draw.choice(lines_of(TARGETS[name])), "act": act(scene)}
        contract.write_atomically(scene.run_dir(run).path / ORDER, json.dumps(order))
        if name in AT_THE_START:
            kill_all(scene, run)
        return [run]

    return strike


def disk_full(scene: Scene) -> list[str] | None:
    """The file system of the root is full for a while."""
    if not scene.mounted:
        return None
    filler = scene.root / "filler"
    with suppress(OSError), open(filler, "wb") as handle:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    handle.write(b"\0" * size)
                    handle.flush()
    time.sleep(scene.draw.uniform(0.5, 2.0))
    filler.unlink(missing_ok=True)
    return []


def _listings(flag: str) -> Callable[[Scene], list[str] | None]:
    def strike(scene: Scene) -> list[str] | None:
        contract.write_atomically(scene.root / flag, f"{time.time() + LISTINGS_S}")
        return kill_everybody(scene)

    return strike


OF_JOBS = (
    Fault(name="SIGUSR2, a warning", notice=True, strike=warning),
    Fault(name="SIGTERM to the step", notice=True, strike=polite_end),
    Fault(name="scancel", notice=True, strike=scancel),
    Fault(name="SIGKILL of one rank", notice=False, strike=kill_rank),
    Fault(name="SIGKILL of all runs", notice=False, strike=kill_everybody),
    Fault(name="SIGKILL of the batch script", notice=False, strike=kill_batch),
    Fault(name="SIGKILL at a line of the job", notice=False, strike=_ordered(lambda scene: "kill")),
    Fault(name="power cut at a line of the job", notice=False, strike=_ordered(lambda scene: "power")),
    Fault(name="error of the disk at a line of the job", notice=False, strike=_ordered(lambda scene: scene.draw.choice(ERRORS))),
    Fault(name="disk full", notice=False, strike=disk_full),
    Fault(name="stale listings, all runs killed", notice=False, strike=_listings(STALE)),
    Fault(name="slow listings, all runs killed", notice=False, strike=_listings(SLOW)),
    Fault(name="a second attempt by hand", notice=False, strike=second_attempt),
    Fault(name="newest checkpoint damaged", notice=False, strike=damage_checkpoint),
)
