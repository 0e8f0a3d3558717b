"""Owns the Slurm of the pure tests: jobs in memory, a clock that is turned by hand, the same protocol as the real one.

Nothing starts by itself: `start`, `finish`, `evict`, `lose` and `advance` are the cluster. `tests/slurm/test_contract.py`
holds this fake and a real Slurm to the same promises.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import ClusterError, Problem
from orchestrator.slurm.rows import (
    ClusterFacts,
    History,
    HistoryRow,
    HistoryUnavailable,
    JobDetail,
    Queue,
    QueueRow,
    Reply,
    Verdict,
)
from orchestrator.slurm.states import ENDED, LAUNCH_FAILED, SlurmState

HOLDS = ("JobHeldUser", LAUNCH_FAILED)
"""Reasons of tasks that wait until they are released."""


@dataclass(kw_only=True)
class FakeTask:
    """One task (or plain job) of the fake. Mutable: the fake is a simulation."""

    array_id: str
    index: int | None
    name: str
    user: str
    partition: str
    submit_time: float
    time_limit_s: float
    dependency: str = ""
    state: SlurmState = SlurmState.PENDING
    reason: str = "None"
    node: str = ""
    restarts: int = 0
    exit_code: int = 0
    start_time: float | None = None
    end_time: float | None = None
    preempt_time: float | None = None
    eligible_time: float = 0.0
    forgotten: bool = False
    """slurmctld no longer knows it."""
    unrecorded: bool = False
    """Accounting does not know it either."""

    @property
    def id(self) -> str:
        """`12_3`, or `12` outside arrays."""
        return self.array_id if self.index is None else f"{self.array_id}_{self.index}"


@dataclass(kw_only=True)
class FakeSlurm:
    """A cluster in memory. Set `down` to make every call fail, `accounting=False` for a site without sacct."""

    now: float = 1_700_000_000.0
    min_job_age_s: float = 300.0
    requeue_delay_s: float = 5.0
    accounting: bool = True
    down: bool = False
    nodes: Sequence[str] = ("n1", "n2")
    cluster_facts: ClusterFacts = field(default_factory=lambda: ClusterFacts(config={}))
    tasks: dict[str, FakeTask] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """The name of every protocol call so far: for tests that count questions."""
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _arrays: dict[str, list[FakeTask]] = field(default_factory=dict)
    _unsettled: dict[str, FakeTask] = field(default_factory=dict)
    """Pending tasks whose reason may change by itself."""

    # --- the protocol ---------------------------------------------------------------------------------------------------

    def jobs(self, user: str) -> Queue:
        """As Slurm.jobs."""
        self._called("jobs")
        rows = tuple(_queue_row(task) for task in self.tasks.values() if task.user == user and not task.forgotten)
        return Queue(rows=rows, asked_at=self.now)

    def history(self, array_ids: Collection[str], since: float) -> History | HistoryUnavailable:
        """As Slurm.history."""
        self.calls.append("history")
        if not self.accounting:
            return HistoryUnavailable(reason="this site keeps no job accounting", permanent=True)
        wanted = frozenset(array_ids)
        rows = tuple(
            _history_row(task)
            for task in self.tasks.values()
            if task.array_id in wanted and not task.unrecorded and (task.end_time is None or task.end_time >= since)
        )
        return History(rows=rows, asked_at=self.now)

    def cancel(self, job_ids: Collection[str]) -> None:
        """As Slurm.cancel."""
        self._called("cancel")
        for job_id in job_ids:
            for task in self._matching(job_id):
                if task.state not in ENDED:
                    self._end(task, SlurmState.CANCELLED)

    def update_dependency(self, job_id: str, dependency: str) -> Reply:
        """As Slurm.update_dependency."""
        self._called("update_dependency")
        tasks = self._matching(job_id)
        if not tasks:
            return Reply(verdict=Verdict.UNKNOWN_JOB, text="Invalid job id specified")
        if any(task.state is not SlurmState.PENDING for task in tasks):
            return Reply(verdict=Verdict.REFUSED, text="Job is no longer pending execution")
        for task in tasks:
            task.dependency = dependency
            task.reason = "None"
            self._unsettled[task.id] = task
        self._settle()
        return Reply(verdict=Verdict.DONE)

    def requeue(self, job_id: str) -> Reply:
        """As Slurm.requeue."""
        self._called("requeue")
        tasks = self._matching(job_id)
        if not tasks:
            return Reply(verdict=Verdict.UNKNOWN_JOB, text="Invalid job id specified")
        if any(task.state is SlurmState.PENDING for task in tasks):
            return Reply(verdict=Verdict.REFUSED, text="Job is pending execution")
        for task in tasks:
            self._requeue(task)
        return Reply(verdict=Verdict.DONE)

    def release(self, job_ids: Collection[str]) -> None:
        """As Slurm.release."""
        self._called("release")
        for job_id in job_ids:
            for task in self._matching(job_id):
                if task.state is SlurmState.PENDING and task.reason in HOLDS:
                    task.reason = "None"

    def show_job(self, job_id: str) -> JobDetail | None:
        """As Slurm.show_job."""
        self._called("show_job")
        return next((_detail(task) for task in self._matching(job_id)), None)

    def facts(self, user: str) -> ClusterFacts:
        """As Slurm.facts: what the test put into `cluster_facts`."""
        self._called("facts")
        return self.cluster_facts

    # --- the cluster, by hand ---------------------------------------------------------------------------------------------

    def submit(
        self,
        *,
        name: str,
        count: int | None = None,
        user: str = "me",
        partition: str = "low",
        dependency: str = "",
        time_limit_s: float = 3600.0,
    ) -> str:
        """Queue an array of `count` tasks (None: a plain job); returns its id. kill-on-invalid-dep is on."""
        array_id = str(next(self._ids))
        for index in [None] if count is None else range(count):
            task = FakeTask(
                array_id=array_id,
                index=index,
                name=name,
                user=user,
                partition=partition,
                submit_time=self.now,
                time_limit_s=time_limit_s,
                dependency=dependency,
            )
            self.tasks[task.id] = task
            self._arrays.setdefault(array_id, []).append(task)
            if dependency:
                self._unsettled[task.id] = task
        self._settle()
        return array_id

    def advance(self, seconds: float) -> None:
        """Turn the clock: time limits strike, and slurmctld forgets what ended MinJobAge ago."""
        self.now += seconds
        for task in self.tasks.values():
            if task.state is SlurmState.RUNNING and task.start_time is not None:
                limit = task.start_time + task.time_limit_s
                if limit <= self.now:
                    self._end(task, SlurmState.TIMEOUT, at=limit, reason="TimeLimit")
            if task.state in ENDED and (task.end_time or 0.0) + self.min_job_age_s <= self.now:
                task.forgotten = True
        self._settle()

    def start(self, job_id: str) -> None:
        """Give waiting tasks their nodes; raises ValueError for one that may not start yet."""
        for task in self._matching(job_id):
            if task.state is not SlurmState.PENDING or task.dependency or task.eligible_time > self.now:
                raise ValueError(f"task {task.id} cannot start: {task.state.value} ({task.reason})")
            task.state, task.reason, task.node, task.start_time = SlurmState.RUNNING, "None", self.nodes[0], self.now

    def finish(self, job_id: str, *, exit_code: int = 0) -> None:
        """Running tasks end by themselves."""
        for task in self._running(job_id):
            self._end(task, SlurmState.COMPLETED if exit_code == 0 else SlurmState.FAILED, exit_code=exit_code)

    def fail(self, job_id: str, state: SlurmState = SlurmState.FAILED, *, exit_code: int = 1) -> None:
        """Running tasks end badly: FAILED, OUT_OF_MEMORY, NODE_FAIL, ..."""
        for task in self._running(job_id):
            self._end(task, state, exit_code=exit_code)

    def evict(self, job_id: str, *, requeue: bool = True) -> None:
        """A higher-priority job takes the nodes, on a site that requeues, or on one that cancels (PREEMPTED)."""
        for task in self._running(job_id):
            task.preempt_time = self.now
            if requeue:
                self._requeue(task)
            else:
                self._end(task, SlurmState.PREEMPTED)

    def hold(self, job_id: str, *, reason: str = "JobHeldUser") -> None:
        """A person holds a waiting task, or (reason LAUNCH_FAILED) Slurm does, after a running one could not be launched."""
        for task in self._matching(job_id):
            if task.state is SlurmState.RUNNING:
                self._requeue(task)
            task.reason = reason

    def lose(self, job_id: str) -> None:
        """Slurm forgets the tasks altogether: slurmctld was reset, and so was accounting."""
        for task in self._matching(job_id):
            task.forgotten = task.unrecorded = True

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.down:
            raise ClusterError(Problem(what="Unable to contact slurm controller (connect failure)"))

    def _matching(self, job_id: str) -> list[FakeTask]:
        found = [self.tasks[job_id]] if job_id in self.tasks else self._arrays.get(job_id, [])
        return [task for task in found if not task.forgotten]

    def _running(self, job_id: str) -> list[FakeTask]:
        return [task for task in self._matching(job_id) if task.state is SlurmState.RUNNING]

    def _end(
        self, task: FakeTask, state: SlurmState, *, exit_code: int = 0, at: float | None = None, reason: str = "None"
    ) -> None:
        task.state, task.exit_code, task.reason = state, exit_code, reason
        task.end_time = self.now if at is None else at
        self._settle()

    def _requeue(self, task: FakeTask) -> None:
        task.restarts += 1
        task.state, task.reason, task.node = SlurmState.PENDING, "BeginTime", ""
        task.submit_time, task.eligible_time = self.now, self.now + self.requeue_delay_s
        task.start_time = task.end_time = None
        task.exit_code = 0
        self._unsettled[task.id] = task

    def _settle(self) -> None:
        """Release dependencies that are met and cancel tasks whose dependency never can be, until nothing changes."""
        changed = True
        while changed:
            changed = False
            for task in list(self._unsettled.values()):
                if task.state is not SlurmState.PENDING or (task.reason == "None" and not task.dependency):
                    del self._unsettled[task.id]
                    continue
                if task.eligible_time <= self.now and task.reason == "BeginTime":
                    task.reason = "None"
                if task.dependency:
                    met = self._dependency_met(task)
                    if met is True:
                        task.dependency, task.reason, changed = "", "None", True
                    elif met is False:
                        task.state, task.end_time, task.reason = SlurmState.CANCELLED, self.now, "DependencyNeverSatisfied"
                        changed = True
                    else:
                        task.reason = "Dependency"

    def _dependency_met(self, task: FakeTask) -> bool | None:
        """True: may run; False: never; None: not yet. An unknown id counts as met, as Slurm has it."""
        verdicts: list[bool | None] = []
        for condition in task.dependency.split(","):
            kind, *ids = condition.split(":")
            for upstream_id in ids:
                wanted = upstream_id
                if kind == "aftercorr" and task.index is not None:
                    wanted = f"{upstream_id}_{task.index}"
                for upstream in self._matching(wanted):
                    if upstream.state not in ENDED:
                        verdicts.append(None)
                    else:
                        verdicts.append(kind == "afterany" or upstream.state is SlurmState.COMPLETED)
        if False in verdicts:
            return False
        return None if None in verdicts else True


def _queue_row(task: FakeTask) -> QueueRow:
    expected_end = None if task.start_time is None else task.start_time + task.time_limit_s
    return QueueRow(
        id=task.id,
        array_id=task.array_id,
        task_index=task.index,
        name=task.name,
        state=task.state,
        state_text=task.state.value,
        reason=task.reason,
        partition=task.partition,
        nodes=task.node,
        submit_time=task.submit_time,
        start_time=task.start_time,
        end_time=task.end_time if task.end_time is not None else expected_end,
    )


def _history_row(task: FakeTask) -> HistoryRow:
    return HistoryRow(
        id=task.id,
        array_id=task.array_id,
        task_index=task.index,
        name=task.name,
        state=task.state,
        state_text="CANCELLED by 1000" if task.state is SlurmState.CANCELLED else task.state.value,
        cancelled_by=1000 if task.state is SlurmState.CANCELLED else None,
        exit_code=task.exit_code,
        exit_signal=0,
        partition=task.partition,
        nodes=task.node,
        submit_time=task.submit_time,
        start_time=task.start_time,
        end_time=task.end_time,
    )


def _detail(task: FakeTask) -> JobDetail:
    row = _queue_row(task)
    fields: Mapping[str, str] = {"JobState": row.state_text, "Restarts": str(task.restarts)}
    return JobDetail(
        id=row.id,
        array_id=row.array_id,
        task_index=row.task_index,
        name=row.name,
        state=row.state,
        state_text=row.state_text,
        reason=row.reason,
        dependency=task.dependency,
        restarts=task.restarts,
        partition=row.partition,
        nodes=row.nodes,
        submit_time=row.submit_time,
        start_time=row.start_time,
        end_time=row.end_time,
        preempt_time=task.preempt_time,
        fields=fields,
    )
