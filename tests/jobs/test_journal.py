"""The journal: torn lines, fall-backs, and what may be shipped; properties over invented histories of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.journal import (
    CHECKPOINT,
    END,
    START,
    AttemptJournal,
    Entry,
    Journal,
    JournalWriter,
    Reach,
    announced_steps,
    kept_up_to,
    last_entry,
    read_attempt,
    read_journal,
)


@st.composite
def histories(draw: st.DrawFn) -> list[AttemptJournal]:
    """What attempts leave that restore the newest checkpoint, or an older one when it rotted, or when it was not seen (the next
    may see it); metrics at every step, and events of a checkpoint unless a death came between."""
    found: list[AttemptJournal] = []
    checkpoints = {0}
    for number in range(1, draw(st.integers(1, 6)) + 1):
        if len(checkpoints) > 1 and draw(st.booleans()):
            checkpoints.discard(max(checkpoints))
        seen = sorted(checkpoints)
        restored = seen[-1 - draw(st.integers(0, min(2, len(seen) - 1)))]
        entries: list[Entry] = []
        for step in range(restored + 1, restored + 1 + draw(st.integers(0, 6))):
            entries.append(Entry(step=step, time_ms=number * 1000 + step, metrics={"m": float(step)}))
            if draw(st.booleans()):
                checkpoints.add(step)
                if not draw(st.booleans()):
                    break  # died before the event
                entries.append(Entry(step=step, time_ms=0, event=CHECKPOINT))
        found.append(AttemptJournal(attempt=number, restored_step=restored, entries=tuple(entries)))
    return found


def metric_steps(entries: list[Entry]) -> list[int]:
    return [entry.step for entry in entries if entry.metrics]


@given(histories())
def test_that_every_step_counts_once_and_in_order(history: list[AttemptJournal]) -> None:
    steps = metric_steps(list(Journal(attempts=tuple(history)).counting()))
    assert steps == list(range(1, len(steps) + 1))


@given(histories())
def test_that_all_counts_that_led_to_the_newest_attempt(history: list[AttemptJournal]) -> None:
    newest = history[-1]
    steps = metric_steps(list(Journal(attempts=tuple(history)).counting()))
    assert steps == list(range(1, newest.last_step + 1))
    assert [entry for entry in Journal(attempts=tuple(history)).counting() if entry in newest.entries] == list(newest.entries)


def test_that_an_attempt_that_fell_back_and_was_passed_by_counts_nothing() -> None:
    """Seen in the fault campaign: listings were stale, the third attempt began at 0, and the fourth went on from 50."""
    reached = [Reach(0, 30), Reach(20, 50), Reach(0, 10), Reach(50, 90)]
    assert kept_up_to(reached) == [20, 50, None, math.inf]
    assert kept_up_to([Reach(0, 100), Reach(90, 95), Reach(100, 120)]) == [100, None, math.inf]
    assert kept_up_to([Reach(0, 30), Reach(20, 25), Reach(40, 60)]) == [20, 40, math.inf], "whose it was is not known"
    assert kept_up_to([Reach(0, 3), Reach(3, 3), Reach(3, 9)]) == [3, 3, math.inf]
    assert kept_up_to([]) == []


@given(histories())
def test_that_what_was_never_covered_is_not_shipped(history: list[AttemptJournal]) -> None:
    journal = Journal(attempts=tuple(history))
    saved = [entry.step for entry in journal.counting() if entry.event == CHECKPOINT]
    assert journal.covered_step == max(saved, default=-1)
    assert all(entry.step <= journal.covered_step for entry in journal.shippable(-1))


@given(histories(), st.data())
def test_that_shipping_at_any_moments_ships_each_step_once(history: list[AttemptJournal], data: st.DataObject) -> None:
    """The shipper looks at arbitrary moments of the history, its cursor is a step; a checkpoint may rot in between."""
    cursor, shipped = -1, []
    for position, attempt in enumerate(history):
        for cut in sorted(data.draw(st.lists(st.integers(0, len(attempt.entries)), max_size=3))):
            seen = AttemptJournal(attempt=attempt.attempt, restored_step=attempt.restored_step, entries=attempt.entries[:cut])
            batch = Journal(attempts=(*history[:position], seen)).shippable(cursor)
            shipped += metric_steps(batch)
            cursor = max([cursor, *(entry.step for entry in batch)])
    journal = Journal(attempts=tuple(history))
    shipped += metric_steps(journal.shippable(cursor))
    assert shipped == list(range(1, len(shipped) + 1))
    assert len(shipped) >= journal.covered_step


@settings(max_examples=60)
@given(cut=st.integers(0, 400))
def test_that_a_torn_tail_costs_the_torn_line_alone(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("journal")
    writer = JournalWriter(folder, attempt=1, restored_step=0)
    for step in range(1, 5):
        writer.metrics(step, {"loss": 1.0 / step})
    writer.close()
    content = (folder / "0001.jsonl").read_bytes()
    (folder / "0001.jsonl").write_bytes(content[: max(0, len(content) - cut)])
    whole = content[: max(0, len(content) - cut)].count(b"\n")
    attempt = read_attempt(folder / "0001.jsonl")
    if whole == 0:
        assert attempt is None
        return
    assert attempt is not None
    assert [entry.step for entry in attempt.entries] == list(range(1, whole))
    last = last_entry(folder)
    assert (last.step if last else 0) == whole - 1


def test_that_lines_written_are_lines_read(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, attempt=3, restored_step=20)
    writer.metrics(21, {"loss": 0.1 + 0.2, "odd": float("nan"), "huge": math.inf})
    writer.event(21, CHECKPOINT, bytes=7, name="x")
    writer.event(22, END)
    writer.close()
    writer.close()
    attempt = read_attempt(tmp_path / "0003.jsonl")
    assert attempt is not None
    assert (attempt.attempt, attempt.restored_step) == (3, 20)
    assert repr(dict(attempt.entries[0].metrics)) == repr({"loss": 0.1 + 0.2, "odd": math.nan, "huge": math.inf})
    assert attempt.entries[1].detail == {"bytes": 7, "name": "x"}
    assert Journal(attempts=(attempt,)).covered_step == 22


def test_that_a_journal_is_never_written_over(tmp_path: Path) -> None:
    JournalWriter(tmp_path, attempt=1, restored_step=0).close()
    with pytest.raises(FileExistsError):
        JournalWriter(tmp_path, attempt=1, restored_step=0)


def test_that_readers_see_flushed_lines_of_a_living_writer(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, attempt=1, restored_step=0)
    writer.metrics(1, {"m": 1.0})
    assert last_entry(tmp_path) is None
    writer.flush()
    assert read_journal(tmp_path).attempts[0].entries[0].step == 1
    writer.close()


def test_that_progress_does_not_go_back_to_a_checkpoint_noted_late(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, attempt=1, restored_step=0)
    writer.metrics(5, {"m": 1.0})
    writer.event(3, CHECKPOINT)
    writer.flush()
    last = last_entry(tmp_path)
    assert last is not None
    assert last.step == 5
    assert read_journal(tmp_path).covered_step == 3
    writer.event(5, CHECKPOINT)
    writer.close()
    last = last_entry(tmp_path)
    assert last is not None
    assert (last.step, last.event) == (5, CHECKPOINT)


def test_that_nonsense_lines_are_left_out(tmp_path: Path) -> None:
    head = b'{"attempt":1,"restored":0,"time":1}\n'
    lines = b'\x00\x00\n[1]\n{"s":1}\n{"s":1,"t":5,"m":{"a":"x"}}\n{"s":2,"t":5,"m":{"a":1}}\nnull\n{"s":3,"t":5,"m":7}\n'
    (tmp_path / "0001.jsonl").write_bytes(head + lines)
    (tmp_path / "0002.jsonl").write_bytes(b"")
    (tmp_path / "0003.jsonl").write_bytes(b"nonsense\n" + lines)
    (attempt,) = read_journal(tmp_path).attempts
    assert [(entry.step, dict(entry.metrics)) for entry in attempt.entries] == [(2, {"a": 1.0})]
    assert read_journal(tmp_path / "missing").attempts == ()
    assert last_entry(tmp_path / "missing") is None
    assert announced_steps(tmp_path / "missing") == 0


def test_that_the_newest_attempt_announces_its_steps(tmp_path: Path) -> None:
    for attempt, more in ((1, {"steps": 7}), (2, {"steps": 9}), (3, {}), (4, {"steps": "many"})):
        writer = JournalWriter(tmp_path, attempt=attempt, restored_step=0)
        assert announced_steps(tmp_path) == 0, "its head alone says nothing"
        writer.event(0, START, cpu="x", **more)
        writer.close()
        assert announced_steps(tmp_path) == {1: 7, 2: 9}.get(attempt, 0)
