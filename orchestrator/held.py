"""Owns jobs that Slurm holds though nobody asked for it: which they are, and that they are let go, or go away."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.records import RunRecord
from orchestrator.slurm.client import Slurm
from orchestrator.slurm.parse import compact_ids
from orchestrator.slurm.states import SlurmState, held_by_slurm
from orchestrator.snapshot import Snapshot
from orchestrator.store.runs import Store


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


def leftovers(snapshot: Snapshot, records: Iterable[RunRecord], tokens: Collection[str]) -> list[str]:
    """Jobs of these submissions that Slurm holds in this way and no run waits for: theirs has ended, or is another job's by now
    (Slurm had lost sight of one, and brought it back). Pure."""
    arrays = {array for token, array in snapshot.arrays.items() if token in tokens}
    awaited = {one.job for one in records if one.state in ACTIVE or one.state is RunState.LOST}
    return held(snapshot, [job for job in snapshot.queue or {} if job.partition("_")[0] in arrays and job not in awaited])


def cancel_leftovers(slurm: Slurm, store: Store, snapshot: Snapshot) -> str:
    """Cancel them; a line that says so, empty when there are none. Raises ClusterError when the controller does not answer."""
    if not held(snapshot, snapshot.queue or {}):  # nearly always: then the store is not read
        return ""
    found = leftovers(snapshot, store.runs().values(), store.tokens())
    if not found:
        return ""
    slurm.cancel(found)
    return f"cancelled {', '.join(found if len(found) == 1 else compact_ids(found))}: Slurm held what no run waits for any more"
