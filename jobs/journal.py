"""The run's append-only record of metrics and events: one file per attempt, never truncated. Torch-free.

A file's first line is its head: `{"attempt": 2, "restored": 200, "time": ...}`; every other line is one entry
`{"s": step, "t": milliseconds, "m": {"train/loss": 0.1}}` or `{"s": step, "t": ..., "e": "checkpoint", "d": {...}}`.
An entry at step s was made by finishing step s (its state is the one after s steps).
Where an attempt's time went can be read from the head and the end of its file alone (jobs.times): see `SO_FAR`.

An entry *counts* if it belongs to the history of the newest attempt: that of the attempt whose checkpoint it restored, up to
that step, and so on. An attempt that a later one passed by, with a checkpoint beyond all that it reached, counts nothing (it had
fallen back, because the newer checkpoints were not seen or not good at its time).

An entry may be *shipped* once a valid checkpoint, or the run's end, covers its step: no fall-back after that can take it back,
except to redo it with the same content.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

CHECKPOINT = "checkpoint"
"""Event: a valid checkpoint at this step is on disk."""
SAVING = "saving"
"""Event: a checkpoint of this step is about to be written. Durable before it: whose checkpoint it is shows in its journal."""
END = "end"
"""Event: the run ended at this step; nothing follows."""
START = "start"
"""Event: the attempt begins its work. Its detail `steps` says how many there are in all, where only the job can know."""
_HEAD_BYTES = 8192
"""What `announced_steps` reads of a file."""
AT_WORK = "at_work"
"""Event: start-up is over: the first step is finished, or the first piece of a kind with long steps begins."""
LEFT = "left"
"""Event: the attempt ends after a checkpoint, and the run goes on in another one."""
SO_FAR = "so_far"
"""Event: what the newest `checkpoint` event of this attempt said, again, so that it always stands near the file's end."""
SO_FAR_BYTES = 16 << 10
"""At most about so much follows what a `checkpoint` event said before it is said again."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a journal."""

    step: int
    time_ms: int
    """Milliseconds since the epoch; a replayed entry keeps its own."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    event: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


class JournalWriter:
    """Appends entries for one attempt. Buffered: `flush` once a second from the loop, `sync` before a checkpoint.

    A line is one write to a buffer with a lock: two threads may append, and one may sync while the other does.
    """

    def __init__(self, directory: Path, *, attempt: int, restored_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.last_step = restored_step
        self._saved: Mapping[str, Any] = {}
        self._unsaid_bytes = 0
        self._file = open(directory / f"{attempt:04d}.jsonl", "xb", buffering=1 << 20)  # noqa: SIM115
        self._write({"attempt": attempt, "restored": restored_step, "time": time.time()})
        self.sync()

    def _write(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._file.write(content)
        self._unsaid_bytes += len(content)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars of one finished step."""
        self.last_step = step
        self._write({"s": step, "t": time.time_ns() // 1_000_000, "m": values})
        if self._saved and self._unsaid_bytes >= SO_FAR_BYTES:
            self._unsaid_bytes = 0
            self.event(step, SO_FAR, **self._saved)

    def event(self, step: int, name: str, /, **detail: Any) -> None:
        """Record something that happened, with JSON-able detail."""
        now_ms = time.time_ns() // 1_000_000
        self._write({"s": step, "t": now_ms, "e": name, "d": detail})
        if name == CHECKPOINT:
            self._saved = {"saved": step, "until": detail.get("until", now_ms), "waited": detail.get("waited", 0.0)}
            self._unsaid_bytes = 0

    def flush(self) -> None:
        """Hand the buffered lines to the operating system (readers see them; a power cut may lose them)."""
        self._file.flush()

    def sync(self) -> None:
        """Make every line so far durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Make everything durable and close."""
        if not self._file.closed:
            self.sync()
            self._file.close()


@dataclass(frozen=True, kw_only=True)
class AttemptJournal:
    """One attempt's journal as read from disk."""

    attempt: int
    restored_step: int
    entries: tuple[Entry, ...]

    @property
    def last_step(self) -> int:
        """The highest step that it reached."""
        return max((entry.step for entry in self.entries), default=self.restored_step)


_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a line raises when it is not one of ours."""
_MOST = 2**63 - 1
"""Largest step and time that a tracker and a store can hold."""


def parse_entry(line: bytes) -> Entry | None:
    """The entry of one line; None when it is damaged, or a head."""
    try:
        raw = json.loads(line)
        metrics = {str(name): float(value) for name, value in raw.get("m", {}).items()}
        step, time_ms, detail = int(raw["s"]), int(raw["t"]), raw.get("d", {})
        if not (0 <= step <= _MOST and abs(time_ms) <= _MOST and isinstance(detail, dict)):
            return None
        return Entry(step=step, time_ms=time_ms, metrics=metrics, event=str(raw.get("e", "")), detail=detail)
    except _DAMAGED:
        return None


def read_attempt(path: Path) -> AttemptJournal | None:
    """Read one file. A torn last line (no newline: the writer was killed) is left out; a file without a head is None."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    lines = content.split(b"\n")[:-1]  # what follows the last newline was torn
    if not lines:
        return None
    try:
        head = json.loads(lines[0])
        attempt, restored = int(head["attempt"]), int(head["restored"])
    except _DAMAGED:
        return None
    entries = tuple(entry for line in lines[1:] if (entry := parse_entry(line)) is not None)
    return AttemptJournal(attempt=attempt, restored_step=restored, entries=entries)


class Reach(NamedTuple):
    """From where to where an attempt got."""

    restored: int
    last: int
    """Highest step of its entries, or what it restored."""


def kept_up_to(attempts: Sequence[Reach]) -> list[float | None]:
    """Up to which step each attempt, oldest first, is part of the newest one's history; None: not at all.

    Where nobody reached the step that was restored (a line was lost), the attempt before is taken for its maker.
    """
    found: list[float | None] = [None] * len(attempts)
    ceiling, number = math.inf, len(attempts) - 1
    while number >= 0:
        found[number] = ceiling
        ceiling = min(ceiling, attempts[number].restored)
        older = range(number - 1, -1, -1)
        number = next((one for one in older if attempts[one].last >= ceiling), number - 1)
    return found


@dataclass(frozen=True, kw_only=True)
class Journal:
    """All attempts of a run, oldest first."""

    attempts: tuple[AttemptJournal, ...]

    def counting(self) -> Iterator[Entry]:
        """Entries that count, in step order within the surviving history."""
        ceilings = kept_up_to([Reach(one.restored_step, one.last_step) for one in self.attempts])
        for attempt, ceiling in zip(self.attempts, ceilings, strict=True):
            if ceiling is not None:
                yield from (entry for entry in attempt.entries if entry.step <= ceiling)

    @property
    def covered_step(self) -> int:
        """The last step that a valid checkpoint or the run's end covers; -1 when nothing is covered yet."""
        return max((entry.step for entry in self.counting() if entry.event in (CHECKPOINT, END)), default=-1)

    def shippable(self, after_step: int) -> list[Entry]:
        """Counting entries with `after_step` < step <= covered step: what the tracker has not seen and may see."""
        covered = self.covered_step
        return [entry for entry in self.counting() if after_step < entry.step <= covered]


def read_journal(directory: Path) -> Journal:
    """Read every attempt's journal of a run; a missing directory is an empty journal."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    except OSError:
        return Journal(attempts=())
    found = (read_attempt(directory / name) for name in names)
    return Journal(attempts=tuple(attempt for attempt in found if attempt is not None))


def _newest(directory: Path) -> Path | None:
    """The newest attempt's file; raises OSError when the directory cannot be listed."""
    name = max((name for name in os.listdir(directory) if name.endswith(".jsonl")), default=None)
    return None if name is None else directory / name


def announced_steps(directory: Path) -> int:
    """How many steps the newest attempt has said that there are in all, reading only the file's head; 0 when it has not."""
    try:
        path = _newest(directory)
        if path is None:
            return 0
        with open(path, "rb") as handle:
            head = handle.read(_HEAD_BYTES)
    except OSError:
        return 0
    found = [entry for line in head.split(b"\n")[1:-1] if (entry := parse_entry(line)) is not None and entry.event == START]
    steps = found[0].detail.get("steps", 0) if found else 0
    return steps if isinstance(steps, int) and steps > 0 else 0


def last_entry(directory: Path) -> Entry | None:
    """The whole entry of the highest step of the newest attempt, reading only the file's tail (for progress).

    A checkpoint that was written behind training is noted after later steps: it is looked past.
    """
    try:
        path = _newest(directory)
        if path is None:
            return None
        with open(path, "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - 8192))
            tail = handle.read()
    except OSError:
        return None
    newest: Entry | None = None
    for line in reversed(tail.split(b"\n")[:-1]):
        entry = parse_entry(line)
        if entry is None:
            continue
        if newest is None or entry.step > newest.step:
            newest = entry
        if entry.event != CHECKPOINT:
            break
    return newest
