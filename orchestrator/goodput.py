"""What became of the time that runs took: shares of their attempts' time, and the time in Slurm's queue. Pure.

restarting      from an attempt's claim to the end of its start-up (its first finished step; where steps are long, the beginning
                of the first piece); of an attempt that never got there: all of it
checkpointing   work waited for a save, or, told to leave, for Slurm's answer; a save that is written behind training costs
                the copy alone
replayed        steps that a later attempt did again: after the checkpoint that it restored
productive      the rest; goodput is its share. The four add up to the attempts' time exactly: whole milliseconds
queued          from being handed to Slurm (dependencies included) to the claim; of a job that was requeued from the end of the
                attempt before. Waits that ended in a claim count; nobody waits between a failure and the next submission

An attempt lasts from its claim to its last sign of life, the last line of its journal. Its time counts once for each of its
ranks: GPU-hours where its job asks for GPUs (a rank has one, packed runs their share of one), else task-hours, as for every
process on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.journal import Reach, kept_up_to
from jobs.times import AttemptTimes

CLASSES = ("productive", "checkpointing", "restarting", "replayed")
SHARED = "a run that serves several sweeps counts in each"
_UNITS = (("hours", "h", 3_600_000), ("minutes", "min", 60_000), ("seconds", "s", 1000))
"""Word, letter, milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Time of attempts by what it went into: milliseconds, once for each rank."""

    productive_ms: int = 0
    checkpointing_ms: int = 0
    restarting_ms: int = 0
    replayed_ms: int = 0

    @property
    def total_ms(self) -> int:
        """All of it."""
        return self.productive_ms + self.checkpointing_ms + self.restarting_ms + self.replayed_ms

    @property
    def goodput(self) -> float:
        """The productive share, in [0, 1]; 0 of nothing."""
        return self.productive_ms / self.total_ms if self.total_ms else 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(**{f"{one}_ms": self.of(one) + other.of(one) for one in CLASSES})

    def times(self, ranks: int) -> Spent:
        """The same for so many ranks."""
        return Spent(**{f"{one}_ms": ranks * self.of(one) for one in CLASSES})

    def shared(self, runs: int) -> Spent:
        """What falls to each of so many runs."""
        return Spent(**{f"{one}_ms": self.of(one) // runs for one in CLASSES})

    def of(self, name: str) -> int:
        """Milliseconds of one of `CLASSES`."""
        return int(getattr(self, f"{name}_ms"))


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one run has used, or several together."""

    gpus: Spent = field(default_factory=Spent)
    """Of attempts whose job asked for GPUs."""
    tasks: Spent = field(default_factory=Spent)
    """Of the others."""
    queued_ms: int = 0
    """In Slurm's queue, once for a job of any size."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(gpus=self.gpus + other.gpus, tasks=self.tasks + other.tasks, queued_ms=self.queued_ms + other.queued_ms)

    def __bool__(self) -> bool:
        return self != Usage()

    @property
    def goodput(self) -> float | None:
        """Of the GPUs; without any, of the tasks; None when no time was spent."""
        spent = self.gpus if self.gpus.total_ms else self.tasks
        return spent.goodput if spent.total_ms else None


def usage_of(attempts: Sequence[AttemptTimes], submitted_ms: Sequence[int], *, with_gpus: bool, runs_per_gpu: int = 1) -> Usage:
    """What one run has used. `attempts`: oldest first; `submitted_ms`: when it was handed to Slurm; `with_gpus`: its job asks
    for GPUs (attempts on this machine, without a job, count as tasks all the same), each of which so many runs share."""
    found = Usage(queued_ms=_queued_ms(attempts, submitted_ms))
    for one, kept in zip(attempts, _kept(attempts), strict=True):
        spent = spent_in(one, redone_after=kept).times(one.world_size)
        found += Usage(gpus=spent.shared(runs_per_gpu)) if with_gpus and one.job_id else Usage(tasks=spent)
    return found


def _kept(attempts: Sequence[AttemptTimes]) -> list[int | None]:
    """The step after which each attempt's work was done again by others; None: it was not."""
    reached = [
        Reach(one.restored_step, max(one.restored_step, one.last_step)) for one in attempts if one.restored_step is not None
    ]
    kept = iter(kept_up_to(reached))
    found: list[int | None] = []
    for one in attempts:
        step = math.inf if one.restored_step is None else next(kept)
        found.append((one.restored_step or 0) if step is None else None if step == math.inf else int(step))
    return found


def spent_in(one: AttemptTimes, *, redone_after: int | None) -> Spent:
    """Of one attempt and one rank. `redone_after`: what lies beyond this step was done again by others; None: nothing."""
    total = max(0, one.ended_ms - one.claimed_ms)
    if one.working_ms is None:
        return Spent(restarting_ms=total)
    restarting = _within(one.working_ms - one.claimed_ms, total)
    checkpointing = _within(one.waited_ms, total - restarting)
    replayed = _within(_lost_ms(one, one.working_ms, redone_after), total - restarting - checkpointing)
    return Spent(
        productive_ms=total - restarting - checkpointing - replayed,
        checkpointing_ms=checkpointing,
        restarting_ms=restarting,
        replayed_ms=replayed,
    )


def _within(value: int, most: int) -> int:
    return min(max(value, 0), most)


def _lost_ms(one: AttemptTimes, working_ms: int, redone_after: int | None) -> int:
    """From the step that a later attempt restored to the end, without the waits for saves on the way."""
    if redone_after is None or redone_after >= one.last_step:
        return 0
    at_ms, waited_ms = working_ms, 0
    if redone_after > (one.restored_step or 0):
        at_ms, waited_ms = _at(one, working_ms, redone_after)
    return one.ended_ms - at_ms - (one.waited_ms - waited_ms)


def _at(one: AttemptTimes, working_ms: int, step: int) -> tuple[int, int]:
    """(when the attempt went on from a step, how long it had waited for saves by then); between what is known, in proportion."""
    known = [(one.restored_step or 0, working_ms, 0), *((save.step, save.until_ms, save.waited_ms) for save in one.saves)]
    low = max(place for place in known if place[0] <= step)
    if low[0] == step:
        return low[1], low[2]
    high = min((place for place in known if place[0] > step), default=(one.last_step, one.ended_ms, one.waited_ms))
    share = (step - low[0]) / (high[0] - low[0])
    return low[1] + round(share * (high[1] - low[1])), low[2]


def _queued_ms(attempts: Iterable[AttemptTimes], submitted_ms: Sequence[int]) -> int:
    total, before = 0, None
    for one in attempts:
        if one.job_id:
            ended_ms = 0 if before is None else before.ended_ms
            handed = max((at for at in submitted_ms if ended_ms <= at <= one.claimed_ms), default=None)
            if handed is None and before is not None and before.job_id == one.job_id:
                handed = ended_ms
            total += 0 if handed is None else max(0, one.claimed_ms - handed)
        before = one
    return total


def worded(usage: Usage) -> str:
    """One line for a person; empty when there is nothing to tell.

    `goodput 93 % of 41.2 GPU-hours (productive 38.3, checkpointing 0.4, restarting 1.9, replayed 0.6); queued 12.4 h`.
    """
    shares = [
        f"{100 * spent.productive_ms // spent.total_ms} % of {_amount(spent, unit)}"
        for spent, unit in ((usage.gpus, "GPU"), (usage.tasks, "task"))
        if spent.total_ms
    ]
    parts = [f"goodput {' and '.join(shares)}"] if shares else []
    if usage.queued_ms:
        _, letter, size = _unit(usage.queued_ms)
        parts.append(f"queued {usage.queued_ms / size:.1f} {letter}")
    return "; ".join(parts)


def _amount(spent: Spent, unit: str) -> str:
    word, _, size = _unit(spent.total_ms)
    shares = ", ".join(f"{name} {spent.of(name) / size:.1f}" for name in CLASSES)
    return f"{spent.total_ms / size:.1f} {unit}-{word} ({shares})"


def _unit(milliseconds: int) -> tuple[str, str, int]:
    return next((one for one in _UNITS if milliseconds >= one[2]), _UNITS[-1])


def in_seconds(usage: Usage) -> dict[str, Any]:
    """For scripts: goodput in [0, 1], seconds of GPUs and of tasks by class (those that there are), seconds in the queue."""
    told: dict[str, Any] = {} if usage.goodput is None else {"goodput": round(usage.goodput, 4)}
    for name, spent in (("gpu_seconds", usage.gpus), ("task_seconds", usage.tasks)):
        if spent.total_ms:
            told[name] = {one: spent.of(one) / 1000 for one in CLASSES}
    return told | {"queued_seconds": usage.queued_ms / 1000}


def to_plain(usage: Usage) -> dict[str, Any]:
    """As JSON values; `from_plain` gives an equal value back."""
    return asdict(usage)


def from_plain(raw: Mapping[str, Any]) -> Usage:
    """Read what `to_plain` wrote; raises KeyError, TypeError or ValueError for anything else."""
    gpus, tasks = dict(raw["gpus"]), dict(raw["tasks"])
    for value in (raw["queued_ms"], *gpus.values(), *tasks.values()):
        if type(value) is not int or value < 0:
            raise ValueError("no time that was used")
    return Usage(gpus=Spent(**gpus), tasks=Spent(**tasks), queued_ms=raw["queued_ms"])
