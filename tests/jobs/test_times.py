"""When attempts did what, from the two ends of their journals: whole, huge, torn, damaged, and of earlier versions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import RunDir
from jobs.journal import AT_WORK, CHECKPOINT, END, LEFT, SAVING, SO_FAR, SO_FAR_BYTES, JournalWriter, read_attempt, read_journal
from jobs.times import HEAD_BYTES, TAIL_BYTES, AttemptTimes, Save, read_times, steps_with_checkpoint

Line = Mapping[str, object]


def claimed(run_dir: RunDir, number: int, at_s: object, **more: object) -> None:
    run_dir.attempts.mkdir(parents=True, exist_ok=True)
    told = {"number": number, "claimant": "c", "job_id": "7_0", "world_size": 2, "started_at": at_s} | more
    (run_dir.attempts / f"{number:04d}.json").write_text(json.dumps(told))


def journal(run_dir: RunDir, number: int, lines: Sequence[Line], *, restored: int = 0, at_s: float = 101.0) -> Path:
    run_dir.journals.mkdir(parents=True, exist_ok=True)
    path = run_dir.journals / f"{number:04d}.jsonl"
    head = {"attempt": number, "restored": restored, "time": at_s}
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [head, *lines]))
    return path


def event(step: int, at_ms: int, name: str, **detail: object) -> Line:
    return {"s": step, "t": at_ms, "e": name, "d": detail}


def metrics(step: int, at_ms: int) -> Line:
    return {"s": step, "t": at_ms, "m": {"loss": 1.0}}


def only(run_dir: RunDir) -> AttemptTimes:
    (found,) = read_times(run_dir)
    return found


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def test_that_an_attempt_tells_when_it_did_what(run_dir: RunDir) -> None:
    claimed(run_dir, 1, 100.0)
    lines = [
        event(10, 102_000, "start"), event(11, 105_000, AT_WORK), metrics(11, 105_001), metrics(20, 110_000),
        event(15, 111_000, CHECKPOINT, until=107_000, waited=0.25), event(20, 113_000, CHECKPOINT, waited=2.25),
        event(20, 114_000, LEFT, waited=3.0),
    ]  # fmt: skip
    journal(run_dir, 1, lines, restored=10)
    assert only(run_dir) == AttemptTimes(
        job_id="7_0", world_size=2, claimed_ms=100_000, restored_step=10, working_ms=105_000, ended_ms=114_000, last_step=20,
        waited_ms=3000,
        saves=(Save(step=15, until_ms=107_000, waited_ms=250), Save(step=20, until_ms=113_000, waited_ms=2250)),
    )  # fmt: skip


def test_that_attempts_tell_of_which_steps_there_may_be_checkpoints(run_dir: RunDir) -> None:
    assert steps_with_checkpoint(run_dir, before=4) == set()
    journal(run_dir, 1, [event(10, 1, SAVING), event(10, 2, CHECKPOINT), metrics(25, 3), event(25, 4, SO_FAR, saved=20)])
    journal(run_dir, 3, [metrics(24, 1), event(24, 2, SAVING)], restored=20)  # attempt 2 died before it opened its journal
    journal(run_dir, 4, [event(99, 1, CHECKPOINT)])
    assert steps_with_checkpoint(run_dir, before=4) == {0, 10, 20, 24}


def test_that_of_a_huge_journal_two_ends_are_read_and_the_newest_checkpoint_is_known(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 000 lines, the newest checkpoint 40 000 of them before the end."""
    clock = iter(range(100_000, 10**9, 10))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 1_000_000)
    monkeypatch.setattr(time, "time", lambda: 99.5)
    claimed(run_dir, 1, 99.0)
    writer = JournalWriter(run_dir.journals, attempt=1, restored_step=0)
    saved_ms = 0
    for step in range(1, 50_001):
        writer.metrics(step, {"train/loss": 1.0 / step, "train/learning_rate": 0.001})
        if step in (5000, 10_000):
            saved_ms = next(clock)
            writer.event(step, CHECKPOINT, bytes=1, seconds=1.0, until=saved_ms, waited=step / 1000)
    writer.close()
    monkeypatch.undo()
    read, real = [0], os.pread

    def counted(handle: int, length: int, offset: int) -> bytes:
        found = real(handle, length, offset)
        read[0] += len(found)
        return found

    monkeypatch.setattr(os, "pread", counted)
    found = only(run_dir)
    size = (run_dir.journals / "0001.jsonl").stat().st_size
    assert size > 4_000_000
    assert read[0] == HEAD_BYTES + TAIL_BYTES
    assert (found.last_step, found.waited_ms, found.working_ms) == (50_000, 10_000, 100_000)
    assert found.saves[-1] == Save(step=10_000, until_ms=saved_ms, waited_ms=10_000)
    whole = read_attempt(run_dir.journals / "0001.jsonl")
    assert whole is not None
    assert found.ended_ms == whole.entries[-1].time_ms
    again = [entry for entry in whole.entries if entry.event == SO_FAR]
    assert len(again) <= size // SO_FAR_BYTES  # saying it again takes next to nothing
    assert read_journal(run_dir.journals).covered_step == 10_000


def test_that_a_journal_says_nothing_again_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, attempt=1, restored_step=0)
    for step in range(1, 2000):
        writer.metrics(step, {"a": 1.0})
    writer.event(1999, END)
    writer.close()
    whole = read_attempt(tmp_path / "0001.jsonl")
    assert whole is not None
    assert {entry.event for entry in whole.entries} == {"", END}


def test_that_a_journal_of_an_earlier_version_gives_what_it_holds(run_dir: RunDir) -> None:
    claimed(run_dir, 1, 100.0)
    lines = [event(0, 102_000, "start"), metrics(10, 109_000), event(10, 112_000, CHECKPOINT, bytes=9, seconds=2.5)]
    journal(run_dir, 1, [*lines, metrics(20, 120_000)])
    found = only(run_dir)
    assert (found.working_ms, found.ended_ms, found.waited_ms) == (109_000, 120_000, 0)
    assert found.saves == (Save(step=10, until_ms=112_000, waited_ms=0),)


def test_that_an_evaluation_of_an_earlier_version_is_at_work_once_its_journal_is_open(run_dir: RunDir) -> None:
    """Its first line is the checkpoint of a whole piece; it has metrics at its end alone."""
    claimed(run_dir, 1, 100.0)
    journal(run_dir, 1, [event(1, 300_000, CHECKPOINT, bytes=9, seconds=0.1), metrics(1, 300_500)], at_s=107.0)
    assert only(run_dir).working_ms == 107_000


def test_that_an_attempt_without_a_step_a_journal_or_a_claim_is_what_is_left_of_it(run_dir: RunDir) -> None:
    for number in (1, 2, 3):
        claimed(run_dir, number, 100.0 * number)
    journal(run_dir, 1, [event(0, 103_000, "start")])
    claimed(run_dir, 3, 0.0)
    journal(run_dir, 3, [metrics(1, 305_000)], at_s=301.0)
    claimed(run_dir, 4, 0.0)  # neither
    first, second, third = read_times(run_dir)
    assert (first.working_ms, first.ended_ms, first.restored_step) == (None, 103_000, 0)
    assert (second.working_ms, second.ended_ms, second.restored_step) == (None, 200_000, None)
    assert (third.claimed_ms, third.ended_ms) == (301_000, 305_000)


@pytest.mark.parametrize("at_s", ["100", None, True, -5.0, float("nan"), float("inf"), 1e300, 10**400], ids=str)
def test_that_a_claim_at_no_time_is_one_that_nobody_has_read(at_s: object, run_dir: RunDir) -> None:
    claimed(run_dir, 1, at_s)
    journal(run_dir, 1, [metrics(1, 105_000)])
    assert only(run_dir).claimed_ms == 101_000


WHOLE = [
    event(10, 102_000, "start"), event(11, 105_000, AT_WORK), metrics(11, 105_001),
    event(11, 106_000, CHECKPOINT, until=105_500, waited=0.25), metrics(20, 110_000), event(20, 113_000, END, waited=0.5),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_that_a_torn_or_damaged_journal_never_raises_and_never_tells_of_more(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = RunDir(tmp_path_factory.mktemp("torn"))
    claimed(run_dir, 1, 100.0)
    path = journal(run_dir, 1, WHOLE, restored=10)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found = only(run_dir)
    assert 100_000 <= found.ended_ms <= 113_000
    assert found.working_ms in (None, 105_000)
    place = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:place] + data.draw(st.binary(max_size=4)) + content[place + 1 :])
    assert only(run_dir).ended_ms < 1 << 43


def test_that_lines_that_lie_are_left_out(run_dir: RunDir) -> None:
    claimed(run_dir, 1, 100.0, world_size=0)
    lies = [event(5, 2**62, "x"), event(6, -5, "x"), event(7, 104_000, CHECKPOINT, until="soon", waited="long")]
    journal(run_dir, 1, [*lies, event(7, 105_000, SO_FAR, saved=[], until=2**62, waited=1e300)])
    found = only(run_dir)
    assert (found.ended_ms, found.waited_ms, found.saves, found.world_size) == (105_000, 0, (), 1)
