"""When each attempt of a run did what, from its claim and from the head and the end of its journal alone. Torch-free.

However long a journal is, at most `HEAD_BYTES` and `TAIL_BYTES` of it are read: the head holds the end of start-up, the end the
last sign of life and what the newest checkpoint said. Journals of earlier versions say less; nothing is guessed beyond
their lines: no wait for saves, and start-up up to the first line with metrics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import Attempt, RunDir, read_attempts
from jobs.journal import AT_WORK, CHECKPOINT, SAVING, SO_FAR, SO_FAR_BYTES, Entry, parse_entry

HEAD_BYTES = 16 << 10
TAIL_BYTES = 2 * SO_FAR_BYTES
"""An attempt that has saved said so within less, unless its lines are thousands of bytes long."""
_LATEST_MS = 1 << 42
"""The year 2109: later times are damage."""
_MOST_RANKS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Save:
    """A checkpoint of an attempt."""

    step: int
    until_ms: int
    """When work went on after it (or, written behind training, beside it)."""
    waited_ms: int
    """How long the attempt's work had waited for saves by then."""


@dataclass(frozen=True, kw_only=True)
class AttemptTimes:
    """What is known of one attempt. Times in milliseconds since the epoch, by the clock of its node."""

    job_id: str
    """Empty for a local one."""
    world_size: int
    claimed_ms: int
    restored_step: int | None
    """None: it never got as far as restoring."""
    working_ms: int | None = None
    """When its start-up was over; None: never."""
    ended_ms: int
    """Its last sign of life."""
    last_step: int = 0
    """The highest step that it is known to have finished."""
    waited_ms: int = 0
    """How long its work has waited for saves."""
    saves: tuple[Save, ...] = ()
    """Those that the lines read tell of, by step: the newest is among them, earlier ones may be missing."""


def read_times(run_dir: RunDir) -> list[AttemptTimes]:
    """Every attempt of a run, oldest first; one of which neither claim nor journal can be read is left out."""
    found = (_times(one, run_dir.journals / f"{one.number:04d}.jsonl") for one in read_attempts(run_dir))
    return [one for one in found if one is not None]


def steps_with_checkpoint(run_dir: RunDir, *, before: int) -> set[int]:
    """Steps of which the attempts below a number say that they restored them, saved them or began to.

    Each journal is opened by its name: on a network file system a node may see a directory as it was a minute ago, and its
    listing lacks the newest names.
    """
    found: set[int] = set()
    for number in range(1, before):
        head, *ends = _read(run_dir.journals / f"{number:04d}.jsonl")
        if head is not None:
            found.add(int(head["restored"]))
        for entry in (one for end in ends for one in end):
            if (save := _save(entry)) is not None:
                found.add(save.step)
            elif entry.event == SAVING:
                found.add(entry.step)
    return found


def _times(attempt: Attempt, journal: Path) -> AttemptTimes | None:
    head, begin, end = _read(journal)
    opened_ms = None if head is None else _milliseconds(head.get("time"))
    claimed_ms = _milliseconds(attempt.started_at) or opened_ms
    if claimed_ms is None:
        return None
    entries = [*begin, *end]
    saves = sorted({one.step: one for one in map(_save, entries) if one is not None}.values(), key=lambda one: one.step)
    return AttemptTimes(
        job_id=attempt.job_id,
        world_size=min(max(attempt.world_size, 1), _MOST_RANKS),
        claimed_ms=claimed_ms,
        restored_step=None if head is None else int(head["restored"]),
        working_ms=_working_ms(entries, opened_ms),
        ended_ms=max([claimed_ms, *([] if opened_ms is None else [opened_ms]), *(one.time_ms for one in entries)]),
        last_step=max((one.step for one in entries), default=0),
        waited_ms=max((_seconds_ms(one.detail.get("waited")) for one in entries), default=0),
        saves=tuple(saves),
    )


def _read(journal: Path) -> tuple[Mapping[str, Any] | None, list[Entry], list[Entry]]:
    """(head, entries of the file's beginning, of its end): of the end the events and the last line; no head: nothing."""
    try:
        handle = os.open(journal, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            first = os.pread(handle, HEAD_BYTES, 0)
            rest = os.pread(handle, TAIL_BYTES, max(HEAD_BYTES, size - TAIL_BYTES)) if size > HEAD_BYTES else b""
        finally:
            os.close(handle)
    except OSError:
        return None, [], []
    if size <= HEAD_BYTES + TAIL_BYTES:
        first, rest = first + rest, b""
    lines, last = first.split(b"\n")[:-1], rest.split(b"\n")[1:-1]  # what a cut goes through, or was torn, is no line
    head = _head(lines[0]) if lines else None
    if head is None:
        return None, [], []
    return head, list(_entries(lines[1:])), list(_entries(last))


def _entries(lines: list[bytes]) -> Iterator[Entry]:
    """Events, the first line with metrics, and the last line that is whole: the others say nothing of time."""
    seen_metrics = False
    for number, line in enumerate(lines):
        event = b'"e"' in line
        if (event or not seen_metrics or number + 1 == len(lines)) and (entry := parse_entry(line)) is not None:
            seen_metrics = seen_metrics or not event
            if entry.time_ms in range(_LATEST_MS):
                yield entry


def _head(line: bytes) -> Mapping[str, Any] | None:
    try:
        raw = json.loads(line)
        int(raw["attempt"]), int(raw["restored"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return dict(raw)


def _working_ms(entries: list[Entry], opened_ms: int | None) -> int | None:
    """When start-up was over: the attempt says so. Earlier versions did not: then the first metrics; where a checkpoint comes
    first, steps are long and begin soon after the journal was opened."""
    for entry in entries:
        if entry.event == AT_WORK or entry.metrics:
            return entry.time_ms
        if entry.event == CHECKPOINT:
            return opened_ms
    return None


def _save(entry: Entry) -> Save | None:
    if entry.event not in (CHECKPOINT, SO_FAR):
        return None
    step, until = entry.detail.get("saved", entry.step), entry.detail.get("until", entry.time_ms)
    if type(step) is not int or type(until) is not int or until not in range(_LATEST_MS):
        return None
    return Save(step=step, until_ms=until, waited_ms=_seconds_ms(entry.detail.get("waited")))


def _seconds_ms(value: Any) -> int:
    """Milliseconds of a duration in seconds; 0 for what is none."""
    return _milliseconds(value) or 0


def _milliseconds(seconds: Any) -> int | None:
    """None for what is no time, or 0: nobody has said it."""
    known = isinstance(seconds, int | float) and 0 < seconds < _LATEST_MS / 1000
    return round(1000 * seconds) if known else None
