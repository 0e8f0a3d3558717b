"""When a training run saves, and how: a copy on the training thread, written behind it; rank 0 writes, all ranks count.

A checkpoint on its way is worth nothing until it is whole: until then the one before is the newest. The journal's event is
written by the thread that made it whole, after every line of its step and before nothing that the rule of shipping needs.
"""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass, field

from jobs.attempt import Run
from jobs.background import Background
from jobs.contract import RunDir, read_attempts
from jobs.interval import interval_s, mean_uptime_s
from jobs.journal import read_journal
from jobs.snapshot import Snapshot
from jobs.spec import RuntimeSpec
from jobs.state import TrainState, save_content

log = logging.getLogger("jobs")

REMEMBERED = 9
"""Saves whose median tells what the next one costs."""


def lifetimes_s(run_dir: RunDir, *, before: int) -> list[float]:
    """Seconds that each attempt below number `before` worked, from its claim to its last line; each ended interrupted.

    All count, evictions with notice too: they lose no step today, but nobody promises the notice.
    """
    started_at = {one.number: one.started_at for one in read_attempts(run_dir) if one.started_at > 0 and one.number < before}
    last_at = {one.attempt: one.entries[-1].time_ms / 1000 for one in read_journal(run_dir.journals).attempts if one.entries}
    return [max(0.0, last_at.get(number, begun) - begun) for number, begun in started_at.items()]


@dataclass(kw_only=True)
class Saver:
    """The checkpoints of one attempt. Every rank has one; what is written and timed is rank 0's."""

    run: Run
    state: TrainState
    runtime: RuntimeSpec
    saved_step: int = 0
    """Step of the newest checkpoint, whole or on its way."""
    _begun_at: float = field(default_factory=time.monotonic)
    _saved_at: float = field(default_factory=time.monotonic)
    _lifetimes_s: list[float] = field(default_factory=list)
    _stalls_s: list[float] = field(default_factory=list)
    _write_s: float = 0.0
    _snapshot: Snapshot = field(default_factory=Snapshot)
    _background: Background = field(default_factory=lambda: Background("checkpoint"))

    def restored(self, step: int) -> None:
        """The state is that of `step`, of a checkpoint or of the beginning; called once, with the journal open."""
        self.saved_step = step
        if self.run.is_main and self.runtime.checkpoint_auto is not None:
            self._lifetimes_s = lifetimes_s(self.run.run_dir, before=self.run.attempt.number)

    @property
    def interval_s(self) -> float:
        """Seconds from one save to the next, as things stand; of meaning on rank 0."""
        if self.runtime.checkpoint_auto is None:
            return self.runtime.checkpoint_every_s
        chosen = self.runtime.checkpoint_auto
        running_s = time.monotonic() - self._begun_at
        return interval_s(
            chosen,
            cost_s=statistics.median(self._stalls_s) if self._stalls_s else None,
            write_s=self._write_s,
            uptime_s=mean_uptime_s(self._lifetimes_s, running_s, prior_s=chosen.prior_uptime_s),
        )

    def overdue(self) -> bool:
        """Whether it is time by the clock; rank 0's word counts."""
        return self.state.step > self.saved_step and time.monotonic() - self._saved_at >= self.interval_s

    def due(self) -> bool:
        """Whether it is time by the number of steps: the same on every rank."""
        return self.runtime.checkpoint_auto is None and self.state.step - self.saved_step >= self.runtime.checkpoint_every_steps

    def check(self) -> None:
        """Raise what a write in the background failed with; at every boundary."""
        self._background.check()

    def save(self, *, whole: bool) -> None:
        """One checkpoint of the current step, unless there is one. `whole`: it, or the one on its way, is on disk on return.

        Waits for the one before, and raises what that failed with. Raises FloatingPointError (on all ranks alike) instead of
        saving weights that are not finite: the last good checkpoint stays the newest.
        """
        begun, step = time.monotonic(), self.state.step
        fresh = step > self.saved_step
        if fresh and not all(bool(one.isfinite().all()) for one in self.state.parameters()):
            raise FloatingPointError(f"the weights are not finite at step {step}")
        if self.run.is_main and (fresh or whole):
            self._background.wait()
            blocking = fresh and (whole or not self.runtime.background_checkpoints)
            content = None if blocking or not fresh else self._snapshot.take(self.state.content())
            stall_s = time.monotonic() - begun
            self.run.waited_s += stall_s
            if blocking:
                saved = self.run.checkpoint(step, self.state.save)
                self._note(saved.seconds, time.monotonic() - begun)
                log.info("checkpoint at step %d: %d bytes in %.2f s", saved.step, saved.bytes, saved.seconds)
            elif content is not None:
                until_ms = time.time_ns() // 1_000_000
                self._background.start(lambda: self._write(step, content, stall_s, until_ms))
        self.saved_step, self._saved_at = step, time.monotonic()

    def close(self) -> None:
        """Wait for the write on its way, whatever has happened; a failure of it is logged."""
        self._background.close()

    def _write(self, step: int, content: dict[str, object], stall_s: float, until_ms: int) -> None:
        """On the thread of the background."""
        saved = self.run.checkpoint(step, lambda folder: save_content(content, folder), until_ms=until_ms)
        self._note(saved.seconds, stall_s)
        log.info(
            "checkpoint at step %d: %d bytes in %.2f s, of which training waited %.3f s",
            saved.step, saved.bytes, saved.seconds, stall_s,
        )  # fmt: skip

    def _note(self, write_s: float, stall_s: float) -> None:
        self._write_s, self._stalls_s = write_s, [*self._stalls_s, stall_s][-REMEMBERED:]
