"""One attempt of one run: what every job kind is given, and the three ways to end early. Torch-free.

A job kind is a function `(Run) -> Finished`. It saves through `run.checkpoint`, asks `run.flag` at step boundaries, and
leaves through `run.leave` after its checkpoint.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs import eviction
from jobs.checkpoint import Checkpoint, CheckpointStore, Saved
from jobs.contract import Attempt, Cause, ExitCode, Outcome, RunDir, Status, owns, read_outcome, write_outcome
from jobs.eviction import Slurm, Verdict
from jobs.journal import AT_WORK, CHECKPOINT, SAVING, JournalWriter
from jobs.preemption import Flag
from jobs.ranks import Ranks
from jobs.spec import FrozenRun
from jobs.times import steps_with_checkpoint

log = logging.getLogger("jobs")


class Superseded(Exception):
    """A newer attempt owns the run: end quietly."""


class Refused(Exception):
    """The run cannot be executed as it stands (foreign checkpoint, wrong code); says why."""


class Left(Exception):
    """The run was checkpointed and the attempt is over, with Slurm's verdict (None outside Slurm)."""

    def __init__(self, step: int, verdict: Verdict | None) -> None:
        super().__init__(f"left at step {step}")
        self.step, self.verdict = step, verdict


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a job kind returns when the run is complete."""

    step: int
    values: Mapping[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    """What other runs may read; their sizes go into the outcome's manifest."""


@dataclass(kw_only=True)
class Run:
    """One attempt in progress (rank 0 alone has a journal)."""

    run_dir: RunDir
    frozen: FrozenRun
    attempt: Attempt
    ranks: Ranks
    flag: Flag
    slurm: Slurm | None
    port: int = 0
    """Where rank 0 listens."""
    listening_fd: int | None = None
    journal: JournalWriter | None = None
    waited_s: float = 0.0
    """How long this attempt's work has waited for saves, and for Slurm's answer when it was told to leave (rank 0)."""
    store: CheckpointStore = field(init=False)
    _at_work: bool = False

    def __post_init__(self) -> None:
        self.store = CheckpointStore(
            directory=self.run_dir.checkpoints,
            config_hash=self.frozen.id,
            keep=self.frozen.config.runtime.keep_checkpoints,
        )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return self.ranks.rank == 0

    def owns(self) -> bool:
        """Whether this attempt may still commit."""
        return owns(self.run_dir, self.attempt)

    def restore_point(self) -> Checkpoint | None:
        """The newest valid checkpoint (rank 0); says which ones it passed over and opens the journal at its step."""
        if not self.owns():
            raise Superseded
        self.store.clear_leftovers()
        found, skipped = self.store.newest(also=steps_with_checkpoint(self.run_dir, before=self.attempt.number))
        step = 0 if found is None else found.step
        self.journal = JournalWriter(self.run_dir.journals, attempt=self.attempt.number, restored_step=step)
        for one in skipped:
            log.warning("skipped checkpoint %s: %s", one.path.name, one.reason)
            self.journal.event(step, "checkpoint_skipped", name=one.path.name, reason=one.reason)
        if found is not None:
            log.info("restored step %d", step)
        return found

    def at_work(self, step: int) -> None:
        """Note once that start-up is over, at `step` (rank 0; nothing on the others). May be called again and again."""
        if self.journal is not None and not self._at_work:
            self._at_work = True
            self.journal.event(step, AT_WORK)
            self.journal.flush()

    def checkpoint(self, step: int, write: Callable[[Path], None], *, until_ms: int | None = None) -> Saved:
        """Save the state after `step` (rank 0) and record it; raises Superseded when a newer attempt owns the run.

        The event says how long work has waited for saves so far, and until when it waited for this one. `until_ms`
        (milliseconds since the epoch): work went on then from a copy, and the caller has counted the wait; None: it waits here.
        """
        assert self.journal is not None
        begun = time.monotonic()
        self.journal.event(step, SAVING)
        self.journal.sync()
        saved = self.store.save(
            step,
            write,
            world_size=self.ranks.world_size,
            threads=self.frozen.config.runtime.threads,
            may_commit=self.owns,
        )
        if saved is None:
            raise Superseded
        if until_ms is None:
            self.waited_s += time.monotonic() - begun
        until = {} if until_ms is None else {"until": until_ms}
        facts = {"bytes": saved.bytes, "seconds": round(saved.seconds, 4), "waited": round(self.waited_s, 4)}
        self.journal.event(step, CHECKPOINT, **facts, **until)
        self.journal.sync()
        return saved

    def settle(self) -> Verdict | None:
        """After the checkpoint of a raised flag (rank 0): ask Slurm and act; None outside Slurm."""
        if self.slurm is None:
            return None
        known = read_outcome(self.run_dir)
        if known is not None and known.attempt == self.attempt.number:
            return Verdict.RANK_DIED  # another rank has said why it failed; a requeue would hide it
        begun = time.monotonic()
        verdict = eviction.settle(
            self.slurm,
            cancel_mark=self.run_dir.cancel_mark.exists,
            terminating=lambda: self.flag.terminating,
            patience_s=eviction.PATIENCE_S,
        )
        self.waited_s += time.monotonic() - begun
        log.info("signal %d; Slurm says: %s", self.flag.first_signal, verdict.value)
        return verdict

    def leave(self, step: int) -> None:
        """For single-process kinds: settle, then raise Left, or return when it was only a warning."""
        verdict = self.settle()
        if verdict is Verdict.GO_ON:
            self.flag.lower()
            return
        raise Left(step, verdict)

    def end_hung(self, silent_s: float) -> None:
        """End a rank that finishes nothing, with a reason (for a watchdog); the group's other ranks are ended by srun."""
        known = read_outcome(self.run_dir)
        if self.owns() and (known is None or known.attempt != self.attempt.number):
            reason = f"rank {self.ranks.rank} finished no step for {silent_s:.0f} s (runtime.hang_timeout_s)"
            number = self.attempt.number
            write_outcome(self.run_dir, Outcome(status=Status.FAILED, attempt=number, cause=Cause.HANG, reason=reason))
        os._exit(ExitCode.FAILED)
