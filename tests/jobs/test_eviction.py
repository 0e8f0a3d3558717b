"""Why we were told to leave: the table row by row, and what a job does when Slurm is slow, busy or of two minds."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import eviction
from jobs.eviction import Answer, Slurm, Verdict, judge, parse_answer

NOW = 1_000_000.0
RUNNING = Answer(state="RUNNING", end_time=NOW + 3600)
COMPLETING = Answer(state="COMPLETING")


def verdict(answer: Answer | None, *, restart_count: int = 0, cancel_mark: bool = False, terminating: bool = True) -> Verdict:
    return judge(answer, restart_count=restart_count, cancel_mark=cancel_mark, terminating=terminating, near_end_s=165.0, now=NOW)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (replace(RUNNING, preempt_time=NOW), Verdict.REQUEUE),
        (replace(RUNNING, end_time=NOW + 100), Verdict.REQUEUE),
        (replace(RUNNING, end_time=NOW - 5), Verdict.REQUEUE),
        (replace(COMPLETING, reason="TimeLimit"), Verdict.REQUEUE),
        (replace(COMPLETING, restarts=1), Verdict.LEAVE),
        (Answer(state="PENDING", reason="BeginTime", restarts=1), Verdict.LEAVE),
        (Answer(state="PENDING"), Verdict.LEAVE),
        (Answer(state="REQUEUED"), Verdict.LEAVE),
        (COMPLETING, Verdict.CANCELLED),
        (replace(COMPLETING, reason="None"), Verdict.CANCELLED),
        (Answer(state="CANCELLED"), Verdict.CANCELLED),
        (Answer(state="TIMEOUT"), Verdict.REQUEUE),
        (Answer(state="PREEMPTED"), Verdict.REQUEUE),
        (Answer(state="NODE_FAIL"), Verdict.REQUEUE),
        (RUNNING, Verdict.RANK_DIED),
        (replace(RUNNING, end_time=None), Verdict.RANK_DIED),
        (None, Verdict.UNKNOWN),
        (Answer(state="SPECIAL_EXIT_OF_2031"), Verdict.UNKNOWN),
    ],
    ids=str,
)
def test_that_each_row_of_the_table_holds(answer: Answer | None, expected: Verdict) -> None:
    assert verdict(answer) is expected


def test_that_a_warning_alone_is_no_end() -> None:
    assert verdict(RUNNING, terminating=False) is Verdict.GO_ON
    assert verdict(replace(RUNNING, preempt_time=NOW), terminating=False) is Verdict.REQUEUE


def test_that_restarts_count_from_ours() -> None:
    requeued_before = replace(RUNNING, restarts=3, preempt_time=NOW)
    assert verdict(requeued_before, restart_count=3) is Verdict.REQUEUE
    assert verdict(requeued_before, restart_count=2) is Verdict.LEAVE


answers = st.none() | st.builds(
    Answer,
    state=st.sampled_from(["RUNNING", "COMPLETING", "PENDING", "CANCELLED", "TIMEOUT", "FAILED", ""]),
    reason=st.sampled_from(["", "TimeLimit", "None"]),
    restarts=st.integers(0, 3),
    preempt_time=st.none() | st.just(NOW),
    end_time=st.none() | st.floats(NOW - 1000, NOW + 1000),
)


@given(answer=answers, terminating=st.booleans())
def test_that_a_cancel_mark_always_means_cancelled(answer: Answer | None, terminating: bool) -> None:
    assert verdict(answer, cancel_mark=True, terminating=terminating) is Verdict.CANCELLED


@given(answer=answers)
def test_that_a_job_that_is_ending_for_no_known_reason_is_never_requeued(answer: Answer | None) -> None:
    found = verdict(answer)
    if answer is not None and answer.state == "COMPLETING" and answer.reason != "TimeLimit":
        assert found in (Verdict.CANCELLED, Verdict.LEAVE)


@dataclass(frozen=True, kw_only=True)
class ScriptedSlurm(Slurm):
    """Answers in turn (the last one for ever); knows what was asked of it."""

    answers: Sequence[Answer | None] = ()
    requeues: Sequence[bool] = (True,)
    asked: list[str] = field(default_factory=list)

    def ask(self) -> Answer | None:
        self.asked.append("show")
        return self.answers[min(self.asked.count("show"), len(self.answers)) - 1]

    def requeue(self) -> bool:
        self.asked.append("requeue")
        return self.requeues[min(self.asked.count("requeue"), len(self.requeues)) - 1]


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def settle(
    slurm: ScriptedSlurm, *, clock: Clock, cancel_mark: Callable[[], bool] = lambda: False, patience_s: float = 60.0
) -> Verdict:
    return eviction.settle(
        slurm, cancel_mark=cancel_mark, terminating=lambda: True, patience_s=patience_s, sleep=clock.sleep, clock=clock
    )


def scripted(*answers: Answer | None, requeues: Sequence[bool] = (True,)) -> ScriptedSlurm:
    return ScriptedSlurm(job_id="7_3", restart_count=0, token="t", signal_delay_s=90, answers=answers, requeues=requeues)


PREEMPTED = replace(RUNNING, preempt_time=NOW)


def test_that_a_preempted_job_requeues_itself_once() -> None:
    slurm = scripted(PREEMPTED)
    assert settle(slurm, clock=Clock()) is Verdict.REQUEUE
    assert slurm.asked == ["show", "requeue"]


def test_that_a_busy_controller_is_asked_again() -> None:
    slurm, clock = scripted(None, None, None, PREEMPTED), Clock()
    assert settle(slurm, clock=clock) is Verdict.REQUEUE
    assert clock.now - NOW < 5


def test_that_a_dead_controller_is_waited_for_and_then_unknown() -> None:
    slurm, clock = scripted(None), Clock()
    assert settle(slurm, clock=clock) is Verdict.UNKNOWN
    assert 60 <= clock.now - NOW <= 66
    assert "requeue" not in slurm.asked


def test_that_a_refused_requeue_is_tried_again_and_never_taken_for_done() -> None:
    slurm = scripted(PREEMPTED, requeues=(False, False, True))
    assert settle(slurm, clock=Clock()) is Verdict.REQUEUE
    assert slurm.asked.count("requeue") == 3
    assert settle(scripted(PREEMPTED, requeues=(False,)), clock=Clock()) is Verdict.UNKNOWN


def test_that_a_requeue_whose_answer_was_lost_is_recognised() -> None:
    slurm = scripted(PREEMPTED, Answer(state="PENDING", restarts=1), requeues=(False,))
    assert settle(slurm, clock=Clock()) is Verdict.LEAVE


def test_that_a_dead_rank_is_believed_only_after_slurm_could_say_otherwise() -> None:
    slurm, clock = scripted(RUNNING, RUNNING, PREEMPTED), Clock()
    assert settle(slurm, clock=clock) is Verdict.REQUEUE
    slurm, clock = scripted(RUNNING), Clock()
    assert settle(slurm, clock=clock) is Verdict.RANK_DIED
    assert clock.now - NOW == 2.0
    assert "requeue" not in slurm.asked


def test_that_a_cancel_mark_wins_over_a_preemption_at_any_moment() -> None:
    """Also when it appears between Slurm's answer and the requeue: that would bring the job back."""
    marks = iter([False, True, True, True])
    slurm = scripted(PREEMPTED)
    assert settle(slurm, clock=Clock(), cancel_mark=lambda: next(marks)) is Verdict.CANCELLED
    assert "requeue" not in slurm.asked


LINE = (
    "JobId=8 ArrayJobId=7 ArrayTaskId=3 JobName=orch UserId=me(1000) JobState=RUNNING Reason=None Dependency=(null) "
    "Requeue=1 Restarts=2 BatchFlag=1 StartTime=2026-01-01T00:00:00 EndTime=2026-01-01T01:00:00 "
    "PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime={preempt} Comment=a JobState=LIE\n"
)


def test_that_a_line_of_scontrol_is_read() -> None:
    answer = parse_answer(LINE.format(preempt="2026-01-01T00:30:00"))
    assert answer is not None
    assert (answer.state, answer.reason, answer.restarts) == ("RUNNING", "None", 2)
    assert answer.preempt_time is not None
    assert answer.end_time == answer.preempt_time + 1800
    quiet = parse_answer(LINE.format(preempt="None"))
    assert quiet is not None
    assert quiet.preempt_time is None


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Unable to contact slurm controller", "\x00=\n"])
def test_that_no_answer_is_no_answer(text: str) -> None:
    assert parse_answer(text) is None


@given(st.text())
def test_that_reading_never_raises(text: str) -> None:
    parse_answer(text)
    parse_answer(f"JobState=RUNNING Restarts={text} EndTime={text}")


def test_that_the_task_of_an_array_is_named_as_slurm_wants_it() -> None:
    environ = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
    slurm = Slurm.from_environment(environ | {"ORCH_TOKEN": "t", "ORCH_SIGNAL_DELAY_S": "30"})
    assert slurm == Slurm(job_id="7_3", restart_count=2, token="t", signal_delay_s=30)
    alone = Slurm.from_environment({"SLURM_JOB_ID": "8"})
    assert alone is not None
    assert (alone.job_id, alone.restart_count) == ("8", 0)
    packed = Slurm.from_environment({"SLURM_JOB_ID": "8", "ORCH_PACK": "4711"})
    assert packed is not None
    assert (alone.packed, packed.packed) == (False, True)
    assert Slurm.from_environment({}) is None


def test_that_a_real_scontrol_is_asked_and_its_failures_are_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm(job_id="7_3", restart_count=0, token="", signal_delay_s=90)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.ask() is None
    assert not slurm.requeue()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    script = tmp_path / "scontrol"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = show ] && echo "JobState=RUNNING Restarts=1"\nexit 0\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert slurm.ask() == Answer(state="RUNNING", restarts=1)
    assert slurm.requeue()
    assert replace(slurm, packed=True).requeue()  # its pack does that
    assert (tmp_path / "asked").read_text() == "show job -o 7_3\nrequeue 7_3\n"
    script.write_text("#!/bin/sh\nkill -USR2 $$\n")
    assert slurm.ask() is None
