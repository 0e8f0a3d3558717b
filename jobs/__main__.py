"""`python -m jobs RUN_DIR`: the whole interface of a job, with or without Slurm. Reads the spec, dispatches, writes the outcome.

The first act is to block the notice signals; the second to claim the attempt. See README.md for signals and exit codes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

from jobs import environment, preemption, ranks
from jobs.attempt import Finished, Left, Refused, Run, Superseded
from jobs.contract import (
    Attempt,
    Cause,
    ExitCode,
    Outcome,
    RunDir,
    Status,
    claim,
    manifest_problem,
    place_in_code,
    read_attempts,
    read_outcome,
    write_outcome,
)
from jobs.data.errors import DataError
from jobs.eviction import PACK, Slurm, Verdict
from jobs.journal import CHECKPOINT, END, LEFT, read_attempt
from jobs.ranks import Meeting, Ranks
from jobs.spec import SINGLE_PROCESS, FrozenRun

log = logging.getLogger("jobs")


def job_function(kind: str) -> Callable[[Run], Finished]:
    """The function of a job kind. Imported late: counting and preparing never load torch."""
    match kind:
        case "count":
            from jobs.count import count

            return count
        case "prepare":
            from jobs.prepare import run_prepare

            return run_prepare
        case "embed":
            from jobs.embed import run_embed

            return run_embed
        case "train":
            from jobs.train import train

            return train
        case "evaluate":
            from jobs.evaluate import evaluate

            return evaluate
        case unknown:
            raise Refused(f"no job of kind {unknown!r}")


def read_spec(run_dir: RunDir) -> FrozenRun:
    """The frozen spec, checked against the directory and the imported code; raises Refused."""
    try:
        frozen = FrozenRun.model_validate_json(run_dir.spec.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{run_dir.spec} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Refused(f"{run_dir.spec} is not a run of this code: {error}") from error
    if frozen.code_tree:
        if not run_dir.code.is_dir():
            raise Refused(f"the code snapshot {run_dir.code} is missing")
        if run_dir.code.resolve().name != frozen.code_tree:
            raise Refused(
                f"{run_dir.code} leads to tree {run_dir.code.resolve().name}, the run was frozen with {frozen.code_tree}"
            )
        foreign = environment.foreign_packages(run_dir.code)
        if foreign:
            raise Refused(f"{', '.join(foreign)}; expected everything below {run_dir.code.resolve()}")
    return frozen


def without_progress(run_dir: RunDir, token: str) -> int:
    """How many attempts in a row, up to the newest, ended without a new checkpoint (those of this submission only)."""
    streak = 0
    for attempt in reversed(read_attempts(run_dir)):
        if attempt.token != token:
            break
        journal = read_attempt(run_dir.journals / f"{attempt.number:04d}.jsonl")
        if journal is not None and any(entry.event in (CHECKPOINT, END) for entry in journal.entries):
            break
        streak += 1
    return streak


def first_look(run_dir: RunDir, frozen: FrozenRun, token: str) -> tuple[ExitCode | None, Outcome | None]:
    """Before anything is claimed: is there nothing to do? (exit code, outcome to write), or (None, None) to go on."""
    known = read_outcome(run_dir)
    if known is not None and known.status is Status.DONE:
        problem = manifest_problem(run_dir)
        if problem is None:
            log.info("already done at step %d", known.step)
            return ExitCode.DONE, None
        log.warning("done, but %s: doing what is missing again", problem)
    if run_dir.cancel_mark.exists():
        return ExitCode.DONE, Outcome(status=Status.CANCELLED, attempt=0, reason="cancelled before it started")
    problems = [problem for need in frozen.needs.values() if (problem := manifest_problem(run_dir.needed(need)))]
    if problems:
        return ExitCode.BLOCKED, Outcome(status=Status.BLOCKED, attempt=0, reason="; ".join(problems))
    limit = frozen.config.runtime.max_attempts_without_progress
    if without_progress(run_dir, token) >= limit:
        reason = f"{limit} attempts in a row ended without a new checkpoint"
        return ExitCode.FAILED, Outcome(status=Status.FAILED, cause=Cause.NO_PROGRESS, attempt=0, reason=reason)
    return None, None


def open_attempt(run_dir: RunDir, frozen: FrozenRun, place: Ranks, flag: preemption.Flag, slurm: Slurm | None) -> Run | ExitCode:
    """Claim the run on rank 0 and meet there; the attempt, or the code to end with."""
    if place.rank > 0:
        meeting = ranks.attend(run_dir, place, flag)
        if meeting.exit_code is not None:
            return ExitCode(meeting.exit_code)
        attempt = Attempt(number=meeting.attempt, claimant="")
        return Run(run_dir=run_dir, frozen=frozen, attempt=attempt, ranks=place, flag=flag, slurm=slurm, port=meeting.port)
    token = slurm.token if slurm else os.environ.get("ORCH_TOKEN", "")
    code, outcome = first_look(run_dir, frozen, token)
    record = Attempt(
        number=0,
        claimant=uuid.uuid4().hex,
        token=token,
        job_id=slurm.job_id if slurm else "",
        restart_count=slurm.restart_count if slurm else 0,
        world_size=place.world_size,
        node=platform.node(),
        pid=os.getpid(),
        started_at=time.time(),
        environment=environment.fingerprint(),
    )
    if code is not None:
        if outcome is not None:
            number = claim(run_dir, record).number
            write_outcome(run_dir, Outcome(status=outcome.status, cause=outcome.cause, attempt=number, reason=outcome.reason))
        ranks.publish(run_dir, place, Meeting(exit_code=code))
        return code
    attempt = claim(run_dir, record)
    run_dir.outcome.unlink(missing_ok=True)  # an earlier attempt's; this one writes its own
    run = Run(run_dir=run_dir, frozen=frozen, attempt=attempt, ranks=place, flag=flag, slurm=slurm)
    if place.world_size > 1 and frozen.config.kind not in SINGLE_PROCESS:
        listening = ranks.listen()
        run.port, run.listening_fd = listening.getsockname()[1], listening.detach()
        ranks.publish(run_dir, place, Meeting(attempt=attempt.number, port=run.port))
    return run


def conclude_left(run: Run, left: Left) -> ExitCode:
    """After a checkpointed leave: what this attempt's end means, by Slurm's verdict."""
    if not run.is_main:
        return ExitCode.DONE if left.verdict is not Verdict.RANK_DIED else ExitCode.FAILED
    match left.verdict:
        case Verdict.REQUEUE | Verdict.LEAVE:
            if run.journal is not None:
                with contextlib.suppress(OSError):  # a full disk: the checkpoint is whole, and Slurm has been asked
                    run.journal.event(left.step, LEFT, waited=round(run.waited_s, 4))
                    run.journal.close()
            packed = run.slurm is not None and run.slurm.packed
            return ExitCode.REQUEUE if packed and left.verdict is Verdict.REQUEUE else ExitCode.DONE
        case Verdict.CANCELLED:
            return finish(run, Status.CANCELLED, left.step, reason="cancelled")
        case Verdict.RANK_DIED if run.ranks.world_size == 1:
            reason = "told to leave, though Slurm neither evicts nor cancels it; resumable"
            return finish(run, Status.STOPPED, left.step, reason=reason)
        case Verdict.RANK_DIED:
            return finish(run, Status.FAILED, left.step, reason="another rank of the attempt ended", cause=Cause.RANK_DIED)
        case Verdict.UNKNOWN:
            return finish(run, Status.STOPPED, left.step, reason="told to leave, and Slurm did not answer; resumable")
        case _:
            if run.run_dir.cancel_mark.exists():
                return finish(run, Status.CANCELLED, left.step, reason="cancelled")
            return finish(run, Status.STOPPED, left.step, reason="stopped by a signal after a checkpoint; resumable")


EXIT_OF = {
    Status.DONE: ExitCode.DONE,
    Status.FAILED: ExitCode.FAILED,
    Status.BLOCKED: ExitCode.BLOCKED,
    Status.STOPPED: ExitCode.STOPPED,
    Status.CANCELLED: ExitCode.DONE,
}


def finish(
    run: Run,
    status: Status,
    step: int,
    *,
    reason: str = "",
    cause: Cause | None = None,
    place: str = "",
    result: Finished | None = None,
) -> ExitCode:
    """Write the outcome if this attempt still owns the run (or no other rank said why already); the exit code."""
    if not run.owns():
        log.warning("a newer attempt owns this run; ending quietly")
        return ExitCode.DONE
    known = read_outcome(run.run_dir)
    if known is not None and known.attempt == run.attempt.number:
        return EXIT_OF[status]
    if run.journal is not None:
        ended = END if status is Status.DONE else status.value
        run.journal.event(step, ended, reason=reason, waited=round(run.waited_s, 4))
        run.journal.close()
    files = {str(path.relative_to(run.run_dir.path)): path.stat().st_size for path in (result.files if result else ())}
    values = dict(result.values) if result else {}
    write_outcome(
        run.run_dir,
        Outcome(
            status=status,
            attempt=run.attempt.number,
            step=step,
            reason=reason,
            cause=cause,
            place=place,
            values=values,
            files=files,
        ),
    )
    return EXIT_OF[status]


LOST_PEER = re.compile(r"gloo/transport|Connection (closed|reset) by peer|Broken pipe")
"""How a collective words that another rank is gone."""


def cause_of(error: BaseException) -> Cause:
    """The cause behind an exception, without importing torch to find out."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return Cause.OUT_OF_MEMORY
    if "Timed out waiting" in str(error) and isinstance(error, RuntimeError):  # a collective of gloo
        return Cause.HANG
    if isinstance(error, FloatingPointError):
        return Cause.DIVERGED
    if isinstance(error, DataError):
        return Cause.DATA
    if isinstance(error, Refused):
        return Cause.REFUSED
    if names & {"DistBackendError", "DistNetworkError", "DistStoreError"} or LOST_PEER.search(str(error)):
        return Cause.RANK_DIED
    return Cause.EXCEPTION


def place_of(error: BaseException) -> str:
    """The innermost line of our packages behind an exception; empty when there is none."""
    frames = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__))
    return next((place for file, line in reversed(list(frames)) if (place := place_in_code(file, line))), "")


def fail(run: Run, error: BaseException) -> ExitCode:
    """Record a failure. A rank that only lost its peers lets the culprit speak first, and asks whether Slurm ended us."""
    cause, kind = cause_of(error), "" if isinstance(error, Refused | DataError) else f"{type(error).__name__}: "
    reason = f"{kind}{error}".strip()
    log.error("%s", "".join(traceback.format_exception(error)))
    if cause is Cause.RANK_DIED:
        if run.flag.wait(5.0):  # peers may be gone because all of us are being evicted
            if not run.is_main:
                return ExitCode.DONE  # rank 0 alone judges; an exit code of ours would end it
            verdict = run.settle()
            if verdict in (Verdict.REQUEUE, Verdict.LEAVE, Verdict.CANCELLED):
                return conclude_left(run, Left(run.journal.last_step if run.journal is not None else 0, verdict))
        reason = f"another rank of the attempt ended: {reason}"
    step = run.journal.last_step if run.journal is not None else 0
    return finish(run, Status.FAILED, step, reason=reason[:2000], cause=cause, place=place_of(error))


def execute(run: Run) -> ExitCode:
    """Run the job function and write its outcome."""
    if run.frozen.environment and environment.fingerprint() != run.frozen.environment:
        log.warning("the installed packages changed since submit: %s, was %s", environment.fingerprint(), run.frozen.environment)
    threads = str(run.frozen.config.runtime.threads)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}  # before torch is imported
    try:
        result = job_function(run.frozen.config.kind)(run)
    except Left as left:
        return conclude_left(run, left)
    except Superseded:
        log.warning("a newer attempt owns this run; ending quietly")
        return ExitCode.DONE
    except (Exception, KeyboardInterrupt) as error:
        return fail(run, error)
    return finish(run, Status.DONE, result.step, result=result) if run.is_main else ExitCode.DONE


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    flag = preemption.install()
    if PACK in os.environ:
        preemption.end_with(int(os.environ[PACK]))
    place = Ranks.from_environment(os.environ)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s rank {place.rank} %(levelname)s %(message)s")
    if len(arguments) != 1:
        log.error("usage: python -m jobs RUN_DIR")
        return ExitCode.REFUSED
    run_dir = RunDir(Path(arguments[0]).resolve())
    try:
        frozen = read_spec(run_dir)
    except Refused as error:
        log.error("refused: %s", error)
        known_outcome = read_outcome(run_dir)
        done = known_outcome is not None and known_outcome.status is Status.DONE
        if place.rank == 0 and run_dir.path.is_dir() and not done:
            number = max((known.number for known in read_attempts(run_dir)), default=0)
            with contextlib.suppress(OSError):
                write_outcome(
                    run_dir, Outcome(status=Status.FAILED, cause=Cause.REFUSED, attempt=number + 1, reason=str(error)[:2000])
                )
        return ExitCode.REFUSED
    if frozen.config.kind in SINGLE_PROCESS and place.rank > 0:
        return ExitCode.DONE
    slurm = Slurm.from_environment(os.environ)
    try:
        opened = open_attempt(run_dir, frozen, place, flag, slurm)
    except TimeoutError as error:  # a further rank: rank 0 never came, or all of us are being evicted
        log.error("%s", error)
        return ExitCode.DONE if flag.terminating else ExitCode.FAILED
    except Exception as error:  # the disk is full, or went away: say so if that is still possible
        log.error("%s", "".join(traceback.format_exception(error)))
        number = max((known.number for known in read_attempts(run_dir)), default=0)
        with contextlib.suppress(OSError):
            reason = f"the attempt could not begin: {type(error).__name__}: {error}"[:2000]
            write_outcome(run_dir, Outcome(status=Status.FAILED, cause=cause_of(error), attempt=number + 1, reason=reason))
        return ExitCode.FAILED
    if isinstance(opened, ExitCode):
        return opened
    code = execute(opened)
    log.info("ended with exit code %d (%s)", code, code.name)
    return code


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # never hang in a library's exit handlers after the outcome is on disk
