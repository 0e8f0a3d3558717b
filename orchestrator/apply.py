"""The only file that acts: records decisions, submits batches, cancels. Every act is: write intent, act, record.

dies before the intent is recorded     nothing happened
dies between intent and sbatch         the intent ages, the next pass withdraws it and plans the runs again
dies between sbatch and the record     the next pass finds the job by its name (the token) and adopts it
sbatch's answer is lost                the same: adopted when the job turns up, else withdrawn once the intent is old
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.contract import read_attempts, write_atomically
from orchestrator.batches import Cut, dependency
from orchestrator.causes import SLURM, slurm_line
from orchestrator.decide import Action, Adopt, Move, Withdraw
from orchestrator.errors import ClusterError
from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.local_process import LOCAL_JOB, terminate
from orchestrator.records import RunRecord
from orchestrator.retry import NODE_FAILED, RETRY, Retry, Verdict
from orchestrator.slurm.client import Slurm
from orchestrator.slurm.submit import AnswerLost, ArrayRequest, sbatch, write_index
from orchestrator.store.runs import Change, Store
from orchestrator.workspace import Root, refreeze_runtime


def record(store: Store, actions: Sequence[Action], *, now: float) -> None:
    """Write decisions into the store; asks nobody and tells nobody."""
    moves = [action for action in actions if isinstance(action, Move)]
    store.apply(
        [
            Change(
                run=move.run,
                state=move.state,
                reason=move.reason,
                missing_since=move.missing_since,
                job=move.job,
                facts={} if move.slurm is None else {SLURM: slurm_line(move.slurm)},
            )
            for move in moves
        ],
        now=now,
    )
    for action in actions:
        match action:
            case Adopt():
                store.submitted(action.token, action.job, now=now)
            case Withdraw():
                store.withdrawn(action.token, reason=action.reason, now=now)
            case Move():
                pass


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What a round of submissions did."""

    arrays: Mapping[str, int] = field(default_factory=dict)
    """Array job id -> its runs."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Run id -> why it waits."""


def newest_attempt(root: Root, run_id: str) -> int:
    """Number of the newest attempt on disk; 0 when there was none."""
    return max((attempt.number for attempt in read_attempts(root.run_dir(run_id))), default=0)


def submit_batches(root: Root, store: Store, cut: Cut) -> Submitted:
    """Submit the batches in order; later ones may depend on earlier ones.

    Raises ClusterError when sbatch refuses: that batch and all later ones are planned again, earlier ones stay queued.
    When the answer is lost (AnswerLost), that batch stays an intent.
    """
    jobs: list[str] = []
    for batch in cut.batches:
        token = secrets.token_hex(6)
        request = ArrayRequest(
            token=token,
            folder=root.slurm / token,
            tasks=batch.tasks,
            runs_per_task=batch.runs_per_task,
            resources=batch.resources,
            dependency=dependency(batch, jobs),
        )
        write_index(request, [root.run_dir(run).path.absolute() for run in batch.runs])
        after = {run: newest_attempt(root, run) for run in batch.runs}
        for run in batch.runs:
            root.run_dir(run).cancel_mark.unlink(missing_ok=True)
        store.intend(token, batch.runs, after=after, now=time.time(), runs_per_task=batch.runs_per_task)
        try:
            job = sbatch(request)
        except AnswerLost:
            raise
        except ClusterError as error:
            store.withdrawn(token, reason=str(error.problems[0].what), now=time.time())
            raise
        store.submitted(token, job, now=time.time())
        jobs.append(job)
    sizes = {job: len(batch.runs) for job, batch in zip(jobs, cut.batches, strict=True)}
    hold(store, cut.held)
    return Submitted(arrays=sizes, held=cut.held)


def plan_again(root: Root, store: Store, verdicts: Mapping[str, Verdict], *, now: float) -> list[str]:
    """Plan the runs again whose verdict says so, each with its line in the ledger; the ids.

    A change of a run's accumulation follows the record: dying in between costs one retry, and never cuts a batch twice.
    """
    again = {run: one for run, one in verdicts.items() if one.resume}
    changes: list[Change] = []
    records = store.runs(again)
    for run, one in again.items():
        facts = {RETRY: Retry(trouble=one.trouble, after_attempt=newest_attempt(root, run)).line()}
        if one.finding.nodes:
            facts[NODE_FAILED] = f"{one.finding.nodes} {records[run].job}"
        if one.accumulation is not None:
            facts["accumulation"] = str(one.accumulation)
        reason = f"again after {one.trouble.value} ({one.used + 1} of {one.budget})"
        changes.append(Change(run=run, state=RunState.PLANNED, reason=reason, facts=facts))
    store.apply(changes, now=now)
    for run, one in again.items():
        if one.accumulation is not None:
            refreeze_runtime(root, run, {"accumulation": one.accumulation})
    return list(again)


def hold(store: Store, held: Mapping[str, str]) -> None:
    """Record why planned runs are not submitted, where that is news."""
    records = store.runs() if held else {}
    news = {run: reason for run, reason in held.items() if run in records and records[run].reason != reason}
    store.apply([Change(run=run, state=RunState.PLANNED, reason=reason) for run, reason in news.items()], now=time.time())


def cancel(root: Root, store: Store, slurm: Slurm | None, runs: Iterable[RunRecord]) -> list[str]:
    """Cancel runs: first the mark (no job with it ever requeues itself), then scancel, then the record. The ids cancelled."""
    chosen = [run for run in runs if run.state in ACTIVE or run.state in (RunState.PLANNED, RunState.LOST)]
    for run in chosen:
        write_atomically(root.run_dir(run.id).cancel_mark, f"{time.time()}\n")
    ids = {run.id for run in chosen}
    kept = {run.job for run in store.runs().values() if run.runs_per_task > 1 and run.state in ACTIVE and run.id not in ids}
    jobs = dict.fromkeys(run.job for run in chosen if run.job and not run.job.startswith(LOCAL_JOB))
    tasks = [job for job in jobs if job not in kept]  # a pack with runs that nobody cancels finds the others' marks
    for run in chosen:
        if run.job.startswith(LOCAL_JOB) and run.state is RunState.RUNNING:
            terminate(run.job)
    if slurm is not None and tasks:
        slurm.cancel(tasks)
    waiting = [run for run in chosen if run.state is not RunState.RUNNING]
    store.apply([Change(run=run.id, state=RunState.CANCELLED, reason="cancelled") for run in waiting], now=time.time())
    return [run.id for run in chosen]
