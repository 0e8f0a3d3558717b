"""Packed runs in the control plane: one job, several runs, each with its own end, its own cancelling and its own ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import Attempt, Cause, Outcome, Status, claim, write_outcome
from orchestrator import apply, shipping, tick
from orchestrator.batches import Limits
from orchestrator.lifecycle import RunState
from orchestrator.policy import BUDGETS, Trouble
from orchestrator.records import CellRecord, RunRecord
from orchestrator.resources import unpackable
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.slurm.states import LAUNCH_FAILED, SlurmState
from orchestrator.slurm.submit import ArrayRequest
from orchestrator.store.runs import Store
from orchestrator.watch import Turn, Watch
from orchestrator.workspace import Root, freeze
from tests.orchestrator.stub import Command, StubSlurm

RESOURCES = {"gpus_per_node": 1, "runs_per_gpu": 2}


@dataclass(kw_only=True)
class World:
    """Four packed runs, a fake Slurm, and somebody who watches."""

    root: Root
    store: Store
    slurm: FakeSlurm = field(default_factory=lambda: FakeSlurm(min_job_age_s=1e9))
    requests: list[ArrayRequest] = field(default_factory=list)

    def sbatch(self, request: ArrayRequest) -> str:
        self.requests.append(request)
        return self.slurm.submit(name=f"orch-{request.token}", count=request.tasks, user=tick.user_name())

    def plan(self, number: int) -> None:
        ids = [f"count-{i}" for i in range(number)]
        for run in ids:
            freeze(self.root, run, {"id": run}, tree="t")
        self.store.add(
            name="s", path="p", title="", definition="", comment="", partial=False,
            runs=[RunRecord(id=run, kind="count", state=RunState.PLANNED, resources=RESOURCES, code_tree="t") for run in ids],
            cells=[CellRecord(coordinates={"seed": run}, runs={"count": run}) for run in ids],
        )  # fmt: skip

    def watch(self) -> Watch:
        return Watch(
            root=self.root, store=self.store, slurm=self.slurm, limits=Limits, tracking_uri="nowhere",
            clock=lambda: self.slurm.now,
        )  # fmt: skip

    def turn(self) -> Turn:
        self.slurm.advance(10)
        return self.watch().turn()

    def look(self) -> list[str]:
        tick.look(self.root, self.store, self.slurm, now=self.slurm.now)
        return self.states()

    def states(self) -> list[str]:
        return [run.state.value for run in self.store.runs().values()]

    def jobs(self) -> list[str]:
        return [run.job for run in self.store.runs().values()]

    def begin(self, run: str) -> Attempt:
        record = self.store.runs([run])[run]
        return claim(self.root.run_dir(run), Attempt(number=0, claimant="x", token=record.token, job_id=record.job))

    def says(self, run: str, status: Status, attempt: int = 1, **more: Any) -> None:
        write_outcome(self.root.run_dir(run), Outcome(status=status, attempt=attempt, **more))

    def cancel(self, *runs: str) -> None:
        apply.cancel(self.root, self.store, self.slurm, self.store.runs(runs).values())

    def retries(self, run: str) -> list[str]:
        return [event.detail for event in self.store.events_of(run) if event.what == "retry"]


@pytest.fixture
def world(root: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> World:
    """Both tasks of four runs at work."""
    made = World(root=root, store=store)
    monkeypatch.setattr(apply, "sbatch", made.sbatch)
    monkeypatch.setattr(shipping, "try_to_ship", lambda *_: "")
    made.plan(4)
    assert len(made.turn().lines) == 1
    made.slurm.start("1")
    for run in store.runs():
        made.begin(run)
    assert made.look() == ["running"] * 4
    return made


def test_that_four_runs_at_two_a_task_are_an_array_of_two(world: World) -> None:
    (request,) = world.requests
    assert (request.tasks, request.runs_per_task) == (2, 2)
    assert request.index_table.read_text().splitlines() == [str(world.root.run_dir(run).path) for run in world.store.runs()]
    assert world.jobs() == ["1_0", "1_0", "1_1", "1_1"]


def test_that_a_submission_whose_answer_was_lost_is_adopted_with_its_tasks(world: World) -> None:
    world.store.connection.execute("UPDATE runs SET state = 'submitting', job = ''")
    world.store.connection.execute("UPDATE submissions SET state = 'intended', job = ''")
    world.look()
    assert world.jobs() == ["1_0", "1_0", "1_1", "1_1"]


def test_that_runs_of_one_task_end_one_by_one_and_go_on_with_its_requeue(world: World) -> None:
    world.says("count-0", Status.DONE)
    world.says("count-2", Status.FAILED, cause=Cause.EXCEPTION, reason="ValueError: no")
    assert world.look() == ["done", "running", "failed", "running"]
    world.slurm.evict("1")
    assert world.look() == ["done", "queued", "failed", "queued"]
    world.slurm.advance(10)
    world.slurm.start("1")
    for run in ("count-1", "count-3"):
        world.begin(run)
        world.says(run, Status.DONE, attempt=2)
    world.slurm.finish("1")
    assert world.look() == ["done", "done", "failed", "done"]


def test_that_a_pack_that_slurm_killed_is_judged_run_by_run(world: World) -> None:
    world.says("count-0", Status.DONE)
    world.says("count-1", Status.FAILED, cause=Cause.EXCEPTION, reason="ValueError: no")
    world.slurm.fail("1", SlurmState.NODE_FAIL)
    assert world.look() == ["done", "failed", "lost", "lost"]
    world.turn()
    assert world.states() == ["done", "failed", "queued", "queued"]
    assert [bool(world.retries(run)) for run in world.store.runs()] == [False, False, True, True]
    assert world.requests[-1].resources["exclude"] == "n1"


def test_that_a_killed_run_is_queued_again_while_its_sibling_works_as_often_as_a_lone_one(world: World) -> None:
    for number in range(1, BUDGETS[Trouble.LOST] + 1):
        world.says("count-0", Status.FAILED, attempt=number, cause=Cause.UNEXPLAINED, reason="its process was killed by signal 9")
        world.turn()
        assert world.states() == ["queued", "running", "running", "running"]
        assert (world.requests[-1].tasks, world.requests[-1].runs_per_task) == (1, 1)
        job = world.store.runs()["count-0"].job
        world.slurm.start(job)
        world.begin("count-0")
        world.look()
        world.slurm.fail(job)
    assert len(world.retries("count-0")) == BUDGETS[Trouble.LOST]
    world.turn()
    assert world.states()[0] == "lost"
    assert not any(world.retries(run) for run in ("count-1", "count-2", "count-3"))


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_that_cancelling_one_run_marks_it_and_leaves_its_task_to_the_others(world: World) -> None:
    world.cancel("count-0")
    assert world.root.run_dir("count-0").cancel_mark.exists()
    assert "cancel" not in world.slurm.calls
    assert world.look() == ["running"] * 4
    world.says("count-0", Status.CANCELLED)
    assert world.look() == ["cancelled", "running", "running", "running"]


def test_that_a_task_is_cancelled_with_its_last_run(world: World) -> None:
    world.cancel("count-0", "count-2", "count-3")
    assert {task.id for task in world.slurm.tasks.values() if task.state is SlurmState.CANCELLED} == {"1_1"}
    world.says("count-0", Status.CANCELLED)
    world.look()
    world.cancel("count-1")
    assert {task.state for task in world.slurm.tasks.values()} == {SlurmState.CANCELLED}


def test_that_a_run_is_cancelled_in_a_task_that_still_waits(world: World) -> None:
    world.slurm.evict("1")
    world.look()
    world.cancel("count-0")
    assert world.states() == ["cancelled", "queued", "queued", "queued"]
    world.cancel("count-1")
    assert world.states()[:2] == ["cancelled"] * 2
    assert {task.id for task in world.slurm.tasks.values() if task.state is SlurmState.CANCELLED} == {"1_0"}


# --- limits, holds ---------------------------------------------------------------------------------------------------


def test_that_what_is_queued_counts_by_tasks_against_the_sites_limit(world: World) -> None:
    more = [RunRecord(id=f"more-{i}", kind="count", state=RunState.PLANNED, resources=RESOURCES, code_tree="t") for i in range(4)]
    for run in more:
        freeze(world.root, run.id, {"id": run.id}, tree="t")
    world.store.add(name="m", path="p", title="", definition="", comment="", partial=False, runs=more, cells=[])
    done = tick.submit_planned(world.root, world.store, [run.id for run in more], Limits(max_tasks=3))
    assert done.arrays == {"2": 2}
    assert sorted(done.held) == ["more-2", "more-3"]


def test_that_a_pack_that_slurm_holds_is_let_go_and_every_run_of_it_remembers(world: World) -> None:
    world.slurm.hold("1_0", reason=LAUNCH_FAILED)
    said = world.turn().lines
    assert "released 1_0: a node could not launch it, and Slurm held it" in said
    assert [len(world.retries(run)) for run in world.store.runs()] == [1, 1, 0, 0]
    assert world.slurm.tasks["1_0"].reason == "None"


# --- what may be packed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resources",
    [
        {"runs_per_gpu": 4, "gpus_per_node": 1, "nodes": 1, "tasks_per_node": 1},
        {"runs_per_gpu": 4, "gpus_per_node": None, "cpus_per_task": 8},
        {"runs_per_gpu": 4, "gres": "gpu:a100:1"},
        {"runs_per_gpu": 1, "gpus_per_node": 4, "nodes": 2},
        {"gpus_per_node": 4},
    ],
)
def test_that_runs_of_one_task_with_at_most_one_gpu_can_share_it(resources: Mapping[str, object]) -> None:
    assert unpackable(resources, "r") == []


@pytest.mark.parametrize(
    ("key", "value"), [("nodes", 2), ("tasks_per_node", 2), ("gpus_per_node", 2), ("gpus_per_task", 2), ("gres", "gpu:a100:4")]
)
def test_that_a_run_of_several_tasks_shares_none(key: str, value: object) -> None:
    (problem,) = unpackable({"runs_per_gpu": 4, key: value}, "s.yaml: resources.train")
    assert (problem.where, problem.value, problem.allowed) == (f"s.yaml: resources.train.{key}", str(value), "1")
    assert "runs_per_gpu" in problem.hint


def test_that_packed_runs_have_one_world_size() -> None:
    (problem,) = unpackable({"runs_per_gpu": 4, "elastic": [1]}, "r")
    assert (problem.where, problem.allowed) == ("r.elastic", "no such key")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("runs_per_gpu: 4, gpus_per_node: 2", "resources.count.gpus_per_node: 4 runs share a task"),
        ("runs_per_gpu: 4, nodes: 2", "resources.count.nodes: 4 runs share a task"),
        ("runs_per_gpu: 0", "resources.count.runs_per_gpu: is not a whole number in range"),
        ("runs_per_gpu: 1.5", "resources.count.runs_per_gpu: is not a whole number in range"),
        ("runs_per_gpu: four", "resources.count.runs_per_gpu: is not a whole number in range"),
    ],
)
def test_that_what_cannot_be_packed_is_exit_2_with_nothing_written(
    words: str, said: str, orch: Command, stub_slurm: StubSlurm, count_sweep: Callable[..., Path]
) -> None:
    path = count_sweep()
    path.write_text(path.read_text().replace("cpus_per_task: 1", words))
    for command in ("submit", "plan"):
        refused = orch(command, path, expect=2)
        assert said in refused.err
        assert "allowed:" in refused.err
    assert stub_slurm.calls == []
    assert not orch.root.exists()


def test_that_a_packed_sweep_is_queued_as_packs(orch: Command, stub_slurm: StubSlurm, count_sweep: Callable[..., Path]) -> None:
    path = count_sweep(seeds=[0, 1, 2, 3, 4])
    path.write_text(path.read_text().replace("cpus_per_task: 1", "cpus_per_task: 1, runs_per_gpu: 2"))
    orch("submit", path)
    (call,) = stub_slurm.calls
    assert "#SBATCH --array=0-2%3\n" in call["script"]
    assert "runs_per_gpu" not in call["script"]
    assert sorted(run["job"] for run in orch.runs().values()) == ["101_0", "101_0", "101_1", "101_1", "101_2"]
