"""Owns every question to Slurm and every order to it, except submission: squeue, sacct, scontrol, scancel, sacctmgr.

One question covers all runs: `jobs` is one squeue, `history` at most one sacct. A failure is a ClusterError and never
looks like an empty answer. Safe to call from inside a job: commands get an environment without SLURM_ variables.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.errors import ClusterError, Problem
from orchestrator.slurm.parse import (
    HISTORY_FIELDS,
    QOS_FIELDS,
    QUEUE_FORMAT,
    SEPARATOR,
    compact_ids,
    parse_config,
    parse_count,
    parse_history,
    parse_jobs,
    parse_max_submit,
    parse_nodes,
    parse_partitions,
    parse_qos,
    parse_queue,
)
from orchestrator.slurm.rows import ClusterFacts, History, HistoryUnavailable, JobDetail, Queue, Reply, Verdict

log = logging.getLogger(__name__)

FOREIGN_PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SALLOC_")
"""Variables that change what Slurm's commands do; inside a job they would make them act on the wrong task."""
MOST_IDS_BY_NAME = 1000
"""With more array ids than this, sacct is asked for everything of this user instead."""
MOST_ARGUMENTS = 500

_UNKNOWN_JOB = re.compile(r"Invalid job id specified|Job \S+ not found", re.IGNORECASE)
_HARMLESS_CANCEL = re.compile(r"Invalid job id specified|already completing or completed", re.IGNORECASE)
_NO_ACCOUNTING = re.compile(r"accounting storage is disabled|supported accounting_storage plugin", re.IGNORECASE)
_NO_ANSWER = re.compile(
    r"unable to contact|unexpected message received|timed out|connection refused|zero bytes|communication|"
    r"connect failure|transport|persist_conn|authentication|try again|resource temporarily",
    re.IGNORECASE,
)


class Slurm(Protocol):
    """What the control plane may ask of Slurm and order it. Raises ClusterError when Slurm does not answer."""

    def jobs(self, user: str) -> Queue:
        """Every job and array task of the user that slurmctld knows, ended ones of the last MinJobAge included."""

    def history(self, array_ids: Collection[str], since: float) -> History | HistoryUnavailable:
        """What accounting says of these arrays (or plain jobs), for lives that touch the time after `since`."""

    def cancel(self, job_ids: Collection[str]) -> None:
        """Cancel tasks, jobs or whole arrays; one that is unknown or has ended is not an error."""

    def update_dependency(self, job_id: str, dependency: str) -> Reply:
        """Set the dependency of a job or task that still waits."""

    def requeue(self, job_id: str) -> Reply:
        """Put a running or ended job or task back into the queue, under the same id."""

    def release(self, job_ids: Collection[str]) -> None:
        """Let waiting jobs or tasks start that are held; one that is unknown, not held or not ours to release is no error."""

    def show_job(self, job_id: str) -> JobDetail | None:
        """One job or task in detail; None when slurmctld does not know it (any more)."""

    def facts(self, user: str) -> ClusterFacts:
        """Configuration, partitions, nodes and limits, for the site profile."""


def scrubbed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for Slurm's commands: without Slurm's variables, except the one that names the cluster."""
    kept = {name: value for name, value in environment.items() if not name.startswith(FOREIGN_PREFIXES)}
    if "SLURM_CONF" in environment:
        kept["SLURM_CONF"] = environment["SLURM_CONF"]
    return kept | {"SLURM_TIME_FORMAT": "%s"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one command said."""

    command: Sequence[str]
    code: int
    out: str
    err: str


def _failure(answer: Answer) -> ClusterError:
    name = answer.command[0]
    said = (answer.err or answer.out).strip() or "(nothing)"
    return ClusterError(
        Problem(
            what=f"`{name}` failed with exit code {answer.code}: {said[:2000]}",
            where=" ".join(answer.command)[:300].replace(SEPARATOR, "|"),
            hint="`scontrol ping` says whether the controller is up; queued jobs go on without us, try again later",
        )
    )


class SlurmCommand:
    """Slurm by its commands. `timeout_s` bounds each one; a dead controller takes them about 10 s to notice."""

    def __init__(self, *, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> None:
        self._environment = scrubbed_environment(os.environ if environment is None else environment)
        self._timeout_s = timeout_s
        self._logged: set[str] = set()

    # --- questions ----------------------------------------------------------------------------------------------------

    def jobs(self, user: str) -> Queue:
        """One squeue. Also an `error:` line beside exit code 0 is a failure: so squeue speaks of an unknown user."""
        asked_at = time.time()
        answer = self._ask("squeue", "-h", "-r", "-u", user, "-t", "all", "-o", QUEUE_FORMAT)
        if answer.code != 0 or "error:" in answer.err:
            raise _failure(answer)
        parsed = parse_queue(answer.out)
        self._log_once("squeue", parsed.problems)
        return Queue(rows=parsed.rows, problems=parsed.problems, asked_at=asked_at)

    def history(self, array_ids: Collection[str], since: float) -> History | HistoryUnavailable:
        """One sacct, or none when there is nothing to ask. Any failure is a value: squeue and the disk still speak."""
        asked_at = time.time()
        if not array_ids:
            return History(rows=(), asked_at=asked_at)
        by_name = len(array_ids) <= MOST_IDS_BY_NAME
        whom = ["-j", ",".join(sorted(array_ids))] if by_name else ["-u", str(os.getuid())]
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(max(0.0, since)))
        shape = ["-n", "-P", "-X", f"--delimiter={SEPARATOR}", "-o", ",".join(HISTORY_FIELDS)]
        try:
            answer = self._ask("sacct", *whom, "-S", start, *shape)
        except ClusterError as error:
            return HistoryUnavailable(reason=error.problems[0].what, permanent=False)
        said = f"{answer.out}\n{answer.err}"
        if answer.code != 0 and _NO_ACCOUNTING.search(said):
            return HistoryUnavailable(reason="this site keeps no job accounting", permanent=True)
        if answer.code != 0 or "error:" in answer.err:
            return HistoryUnavailable(reason=answer.err.strip() or f"sacct: exit code {answer.code}", permanent=False)
        parsed = parse_history(answer.out)
        self._log_once("sacct", parsed.problems)
        wanted = frozenset(array_ids)
        rows = tuple(row for row in parsed.rows if row.array_id in wanted)
        return History(rows=rows, problems=parsed.problems, asked_at=asked_at)

    def show_job(self, job_id: str) -> JobDetail | None:
        """One `scontrol show job`. Slurm shows a task that never started by its array's record: it gets its own id here."""
        answer = self._ask("scontrol", "show", "job", "-o", job_id)
        if answer.code != 0:
            if _UNKNOWN_JOB.search(f"{answer.out}\n{answer.err}"):
                return None
            raise _failure(answer)
        parsed = parse_jobs(answer.out)
        self._log_once("scontrol show job", parsed.problems)
        detail = next(iter(parsed.rows), None)
        _, _, index = job_id.partition("_")
        if detail is not None and detail.task_index is None and index:
            return replace(detail, id=job_id, task_index=parse_count(index))
        return detail

    def facts(self, user: str) -> ClusterFacts:
        """Three scontrol calls, which must answer, and two sacctmgr calls and a sacct, which need not."""
        sacctmgr = ("sacctmgr", "-n", "-P", "show")
        with ThreadPoolExecutor(max_workers=6) as side_by_side:  # each is a process that mostly waits
            ask = side_by_side.submit
            config = ask(self._must, "scontrol", "show", "config")
            partition = ask(self._must, "scontrol", "show", "partition", "-o")
            node = ask(self._must, "scontrol", "show", "node", "-o")
            level = ask(self._may, *sacctmgr, "qos", f"format={','.join(QOS_FIELDS)}")
            limits = ask(self._may, *sacctmgr, "assoc", f"user={user}", "format=MaxSubmitJobs")
            history = ask(self.history, ["1"], time.time() - 60)
        partitions, nodes, qos = parse_partitions(partition.result()), parse_nodes(node.result()), parse_qos(level.result())
        return ClusterFacts(
            config=parse_config(config.result()),
            partitions=partitions.rows,
            nodes=nodes.rows,
            qos=qos.rows,
            max_submit_jobs=parse_max_submit(limits.result()),
            accounting=isinstance(history.result(), History),
            problems=(*partitions.problems, *nodes.problems, *qos.problems),
        )

    # --- orders -------------------------------------------------------------------------------------------------------

    def cancel(self, job_ids: Collection[str]) -> None:
        """As few scancel calls as its command line allows; tasks go as `12_[0-4,7]`."""
        arguments = compact_ids(list(job_ids))
        for begin in range(0, len(arguments), MOST_ARGUMENTS):
            answer = self._ask("scancel", *arguments[begin : begin + MOST_ARGUMENTS])
            bad = [line for line in answer.err.split("\n") if line.strip() and not _HARMLESS_CANCEL.search(line)]
            if answer.code != 0 and (bad or not answer.err.strip()):
                raise _failure(answer)

    def update_dependency(self, job_id: str, dependency: str) -> Reply:
        """One `scontrol update`; an empty dependency removes it."""
        return self._order("scontrol", "update", f"JobId={job_id}", f"Dependency={dependency}")

    def requeue(self, job_id: str) -> Reply:
        """One `scontrol requeue`. Also brings back a job that was just cancelled: ask for the cancel mark first."""
        return self._order("scontrol", "requeue", job_id)

    def release(self, job_ids: Collection[str]) -> None:
        """As few `scontrol release` as its command line allows; what one says of single jobs is not looked at."""
        arguments = compact_ids(list(job_ids))
        for begin in range(0, len(arguments), MOST_ARGUMENTS):
            self._order("scontrol", "release", ",".join(arguments[begin : begin + MOST_ARGUMENTS]))

    def _order(self, *command: str) -> Reply:
        answer = self._ask(*command)
        said = (answer.err or answer.out).strip()
        if answer.code == 0:
            return Reply(verdict=Verdict.DONE, text=said)
        if _UNKNOWN_JOB.search(said):
            return Reply(verdict=Verdict.UNKNOWN_JOB, text=said)
        if answer.code < 0 or not said or _NO_ANSWER.search(said):
            raise _failure(answer)
        return Reply(verdict=Verdict.REFUSED, text=said)

    # --- the one place that starts a process ----------------------------------------------------------------------------

    def _ask(self, *command: str) -> Answer:
        """Run one command; once more when a signal killed it (that happens amid an eviction)."""
        answer = self._run(command)
        return self._run(command) if answer.code in (-signal.SIGTERM, -signal.SIGUSR2, -signal.SIGHUP) else answer

    def _run(self, command: Sequence[str]) -> Answer:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=self._environment,
                timeout=self._timeout_s,
                check=False,
            )
        except FileNotFoundError:
            raise ClusterError(
                Problem(
                    what=f"`{command[0]}` is not on PATH: this machine has no Slurm commands",
                    hint="run on a login node of the cluster, or `orch submit --local`",
                )
            ) from None
        except (subprocess.TimeoutExpired, OSError) as error:
            reason = (
                f"did not answer within {self._timeout_s:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
            )
            raise ClusterError(
                Problem(what=f"`{command[0]}` {reason}", hint="`scontrol ping` says whether the controller is up")
            ) from None
        return Answer(command=command, code=done.returncode, out=done.stdout, err=done.stderr)

    def _must(self, *command: str) -> str:
        answer = self._ask(*command)
        if answer.code != 0:
            raise _failure(answer)
        return answer.out

    def _may(self, *command: str) -> str:
        """The answer, or nothing: many sites have no accounting, and their users no sacctmgr."""
        try:
            answer = self._ask(*command)
        except ClusterError as error:
            log.info("%s", error)
            return ""
        return answer.out if answer.code == 0 else ""

    def _log_once(self, source: str, problems: Sequence[str]) -> None:
        for problem in problems:
            if problem not in self._logged and len(self._logged) < 1000:
                self._logged.add(problem)
                log.warning("%s printed a line that we cannot read: %r", source, problem[:200])
