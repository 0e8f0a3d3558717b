"""The table of decisions: what one look leads to, and what no look ever leads to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import Cause, Outcome, Status
from orchestrator.decide import Action, Adopt, Move, Withdraw, decide
from orchestrator.lifecycle import LEGAL, RESUMABLE, RunState
from orchestrator.policy import Policy
from orchestrator.records import RunRecord, SubmissionRecord
from orchestrator.slurm.states import EXECUTING, WAITING, SlurmState
from orchestrator.snapshot import DiskSeen, Snapshot, TaskSeen

NOW = 1_700_000_000.0
POLICY = Policy(intent_age_s=180, missing_s=30)
JOB = "7_0"


def a_run(state: RunState = RunState.QUEUED, **values: object) -> RunRecord:
    fields = {"id": "train-1", "kind": "train", "state": state, "token": "t1", "job": JOB, "updated_at": NOW}
    return RunRecord(**(fields | values))  # type: ignore[arg-type]  # the tests name fields freely


def seen(
    *,
    queue: Mapping[str, TaskSeen] | None = None,
    history: Mapping[str, TaskSeen] | None = None,
    disk: DiskSeen | None = None,
    arrays: Mapping[str, str] | None = None,
) -> Snapshot:
    found = {} if disk is None else {"train-1": disk}
    return Snapshot(at=NOW, queue=queue, arrays=arrays or {}, history=history, disk=found)


def decided(
    record: RunRecord, snapshot: Snapshot, *, others: Sequence[RunRecord] = (), now: float = NOW, intents: object = ()
) -> list[Action]:
    records = {one.id: one for one in (record, *others)}
    return decide(records, intents, snapshot, POLICY, now)  # type: ignore[arg-type]


def only_move(actions: list[Action]) -> Move:
    (action,) = actions
    assert isinstance(action, Move)
    return action


def outcome(status: Status, attempt: int = 1, **values: object) -> Outcome:
    return Outcome(status=status, attempt=attempt, **values)  # type: ignore[arg-type]


RUNNING = {JOB: TaskSeen(state=SlurmState.RUNNING)}


# --- the outcome file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (Status.DONE, RunState.DONE),
        (Status.FAILED, RunState.FAILED),
        (Status.STOPPED, RunState.STOPPED),
        (Status.CANCELLED, RunState.CANCELLED),
        (Status.BLOCKED, RunState.PLANNED),
    ],
)
def test_that_the_outcome_of_the_newest_attempt_decides_once_its_job_has_left_the_queue(status: Status, state: RunState) -> None:
    disk = DiskSeen(outcome=outcome(status), newest_attempt=1)
    assert only_move(decided(a_run(RunState.RUNNING), seen(queue={}, disk=disk))).state is state
    ended = {JOB: TaskSeen(state=SlurmState.COMPLETED)}
    assert only_move(decided(a_run(RunState.RUNNING), seen(queue=ended, disk=disk))).state is state


@pytest.mark.parametrize("queue", [None, RUNNING], ids=["unasked", "running"])
def test_that_only_done_counts_while_the_job_may_still_live(queue: Mapping[str, TaskSeen] | None) -> None:
    """A job that stopped because Slurm did not answer may be requeued by Slurm after all."""
    for status in (Status.FAILED, Status.STOPPED, Status.CANCELLED, Status.BLOCKED):
        disk = DiskSeen(outcome=outcome(status), newest_attempt=1)
        assert decided(a_run(RunState.RUNNING), seen(queue=queue, disk=disk)) == []
    done = DiskSeen(outcome=outcome(Status.DONE), newest_attempt=1)
    assert only_move(decided(a_run(RunState.RUNNING), seen(queue=queue, disk=done))).state is RunState.DONE


@pytest.mark.parametrize("queue", [None, RUNNING, {JOB: TaskSeen(state=SlurmState.PENDING)}], ids=["unasked", "running", "waits"])
@pytest.mark.parametrize(
    ("status", "state"),
    [
        (Status.FAILED, RunState.FAILED),
        (Status.STOPPED, RunState.STOPPED),
        (Status.CANCELLED, RunState.CANCELLED),
        (Status.BLOCKED, RunState.PLANNED),
    ],
)
def test_that_what_a_packed_run_says_counts_while_its_siblings_live(
    status: Status, state: RunState, queue: Mapping[str, TaskSeen] | None
) -> None:
    """A pack that is requeued does not start it again."""
    packed = a_run(RunState.RUNNING, runs_per_task=4)
    said = DiskSeen(outcome=outcome(status), newest_attempt=1, attempt_token="t1")
    assert only_move(decided(packed, seen(queue=queue, disk=said))).state is state
    for other in (
        replace(said, attempt_token="t0"),  # of an earlier submission, or another's
        replace(said, newest_attempt=2),
        replace(said, outcome=None),
    ):
        moves = decided(packed, seen(queue=RUNNING, disk=other))
        assert all(isinstance(move, Move) and move.state is RunState.RUNNING for move in moves)


def test_that_a_packed_run_that_failed_knows_its_node_and_not_how_its_pack_ended() -> None:
    packed = a_run(RunState.RUNNING, runs_per_task=4)
    disk = DiskSeen(outcome=outcome(Status.FAILED), newest_attempt=1, attempt_token="t1")
    timed_out = {JOB: TaskSeen(state=SlurmState.TIMEOUT, nodes="n2", exit="0:1")}
    assert only_move(decided(packed, seen(queue={}, history=timed_out, disk=disk))).slurm == TaskSeen(
        state=SlurmState.UNKNOWN, nodes="n2"
    )
    running = {JOB: TaskSeen(state=SlurmState.RUNNING, nodes="n1")}
    assert only_move(decided(packed, seen(queue=running, disk=disk))).slurm == TaskSeen(state=SlurmState.UNKNOWN, nodes="n1")
    silent = replace(disk, outcome=None)
    move = only_move(decided(packed, seen(queue={}, history=timed_out, disk=silent)))
    assert (move.state, move.slurm) == (RunState.TIMED_OUT, timed_out[JOB])


def test_that_local_processes_say_nothing_about_jobs_of_slurm() -> None:
    snapshot = Snapshot(at=0.0, queue=None, local={"local:here:1:2": TaskSeen(state=SlurmState.RUNNING)})
    assert decided(a_run(RunState.RUNNING), snapshot) == []


def test_that_a_job_nobody_knew_of_is_followed_when_it_works_on_the_run() -> None:
    disk = DiskSeen(newest_attempt=2, attempt_job="77_0")
    queue = {"77_0": TaskSeen(state=SlurmState.RUNNING)}
    move = only_move(decided(a_run(RunState.QUEUED), seen(queue=queue, disk=disk)))
    assert (move.state, move.job) == (RunState.RUNNING, "77_0")


def test_that_a_failure_is_told_with_its_cause_and_first_line() -> None:
    disk = DiskSeen(outcome=outcome(Status.FAILED, cause=Cause.OUT_OF_MEMORY, reason="12 GiB asked\nmore"), newest_attempt=1)
    assert only_move(decided(a_run(RunState.RUNNING), seen(queue={}, disk=disk))).reason == "out of memory: 12 GiB asked"


def test_that_the_outcome_of_an_old_attempt_never_counts() -> None:
    newer_attempt_runs = DiskSeen(outcome=outcome(Status.FAILED, attempt=1), newest_attempt=2)
    assert only_move(decided(a_run(), seen(queue=RUNNING, disk=newer_attempt_runs))).state is RunState.RUNNING


def test_that_done_is_done_whoever_wrote_it() -> None:
    done_by_a_loser = DiskSeen(outcome=outcome(Status.DONE, attempt=1), newest_attempt=2)
    assert only_move(decided(a_run(), seen(queue=RUNNING, disk=done_by_a_loser))).state is RunState.DONE


@pytest.mark.parametrize("status", [Status.FAILED, Status.STOPPED, Status.CANCELLED, Status.BLOCKED])
def test_that_an_outcome_from_before_the_resubmission_never_counts(status: Status) -> None:
    disk = DiskSeen(outcome=outcome(status, attempt=1), newest_attempt=1)
    pending = {JOB: TaskSeen(state=SlurmState.PENDING)}
    assert decided(a_run(after_attempt=1), seen(queue=pending, disk=disk)) == []


def test_that_a_run_found_done_is_done_although_it_was_submitted_again() -> None:
    disk = DiskSeen(outcome=outcome(Status.DONE, attempt=1), newest_attempt=1)
    assert only_move(decided(a_run(after_attempt=1), seen(queue={}, disk=disk))).state is RunState.DONE


# --- the queue -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(EXECUTING))
def test_that_what_executes_is_running(state: SlurmState) -> None:
    assert only_move(decided(a_run(), seen(queue={JOB: TaskSeen(state=state)}))).state is RunState.RUNNING


@pytest.mark.parametrize("state", [*sorted(WAITING), SlurmState.UNKNOWN])
def test_that_what_waits_is_queued_with_slurms_reason(state: SlurmState) -> None:
    move = only_move(decided(a_run(RunState.RUNNING), seen(queue={JOB: TaskSeen(state=state, reason="JobHeldUser")})))
    assert (move.state, move.reason) == (RunState.QUEUED, "JobHeldUser")


def test_that_ordinary_waiting_is_no_news_and_a_requeue_stays_in_mind() -> None:
    busy = seen(queue={JOB: TaskSeen(state=SlurmState.PENDING, reason="Priority")})
    assert decided(a_run(RunState.QUEUED), busy) == []
    assert decided(a_run(RunState.QUEUED, reason="requeued"), busy) == []


def test_that_a_requeued_run_is_queued_again_and_says_so() -> None:
    snapshot = seen(queue={JOB: TaskSeen(state=SlurmState.PENDING)}, disk=DiskSeen(newest_attempt=1))
    assert only_move(decided(a_run(RunState.RUNNING), snapshot)) == Move(run="train-1", state=RunState.QUEUED, reason="requeued")


def test_that_nothing_new_is_no_action() -> None:
    assert decided(a_run(RunState.RUNNING), seen(queue=RUNNING, disk=DiskSeen(newest_attempt=1))) == []


# --- history ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (SlurmState.TIMEOUT, RunState.TIMED_OUT),
        (SlurmState.DEADLINE, RunState.TIMED_OUT),
        (SlurmState.OUT_OF_MEMORY, RunState.FAILED),
        (SlurmState.CANCELLED, RunState.CANCELLED),
        (SlurmState.COMPLETED, RunState.LOST),
        (SlurmState.FAILED, RunState.LOST),
        (SlurmState.NODE_FAIL, RunState.LOST),
        (SlurmState.BOOT_FAIL, RunState.LOST),
        (SlurmState.PREEMPTED, RunState.LOST),
    ],
)
def test_that_a_job_that_left_without_an_outcome_is_judged_by_its_history(state: SlurmState, expected: RunState) -> None:
    snapshot = seen(queue={}, history={JOB: TaskSeen(state=state)}, disk=DiskSeen(newest_attempt=1))
    move = only_move(decided(a_run(RunState.RUNNING), snapshot))
    assert move.state is expected
    assert move.reason


def test_that_completed_in_slurm_is_not_done() -> None:
    snapshot = seen(queue={}, history={JOB: TaskSeen(state=SlurmState.COMPLETED)}, disk=DiskSeen(newest_attempt=1))
    assert only_move(decided(a_run(RunState.RUNNING), snapshot)).state is RunState.LOST


def test_that_a_job_whose_dependency_failed_is_planned_again_not_cancelled() -> None:
    need = a_run(RunState.FAILED, id="prepare-1", kind="prepare", job="6_0")
    run = a_run(needs={"prepare": "prepare-1"})
    snapshot = seen(queue={}, history={JOB: TaskSeen(state=SlurmState.CANCELLED)}, disk=DiskSeen())
    move = only_move(decided(run, snapshot, others=[need]))
    assert (move.state, move.reason) == (RunState.PLANNED, "waits for prepare-1 (failed)")


# --- absent ----------------------------------------------------------------------------------------------------------


def test_that_an_absent_run_is_first_waited_for_and_then_lost() -> None:
    run, gone = a_run(RunState.RUNNING), seen(queue={}, disk=DiskSeen(newest_attempt=1))
    first = only_move(decided(run, gone))
    assert (first.state, first.missing_since) == (RunState.RUNNING, NOW)
    missing = replace(run, reason=first.reason, missing_since=NOW)
    assert decided(missing, gone, now=NOW + 29) == []
    assert only_move(decided(missing, gone, now=NOW + 31)).state is RunState.LOST


def test_that_a_run_that_turns_up_again_is_no_longer_missing() -> None:
    missing = a_run(RunState.RUNNING, reason="not in the queue", missing_since=NOW - 20)
    assert only_move(decided(missing, seen(queue=RUNNING))) == Move(run="train-1", state=RunState.RUNNING)


def test_that_nothing_is_concluded_when_slurm_was_not_asked() -> None:
    assert decided(a_run(RunState.RUNNING, missing_since=NOW - 1e6), seen(queue=None, disk=DiskSeen(newest_attempt=1))) == []


def test_that_a_lost_run_is_found_again_in_the_queue() -> None:
    assert only_move(decided(a_run(RunState.LOST, reason="gone"), seen(queue=RUNNING))).state is RunState.RUNNING


@pytest.mark.parametrize("status", list(Status))
def test_that_a_late_outcome_finds_a_lost_run_again(status: Status) -> None:
    disk = DiskSeen(outcome=outcome(status), newest_attempt=1)
    move = only_move(decided(a_run(RunState.LOST, reason="gone"), seen(queue={}, disk=disk)))
    assert move.state is not RunState.LOST


def test_that_a_lost_run_stays_lost_and_keeps_its_reason() -> None:
    lost, gone = a_run(RunState.LOST, reason="Slurm says node_fail"), seen(queue={}, disk=DiskSeen(newest_attempt=1))
    assert decided(lost, gone) == []
    assert decided(lost, gone, now=NOW + 1e6) == []


# --- intents ---------------------------------------------------------------------------------------------------------


def intent(age_s: float, state: str = "intended") -> SubmissionRecord:
    return SubmissionRecord(token="t1", state=state, job="", tasks=1, created_at=NOW - age_s)


SUBMITTING = a_run(RunState.SUBMITTING, job="")


@pytest.mark.parametrize("state", ["intended", "withdrawn"])
def test_that_an_intent_is_adopted_by_the_token_in_a_job_name(state: str) -> None:
    found = decided(SUBMITTING, seen(queue={}, arrays={"t1": "7", "other": "8"}), intents=[intent(1, state)])
    assert found == [Adopt(token="t1", job="7")]


def test_that_an_intent_is_adopted_by_an_attempt_record() -> None:
    disk = DiskSeen(newest_attempt=1, attempt_token="t1", attempt_job="7_0")
    assert decided(SUBMITTING, seen(queue={}, disk=disk), intents=[intent(1e6)]) == [Adopt(token="t1", job="7")]


def test_that_an_attempt_of_another_submission_adopts_nothing() -> None:
    disk = DiskSeen(newest_attempt=1, attempt_token="t0", attempt_job="7_0")
    assert decided(SUBMITTING, seen(queue={}, disk=disk), intents=[intent(1)]) == []


def test_that_an_intent_without_a_job_is_withdrawn_only_when_it_is_old() -> None:
    assert decided(SUBMITTING, seen(queue={}), intents=[intent(179)]) == []
    (action,) = decided(SUBMITTING, seen(queue={}), intents=[intent(181)])
    assert isinstance(action, Withdraw)


def test_that_an_intent_is_not_withdrawn_when_slurm_was_not_asked() -> None:
    assert decided(SUBMITTING, seen(queue=None), intents=[intent(1e6)]) == []


def test_that_a_withdrawn_submission_is_not_withdrawn_again() -> None:
    assert decided(SUBMITTING, seen(queue={}), intents=[intent(1e4, "withdrawn")]) == []


# --- properties ------------------------------------------------------------------------------------------------------

not_done = st.sampled_from([status for status in Status if status is not Status.DONE])
outcomes = st.none() | st.builds(Outcome, status=not_done, attempt=st.integers(0, 4), reason=st.sampled_from(["", "x\ny"]))
tasks = st.builds(TaskSeen, state=st.sampled_from(list(SlurmState)), reason=st.sampled_from(["", "None", "Priority"]))
disks = st.builds(
    DiskSeen,
    outcome=outcomes,
    newest_attempt=st.integers(0, 4),
    attempt_token=st.sampled_from(["", "t1", "zz"]),
    attempt_job=st.sampled_from(["", "7", "7_0"]),
)
looks = st.builds(
    Snapshot,
    at=st.just(NOW),
    queue=st.none() | st.dictionaries(st.sampled_from([JOB, "9_9"]), tasks),
    arrays=st.dictionaries(st.sampled_from(["t1", "zz"]), st.just("7")),
    history=st.none() | st.dictionaries(st.just(JOB), tasks),
    disk=st.dictionaries(st.just("train-1"), disks),
)


def after(record: RunRecord, actions: Sequence[Action]) -> RunRecord:
    """The record once the actions are written down (as the store does it)."""
    for action in actions:
        match action:
            case Move():
                record = replace(record, state=action.state, reason=action.reason, missing_since=action.missing_since)
            case Adopt() if record.state in (RunState.SUBMITTING, RunState.PLANNED):
                record = replace(record, state=RunState.QUEUED, job=f"{action.job}_0")
            case Withdraw() if record.state is RunState.SUBMITTING:
                record = replace(record, state=RunState.PLANNED)
            case _:
                pass
    return record


starts = st.sampled_from([state for state in RunState if state is not RunState.DONE])


@settings(max_examples=300, deadline=None)
@given(state=starts, story=st.lists(st.tuples(looks, st.floats(0, 500)), max_size=8))
def test_that_no_sequence_of_looks_without_a_done_outcome_ends_as_done(
    state: RunState, story: list[tuple[Snapshot, float]]
) -> None:
    record, now = a_run(state, job="" if state is RunState.SUBMITTING else JOB), NOW
    for snapshot, passed_s in story:
        now += passed_s
        intents = [intent(0)] if record.state is RunState.SUBMITTING else []
        record = after(record, decided(record, snapshot, now=now, intents=intents))
        assert record.state is not RunState.DONE


@settings(max_examples=300, deadline=None)
@given(state=st.sampled_from(list(RunState)), snapshot=looks, missing=st.none() | st.floats(NOW - 1000, NOW))
def test_that_every_decision_is_a_legal_step_and_the_same_look_twice_changes_nothing_more(
    state: RunState, snapshot: Snapshot, missing: float | None
) -> None:
    record = a_run(state, missing_since=missing)
    actions = decided(record, snapshot)
    for action in actions:
        assert isinstance(action, Move)
        assert action.state is state or action.state in LEGAL[state]
    settled = after(record, actions)
    if settled.state is not RunState.LOST or state is RunState.LOST:
        assert decided(settled, snapshot) == []


@settings(max_examples=200, deadline=None)
@given(state=st.sampled_from(sorted((RESUMABLE - {RunState.LOST}) | {RunState.DONE, RunState.PLANNED})), snapshot=looks)
def test_that_an_ended_or_planned_run_is_left_alone(state: RunState, snapshot: Snapshot) -> None:
    assert decided(a_run(state), snapshot) == []
