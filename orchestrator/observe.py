"""Ask Slurm and the disk, once: one squeue, at most one bounded sacct, whatever the number of runs. Changes nothing.

The disk is read only where it can say something new: runs that Slurm lists as waiting for the first time have not written
anything, and runs in a terminal state are not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from jobs.contract import Outcome, RunDir, read_attempts, read_outcome
from jobs.journal import last_entry
from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.local_process import LOCAL_JOB, alive
from orchestrator.records import RunRecord, SubmissionRecord
from orchestrator.slurm.client import Slurm
from orchestrator.slurm.rows import History, Queue
from orchestrator.slurm.states import ENDED, SlurmState
from orchestrator.slurm.submit import JOB_PREFIX
from orchestrator.snapshot import DiskSeen, Snapshot, TaskSeen
from orchestrator.workspace import Root

HISTORY_ARRAYS = 200
"""At most so many arrays are asked about in one sacct."""


def look_at(run_dir: RunDir) -> DiskSeen:
    """Read one run directory."""
    attempts = read_attempts(run_dir)
    newest = attempts[-1] if attempts else None
    entry = last_entry(run_dir.journals)
    outcome: Outcome | None = read_outcome(run_dir)
    return DiskSeen(
        outcome=outcome,
        newest_attempt=newest.number if newest else 0,
        attempt_token=newest.token if newest else "",
        attempt_job=newest.job_id if newest else "",
        step=entry.step if entry else 0,
    )


def _queue(rows: Queue) -> tuple[dict[str, TaskSeen], dict[str, TaskSeen], dict[str, str]]:
    """(jobs in the queue, jobs that squeue still remembers as ended, token -> array)."""
    listed: dict[str, TaskSeen] = {}
    ended: dict[str, TaskSeen] = {}
    arrays: dict[str, str] = {}
    for row in rows.rows:
        if row.name.startswith(JOB_PREFIX):
            arrays[row.name.removeprefix(JOB_PREFIX)] = row.array_id
            (ended if row.state in ENDED else listed)[row.id] = TaskSeen(state=row.state, reason=row.reason, nodes=row.nodes)
    return listed, ended, arrays


def _local(records: Iterable[RunRecord]) -> dict[str, TaskSeen]:
    """Local processes as tasks: listed while they live, or while we cannot know."""
    found: dict[str, TaskSeen] = {}
    for record in records:
        if record.job.startswith(LOCAL_JOB) and record.state in ACTIVE and alive(record.job) is not False:
            found[record.job] = TaskSeen(state=SlurmState.RUNNING)
    return found


def _history(
    slurm: Slurm, records: Iterable[RunRecord], known: Mapping[str, TaskSeen], since: float
) -> dict[str, TaskSeen] | None:
    """Ask sacct about the arrays of jobs that squeue does not explain; None when there is no history to ask."""
    missing = {record.job.partition("_")[0] for record in records if record.job not in known}
    if not missing:
        return {}
    answer = slurm.history(sorted(missing, key=int)[-HISTORY_ARRAYS:], since)
    if not isinstance(answer, History):
        return None
    return {row.id: TaskSeen(state=row.state, nodes=row.nodes, exit=f"{row.exit_code}:{row.exit_signal}") for row in answer.rows}


def observe(
    root: Root,
    records: Mapping[str, RunRecord],
    unanswered: Iterable[SubmissionRecord],
    slurm: Slurm | None,
    *,
    user: str,
    now: float,
    always: bool = False,
) -> Snapshot:
    """One look. Raises ClusterError when Slurm is needed and does not answer.

    `always`: ask for the queue though no run waits for anything there.
    """
    active = [record for record in records.values() if record.state in ACTIVE or record.state is RunState.LOST]
    local = _local(active)
    on_slurm = [record for record in active if record.job and not record.job.startswith(LOCAL_JOB)]
    intents = list(unanswered)
    listed: dict[str, TaskSeen] | None = None
    history: dict[str, TaskSeen] | None = None
    arrays: dict[str, str] = {}
    if slurm is not None and (on_slurm or intents or always):
        listed, ended, arrays = _queue(slurm.jobs(user))
        waiting = [record for record in on_slurm if record.job not in listed and record.state is not RunState.LOST]
        since = min((record.updated_at for record in waiting), default=now) - 7 * 86400
        asked = _history(slurm, waiting, ended, since)
        history = ended | asked if asked is not None else (ended or None)
    disk: dict[str, DiskSeen] = {}
    for record in active:
        task = (listed or {}).get(record.job) if record.job else None
        waits = task is not None and task.state is SlurmState.PENDING and record.state is RunState.QUEUED
        if waits and not os.path.exists(f"{root.runs}/{record.id}/outcome.json"):
            continue  # whatever else is on disk was seen before, or will be when it runs
        disk[record.id] = look_at(root.run_dir(record.id))
    return Snapshot(at=now, queue=listed, local=local, arrays=arrays, history=history, disk=disk)
