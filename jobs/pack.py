"""`python -m jobs.pack RUN_DIR...`: one Slurm task that executes several runs, each a process with a log of its own. Torch-free.

Starts them, passes notices on, waits for all, and asks for the task's requeue when those that were told to leave have left.
It never ends a run that nobody has cancelled. Its runs die with it: nobody else would know of them.

    each run's end                       the pack
    any outcome, or a quiet end          nothing: the run's own words count
    REQUEUE                              tells the others to leave as well; the last one gone, requeues the task, exit 0
    no word (killed, or died early)      waits, in case all of us are being killed; then says so in the run's outcome
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs import eviction
from jobs.contract import Cause, ExitCode, RunDir, Status
from jobs.eviction import PACK, PATIENCE_S, Slurm, Verdict
from jobs.pack_outcomes import how_it_ended, newest_attempt, oom_kills, speak_for, why_over
from jobs.preemption import NOTICES
from jobs.ranks import Ranks

log = logging.getLogger("jobs")

POLL_S = 1.0
"""How often run directories are looked at for a cancel mark."""
DOUBT_S = 5.0
"""How long a silent death is not yet believed: a task that is being killed loses its runs one moment before its pack."""
CANCEL_PATIENCE_S = 120.0
"""How long a cancelled run may take to leave before it is killed."""


@dataclass(kw_only=True)
class _Child:
    """The process of one run."""

    run_dir: RunDir
    process: subprocess.Popen[bytes]
    before: int
    """The run's newest attempt when it was started."""
    cancelled_at: float | None = None
    """When it was told that its run is cancelled."""
    ended_at: float = 0.0


@dataclass(kw_only=True)
class Pack:
    """The runs of one task, from their start to the last one's end."""

    slurm: Slurm
    living: list[_Child] = field(default_factory=list)
    silent: list[_Child] = field(default_factory=list)
    """Ended without a word, and not yet believed."""
    leaving: list[_Child] = field(default_factory=list)
    """Checkpointed, and to go on after a requeue."""
    troubled: bool = False
    """Something went wrong that is no run's own trouble."""
    oom_kills: int = field(default_factory=oom_kills)

    def run(self, run_dirs: Sequence[RunDir]) -> ExitCode:
        """Execute the runs that are not over."""
        for run_dir in run_dirs:
            over = why_over(run_dir, self.slurm.token)
            if over:
                log.info("%s: %s", run_dir.id, over)
                continue
            try:
                self.living.append(self._started(run_dir))
            except OSError as error:
                self._trouble(run_dir, error)
        while self.living or self.silent:
            notice = signal.sigtimedwait((*NOTICES, signal.SIGCHLD), POLL_S)
            if notice is not None and notice.si_signo in NOTICES:
                log.info("signal %d, passed on", notice.si_signo)
                self._tell(notice.si_signo)
            self._reap()
            self._cancel()
        code = self._leave() if self.leaving else ExitCode.DONE
        return ExitCode.FAILED if self.troubled and code is ExitCode.DONE and not self.leaving else code

    def _started(self, run_dir: RunDir) -> _Child:
        """Start a run as a task of its own would be: its code, its directory, its log, notices blocked from the first moment."""
        environment = os.environ | {"PYTHONPATH": str(run_dir.code), PACK: str(os.getpid())}
        before = newest_attempt(run_dir).number
        run_dir.logs.mkdir(exist_ok=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})  # its mask is inherited, and this one is ours alone
        try:
            with open(run_dir.logs / f"{self.slurm.job_id}.0.log", "ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "jobs", str(run_dir.path)],
                    cwd=run_dir.path,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        log.info("%s: process %d", run_dir.id, process.pid)
        return _Child(run_dir=run_dir, process=process, before=before)

    def _tell(self, number: int) -> None:
        """Send a notice to all that live. Slurm may have done so too: a second one changes nothing."""
        for child in self.living:
            child.process.send_signal(number)

    def _reap(self) -> None:
        """Take note of the processes that have ended, and of silent ends that are old enough to be believed."""
        now = time.monotonic()
        for child in [child for child in self.living if child.process.poll() is not None]:
            self.living.remove(child)
            child.ended_at, code = now, child.process.returncode
            log.info("%s: exit code %d", child.run_dir.id, code)
            if code == ExitCode.REQUEUE:
                self.leaving.append(child)
                self._tell(signal.SIGUSR2)  # whoever asked Slurm a moment too early asks again
            elif code != ExitCode.DONE:
                self.silent.append(child)
        for child in [child for child in self.silent if now - child.ended_at >= DOUBT_S or child.process.returncode > 0]:
            self.silent.remove(child)
            self._explain(child)

    def _explain(self, child: _Child) -> None:
        """Say how a run ended, if it has not said so itself."""
        code, cause = child.process.returncode, Cause.UNEXPLAINED
        reason = how_it_ended(code)
        if code == -signal.SIGKILL and oom_kills() > self.oom_kills:
            self.oom_kills, cause = self.oom_kills + 1, Cause.OUT_OF_MEMORY
            reason += ", for its use of memory (oom_kill of the task's control group)"
        if child.run_dir.cancel_mark.exists():
            self._speak(child, Status.CANCELLED, "cancelled")
        else:
            self._speak(child, Status.FAILED, reason, cause)

    def _cancel(self) -> None:
        """Tell the runs that somebody has marked as cancelled; kill those that do not leave."""
        now = time.monotonic()
        for child in self.living:
            if child.cancelled_at is None and child.run_dir.cancel_mark.exists():
                log.info("%s: cancelled", child.run_dir.id)
                child.cancelled_at = now
                child.process.terminate()
            elif child.cancelled_at is not None and now - child.cancelled_at > CANCEL_PATIENCE_S:
                child.process.kill()

    def _leave(self) -> ExitCode:
        """Nobody lives, and some are to go on: have the task requeued, unless it is cancelled or has been requeued already."""

        def nobody_wanted() -> bool:
            return all(child.run_dir.cancel_mark.exists() for child in self.leaving)

        verdict = eviction.settle(self.slurm, cancel_mark=nobody_wanted, terminating=lambda: True, patience_s=PATIENCE_S)
        if verdict is Verdict.RANK_DIED:  # whatever threatened us is over, and our runs have left
            verdict = Verdict.REQUEUE if self.slurm.requeue() else Verdict.UNKNOWN
        log.info("%d of the task's runs go on; Slurm says: %s", len(self.leaving), verdict.value)
        for child in self.leaving:
            if verdict is Verdict.CANCELLED or child.run_dir.cancel_mark.exists():
                self._speak(child, Status.CANCELLED, "cancelled")
            elif verdict is Verdict.UNKNOWN:
                self._speak(child, Status.STOPPED, "told to leave, and Slurm did not answer; resumable")
        return ExitCode.STOPPED if verdict is Verdict.UNKNOWN else ExitCode.DONE

    def _speak(self, child: _Child, status: Status, reason: str, cause: Cause | None = None) -> None:
        try:
            if speak_for(child.run_dir, self.slurm, before=child.before, status=status, reason=reason, cause=cause):
                log.info("%s: %s: %s", child.run_dir.id, status.value, reason)
        except OSError as error:
            self._trouble(child.run_dir, error)

    def _trouble(self, run_dir: RunDir, error: OSError) -> None:
        """A directory that is gone or full is one run's misfortune: the others go on."""
        log.error("%s: %s", run_dir.id, error)
        self.troubled = True


def main(arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*NOTICES, signal.SIGCHLD})
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s pack %(levelname)s %(message)s")
    slurm = Slurm.from_environment(os.environ)
    if not arguments or slurm is None or Ranks.from_environment(os.environ).world_size != 1:
        log.error("usage: python -m jobs.pack RUN_DIR..., as the only task of a Slurm job")
        return ExitCode.REFUSED
    code = Pack(slurm=slurm).run([RunDir(Path(argument).resolve()) for argument in arguments])
    log.info("ended with exit code %d (%s)", code, code.name)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
