"""The run directory as a contract: paths, claims, outcomes, exit codes. Torch-free and pydantic-free.

A job writes below its own run directory and nowhere else; the control plane only reads it (and writes `cancel`).

    RUN_DIR/spec.json            what to run, frozen at submit (jobs.spec.FrozenRun)
    RUN_DIR/code                 link to the code snapshot that the job imports
    RUN_DIR/cancel               mark: somebody cancelled this run; never requeue it
    RUN_DIR/attempts/0001.json   one claim per attempt, created exclusively
    RUN_DIR/journal/0001.jsonl   one journal per attempt (jobs.journal)
    RUN_DIR/checkpoints/         directories that a manifest makes valid (jobs.checkpoint)
    RUN_DIR/output/              what other runs read; whole once the outcome is `done`
    RUN_DIR/artifacts/           pictures and files for the tracker
    RUN_DIR/work/                scratch of `prepare`, survives restarts
    RUN_DIR/logs/                stdout and stderr, one file per job and rank; a requeued attempt appends
    RUN_DIR/outcome.json         how the run ended; absent never means done
"""

from __future__ import annotations

import enum
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CODE_PACKAGES = ("jobs", "models")
"""What a queued job imports, and so what a snapshot holds."""


class ExitCode(enum.IntEnum):
    """Exit codes of `python -m jobs RUN_DIR`, and of `python -m jobs.pack`."""

    DONE = 0
    """Finished, or ended quietly: requeued, superseded by a newer attempt, or already finished."""
    FAILED = 1
    """The run failed; the outcome file says why."""
    REFUSED = 2
    """The run directory cannot be run: bad spec, foreign code, unreadable checkpoint store."""
    BLOCKED = 3
    """A needed run has not finished; the run goes back to planned."""
    STOPPED = 75
    """Checkpointed and stopped on a signal outside Slurm, or without leave to requeue; resumable."""
    REQUEUE = 76
    """In a pack: checkpointed, to go on once the pack, which waits for its other runs to leave, has requeued their task."""


class Status(enum.StrEnum):
    """How a run ended, as its outcome file says."""

    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    """A needed run has no valid outcome: nothing was done."""
    STOPPED = "stopped"
    """Checkpointed on a signal, and nobody requeues it: resumable."""
    CANCELLED = "cancelled"


class Cause(enum.StrEnum):
    """Why a run failed; the retry budgets are by cause."""

    EXCEPTION = "exception"
    """A traceback: the user's bug or ours."""
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    """The loss is not finite."""
    RANK_DIED = "rank_died"
    """Another rank of the attempt ended without a word."""
    HANG = "hang"
    """No step finished within `runtime.hang_timeout_s`."""
    NO_PROGRESS = "no_progress"
    """Too many attempts in a row without a new checkpoint."""
    DATA = "data"
    """An input file is missing, truncated or corrupt."""
    REFUSED = "refused"
    """Wrong code, spec or checkpoint."""
    UNEXPLAINED = "unexplained"
    """Its process ended without a word; the pack that had started it says how."""


def place_in_code(file: str, line: int) -> str | None:
    """`jobs/count.py:52` for a file of the packages that a job imports, wherever they lie; None for any other."""
    parts = file.split("/")
    inside = [number for number, part in enumerate(parts[:-1]) if part in CODE_PACKAGES]
    return None if not inside or "site-packages" in parts else f"{'/'.join(parts[inside[-1] :])}:{line}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The content of `outcome.json`."""

    status: Status
    attempt: int
    step: int = 0
    reason: str = ""
    cause: Cause | None = None
    place: str = ""
    """Where in our packages the exception was raised, `jobs/count.py:52`: two runs killed by one bug say the same."""
    finished_at: float = 0.0
    """Seconds since the epoch."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Final scalars (scores of an evaluation, counts of a preparation)."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Manifest: path below the run directory -> bytes, of what other runs may read."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The content of `attempts/NNNN.json`: one time a run was started."""

    number: int
    claimant: str
    """Unique per process group: decides who owns the run."""
    token: str = ""
    """Submission token (part of the Slurm job's name); empty for a local run."""
    job_id: str = ""
    """Slurm id as `<array>_<task>` or `<job>`; empty for a local run."""
    restart_count: int = 0
    world_size: int = 1
    node: str = ""
    pid: int = 0
    started_at: float = 0.0
    environment: str = ""
    """Fingerprint of the installed packages, to compare with the one at submit."""


@dataclass(frozen=True)
class RunDir:
    """The paths of one run directory."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id: the directory's name."""
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def cancel_mark(self) -> Path:
        return self.path / "cancel"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def journals(self) -> Path:
        return self.path / "journal"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def outcome(self) -> Path:
        return self.path / "outcome.json"

    def needed(self, run_id: str) -> RunDir:
        """The directory of another run of the same root."""
        return RunDir(self.path.parent / run_id)


def fsync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "x", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def read_outcome(run_dir: RunDir) -> Outcome | None:
    """The outcome, or None when there is none or it cannot be read (absent never means done)."""
    try:
        raw = json.loads(run_dir.outcome.read_text(encoding="utf-8"))
        cause = raw.get("cause")
        return Outcome(
            status=Status(raw["status"]),
            attempt=int(raw["attempt"]),
            step=int(raw.get("step", 0)),
            reason=str(raw.get("reason", "")),
            cause=None if cause is None else Cause(cause),
            place=str(raw.get("place", "")),
            finished_at=float(raw.get("finished_at", 0.0)),
            values=dict(raw.get("values", {})),
            files=dict(raw.get("files", {})),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def write_outcome(run_dir: RunDir, outcome: Outcome) -> None:
    """Record how the run ended (atomic, durable)."""
    stamped = asdict(outcome) | {"finished_at": outcome.finished_at or time.time()}
    write_atomically(run_dir.outcome, json.dumps(stamped, indent=1, sort_keys=True) + "\n")


def manifest_problem(run_dir: RunDir) -> str | None:
    """Why a needed run's result cannot be used, or None when its outcome is `done` and every file has its size."""
    outcome = read_outcome(run_dir)
    if outcome is None:
        return f"run {run_dir.id} has no outcome"
    if outcome.status is not Status.DONE:
        return f"run {run_dir.id} ended as {outcome.status.value}: {outcome.reason}"
    for name, size in outcome.files.items():
        try:
            found = (run_dir.path / name).stat().st_size
        except OSError:
            return f"run {run_dir.id} lacks {name}"
        if found != size:
            return f"{name} of run {run_dir.id} has {found} bytes, its manifest says {size}"
    return None


def read_attempts(run_dir: RunDir) -> list[Attempt]:
    """All readable attempt records, oldest first. A claim whose body was never written counts with its number alone."""
    found: list[Attempt] = []
    try:
        names = sorted(name for name in os.listdir(run_dir.attempts) if name.endswith(".json") and not name.startswith("."))
    except OSError:
        return []
    for name in names:
        try:
            number = int(name[:-5])
        except ValueError:
            continue
        try:
            raw = json.loads((run_dir.attempts / name).read_text(encoding="utf-8"))
            found.append(_attempt(raw, number))
        except (OSError, ValueError, TypeError, RecursionError):
            found.append(Attempt(number=number, claimant=""))
    return found


_ATTEMPT_TYPES = {
    name: (int, float) if isinstance(value, float) else (type(value),)
    for name, value in vars(Attempt(number=0, claimant="")).items()
}


def _attempt(raw: Any, number: int) -> Attempt:
    """An attempt from its JSON; raises TypeError for unknown fields, fields of another type, or the number of another attempt."""
    made = Attempt(**raw)
    for name, kinds in _ATTEMPT_TYPES.items():
        if type(getattr(made, name)) not in kinds:
            raise TypeError(f"{name} is {getattr(made, name)!r}")
    if made.number != number:
        raise TypeError(f"number is {made.number}")
    return made


def claim(run_dir: RunDir, attempt: Attempt) -> Attempt:
    """Take the run for this attempt: create the next free number exclusively; returns the attempt with its number.

    Two claimants never get one number. The highest number owns the run; an older owner ends at its next commit.
    """
    run_dir.attempts.mkdir(parents=True, exist_ok=True)
    number = max((known.number for known in read_attempts(run_dir)), default=0) + 1
    body = asdict(attempt)
    while True:
        path = run_dir.attempts / f"{number:04d}.json"
        temporary = run_dir.attempts / f".{attempt.claimant}"
        numbered = body | {"number": number}
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(json.dumps(numbered, sort_keys=True) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(temporary, path)  # exclusive, and never seen half-written
        except FileExistsError:
            number += 1
            continue
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(run_dir.attempts)
        return Attempt(**numbered)


def owns(run_dir: RunDir, attempt: Attempt) -> bool:
    """Whether this attempt is still the newest claimant; asked before every commit."""
    return not (run_dir.attempts / f"{attempt.number + 1:04d}.json").exists()
