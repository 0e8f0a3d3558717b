"""What the control plane relies on, held against the in-memory fake and against a real Slurm alike."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from orchestrator.errors import ClusterError
from orchestrator.slurm.client import Slurm, SlurmCommand
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.slurm.rows import ClusterFacts, History, HistoryRow, HistoryUnavailable, PartitionFacts, Verdict
from orchestrator.slurm.states import ENDED, SlurmState
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import Options

pytestmark = pytest.mark.slurm
USER = getpass.getuser()
PATIENCE_S = 60.0


class Driver(Protocol):
    """A cluster and the hands that move it."""

    @property
    def slurm(self) -> Slurm:
        """The side that the control plane sees."""

    def submit(self, name: str, count: int | None, *, partition: str = "low", dependency: str = "") -> str:
        """Queue tasks that run until they are told to end; returns the array id."""

    def let_start(self, job_id: str) -> None:
        """Return when the task runs."""

    def let_end(self, job_id: str, exit_code: int = 0) -> None:
        """Tell a running task to end, and return when Slurm has noticed."""

    def evict(self, job_id: str) -> None:
        """A job of a higher tier takes the nodes."""

    def hold(self, job_id: str) -> None:
        """A person holds a waiting task."""

    def let_forget(self) -> None:
        """Wait until slurmctld has forgotten every ended job."""

    def until(self, fact: Callable[[], bool]) -> None:
        """Wait for a fact."""


class FakeDriver:
    def __init__(self) -> None:
        low = PartitionFacts(
            name="low",
            state="UP",
            default=True,
            total_nodes=2,
            max_nodes=None,
            max_time_s=None,
            priority_tier=1,
            preempt_mode="REQUEUE",
            grace_s=10,
        )
        facts = ClusterFacts(config={"MaxArraySize": "1001"}, partitions=(low,), accounting=True)
        self.slurm: FakeSlurm = FakeSlurm(min_job_age_s=2.0, cluster_facts=facts)

    def submit(self, name: str, count: int | None, *, partition: str = "low", dependency: str = "") -> str:
        return self.slurm.submit(name=name, count=count, user=USER, partition=partition, dependency=dependency)

    def let_start(self, job_id: str) -> None:
        self.slurm.advance(self.slurm.requeue_delay_s)
        self.slurm.start(job_id)

    def let_end(self, job_id: str, exit_code: int = 0) -> None:
        self.slurm.finish(job_id, exit_code=exit_code)

    def evict(self, job_id: str) -> None:
        self.slurm.evict(job_id, requeue=self.slurm.tasks[job_id].partition != "low_cancel")

    def hold(self, job_id: str) -> None:
        self.slurm.hold(job_id)

    def let_forget(self) -> None:
        self.slurm.advance(self.slurm.min_job_age_s)

    def until(self, fact: Callable[[], bool]) -> None:
        assert fact()


class RealDriver:
    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster
        self.slurm: SlurmCommand = SlurmCommand(environment=cluster.env)
        self.gates = cluster.directory / "gates"
        self.gates.mkdir(exist_ok=True)

    def submit(self, name: str, count: int | None, *, partition: str = "low", dependency: str = "") -> str:
        gate = f"{self.gates}/${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
        script = f"while [ ! -e {gate} ]; do sleep 0.1; done\nexit $(cat {gate})"
        options = [f"--job-name={name}", "--requeue", "--kill-on-invalid-dep=yes"]
        options += [f"--array=0-{count - 1}"] if count is not None else []
        options += [f"--dependency={dependency}"] if dependency else []
        return self.cluster.sbatch(script, *options, partition=partition)

    def let_start(self, job_id: str) -> None:
        self.cluster.wait(job_id, {"RUNNING"}, PATIENCE_S)

    def let_end(self, job_id: str, exit_code: int = 0) -> None:
        gate = self.gates / job_id
        (self.gates / ".new").write_text(str(exit_code))
        (self.gates / ".new").rename(gate)
        self.cluster.wait(job_id, {"COMPLETED", "FAILED", ""}, PATIENCE_S)

    def evict(self, job_id: str) -> None:
        self.cluster.evict(job_id)

    def hold(self, job_id: str) -> None:
        self.cluster.run("scontrol", "uhold", job_id)  # as a user, not as the administrator that the tests may be

    def let_forget(self) -> None:
        def forgotten() -> bool:
            return not any(row.state in ENDED for row in self.slurm.jobs(USER).rows)

        self.cluster.until(forgotten, PATIENCE_S, "slurmctld remembers ended jobs")

    def until(self, fact: Callable[[], bool]) -> None:
        self.cluster.until(fact, PATIENCE_S, "the fact did not come true")


@pytest.fixture(scope="module")
def forgetful_cluster(slurm_cluster_factory: Callable[[Options], SlurmCluster]) -> SlurmCluster:
    """A cluster whose slurmctld forgets ended jobs soon, and which kills at once."""
    return slurm_cluster_factory(Options(min_job_age_s=2, kill_wait_s=1, grace_s=0))


@pytest.fixture(params=["fake", "real"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    if request.param == "fake":
        yield FakeDriver()
        return
    cluster: SlurmCluster = request.getfixturevalue("forgetful_cluster")
    yield RealDriver(cluster)
    cluster.clear()


def state_of(driver: Driver, job_id: str) -> SlurmState | None:
    row = driver.slurm.jobs(USER).by_id().get(job_id)
    return None if row is None else row.state


def history_of(driver: Driver, job_id: str) -> HistoryRow | None:
    answer = driver.slurm.history([job_id.partition("_")[0]], since=0.0)
    assert isinstance(answer, History)
    return answer.by_id().get(job_id)


def test_that_each_task_of_an_array_is_a_row_with_the_name_it_was_given(driver: Driver) -> None:
    array = driver.submit("orch-token1", 3)
    driver.let_start(f"{array}_1")
    queue = driver.slurm.jobs(USER)
    rows = [row for row in queue.rows if row.array_id == array]
    assert {row.id for row in rows} == {f"{array}_{index}" for index in range(3)}
    assert {(row.task_index, row.name, row.partition) for row in rows} == {(index, "orch-token1", "low") for index in range(3)}
    running = queue.by_id()[f"{array}_1"]
    assert running.state is SlurmState.RUNNING
    assert running.nodes
    assert running.start_time is not None
    assert queue.problems == ()


def test_that_a_job_outside_arrays_is_its_own_array(driver: Driver) -> None:
    job = driver.submit("orch-single", None)
    row = driver.slurm.jobs(USER).by_id()[job]
    assert (row.array_id, row.task_index) == (job, None)


def test_that_ended_tasks_show_how_they_ended_until_they_are_forgotten(driver: Driver) -> None:
    array = driver.submit("orch-ends", 2)
    for index, code, state in ((0, 0, SlurmState.COMPLETED), (1, 3, SlurmState.FAILED)):
        driver.let_start(f"{array}_{index}")
        driver.let_end(f"{array}_{index}", code)
        assert state_of(driver, f"{array}_{index}") in (state, None)
    driver.let_forget()
    assert state_of(driver, f"{array}_0") is None
    assert driver.slurm.show_job(f"{array}_0") is None


def test_that_history_remembers_what_the_queue_forgot(driver: Driver) -> None:
    array = driver.submit("orch-past", 2)
    for index, code in ((0, 0), (1, 3)):
        driver.let_start(f"{array}_{index}")
        driver.let_end(f"{array}_{index}", code)
    driver.let_forget()
    driver.until(lambda: (row := history_of(driver, f"{array}_0")) is not None and row.name == "orch-past")
    driver.until(lambda: (row := history_of(driver, f"{array}_1")) is not None and row.state is SlurmState.FAILED)
    good, bad = history_of(driver, f"{array}_0"), history_of(driver, f"{array}_1")
    assert good is not None
    assert bad is not None
    assert (good.state, good.exit_code) == (SlurmState.COMPLETED, 0)
    assert bad.exit_code == 3
    assert good.end_time is not None


def test_that_cancelling_one_task_leaves_the_others(driver: Driver) -> None:
    array = driver.submit("orch-cancel", 3)
    driver.let_start(f"{array}_0")
    driver.slurm.cancel([f"{array}_0", f"{array}_2"])
    driver.until(lambda: state_of(driver, f"{array}_0") in (SlurmState.CANCELLED, None))
    driver.until(lambda: state_of(driver, f"{array}_2") in (SlurmState.CANCELLED, None))
    assert state_of(driver, f"{array}_1") in (SlurmState.PENDING, SlurmState.RUNNING)
    driver.until(lambda: (row := history_of(driver, f"{array}_0")) is not None and row.state is SlurmState.CANCELLED)
    row = history_of(driver, f"{array}_0")
    assert row is not None
    assert row.cancelled_by is not None


def test_that_cancelling_what_is_unknown_or_over_is_no_error(driver: Driver) -> None:
    job = driver.submit("orch-over", None)
    driver.let_start(job)
    driver.let_end(job)
    driver.slurm.cancel([job, "999999", "999999_4"])
    driver.slurm.cancel([])


def test_that_a_whole_array_is_cancelled_by_its_id(driver: Driver) -> None:
    array = driver.submit("orch-all", 40, partition="hold")
    driver.slurm.cancel([array])
    driver.until(lambda: all(row.state in ENDED for row in driver.slurm.jobs(USER).rows if row.array_id == array))


def test_that_a_requeued_task_keeps_its_id_and_counts_its_restart(driver: Driver) -> None:
    array = driver.submit("orch-again", 2)
    task = f"{array}_1"
    driver.let_start(task)
    driver.let_start(f"{array}_0")
    assert driver.slurm.requeue(task).verdict is Verdict.DONE
    driver.until(lambda: state_of(driver, task) is SlurmState.PENDING)
    assert state_of(driver, f"{array}_0") is SlurmState.RUNNING
    driver.let_start(task)
    detail = driver.slurm.show_job(task)
    assert detail is not None
    assert (detail.id, detail.restarts, detail.state, detail.name) == (task, 1, SlurmState.RUNNING, "orch-again")


def test_that_an_evicted_task_waits_again_under_its_id(driver: Driver) -> None:
    array = driver.submit("orch-evicted", 1)
    driver.let_start(f"{array}_0")
    driver.evict(f"{array}_0")
    driver.until(lambda: state_of(driver, f"{array}_0") in (SlurmState.PENDING, SlurmState.RUNNING))
    detail = driver.slurm.show_job(f"{array}_0")
    assert detail is not None
    assert detail.restarts == 1


def test_that_a_site_that_cancels_on_preemption_says_preempted(driver: Driver) -> None:
    job = driver.submit("orch-preempted", None, partition="low_cancel")
    driver.let_start(job)
    driver.evict(job)
    driver.until(lambda: (row := history_of(driver, job)) is not None and row.state is SlurmState.PREEMPTED)


def test_that_requests_for_an_unknown_job_say_so(driver: Driver) -> None:
    for reply in (driver.slurm.requeue("999999_1"), driver.slurm.update_dependency("999999", "afterok:1")):
        assert reply.verdict is Verdict.UNKNOWN_JOB
    assert driver.slurm.show_job("999999") is None
    assert driver.slurm.show_job("999999_3") is None
    answer = driver.slurm.history(["999999"], since=0.0)
    assert isinstance(answer, History)
    assert answer.rows == ()


def test_that_a_waiting_task_cannot_be_requeued(driver: Driver) -> None:
    array = driver.submit("orch-waits", 2, partition="hold")
    assert driver.slurm.requeue(f"{array}_0").verdict is Verdict.REFUSED


def test_that_a_held_task_waits_until_it_is_released(driver: Driver) -> None:
    array = driver.submit("orch-held", 2, partition="hold")
    driver.hold(f"{array}_1")
    driver.until(lambda: driver.slurm.jobs(USER).by_id()[f"{array}_1"].reason == "JobHeldUser")
    driver.slurm.release([f"{array}_0", f"{array}_1", "99999999"])
    driver.until(lambda: driver.slurm.jobs(USER).by_id()[f"{array}_1"].reason != "JobHeldUser")
    assert state_of(driver, f"{array}_1") is SlurmState.PENDING


def test_that_a_task_that_never_started_is_shown_under_its_own_id(driver: Driver) -> None:
    array = driver.submit("orch-shown", 5, partition="hold")
    detail = driver.slurm.show_job(f"{array}_3")
    assert detail is not None
    assert (detail.id, detail.task_index, detail.state) == (f"{array}_3", 3, SlurmState.PENDING)


def test_that_dependencies_hold_tasks_back_and_can_be_set_per_task(driver: Driver) -> None:
    first = driver.submit("orch-first", 2)
    second = driver.submit("orch-second", 2, dependency=f"aftercorr:{first}")
    driver.let_start(f"{first}_0")
    driver.let_start(f"{first}_1")
    assert state_of(driver, f"{second}_0") is SlurmState.PENDING
    assert driver.slurm.update_dependency(f"{second}_1", f"afterok:{first}_0").verdict is Verdict.DONE
    driver.let_end(f"{first}_0")
    driver.let_start(f"{second}_0")
    driver.let_start(f"{second}_1")
    assert state_of(driver, f"{first}_1") is SlurmState.RUNNING


def test_that_a_dependency_that_can_never_be_met_cancels_the_task(driver: Driver) -> None:
    first = driver.submit("orch-bad", 1)
    second = driver.submit("orch-hopeless", 1, dependency=f"afterok:{first}_0")
    driver.let_start(f"{first}_0")
    driver.let_end(f"{first}_0", 1)
    driver.until(lambda: state_of(driver, f"{second}_0") in (SlurmState.CANCELLED, None))


def test_that_the_cluster_says_what_it_is(driver: Driver) -> None:
    facts = driver.slurm.facts(USER)
    assert facts.config["MaxArraySize"] == "1001"
    assert any(partition.name == "low" and partition.default for partition in facts.partitions)
    assert facts.accounting


def test_that_a_dead_controller_is_an_error_and_not_an_empty_queue(forgetful_cluster: SlurmCluster) -> None:
    fake = FakeSlurm(down=True)
    with pytest.raises(ClusterError):
        fake.jobs(USER)
    slurm = SlurmCommand(environment=forgetful_cluster.env)
    job = forgetful_cluster.sbatch("sleep 300", partition="hold")
    forgetful_cluster.controller_down()
    try:
        with pytest.raises(ClusterError, match="Unable to contact"):
            slurm.jobs(USER)
    finally:
        forgetful_cluster.controller_up()
    assert job in slurm.jobs(USER).by_id()
    forgetful_cluster.clear()


def test_that_a_site_without_accounting_answers_so(slurm_cluster_factory: Callable[[Options], SlurmCluster]) -> None:
    cluster = slurm_cluster_factory(Options(accounting=False, nodes=1))
    real = SlurmCommand(environment=cluster.env)
    for slurm in (real, FakeSlurm(accounting=False)):
        answer = slurm.history(["1"], since=0.0)
        assert isinstance(answer, HistoryUnavailable)
        assert answer.permanent
    assert not real.facts(USER).accounting
    cluster.stop()


def test_that_ten_thousand_waiting_tasks_are_one_quick_question(forgetful_cluster: SlurmCluster) -> None:
    slurm = SlurmCommand(environment=forgetful_cluster.env)
    for _ in range(10):
        forgetful_cluster.sbatch("true", "--array=0-999", "--job-name=orch-many", partition="hold")
    start = time.perf_counter()
    rows = slurm.jobs(USER).rows
    seconds = time.perf_counter() - start
    assert len([row for row in rows if row.name == "orch-many"]) == 10_000
    assert seconds < 1.0
    slurm.cancel([row.id for row in rows])
    forgetful_cluster.clear()
