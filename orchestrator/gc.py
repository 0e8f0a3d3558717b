"""(what lies below the root, what still lives, what to keep) -> what may go, with bytes and reason. Pure: no clock, no I/O.

What this file does not name is never removed: journals, attempts, outcomes, specs, outputs, artifacts, the store, the tracker,
and the scratch of a run that is not done (a resumed `prepare` or `embed` goes on from it).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.lifecycle import ACTIVE, RunState

QUIET_S = 3600.0
"""A run that Slurm does not know and whose newest attempt has not said that it ended is left alone while it wrote something in
the last so many seconds: a node that Slurm has lost may still compute."""


class Kind(enum.StrEnum):
    """What is removed. The values are the words that a person reads."""

    CHECKPOINT = "checkpoints"
    """Older than the newest valid one; of a finished run every other, and with `finished_checkpoints` that one as well."""
    LEFTOVER = "interrupted saves"
    """Half-written checkpoints of attempts that died."""
    SCRATCH = "scratch of finished runs"
    """`work/`, which a job that died between its output and its outcome has left."""
    SNAPSHOT = "code snapshots"
    """No run links to it, or its copying was cut short."""
    LOG = "logs"
    """Of older jobs than the newest few of a run."""
    TRASH = "unfinished removals"
    """What an earlier `orch gc` had taken away when it was killed."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What a person wants to keep beyond what is always kept."""

    logs: int = 5
    """Logs of so many newest jobs per run (at least 1)."""
    finished_checkpoints: bool = False
    """Whether the newest checkpoint of finished runs goes as well."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A file or a folder that nothing points at by name."""

    path: str
    """Relative to the root."""
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CheckpointSeen:
    """One directory among a run's checkpoints."""

    path: str
    bytes: int
    removable: bool = True
    """False for a symbolic link: it counts as a checkpoint, and what it points to is not ours."""


@dataclass(frozen=True, kw_only=True)
class LogSeen:
    """One log file."""

    path: str
    bytes: int
    job: str
    """The job that wrote it: its ranks' logs stay or go together."""
    modified_at: float


@dataclass(frozen=True, kw_only=True)
class RunSeen:
    """One run: its state in the store, and what its directory holds."""

    id: str
    state: RunState
    job: str = ""
    """The job that the store knows."""
    attempt: int = 0
    """Number of the newest attempt; 0 when there was none."""
    attempt_job: str = ""
    """Its Slurm job; empty for a process without Slurm."""
    process_lives: bool | None = None
    """Whether the newest attempt's process, without Slurm, lives; None when this machine cannot know."""
    ended: bool = False
    """Whether there is an outcome by the newest attempt, or one that says done."""
    whole: bool = False
    """Whether the outcome says done and all files of its manifest are there."""
    written_at: float = 0.0
    """When anything was last written to its journals or checkpoints (seconds since the epoch)."""
    checkpoints: Sequence[CheckpointSeen] = ()
    """Oldest first, valid or not."""
    newest_valid: str | None = None
    """Path of the newest checkpoint whose checksums are right; None when there is none."""
    leftovers: Sequence[Thing] = ()
    scratch: Thing | None = None
    logs: Sequence[LogSeen] = ()
    trash: Sequence[Thing] = ()


@dataclass(frozen=True, kw_only=True)
class SnapshotsSeen:
    """The folder of code snapshots, and what links there."""

    trees: Sequence[Thing] = ()
    """The last part of each path is the tree's hash."""
    leftovers: Sequence[Thing] = ()
    """Copies that were cut short."""
    trash: Sequence[Thing] = ()
    linked: frozenset[str] = frozenset()
    """Hashes that runs link to, in the store, in their directory or in their spec."""
    unknown: Sequence[str] = ()
    """Run directories whose code cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One thing that may go."""

    kind: Kind
    path: str
    """Relative to the root."""
    bytes: int
    reason: str


def why_left_alone(run: RunSeen, live: frozenset[str] | None, now: float) -> str:
    """Why nothing of a run may be touched; empty when nobody works on it.

    `live`: jobs that Slurm lists and that have not ended; None when Slurm cannot be asked.
    """
    if run.state in ACTIVE:
        return run.state.value
    if live is not None and live & {run.job, run.attempt_job} - {""}:
        return "Slurm still lists its job"
    if run.process_lives:
        return "its process still lives"
    if run.attempt == 0 or run.ended:
        return ""
    if run.process_lives is False and not run.attempt_job:
        return ""
    if run.attempt_job and live is None:
        return "may still be at work: Slurm cannot be asked"
    if now - run.written_at < QUIET_S:
        return f"wrote something in the last {QUIET_S / 60:.0f} minutes and has not said that it ended"
    return ""


def _checkpoints(run: RunSeen, keep: Keep) -> Iterable[Removal]:
    finished = run.state is RunState.DONE and run.whole
    if finished and keep.finished_checkpoints:
        chosen, reason = list(run.checkpoints), f"{run.id} is done"
    elif run.newest_valid is None:
        return
    elif finished:
        chosen, reason = [one for one in run.checkpoints if one.path != run.newest_valid], f"{run.id} is done"
    else:
        paths = [one.path for one in run.checkpoints]
        chosen = list(run.checkpoints[: paths.index(run.newest_valid)]) if run.newest_valid in paths else []
        reason = f"older than the newest valid one of {run.id}"
    for one in chosen:
        if one.removable:
            yield Removal(kind=Kind.CHECKPOINT, path=one.path, bytes=one.bytes, reason=reason)


def _logs(run: RunSeen, keep: Keep) -> Iterable[Removal]:
    written: dict[str, float] = {}
    for log in run.logs:
        written[log.job] = max(log.modified_at, written.get(log.job, log.modified_at))
    newest = sorted(written, key=lambda job: (written[job], job))[-max(1, keep.logs) :]
    reason = f"of older jobs than the newest {max(1, keep.logs)} of {run.id}"
    return [Removal(kind=Kind.LOG, path=log.path, bytes=log.bytes, reason=reason) for log in run.logs if log.job not in newest]


def removals_of(run: RunSeen, keep: Keep, live: frozenset[str] | None, now: float) -> list[Removal]:
    """What of one run may go: nothing while somebody may work on it, and never an unfinished run's newest valid checkpoint."""
    if why_left_alone(run, live, now):
        return []
    found = list(_checkpoints(run, keep))
    found += [
        Removal(kind=Kind.LEFTOVER, path=one.path, bytes=one.bytes, reason=f"a save of {run.id} that was cut short")
        for one in run.leftovers
    ]
    if run.scratch is not None and run.state is RunState.DONE and run.whole:
        found.append(Removal(kind=Kind.SCRATCH, path=run.scratch.path, bytes=run.scratch.bytes, reason=f"{run.id} is done"))
    return [*found, *_logs(run, keep), *_trash(run.trash)]


def removals_of_snapshots(seen: SnapshotsSeen) -> list[Removal]:
    """Which code may go: none that a run links to, and none at all when a run's link cannot be read."""
    unlinked = [one for one in seen.trees if one.path.rpartition("/")[2] not in seen.linked] if not seen.unknown else []
    return [
        *(Removal(kind=Kind.SNAPSHOT, path=one.path, bytes=one.bytes, reason="no run links to it") for one in unlinked),
        *(
            Removal(kind=Kind.SNAPSHOT, path=one.path, bytes=one.bytes, reason="its copying was cut short")
            for one in seen.leftovers
        ),
        *_trash(seen.trash),
    ]


def _trash(things: Iterable[Thing]) -> list[Removal]:
    return [Removal(kind=Kind.TRASH, path=one.path, bytes=one.bytes, reason="an earlier removal was cut short") for one in things]
