"""Owns jobs that Slurm holds though nobody asked for it: which they are, and that they are let go."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.slurm.client import Slurm
from orchestrator.slurm.states import SlurmState, held_by_slurm
from orchestrator.snapshot import Snapshot


def held(snapshot: Snapshot, jobs: Collection[str]) -> list[str]:
    """Those of `jobs` that wait because a node could not launch them: Slurm would hold them for ever. Pure.

    What a person holds stays held.
    """
    queue = snapshot.queue or {}
    seen = ((job, queue[job]) for job in jobs if job in queue)
    return [job for job, task in seen if task.state is SlurmState.PENDING and held_by_slurm(task.reason)]


def release_held(slurm: Slurm, snapshot: Snapshot, jobs: Collection[str]) -> list[str]:
    """Release them; their ids. Raises ClusterError when the controller does not answer."""
    found = held(snapshot, jobs)
    if found:
        slurm.release(found)
    return found
