"""Owns the faults: what each does to a scene, whether those that it strikes are told beforehand, and whom it may strike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.scene import NAME, Scene
from tests.slurm.cluster import PrivateClusterError
from tests.slurm.orch import processes_of

LIES = {"empty": "#!/bin/sh\nexit 0\n", "refusing": "#!/bin/sh\necho 'slurm_load_jobs error: try again later' >&2\nexit 1\n"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of mischief."""

    name: str
    notice: bool
    """Those struck are told and may save: they must lose no step."""
    strike: Callable[[Scene], list[str] | None]
    """Do it; the runs it is aimed at (all of some nodes: an empty list), or None when there was nothing to strike."""


def _victim(scene: Scene) -> str | None:
    working = scene.working()
    return scene.draw.choice(working) if working else None


def _job(scene: Scene, *states: str) -> str | None:
    found = scene.jobs(states or ("RUNNING",))
    return scene.draw.choice(found) if found else None


def _signal_job(scene: Scene, *words: str) -> list[str] | None:
    job = _job(scene)
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
    """SIGKILL to a run's own process."""
    run = _victim(scene)
    if run is None:
        return None
    for pid in processes_of([run]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [run]


def kill_batch(scene: Scene) -> list[str] | None:
    """SIGKILL to the batch script around it."""
    return _signal_job(scene, "--signal=KILL", "--batch")


def evict(scene: Scene) -> list[str] | None:
    """A job of a higher priority takes a node for a while."""
    if not scene.jobs():
        return None
    with suppress(PrivateClusterError):
        scene.cluster.sbatch("sleep 1", "--nodes=1", "--exclusive", "--job-name=taker", partition="high")
    return []


def requeue(scene: Scene) -> list[str] | None:
    """An administrator requeues a job, running or waiting."""
    job = _job(scene, "RUNNING", "PENDING")
    if job is None:
        return None
    scene.cluster.run("scontrol", "requeue", job, check=False)
    return []


def node_dies(scene: Scene) -> list[str] | None:
    """A node loses power and comes back."""
    node = scene.draw.choice(scene.cluster.nodes)
    scene.cluster.node_down(node)
    time.sleep(scene.draw.uniform(0.2, 1.5))
    scene.cluster.node_up(node)
    return []


def controller_restarts(scene: Scene) -> list[str] | None:
    """slurmctld ends properly and comes back."""
    return _controller(scene, signal.SIGTERM)


def controller_dies(scene: Scene) -> list[str] | None:
    """slurmctld is killed: it forgets its last seconds."""
    return _controller(scene, signal.SIGUSR1)


def _controller(scene: Scene, signum: int) -> list[str]:
    scene.cluster.controller_down(signum)
    time.sleep(scene.draw.uniform(0.2, 2.0))
    scene.cluster.controller_up()
    return []


def accounting_dies(scene: Scene) -> list[str] | None:
    """slurmdbd is killed and comes back."""
    scene.cluster.accounting_down()
    time.sleep(scene.draw.uniform(0.2, 1.0))
    scene.cluster.accounting_up()
    return []


def second_attempt(scene: Scene) -> list[str] | None:
    """Somebody starts a run by hand while Slurm works on it: two processes believe that they own it."""
    run = _victim(scene)
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
    run = _victim(scene)
    if run is None:
        return None
    saved = sorted(scene.run_dir(run).checkpoints.glob("step-*"))
    if len(saved) < 2:
        return None
    for pid in processes_of([run]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    state = saved[-1] / "state.json"
    with suppress(OSError):
        match scene.draw.choice(("cut", "flip", "manifest")):
            case "cut":
                os.truncate(state, 3)
            case "flip":
                content = bytearray(state.read_bytes())
                content[len(content) // 2] ^= 1
                state.write_bytes(bytes(content))
            case _:
                (saved[-1] / "manifest.json").unlink()
    return [run]


def _killed_orch(scene: Scene, *words: str) -> list[str]:
    process = scene.orch(*words, wait=False)
    time.sleep(scene.draw.uniform(0.1, 1.2))
    process.kill()
    process.wait()
    return []


def killed_submit(scene: Scene) -> list[str] | None:
    """`orch submit` dies at any line."""
    return _killed_orch(scene, "submit", str(scene.sweep))


def killed_resume(scene: Scene) -> list[str] | None:
    """`orch resume` dies at any line."""
    return _killed_orch(scene, "resume", NAME)


def killed_sync(scene: Scene) -> list[str] | None:
    """Shipping dies at any line."""
    return _killed_orch(scene, "sync")


def two_people(scene: Scene) -> list[str] | None:
    """Two resume and one submits, all at once."""
    words = (("resume", NAME), ("resume", NAME), ("submit", str(scene.sweep)))
    scene.helpers += [scene.orch(*one, wait=False) for one in words]
    return []


def lying_slurm(scene: Scene) -> list[str] | None:
    """squeue or sacct answers with nothing, or refuses, while orch looks and resumes."""
    folder = scene.folder / "liars"
    folder.mkdir(exist_ok=True)
    for program in ("squeue", "sacct"):
        (folder / program).unlink(missing_ok=True)
    chosen = folder / scene.draw.choice(("squeue", "sacct"))
    chosen.write_text(LIES[scene.draw.choice(tuple(LIES))])
    chosen.chmod(0o755)
    scene.orch("resume", NAME, path=str(folder))
    return []


def tracker_dies(scene: Scene) -> list[str] | None:
    """The tracking server is killed, orch ships into nothing, and it comes back."""
    process = scene.orch("sync", wait=False)
    time.sleep(scene.draw.uniform(0.3, 1.5))
    scene.tracker.down()
    process.wait(timeout=120)
    scene.tracker.up()
    return []


FAULTS = (
    Fault(name="SIGUSR2, a warning", notice=True, strike=warning),
    Fault(name="SIGTERM to the step", notice=True, strike=polite_end),
    Fault(name="scancel", notice=True, strike=scancel),
    Fault(name="SIGKILL of the rank", notice=False, strike=kill_rank),
    Fault(name="SIGKILL of the batch script", notice=False, strike=kill_batch),
    Fault(name="eviction by priority", notice=True, strike=evict),
    Fault(name="scontrol requeue", notice=True, strike=requeue),
    Fault(name="a node loses power", notice=False, strike=node_dies),
    Fault(name="slurmctld restarts", notice=True, strike=controller_restarts),
    Fault(name="slurmctld killed", notice=False, strike=controller_dies),
    Fault(name="slurmdbd killed", notice=True, strike=accounting_dies),
    Fault(name="a second attempt by hand", notice=False, strike=second_attempt),
    Fault(name="newest checkpoint damaged", notice=False, strike=damage_checkpoint),
    Fault(name="orch submit killed", notice=True, strike=killed_submit),
    Fault(name="orch resume killed", notice=True, strike=killed_resume),
    Fault(name="orch sync killed", notice=True, strike=killed_sync),
    Fault(name="two people at once", notice=True, strike=two_people),
    Fault(name="squeue or sacct lies", notice=True, strike=lying_slurm),
    Fault(name="tracker killed while shipping", notice=True, strike=tracker_dies),
)
