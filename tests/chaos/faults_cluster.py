"""Owns what happens to the cluster: evictions, requeues, nodes without power, daemons that die, answers that are wrong."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

from tests.chaos.fault import Fault, job_of
from tests.chaos.scene import NAME, Scene
from tests.slurm.cluster import PrivateClusterError

LIES = {"empty": "#!/bin/sh\nexit 0\n", "refusing": "#!/bin/sh\necho 'slurm_load_jobs error: try again later' >&2\nexit 1\n"}


def evict(scene: Scene) -> list[str] | None:
    """A job of a higher priority takes a node for a while."""
    if not scene.jobs():
        return None
    with suppress(PrivateClusterError):
        scene.cluster.sbatch("sleep 1", "--nodes=1", "--exclusive", "--job-name=taker", partition="high")
    return []


def requeue(scene: Scene) -> list[str] | None:
    """An administrator requeues a job, running or waiting."""
    job = job_of(scene, "RUNNING", "PENDING")
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


def daemon_dies(scene: Scene) -> list[str] | None:
    """slurmd of a node is killed and started again; the jobs there live on."""
    scene.cluster.daemon_restarts(scene.draw.choice(scene.cluster.nodes))
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


OF_THE_CLUSTER = (
    Fault(name="eviction by priority", notice=True, strike=evict),
    Fault(name="scontrol requeue", notice=True, strike=requeue),
    Fault(name="a node loses power", notice=False, strike=node_dies),
    Fault(name="slurmd killed", notice=True, strike=daemon_dies),
    Fault(name="slurmctld restarts", notice=True, strike=controller_restarts),
    Fault(name="slurmctld killed", notice=False, strike=controller_dies),
    Fault(name="slurmdbd killed", notice=True, strike=accounting_dies),
    Fault(name="squeue or sacct lies", notice=True, strike=lying_slurm),
)
