"""What became of the time that runs took: by hand, and as properties over invented and damaged histories."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.times import AttemptTimes, Save
from orchestrator.goodput import CLASSES, Spent, Usage, from_plain, in_seconds, spent_in, to_plain, usage_of, worded

HOUR = 3_600_000


def attempt(
    claimed: int, working: int | None, ended: int, *, restored: int | None = 0, last: int = 100, waited: int = 0,
    saves: tuple[tuple[int, int, int], ...] = (), job: str = "7_0", ranks: int = 1,
) -> AttemptTimes:  # fmt: skip
    """Times in milliseconds; a save is (step, until, waited)."""
    return AttemptTimes(
        job_id=job, world_size=ranks, claimed_ms=claimed, restored_step=restored, working_ms=working, ended_ms=ended,
        last_step=last, waited_ms=waited, saves=tuple(Save(step=step, until_ms=at, waited_ms=all_) for step, at, all_ in saves),
    )  # fmt: skip


def shares(spent: Spent) -> tuple[int, ...]:
    """Productive, checkpointing, restarting, replayed."""
    return tuple(spent.of(name) for name in CLASSES)


# --- one attempt -----------------------------------------------------------------------------------------------------


def test_that_an_attempt_that_nobody_interrupted_is_start_up_saves_and_work() -> None:
    assert shares(spent_in(attempt(1000, 3000, 10_000, waited=500), redone_after=None)) == (6500, 500, 2000, 0)


def test_that_an_attempt_that_made_no_step_is_all_start_up() -> None:
    assert shares(spent_in(attempt(1000, None, 10_000, last=0), redone_after=0)) == (0, 0, 9000, 0)


def test_that_an_eviction_with_notice_replays_nothing() -> None:
    one = attempt(0, 1000, 9000, last=50, waited=700, saves=((50, 8500, 500),))
    assert shares(spent_in(one, redone_after=50)) == (7300, 700, 1000, 0)


def test_that_work_after_the_checkpoint_that_was_restored_is_replayed_without_its_waits() -> None:
    one = attempt(0, 1000, 9000, last=50, waited=700, saves=((20, 4000, 300), (40, 7000, 700)))
    assert shares(spent_in(one, redone_after=40)) == (5300, 700, 1000, 2000)
    assert shares(spent_in(one, redone_after=20)) == (2700, 700, 1000, 4600)  # the newer checkpoint was corrupt


def test_that_an_attempt_whose_every_step_was_done_again_was_not_productive() -> None:
    one = attempt(0, 1000, 9000, restored=10, last=50, waited=700, saves=((20, 4000, 700),))
    for later in (10, 0):
        assert shares(spent_in(one, redone_after=later)) == (0, 700, 1000, 7300)


def test_that_between_known_checkpoints_time_goes_with_steps() -> None:
    one = attempt(0, 1000, 11_000, last=100, saves=((60, 7000, 0),))
    assert shares(spent_in(one, redone_after=30)) == (3000, 0, 1000, 7000)
    assert shares(spent_in(one, redone_after=80)) == (8000, 0, 1000, 2000)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_that_an_attempt_that_was_passed_by_replayed_everything_and_its_elders_nothing() -> None:
    """The second saw no checkpoint and began at 0; the third went on from the first one's 50."""
    first = attempt(0, 0, 1000, last=50, saves=((50, 1000, 0),))
    second = attempt(2000, 2000, 2500, restored=0, last=10)
    third = attempt(4000, 4000, 5000, restored=50, last=100)
    assert shares(usage_of([first, second, third], [], with_gpus=False).tasks) == (2000, 0, 0, 500)


def test_that_packed_runs_share_their_gpu() -> None:
    one = attempt(0, 1000, 9000)
    assert shares(usage_of([one], [], with_gpus=True, runs_per_gpu=4).gpus) == (2000, 0, 250, 0)


def test_that_the_lowest_step_that_any_later_attempt_restored_decides() -> None:
    """The second restored 40, the third 10: what the first did after 10 was done again."""
    first = attempt(0, 0, 1000, last=50, saves=((10, 100, 0), (40, 800, 0)))
    second = attempt(2000, 2000, 3000, restored=40, last=60)
    third = attempt(4000, 4000, 5000, restored=10, last=100)
    dead = attempt(3500, None, 3500, restored=None)  # it restored nothing, so it redid nothing
    assert shares(usage_of([first, second, dead, third], [], with_gpus=True).gpus) == (1100, 0, 0, 1900)


def test_that_time_counts_once_for_each_rank_of_each_attempt() -> None:
    two, four = attempt(0, 1000, 3000, ranks=2), attempt(5000, 6000, 9000, ranks=4, restored=100)
    found = usage_of([two, four], [], with_gpus=True)
    assert shares(found.gpus) == (2 * 2000 + 4 * 3000, 0, 2 * 1000 + 4 * 1000, 0)
    assert found.queued_ms == 2000  # once, whatever the ranks


def test_that_time_is_of_gpus_where_a_job_asks_for_them_and_else_of_tasks() -> None:
    on_slurm, here = attempt(0, 0, 1000), attempt(0, 0, 500, job="")
    assert usage_of([on_slurm], [], with_gpus=False).tasks.total_ms == 1000
    mixed = usage_of([on_slurm, here], [], with_gpus=True)
    assert (mixed.gpus.total_ms, mixed.tasks.total_ms) == (1000, 500)


# --- the queue -------------------------------------------------------------------------------------------------------


def test_that_a_run_was_queued_from_its_submission_or_from_its_requeue() -> None:
    first, second = attempt(5000, 6000, 9000), attempt(12_000, 13_000, 20_000)
    assert usage_of([first, second], [1000], with_gpus=False).queued_ms == 4000 + 3000


def test_that_nobody_waits_between_a_failure_and_the_next_submission() -> None:
    failed, again = attempt(5000, 6000, 9000), attempt(90_000, 91_000, 95_000, job="8_0")
    assert usage_of([failed, again], [1000, 80_000], with_gpus=False).queued_ms == 4000 + 10_000
    assert usage_of([failed, again], [1000], with_gpus=False).queued_ms == 4000  # nobody knows of its submission


def test_that_of_several_submissions_the_latest_before_the_claim_counts() -> None:
    assert usage_of([attempt(9000, 9500, 9900)], [1000, 6000, 9500], with_gpus=False).queued_ms == 3000  # withdrawn; ours; later


def test_that_a_run_on_this_machine_is_never_queued() -> None:
    assert usage_of([attempt(5000, 6000, 9000, job="")] * 2, [1000], with_gpus=False).queued_ms == 0


# --- properties ------------------------------------------------------------------------------------------------------

MS = st.integers(0, 10**13)
SAVES = st.builds(Save, step=st.integers(0, 60), until_ms=MS, waited_ms=MS)
DAMAGED = st.builds(
    AttemptTimes,
    job_id=st.sampled_from(["", "7_0", "8_0"]),
    world_size=st.integers(1, 8),
    claimed_ms=MS,
    restored_step=st.none() | st.integers(0, 60),
    working_ms=st.none() | MS,
    ended_ms=MS,
    last_step=st.integers(0, 60),
    waited_ms=MS,
    saves=st.lists(SAVES, max_size=4).map(tuple),
)
"""Times in any order: clocks that were set back, torn journals, lies."""


@settings(max_examples=400)
@given(attempts=st.lists(DAMAGED, max_size=5), submitted=st.lists(MS, max_size=4), gpus=st.booleans())
def test_that_classes_sum_to_the_attempts_time_and_nothing_is_negative(
    attempts: list[AttemptTimes], submitted: list[int], gpus: bool
) -> None:
    found = usage_of(attempts, submitted, with_gpus=gpus)
    whole = sum(one.world_size * max(0, one.ended_ms - one.claimed_ms) for one in attempts)
    assert found.gpus.total_ms + found.tasks.total_ms == whole
    assert min(*shares(found.gpus), *shares(found.tasks), found.queued_ms) >= 0
    assert found.goodput is None or 0 <= found.goodput <= 1
    assert (worded(found) == "") == (not found)
    json.dumps(in_seconds(found))
    assert from_plain(json.loads(json.dumps(to_plain(found)))) == found


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[AttemptTimes], int, int]:
    """A run that is evicted, with notice or without, a step a second: (attempts, steps that count in ms, steps done again)."""
    now, reached, saved, lost = 0, 0, 0, 0
    attempts: list[AttemptTimes] = []
    for _ in range(draw(st.integers(1, 5))):
        begun, restored = now + draw(st.integers(0, 9)) * 1000, saved
        reached, clock, waited, saves = restored, begun + draw(st.integers(0, 9)) * 1000, 0, []
        working = None
        for _ in range(draw(st.integers(0, 8))):
            clock, reached = clock + 1000, reached + 1
            working = clock if working is None else working
            if draw(st.booleans()):
                clock, waited, saved = clock + 300, waited + 300, reached
                saves.append((reached, clock, waited))
        lost += 1000 * (reached - max(saved, restored + 1)) if reached > max(saved, restored) else 0
        attempts.append(
            attempt(begun, working, clock, restored=restored, last=reached, waited=waited, saves=tuple(saves), ranks=1)
        )
        now = clock
    last = attempts[-1]
    if last.last_step > saved:  # nobody did the end of the last one again
        lost -= 1000 * (last.last_step - max(saved, (last.restored_step or 0) + 1))
    steps = sum(1000 * max(0, one.last_step - (one.restored_step or 0) - 1) for one in attempts)
    return attempts, steps - lost, lost


@given(lives())
def test_that_every_step_is_productive_or_replayed_and_an_attempts_first_one_start_up(
    life: tuple[list[AttemptTimes], int, int],
) -> None:
    attempts, counted, lost = life
    found = usage_of(attempts, [], with_gpus=False).tasks
    assert (found.productive_ms, found.replayed_ms) == (counted, lost)
    assert found.checkpointing_ms == sum(one.waited_ms for one in attempts)


@given(st.lists(st.builds(Usage, queued_ms=MS, gpus=st.builds(Spent, productive_ms=MS, replayed_ms=MS)), max_size=5))
def test_that_usage_adds_up_in_any_order(parts: list[Usage]) -> None:
    assert sum(parts, Usage()) == sum(reversed(parts), Usage())
    assert sum(parts, Usage()).queued_ms == sum(one.queued_ms for one in parts)


# --- words -----------------------------------------------------------------------------------------------------------


def test_that_a_person_reads_shares_in_a_unit_that_fits() -> None:
    gpus = Spent(productive_ms=38 * HOUR, checkpointing_ms=HOUR // 2, restarting_ms=2 * HOUR, replayed_ms=HOUR // 2)
    tasks = Spent(productive_ms=90_000, restarting_ms=30_000)
    assert worded(Usage(gpus=gpus, queued_ms=12 * HOUR)) == (
        "goodput 92 % of 41.0 GPU-hours (productive 38.0, checkpointing 0.5, restarting 2.0, replayed 0.5); queued 12.0 h"
    )
    assert worded(Usage(gpus=gpus, tasks=tasks)).endswith(
        "replayed 0.5) and 75 % of 2.0 task-minutes (productive 1.5, checkpointing 0.0, restarting 0.5, replayed 0.0)"
    )
    assert worded(Usage(queued_ms=90_000)) == "queued 1.5 min"
    assert worded(Usage(tasks=Spent(productive_ms=400))).startswith("goodput 100 % of 0.4 task-seconds")
    assert worded(Usage()) == ""


def test_that_goodput_is_never_rounded_up_to_all() -> None:
    assert "goodput 99 %" in worded(Usage(gpus=Spent(productive_ms=10**9, replayed_ms=1)))


@pytest.mark.parametrize("damage", [{}, {"gpus": {}, "tasks": {}}, {"gpus": {"x": 1}, "tasks": {}, "queued_ms": 0}, None])
def test_that_what_is_no_usage_is_refused(damage: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_plain(damage)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, 0.5, True, "1", None])
def test_that_a_usage_of_other_than_whole_milliseconds_is_refused(value: object) -> None:
    for raw in (to_plain(Usage()) | {"queued_ms": value}, to_plain(Usage()) | {"gpus": {"replayed_ms": value}}):
        with pytest.raises(ValueError, match="no time"):
            from_plain(raw)
