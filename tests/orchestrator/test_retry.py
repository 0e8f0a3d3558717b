"""Facts -> verdicts: the table for every cause, and what no sequence of retries ever does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import Cause, Outcome, Status
from orchestrator.causes import AttemptSeen, Ended, diagnose, expand_nodes, last_traceback, read_slurm_line, slurm_line
from orchestrator.lifecycle import RESUMABLE, RunState
from orchestrator.policy import BUDGETS, Policy, Trouble
from orchestrator.retry import (
    NodeEvidence,
    Retry,
    Verdict,
    avoided_nodes,
    judge,
    ledger,
    read_retry,
    sweep_killer,
)
from orchestrator.slurm.states import SlurmState
from orchestrator.snapshot import TaskSeen

POLICY = Policy()
LATE = 1e6
TRACEBACK = (
    "2026-11-21 rank 0 INFO restored step 3",
    "Traceback (most recent call last):",
    '  File "/usr/lib/python3.11/runpy.py", line 196, in _run_module_as_main',
    "    return _run_code(code, main_globals, None,",
    '  File "/home/a/jobs/runs/snapshots/0f/models/spec.py", line 12, in <module>',
    "    import nonsense",
    "ModuleNotFoundError: No module named 'nonsense'",
)


def ended(state: RunState = RunState.LOST, **facts: object) -> Ended:
    return Ended(run="train-1", state=state, **facts)  # type: ignore[arg-type]  # the tests name fields freely


def failed(cause: Cause, reason: str, **more: object) -> Ended:
    outcome = Outcome(status=Status.FAILED, attempt=1, cause=cause, reason=reason, place="models/slots.py:7")
    return ended(RunState.FAILED, outcome=outcome, **more)


def slurm(state: SlurmState, **more: str) -> TaskSeen:
    return TaskSeen(state=state, **more)  # type: ignore[arg-type]


def verdict(facts: Ended, retries: Sequence[Retry] = (), policy: Policy = POLICY, **more: object) -> Verdict:
    return judge(facts, retries, policy, **({"age_s": LATE} | more))  # type: ignore[arg-type]


SAVED = (AttemptSeen(number=1, saved_step=100),)
TABLE: dict[str, tuple[Ended, Trouble, bool]] = {
    "evicted where nothing is requeued": (ended(slurm=slurm(SlurmState.PREEMPTED)), Trouble.PREEMPTED, True),
    "told to leave by nobody knows whom": (ended(RunState.STOPPED), Trouble.PREEMPTED, True),
    "time limit after a checkpoint": (ended(RunState.TIMED_OUT, attempts=SAVED), Trouble.TIMED_OUT, True),
    "time limit, the checkpoint is an earlier submission's": (
        ended(RunState.TIMED_OUT, attempts=(*SAVED, AttemptSeen(number=2)), after_attempt=1), Trouble.TIMED_OUT_STUCK, True,
    ),
    "time limit, the same step saved again": (
        ended(RunState.TIMED_OUT, attempts=(*SAVED, AttemptSeen(number=2, saved_step=100)), after_attempt=1),
        Trouble.TIMED_OUT_STUCK, True,
    ),
    "deadline without an outcome": (ended(slurm=slurm(SlurmState.DEADLINE)), Trouble.TIMED_OUT_STUCK, True),
    "node failed": (ended(slurm=slurm(SlurmState.NODE_FAIL, nodes="n2")), Trouble.NODE_FAILURE, True),
    "node did not boot": (ended(slurm=slurm(SlurmState.BOOT_FAIL)), Trouble.NODE_FAILURE, True),
    "node failed under other ranks": (
        failed(Cause.RANK_DIED, "another rank ended", slurm=slurm(SlurmState.NODE_FAIL, nodes="n[1-2]")),
        Trouble.NODE_FAILURE, True,
    ),
    "device failed": (
        failed(Cause.EXCEPTION, "RuntimeError: CUDA error: uncorrectable ECC error encountered"), Trouble.NODE_FAILURE, True,
    ),
    "device fell off the bus under another rank": (
        failed(Cause.RANK_DIED, "another rank ended", log=("NVRM: GPU has fallen off the bus",)), Trouble.NODE_FAILURE, True,
    ),
    "killed by Slurm for memory": (ended(RunState.FAILED, slurm=slurm(SlurmState.OUT_OF_MEMORY)), Trouble.HOST_MEMORY, True),
    "another rank was killed for memory": (
        failed(Cause.RANK_DIED, "another rank ended", slurm=slurm(SlurmState.OUT_OF_MEMORY)), Trouble.HOST_MEMORY, True,
    ),
    "killed for memory, by the log": (
        ended(log=("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0",)), Trouble.HOST_MEMORY, True,
    ),
    "allocation on the CPU": (failed(Cause.OUT_OF_MEMORY, "MemoryError: "), Trouble.HOST_MEMORY, True),
    "torch's CPU allocator": (
        failed(Cause.EXCEPTION, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"),
        Trouble.HOST_MEMORY, True,
    ),
    "a loader worker was killed": (
        failed(Cause.EXCEPTION, "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. "),
        Trouble.HOST_MEMORY, True,
    ),
    "allocation on the GPU": (
        failed(Cause.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"), Trouble.DEVICE_MEMORY, True,
    ),
    "no memory for cuBLAS": (failed(Cause.EXCEPTION, "RuntimeError: CUBLAS_STATUS_ALLOC_FAILED"), Trouble.DEVICE_MEMORY, True),
    "no step finished": (failed(Cause.HANG, "rank 1 finished no step for 900 s"), Trouble.HANG, True),
    "another rank died": (failed(Cause.RANK_DIED, "another rank of the attempt ended"), Trouble.HANG, True),
    "NCCL": (failed(Cause.EXCEPTION, "RuntimeError: NCCL error: unhandled system error"), Trouble.HANG, True),
    "killed in a pack": (
        failed(Cause.UNEXPLAINED, "its process was killed by signal 9 (SIGKILL)", slurm=slurm(SlurmState.UNKNOWN, nodes="n1")),
        Trouble.LOST, True,
    ),
    "killed in a pack for memory": (
        failed(Cause.OUT_OF_MEMORY, "its process was killed by signal 9 (SIGKILL), for its use of memory"), Trouble.HOST_MEMORY,
        True,
    ),
    "died in a pack with a traceback": (
        failed(Cause.UNEXPLAINED, "its process ended with exit code 1 and no outcome", log=TRACEBACK), Trouble.BUG, False,
    ),
    "died in a pack with its device": (
        failed(Cause.UNEXPLAINED, "its process was killed by signal 6", log=("NVRM: GPU has fallen off the bus",)),
        Trouble.NODE_FAILURE, True,
    ),
    "not finite": (failed(Cause.DIVERGED, "FloatingPointError: the loss is nan"), Trouble.DIVERGED, True),
    "a traceback": (failed(Cause.EXCEPTION, "ValueError: no such colour"), Trouble.BUG, False),
    "a traceback, and a node that failed afterwards": (
        failed(Cause.EXCEPTION, "ValueError: no such colour", slurm=slurm(SlurmState.NODE_FAIL)), Trouble.BUG, False,
    ),
    "a traceback before there was an attempt": (ended(log=TRACEBACK), Trouble.BUG, False),
    "refused": (failed(Cause.REFUSED, "the code snapshot is missing"), Trouble.BUG, False),
    "data": (failed(Cause.DATA, "DataError: truncated record"), Trouble.DATA, False),
    "disk full": (failed(Cause.EXCEPTION, "OSError: [Errno 28] No space left on device: 'x'"), Trouble.DATA, False),
    "quota": (failed(Cause.EXCEPTION, "OSError: [Errno 122] Disk quota exceeded"), Trouble.DATA, False),
    "no progress": (failed(Cause.NO_PROGRESS, "5 attempts in a row"), Trouble.NO_PROGRESS, False),
    "cancelled": (ended(RunState.CANCELLED), Trouble.CANCELLED, False),
    "lost with a cancel mark": (ended(cancel_mark=True), Trouble.CANCELLED, False),
    "Ctrl-C on this machine": (ended(RunState.STOPPED, local=True), Trouble.CANCELLED, False),
    "lost on this machine": (ended(local=True), Trouble.LOST, False),
    "killed by hand": (ended(slurm=slurm(SlurmState.FAILED, exit="137:0"), log=("step 7",)), Trouble.LOST, True),
    "nobody knows": (ended(), Trouble.LOST, True),
    "an unknown word of Slurm": (ended(slurm=slurm(SlurmState.UNKNOWN)), Trouble.LOST, True),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_that_facts_lead_to_a_verdict(name: str) -> None:
    facts, trouble, resume = TABLE[name]
    found = verdict(facts)
    assert (found.trouble, found.resume) == (trouble, resume), found
    assert found.why
    assert found.finding.what


def test_that_the_table_has_every_trouble() -> None:
    assert {trouble for _, trouble, _ in TABLE.values()} == set(Trouble) == set(BUDGETS)


def test_that_memory_says_which_and_what_to_do() -> None:
    assert "mem_gb" in verdict(TABLE["killed by Slurm for memory"][0]).finding.hint
    assert "runtime.accumulation" in verdict(TABLE["allocation on the GPU"][0]).finding.hint


def test_that_a_bug_is_known_by_its_exception_and_place() -> None:
    assert diagnose(TABLE["a traceback"][0]).bug == "ValueError at models/slots.py:7"
    assert diagnose(TABLE["a traceback before there was an attempt"][0]).bug == "ModuleNotFoundError at models/spec.py:12"


def test_that_a_traceback_that_the_process_survived_is_no_bug() -> None:
    assert last_traceback([*TRACEBACK, "rank 0 INFO ended with exit code 1 (FAILED)", "srun: error: n1: task 0: exited"])
    assert last_traceback([*TRACEBACK, "2026-11-21 rank 0 INFO restored step 3"]) is None
    assert last_traceback(TRACEBACK[:5]) is None
    assert last_traceback([]) is None


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_that_a_new_checkpoint_resets_the_ledger_and_an_old_one_does_not() -> None:
    budget = POLICY.budgets[Trouble.LOST]
    spent = [Retry(trouble=Trouble.LOST, after_attempt=number) for number in range(1, budget + 1)]
    nothing = [AttemptSeen(number=number) for number in range(1, budget + 2)]
    assert not verdict(ended(attempts=nothing), spent).resume
    again = [*nothing[:-1], AttemptSeen(number=budget + 1, saved_step=7)]
    found = verdict(ended(attempts=again), spent)
    assert (found.resume, found.used, found.retries) == (True, 0, {Trouble.LOST: budget})
    first = AttemptSeen(number=1, saved_step=7)
    assert not verdict(ended(attempts=[first, *again[1:]]), spent).resume  # step 7 was there before


def test_that_causes_have_budgets_of_their_own() -> None:
    spent = [Retry(trouble=Trouble.HANG, after_attempt=1)] * 9
    assert verdict(ended(), spent).resume
    assert not verdict(TABLE["no step finished"][0], spent).resume


def test_that_the_ledger_begins_anew_when_a_person_asks() -> None:
    line = Retry(trouble=Trouble.NODE_FAILURE, after_attempt=3)
    events = [("planned", "sweep"), ("retry", line.line()), ("planned", "again after a node failure"), ("lost", "x 1_0")]
    assert ledger(events) == [line]
    assert ledger([*events, ("planned", "resumed 1_0")]) == []
    assert ledger([*events, ("planned", "resumed 1_0"), ("retry", line.line())]) == [line]


@pytest.mark.parametrize("trouble", Trouble)
def test_that_a_line_of_the_ledger_is_read_as_it_was_written(trouble: Trouble) -> None:
    line = Retry(trouble=trouble, after_attempt=12)
    assert read_retry(line.line()) == line


@pytest.mark.parametrize("text", ["", "lost", "lost after attempt", "lost after attempt x", "cheese after attempt 1"])
def test_that_other_lines_are_no_retries(text: str) -> None:
    assert read_retry(text) is None


def test_that_an_unexplained_loss_is_first_waited_for() -> None:
    found = verdict(ended(), age_s=POLICY.lost_age_s - 1)
    assert (found.resume, found.settled) == (False, False)
    assert verdict(ended(slurm=slurm(SlurmState.FAILED)), age_s=0.0).resume


def test_that_the_micro_batch_is_halved_only_where_the_policy_says_so() -> None:
    facts, willing = TABLE["allocation on the GPU"][0], Policy(halve_micro_batch=True)
    assert verdict(facts, more_accumulation=2).accumulation is None
    assert verdict(facts, policy=willing, more_accumulation=2).accumulation == 2
    assert verdict(facts, policy=willing, more_accumulation=None).accumulation is None
    assert verdict(TABLE["killed by Slurm for memory"][0], policy=willing, more_accumulation=2).accumulation is None
    spent = [Retry(trouble=Trouble.DEVICE_MEMORY, after_attempt=1)] * 3
    assert verdict(facts, spent, willing, more_accumulation=4).resume  # each halving is another run of the memory
    assert not verdict(facts, spent, willing, more_accumulation=None).resume


FACTS = st.builds(
    Ended,
    run=st.just("train-1"),
    state=st.sampled_from(sorted(RESUMABLE)),
    reason=st.sampled_from(["", "out of memory", "cancelled"]),
    local=st.booleans(),
    cancel_mark=st.booleans(),
    slurm=st.none() | st.builds(TaskSeen, state=st.sampled_from(SlurmState), reason=st.sampled_from(["", "OutOfMemory"])),
    outcome=st.none()
    | st.builds(
        Outcome,
        status=st.sampled_from(Status),
        attempt=st.just(1),
        cause=st.none() | st.sampled_from(Cause),
        reason=st.sampled_from(["", "ValueError: x", "CUDA out of memory", "NCCL", "No space left on device"]),
    ),
    log=st.lists(st.sampled_from([*TRACEBACK, "oom_kill", "step 3", ""]), max_size=9),
    attempts=st.lists(st.none() | st.integers(1, 4), max_size=6).map(
        lambda steps: [AttemptSeen(number=number + 1, saved_step=step) for number, step in enumerate(steps)]
    ),
    after_attempt=st.integers(0, 6),
)


@given(FACTS)
def test_that_no_run_without_progress_is_retried_beyond_the_sum_of_its_budgets(facts: Ended) -> None:
    retries: list[Retry] = []
    for _ in range(sum(BUDGETS.values()) + 1):
        found = verdict(facts, retries)
        if not found.resume:
            break
        assert found.used < found.budget == BUDGETS[found.trouble]
        retries.append(Retry(trouble=found.trouble, after_attempt=facts.newest_attempt))
    assert not verdict(facts, retries).resume
    assert len(retries) <= max(BUDGETS.values())


@given(FACTS)
def test_that_bugs_bad_data_cancelled_runs_and_done_ones_are_never_retried(facts: Ended) -> None:
    found = verdict(facts)
    never = {Trouble.BUG, Trouble.DATA, Trouble.NO_PROGRESS, Trouble.CANCELLED}
    done = facts.outcome is not None and facts.outcome.status is Status.DONE
    if found.trouble in never or done or facts.local or facts.cancel_mark:
        assert not found.resume


@given(FACTS)
def test_that_a_stopped_sweep_resumes_nothing(facts: Ended) -> None:
    assert not verdict(facts, stopped="one bug").resume


# --- one bug, several runs; nodes -----------------------------------------------------------------------------------------


def test_that_one_bug_in_several_runs_stops_their_sweep_and_several_bugs_do_not() -> None:
    bugs = {"a": "ValueError at x:1", "b": "ValueError at x:1", "c": "ValueError at x:1", "d": "KeyError at x:1", "e": ""}
    assert sweep_killer(bugs, "abcdefgh", POLICY) == "one bug has killed 3 runs of the sweep: ValueError at x:1"
    assert sweep_killer(bugs, "abdefgh", POLICY) == ""
    assert sweep_killer(dict.fromkeys("abcdef", ""), "abcdef", POLICY) == ""


def evidence(at: float, nodes: str, job: str = "1_0") -> NodeEvidence:
    return NodeEvidence(at=at, nodes=nodes, job=job)


def test_that_a_node_is_left_out_for_a_while_when_the_evidence_points_at_it() -> None:
    facts = [evidence(100, "n2"), evidence(110, "n[3-4]"), evidence(120, "n[4-5]", "2_0"), evidence(130, "(null)")]
    assert avoided_nodes(facts, POLICY, now=200) == ["n4", "n2"]
    assert avoided_nodes(facts, POLICY, now=200, most=1) == ["n4"]
    assert avoided_nodes(facts, POLICY, now=105 + POLICY.avoid_node_s) == ["n4"]
    assert avoided_nodes(facts, POLICY, now=200 + POLICY.avoid_node_s) == []
    assert avoided_nodes([evidence(1, "n[1-9]"), evidence(2, "n[1-9]")], POLICY, now=9) == []  # twice the same job


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]), ("n[1-3,07],login", ["n1", "n2", "n3", "n07", "login"]), ("a-[08-10]", ["a-08", "a-09", "a-10"]),
        ("", []), ("(null)", []), ("n[1-", []), ("n[1-99999999]", []), ("n[x]", []), ("n1 n2", []), ("--help,;rm", []),
    ],
)  # fmt: skip
def test_that_host_lists_are_expanded_and_nonsense_names_nobody(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@given(st.text(alphabet="n[]0123-9,.", max_size=20))
def test_that_no_text_breaks_the_host_list(text: str) -> None:
    assert len(expand_nodes(text)) <= 4096 + len(text)


@given(
    st.sampled_from(SlurmState),
    st.sampled_from(["", "n[1-2]"]),
    st.sampled_from(["", "137:0"]),
    st.sampled_from(["", "NodeDown"]),
)
def test_that_slurms_words_are_read_from_the_log_as_they_were_written(
    state: SlurmState, nodes: str, code: str, reason: str
) -> None:
    task = TaskSeen(state=state, nodes=nodes, exit=code, reason=reason)
    assert read_slurm_line(slurm_line(task)) == task


@given(st.text(max_size=40))
def test_that_any_line_can_be_read(text: str) -> None:
    read_slurm_line(text)
