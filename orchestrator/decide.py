"""(records, snapshot, policy, now) -> actions. Pure: no clock, no I/O.

The outcome file comes first, then Slurm's queue, then its history; what none of them explains is waited for, then LOST.
Absent never means done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jobs.contract import Outcome, Status
from orchestrator.lifecycle import LEGAL, RESUMABLE, RunState
from orchestrator.local_process import LOCAL_JOB
from orchestrator.policy import Policy
from orchestrator.records import RunRecord, SubmissionRecord
from orchestrator.slurm.states import ENDED, EXECUTING, SlurmState
from orchestrator.snapshot import DiskSeen, Snapshot, TaskSeen


@dataclass(frozen=True, kw_only=True)
class Move:
    """Record a new state of a run."""

    run: str
    state: RunState
    reason: str = ""
    missing_since: float | None = None
    job: str | None = None
    """The job that works on it, when it is not the one that the store knows."""
    slurm: TaskSeen | None = None
    """How Slurm saw its job end, for a run that ended without finishing."""


@dataclass(frozen=True, kw_only=True)
class Adopt:
    """A submission whose answer we never recorded reached Slurm after all: take its array job id."""

    token: str
    job: str


@dataclass(frozen=True, kw_only=True)
class Withdraw:
    """A submission never reached Slurm: its runs are planned again."""

    token: str
    reason: str


Action = Move | Adopt | Withdraw

REQUEUED = "requeued"
ORDINARY_WAITS = frozenset({"", "None", "Priority", "Resources", "BeginTime", "Dependency"})
"""Slurm's reasons for waiting that need nobody's attention."""

_BY_STATUS = {
    Status.DONE: RunState.DONE,
    Status.FAILED: RunState.FAILED,
    Status.BLOCKED: RunState.PLANNED,
    Status.STOPPED: RunState.STOPPED,
    Status.CANCELLED: RunState.CANCELLED,
}


def state_of(outcome: Outcome) -> RunState:
    """The state that an outcome leads to."""
    return _BY_STATUS[outcome.status]


def outcome_reason(outcome: Outcome) -> str:
    """One line: the cause in words, then the reason."""
    cause = outcome.cause.value.replace("_", " ") if outcome.cause else ""
    return ": ".join(part for part in (cause, outcome.reason.strip().split("\n")[0]) if part)


def _from_outcome(record: RunRecord, seen: DiskSeen | None) -> Move | None:
    """The outcome decides: done is done; any other counts only from the newest attempt, and from this submission."""
    if seen is None or seen.outcome is None:
        return None
    if seen.outcome.status is Status.DONE:
        return Move(run=record.id, state=RunState.DONE)
    if seen.outcome.attempt < seen.newest_attempt or seen.outcome.attempt <= record.after_attempt:
        return None
    return Move(run=record.id, state=state_of(seen.outcome), reason=outcome_reason(seen.outcome))


def _left_by_its_pack(record: RunRecord, seen: DiskSeen | None) -> bool:
    """Whether an outcome is final though the job lives: a pack never starts a run again that its own submission has ended."""
    return record.runs_per_task > 1 and seen is not None and seen.attempt_token == record.token


def _from_queue(record: RunRecord, task: TaskSeen, seen: DiskSeen | None) -> Move:
    if task.state in EXECUTING:
        return Move(run=record.id, state=RunState.RUNNING)
    reason = "" if task.reason in ORDINARY_WAITS else task.reason
    if not reason and seen is None and record.reason == REQUEUED:
        reason = REQUEUED
    if seen is not None and seen.newest_attempt > record.after_attempt and not reason:
        reason = REQUEUED
    return Move(run=record.id, state=RunState.QUEUED, reason=reason)


def _from_history(record: RunRecord, task: TaskSeen, started: bool, waits: str) -> Move | None:
    """A job that has left the queue without an outcome: what sacct says about it."""
    match task.state:
        case SlurmState.CANCELLED if not started and waits:
            return Move(run=record.id, state=RunState.PLANNED, reason=waits)
        case SlurmState.CANCELLED:
            return Move(run=record.id, state=RunState.CANCELLED, reason="cancelled in Slurm")
        case SlurmState.TIMEOUT | SlurmState.DEADLINE:
            return Move(run=record.id, state=RunState.TIMED_OUT, reason="Slurm's time limit")
        case SlurmState.OUT_OF_MEMORY:
            return Move(run=record.id, state=RunState.FAILED, reason="out of memory: killed by Slurm")
        case SlurmState.PENDING | SlurmState.RUNNING | SlurmState.UNKNOWN:
            return None
        case state:
            return Move(run=record.id, state=RunState.LOST, reason=f"Slurm says {state.value}, and there is no outcome")


def _waits_for(record: RunRecord, records: Mapping[str, RunRecord]) -> str:
    """Which needed runs are not done, in words; empty when all are."""
    missing = [need for need in record.needs.values() if need in records and records[need].state is not RunState.DONE]
    return "" if not missing else "waits for " + ", ".join(f"{need} ({records[need].state.value})" for need in missing)


def _absent(record: RunRecord, snapshot: Snapshot, records: Mapping[str, RunRecord], policy: Policy, now: float) -> Move | None:
    """Slurm's queue does not list the job and there is no outcome."""
    seen = snapshot.disk.get(record.id)
    started = seen is not None and seen.newest_attempt > record.after_attempt
    waits = _waits_for(record, records)
    past = (snapshot.history or {}).get(record.job)
    if past is not None:
        move = _from_history(record, past, started, waits)
        if move is not None:
            return move
    if record.missing_since is None:
        return Move(run=record.id, state=record.state, reason="not in the queue", missing_since=now)
    if now - record.missing_since < policy.missing_s:
        return None
    if not started and waits:
        return Move(run=record.id, state=RunState.PLANNED, reason=waits)
    return Move(run=record.id, state=RunState.LOST, reason="Slurm no longer knows it, and there is no outcome")


def _live(queue: Mapping[str, TaskSeen] | None, job: str) -> TaskSeen | None:
    """The job in the queue, unless it has ended there. A job that lives may still write another outcome."""
    task = None if queue is None else queue.get(job)
    return None if task is None or task.state in ENDED else task


def _observe_run(
    record: RunRecord, snapshot: Snapshot, records: Mapping[str, RunRecord], policy: Policy, now: float
) -> Move | None:
    move = _move_of(record, snapshot, records, policy, now)
    if move is None or move.state not in RESUMABLE or move.state is record.state:
        return move
    past = (snapshot.history or {}).get(record.job)
    seen = snapshot.disk.get(record.id)
    if _left_by_its_pack(record, seen) and _from_outcome(record, seen) is not None:
        where = past or (snapshot.queue or {}).get(record.job)  # the job's end is its pack's, not its own
        return move if where is None else replace(move, slurm=TaskSeen(state=SlurmState.UNKNOWN, nodes=where.nodes))
    return move if past is None or past.state not in ENDED else replace(move, slurm=past)


def _move_of(record: RunRecord, snapshot: Snapshot, records: Mapping[str, RunRecord], policy: Policy, now: float) -> Move | None:
    seen = snapshot.disk.get(record.id)
    queue = snapshot.local if record.job.startswith(LOCAL_JOB) else snapshot.queue
    task = _live(queue, record.job)
    decided = _from_outcome(record, seen)
    if decided is not None and (decided.state is RunState.DONE or _left_by_its_pack(record, seen)):
        return decided
    if decided is not None and queue is not None and task is None:
        return decided
    if queue is None or not record.job:
        return None
    if task is not None:
        return _from_queue(record, task, seen)
    other = _live(queue, seen.attempt_job) if seen is not None else None
    if seen is not None and other is not None:  # a submission that we had given up, or never knew, works on it
        return replace(_from_queue(record, other, seen), job=seen.attempt_job)
    if record.state is RunState.LOST:
        return None  # still lost, and its reason stands
    return _absent(record, snapshot, records, policy, now)


def _submission(
    submission: SubmissionRecord, snapshot: Snapshot, runs: Iterable[DiskSeen], policy: Policy, now: float
) -> Action | None:
    """What became of an intent whose answer is not recorded."""
    known = snapshot.arrays.get(submission.token)
    if known:
        return Adopt(token=submission.token, job=known)
    for seen in runs:
        if seen.attempt_token == submission.token and "_" in seen.attempt_job:
            return Adopt(token=submission.token, job=seen.attempt_job.partition("_")[0])
    late = now - submission.created_at > policy.intent_age_s
    if submission.state == "intended" and snapshot.queue is not None and late:
        return Withdraw(token=submission.token, reason="its submission never reached Slurm")
    return None


def decide(
    records: Mapping[str, RunRecord], intents: Iterable[SubmissionRecord], snapshot: Snapshot, policy: Policy, now: float
) -> list[Action]:
    """What to record after one look. `intents`: submissions whose job is not known (intended, or withdrawn too early)."""
    actions: list[Action] = []
    for submission in intents:
        mine = [snapshot.disk[run.id] for run in records.values() if run.token == submission.token and run.id in snapshot.disk]
        action = _submission(submission, snapshot, mine, policy, now)
        if action is not None:
            actions.append(action)
    for record in records.values():
        if record.state in (RunState.PLANNED, RunState.DONE):
            continue
        if record.state in (RunState.FAILED, RunState.CANCELLED, RunState.STOPPED, RunState.TIMED_OUT):
            continue
        move = _observe_run(record, snapshot, records, policy, now)
        if move is None or (move.state is not record.state and move.state not in LEGAL[record.state]):
            continue
        if (move.state, move.reason, move.missing_since) != (record.state, record.reason, record.missing_since):
            actions.append(move)
    return actions
