"""Watching a fake Slurm with a clock: what is queued again and what is not, and that a turn may die, repeat, or meet silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import Attempt, Cause, Outcome, Status, claim, read_attempts, write_outcome
from jobs.journal import CHECKPOINT, JournalWriter
from orchestrator import apply, shipping, tick
from orchestrator.batches import Limits
from orchestrator.errors import ClusterError, Problem
from orchestrator.lifecycle import RunState
from orchestrator.policy import BUDGETS, Policy, Trouble
from orchestrator.records import CellRecord, RunRecord
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.slurm.states import ENDED, LAUNCH_FAILED, SlurmState
from orchestrator.slurm.submit import ArrayRequest
from orchestrator.store.runs import Change, Store
from orchestrator.watch import Turn, Watch
from orchestrator.workspace import Root, freeze
from tests.orchestrator.stub import Command, StubSlurm

LOST_ON_EVERY_SITE = SlurmState.FAILED


class Died(BaseException):
    """The process was killed here."""


@dataclass(kw_only=True)
class World:
    """A root, a cluster and somebody who watches."""

    root: Root
    store: Store
    slurm: FakeSlurm = field(default_factory=lambda: FakeSlurm(min_job_age_s=1e9))
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    requests: list[ArrayRequest] = field(default_factory=list)
    shipped: list[list[str]] = field(default_factory=list)
    refuses: Callable[[ArrayRequest], bool] = lambda request: False
    time_limit_s: float = 3600.0

    def sbatch(self, request: ArrayRequest) -> str:
        if self.refuses(request):
            raise ClusterError(Problem(what="sbatch refused: Requested node configuration is not available"))
        self.requests.append(request)
        name = f"orch-{request.token}"
        return self.slurm.submit(name=name, count=request.tasks, user=tick.user_name(), time_limit_s=self.time_limit_s)

    def watch(self, *sweeps: str) -> Watch:
        return Watch(
            root=self.root, store=self.store, slurm=self.slurm, limits=lambda: self.limits, tracking_uri="nowhere",
            policy=self.policy, sweeps=sweeps, clock=lambda: self.slurm.now,
        )  # fmt: skip

    def plan(self, number: int, sweep: str = "s", **fields: Any) -> list[str]:
        ids = [f"{sweep}-{i}" for i in range(number)]
        runs = [RunRecord(**({"id": run, "kind": "count", "state": RunState.PLANNED} | fields)) for run in ids]
        for run in ids:
            freeze(self.root, run, {"id": run}, tree="t")
        cells = [CellRecord(coordinates={"seed": run}, runs={"count": run}) for run in ids]
        self.store.add(name=sweep, path="p", title="", definition="", comment="", partial=False, runs=runs, cells=cells)
        return ids

    def turn(self, watch: Watch | None = None) -> Turn:
        self.slurm.advance(10)
        return (watch or self.watch()).turn()

    def state(self, run: str) -> str:
        return self.store.runs([run])[run].state.value

    def states(self) -> list[str]:
        return [run.state.value for run in self.store.runs().values()]

    def job(self, run: str) -> str:
        return self.store.runs([run])[run].job

    def begin(self, run: str, *, saves: int | None = None) -> Attempt:
        """Its job starts and claims an attempt, which may save a step."""
        job = self.job(run)
        self.slurm.start(job)
        attempt = claim(self.root.run_dir(run), Attempt(number=0, claimant="x", token=self.token(run), job_id=job))
        journal = JournalWriter(self.root.run_dir(run).journals, attempt=attempt.number, restored_step=0)
        if saves is not None:
            journal.event(saves, CHECKPOINT)
        journal.close()
        return attempt

    def token(self, run: str) -> str:
        return self.store.runs([run])[run].token

    def says(self, run: str, attempt: Attempt, cause: Cause | None, reason: str = "", place: str = "jobs/count.py:1") -> None:
        """Its outcome; done without a cause."""
        status = Status.DONE if cause is None else Status.FAILED
        write_outcome(
            self.root.run_dir(run), Outcome(status=status, attempt=attempt.number, cause=cause, reason=reason, place=place)
        )
        if cause is None:
            self.slurm.finish(self.job(run))
        else:
            self.slurm.fail(self.job(run))

    def dies(self, run: str, state: SlurmState = LOST_ON_EVERY_SITE, *, saves: int | None = None) -> None:
        """It starts and ends without a word."""
        self.begin(run, saves=saves)
        self.slurm.fail(self.job(run), state)

    def has_bug(self, run: str, what: str = "ValueError: no such colour") -> None:
        self.says(run, self.begin(run), Cause.EXCEPTION, what)

    def live(self) -> int:
        return sum(1 for task in self.slurm.tasks.values() if task.state not in ENDED)

    def retries(self, run: str) -> list[str]:
        return [event.detail for event in self.store.events_of(run) if event.what == "retry"]


@pytest.fixture
def world(root: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(root=root, store=store)
    monkeypatch.setattr(apply, "sbatch", made.sbatch)
    monkeypatch.setattr(shipping, "try_to_ship", lambda *arguments: made.shipped.append(list(arguments[3])) or "")
    return made


# --- what is queued again ---------------------------------------------------------------------------------------------


def test_that_a_planned_run_is_queued_and_a_turn_without_news_says_nothing(world: World) -> None:
    (run,) = world.plan(1)
    watch = world.watch()
    assert world.turn(watch).lines == ("queued array 1: 1 run",)
    assert world.turn(watch) == Turn()
    world.begin(run)
    assert world.turn(watch).lines == (f"{run} queued -> running",)


@pytest.mark.parametrize(
    ("state", "trouble"),
    [
        (SlurmState.FAILED, Trouble.LOST),
        (SlurmState.NODE_FAIL, Trouble.NODE_FAILURE),
        (SlurmState.OUT_OF_MEMORY, Trouble.HOST_MEMORY),
        (SlurmState.PREEMPTED, Trouble.PREEMPTED),
        (SlurmState.TIMEOUT, Trouble.TIMED_OUT_STUCK),
    ],
)
def test_that_a_run_is_queued_again_as_often_as_its_cause_allows_and_progress_starts_anew(
    state: SlurmState, trouble: Trouble, world: World
) -> None:
    (run,) = world.plan(1)
    watch = world.watch()
    world.turn(watch)
    for number in range(BUDGETS[trouble]):
        world.dies(run, state)
        turn = world.turn(watch)
        assert any("planned again" in line and f"retry {number + 1} of" in line for line in turn.lines), turn
        assert world.state(run) == "queued"
    world.dies(run, state)
    (line,) = world.turn(watch).lines
    assert f"not queued again: retried {'once' if BUDGETS[trouble] == 1 else BUDGETS[trouble]}" in line
    assert len(world.requests) == 1 + BUDGETS[trouble]
    assert world.turn(watch).settled

    world.store.apply([Change(run=run, state=RunState.PLANNED, reason="resumed")], now=world.slurm.now)  # a person's wish
    world.turn(watch)
    for step in (5, 6, 7, 8, 9):  # each attempt gets further: nobody counts
        world.dies(run, state, saves=step)
        world.turn(watch)
        assert world.state(run) == "queued"


def test_that_a_time_limit_with_progress_goes_on_for_ever(world: World) -> None:
    (run,) = world.plan(1)
    watch = world.watch()
    world.turn(watch)
    for step in range(1, 9):
        world.begin(run, saves=step)
        world.slurm.advance(world.time_limit_s + 1)
        assert "Slurm's time limit, after a checkpoint" in world.turn(watch).lines[0]
        assert world.state(run) == "queued"


def test_that_a_bug_is_not_retried_and_leaves_the_others_alone(world: World) -> None:
    buggy, killed = world.plan(2)
    watch = world.watch()
    world.turn(watch)
    world.has_bug(buggy)
    world.dies(killed)
    lines = world.turn(watch).lines
    words = "ValueError: no such colour (jobs/count.py:1); not queued again: a bug comes back"
    assert lines[0].startswith(f"{buggy} queued -> failed: {words}")
    assert (world.state(buggy), world.state(killed)) == ("failed", "queued")
    for _ in range(3):
        world.turn(watch)
    assert world.state(buggy) == "failed"


def test_that_a_failure_from_before_a_person_resumed_explains_nothing(world: World) -> None:
    (run,) = world.plan(1)
    watch = world.watch()
    world.turn(watch)
    world.has_bug(run)
    world.turn(watch)
    world.store.apply([Change(run=run, state=RunState.PLANNED, reason="resumed")], now=world.slurm.now)
    world.turn(watch)
    world.slurm.start(world.job(run))
    world.slurm.fail(world.job(run), SlurmState.NODE_FAIL)  # before it could claim an attempt
    assert "Slurm says NODE_FAIL on n1" in world.turn(watch).lines[0]
    assert world.state(run) == "queued"


def test_that_one_bug_in_three_runs_stops_the_sweep_and_no_other(world: World) -> None:
    world.limits = Limits(max_tasks=4)
    ids = world.plan(6)
    watch = world.watch()
    world.turn(watch)
    for run in ids[:3]:
        world.has_bug(run, f"ValueError: no such colour: {run}")
    world.dies(ids[3])
    (other,) = world.plan(1, "other")
    lines = world.turn(watch).lines
    assert "s stops: one bug has killed 3 runs of the sweep: ValueError at jobs/count.py:1" in lines
    assert [world.state(run) for run in ids] == ["failed", "failed", "failed", "lost", "planned", "planned"]
    assert world.state(other) == "queued"
    assert world.turn(watch).lines == ()


def test_that_done_and_cancelled_runs_and_cancelled_sweeps_are_never_touched(world: World) -> None:
    done, cancelled = world.plan(2)
    watch = world.watch()
    world.turn(watch)
    world.says(done, world.begin(done), None)
    apply.cancel(world.root, world.store, world.slurm, world.store.runs([cancelled]).values())
    (unwanted,) = world.plan(1, "unwanted")
    world.store.note("unwanted", "cancelled")
    for _ in range(3):
        world.turn(watch)
    assert [world.state(run) for run in (done, cancelled, unwanted)] == ["done", "cancelled", "planned"]
    assert len(world.requests) == 1


def test_that_a_run_that_nothing_explains_is_first_waited_for(world: World) -> None:
    (run,) = world.plan(1)
    watch = world.watch()
    world.turn(watch)
    world.begin(run)
    world.slurm.lose(world.job(run))
    world.turn(watch)
    world.slurm.advance(60)
    turn = world.turn(watch)
    assert world.state(run) == "lost"
    assert not turn.settled
    assert "in case Slurm finds its job again" in turn.lines[-1]
    world.slurm.advance(world.policy.lost_age_s)
    world.turn(watch)
    assert world.state(run) == "queued"


def test_that_only_the_named_sweep_is_watched(world: World) -> None:
    (run,), (other,) = world.plan(1), world.plan(1, "other")
    world.turn(world.watch("other"))
    assert (world.state(run), world.state(other)) == ("planned", "queued")
    assert world.shipped == [["other"]]


def test_that_planned_runs_of_a_local_sweep_are_left_to_it(world: World) -> None:
    stopped, _ = world.plan(2)
    change = Change(run=stopped, state=RunState.RUNNING, token="local-1", job="local:x:1:1")
    world.store.apply([change, Change(run=stopped, state=RunState.LOST)], now=world.slurm.now)
    world.turn()
    assert (world.states(), world.requests) == (["lost", "planned"], [])


def test_that_nothing_is_queued_while_a_local_runner_is_at_work(world: World) -> None:
    world.plan(1)
    with world.root.lock(name="local.lock"):
        world.turn()
        assert world.requests == []
    world.turn()
    assert len(world.requests) == 1


def test_that_a_run_whose_need_is_damaged_is_not_queued_in_circles(world: World) -> None:
    (first,) = world.plan(1, "a")
    (second,) = world.plan(1, "b", needs={"count": "a-0"})
    watch = world.watch()
    world.turn(watch)
    write_outcome(world.root.run_dir(first), Outcome(status=Status.DONE, attempt=1, files={"output/gone": 3}))
    world.slurm.start(world.job(first))
    world.slurm.finish(world.job(first))
    world.turn(watch)
    job = world.job(second)
    world.slurm.start(job)
    write_outcome(world.root.run_dir(second), Outcome(status=Status.BLOCKED, attempt=1, reason="run a-0 lacks output/gone"))
    world.slurm.fail(job)
    assert f"{second} held: run a-0 lacks output/gone; `orch resume a-0` makes it again" in world.turn(watch).lines
    assert world.turn(watch).lines == ()
    assert len(world.requests) == 2


# --- measures ---------------------------------------------------------------------------------------------------------


def test_that_a_failed_node_is_left_out_for_a_while(world: World) -> None:
    (run,) = world.plan(1, resources={"exclude": "old"})
    watch = world.watch()
    world.turn(watch)
    world.dies(run, SlurmState.NODE_FAIL)
    world.turn(watch)
    assert [request.resources["exclude"] for request in world.requests] == ["old", "old,n1"]
    assert "#SBATCH --exclude=old,n1\n" in world.requests[1].script()
    world.slurm.advance(world.policy.avoid_node_s)
    world.plan(1, "later")
    world.turn(watch)
    assert "exclude" not in world.requests[2].resources


def test_that_a_node_is_used_again_when_slurm_has_no_other(world: World) -> None:
    (run,) = world.plan(1)
    watch = world.watch()
    world.turn(watch)
    world.refuses = lambda request: "exclude" in request.resources
    world.dies(run, SlurmState.NODE_FAIL)
    world.turn(watch)
    assert world.state(run) == "queued"
    assert "exclude" not in world.requests[1].resources


def test_that_the_micro_batch_is_halved_where_the_policy_says_so_and_the_batch_allows(world: World) -> None:
    world.policy = Policy(halve_micro_batch=True)
    (run,) = world.plan(1, kind="train")
    spec = world.root.run_dir(run).spec
    config = {"kind": "train", "batch_size": 4, "runtime": {"accumulation": 1, "workers": 2}}
    spec.write_text(json.dumps({"id": run, "config": config}))
    watch = world.watch()
    world.turn(watch)
    seen: list[int] = []
    for _ in range(3):
        world.says(run, world.begin(run), Cause.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory")
        world.turn(watch)
        seen.append(json.loads(spec.read_text())["config"]["runtime"]["accumulation"])
    assert seen == [2, 4, 4]
    assert json.loads(spec.read_text())["config"] == {**config, "runtime": {"accumulation": 4, "workers": 2}}
    assert world.state(run) == "failed"


def test_that_ten_runs_drain_through_a_limit_of_three(world: World) -> None:
    world.limits = Limits(max_tasks=3)
    ids = world.plan(10)
    watch = world.watch()
    most = 0
    for number in range(30):
        turn = world.turn(watch)
        most = max(most, world.live())
        if turn.settled:
            break
        running = next((run for run in ids if world.state(run) == "queued"), None)
        if running is not None and number == 2:
            world.dies(running)  # in between one is lost, and comes back
        elif running is not None:
            world.says(running, world.begin(running), None)
    assert (most, set(world.states())) == (3, {"done"})
    assert sum(request.tasks for request in world.requests) == 11


def test_that_what_slurm_holds_after_a_failed_launch_is_let_go_as_often_as_nodes_may_fail(world: World) -> None:
    (run,) = world.plan(1)
    watch = world.watch()
    world.turn(watch)
    said: list[str] = []
    for _ in range(BUDGETS[Trouble.NODE_FAILURE] + 2):
        world.slurm.hold(world.job(run), reason=LAUNCH_FAILED)
        said += world.turn(watch).lines
    released = [line for line in said if line.startswith(f"released {world.job(run)}")]
    assert len(released) == BUDGETS[Trouble.NODE_FAILURE]
    assert world.state(run) == "queued"


def test_that_a_held_job_whose_run_goes_on_in_another_is_cancelled(world: World) -> None:
    """A controller that had forgotten a job brings it back once its run has another one."""
    (run,) = world.plan(1)
    watch = world.watch()
    world.turn(watch)
    old = world.job(run)
    world.slurm.hold(old, reason=LAUNCH_FAILED)
    world.store.apply([Change(run=run, state=RunState.LOST, job=old)], now=world.slurm.now)
    world.store.apply([Change(run=run, state=RunState.PLANNED)], now=world.slurm.now)
    assert any(line.startswith("queued array") for line in world.turn(watch).lines)
    assert world.job(run) != old
    assert f"cancelled {old}: Slurm held what no run waits for any more" in world.turn(watch).lines
    assert world.slurm.tasks[old].state is SlurmState.CANCELLED
    assert world.state(run) == "queued"


# --- silence, death, company --------------------------------------------------------------------------------------------


def test_that_a_silent_controller_is_said_once_and_survived_and_journals_are_shipped(world: World) -> None:
    world.plan(1)
    watch = world.watch()
    world.turn(watch)
    world.slurm.down = True
    first, second = world.turn(watch), world.turn(watch)
    assert "Unable to contact slurm controller" in first.troubles[0]
    assert (second.troubles, second.settled) == ((), False)
    assert len(world.shipped) == 3
    world.slurm.down = False
    assert world.turn(watch).troubles == ("the slurm answers again",)


def test_that_no_failure_of_the_tracker_ends_a_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> str:
        raise RuntimeError("database is locked\nand more")

    monkeypatch.setattr(shipping, "try_to_ship", raises)
    world.plan(1)
    watch = world.watch()
    turn = world.turn(watch)
    assert turn.troubles == ("the tracker is behind: RuntimeError: database is locked; nothing is lost",)
    assert world.states() == ["queued"]
    assert world.turn(watch).troubles == ()


def test_that_a_refused_submission_is_said_once_and_tried_again(world: World) -> None:
    world.plan(1)
    world.refuses = lambda request: True
    watch = world.watch()
    assert "sbatch refused" in world.turn(watch).troubles[0]
    assert world.turn(watch).troubles == ()
    world.refuses = lambda request: False
    world.turn(watch)
    assert world.states() == ["queued"]


@pytest.mark.parametrize("line", ["plan_again", "submit_planned", "intend", "sbatch", "submitted"])
def test_that_a_turn_that_died_at_any_line_is_finished_by_the_next_and_counts_once(
    line: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = world.plan(1)
    world.turn()
    world.dies(run)

    def dies(*_: object, **__: object) -> None:
        raise Died

    target: Mapping[str, object] = {"plan_again": apply, "submit_planned": tick, "sbatch": apply}
    with monkeypatch.context() as patch:
        patch.setattr(target.get(line, world.store), line, dies)
        with pytest.raises(Died):
            world.turn()
    world.slurm.now = 4e9  # long after: what never reached Slurm is planned again
    world.turn()
    world.turn()
    assert world.state(run) == "queued"
    assert len(world.requests) == 2
    assert world.live() == 1
    assert len(world.retries(run)) == 1


def test_that_two_watches_queue_nothing_twice(world: World) -> None:
    ids = world.plan(3)
    other = Store(world.root.store)
    first, second = world.watch(), Watch(
        root=world.root, store=other, slurm=world.slurm, limits=Limits, tracking_uri="", clock=lambda: world.slurm.now
    )  # fmt: skip
    for watch in (first, second, first):  # one after the other, as the root lock has them
        world.turn(watch)
    world.dies(ids[0])
    for watch in (second, first):
        world.turn(watch)
    other.close()
    assert sum(request.tasks for request in world.requests) == 4
    assert len(world.retries(ids[0])) == 1


# --- the command ------------------------------------------------------------------------------------------------------

Sweep = Callable[..., Path]


def test_that_watching_needs_a_known_sweep_and_slurm(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    orch("submit", count_sweep(seeds=[0]))
    assert "no submitted sweep is called so" in orch("watch", "nonsense", "--once", expect=2).err
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no Slurm here" in orch("watch", "--once", expect=3).err


def test_that_one_turn_without_an_answer_is_exit_3(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0]))
    stub_slurm.down()
    assert "Unable to contact slurm controller" in orch("watch", "--once", expect=3).err


def test_that_watching_a_sweep_ends_when_it_has_settled_and_fails_when_runs_did(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    orch("submit", count_sweep(seeds=[0, 1]))
    done, buggy = orch.runs()
    root = Root(orch.root)

    def time_passes(_: float) -> None:
        write_outcome(root.run_dir(done), Outcome(status=Status.DONE, attempt=1))
        reason = "ValueError: no such colour"
        write_outcome(root.run_dir(buggy), Outcome(status=Status.FAILED, attempt=1, cause=Cause.EXCEPTION, reason=reason))
        stub_slurm.forget()

    monkeypatch.setattr("orchestrator.cli.watch.time.sleep", time_passes)
    said = orch("watch", "counting", expect=4)
    assert "settled: 2 runs: 1 done, 1 failed" in said.out
    assert f"{buggy} queued -> failed: ValueError: no such colour; not queued again" in said.out
    shown = orch("show", buggy).out
    assert "cause:     bug: ValueError: no such colour" in shown
    assert "next:      `orch watch` leaves it: a bug comes back" in shown


def test_that_show_says_what_will_be_done(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0]))
    (run,) = orch.runs()
    reason = "OutOfMemoryError: CUDA out of memory"
    failed = Outcome(status=Status.FAILED, attempt=1, cause=Cause.OUT_OF_MEMORY, reason=reason)
    write_outcome(Root(orch.root).run_dir(run), failed)
    stub_slurm.forget()
    shown = orch("show", run).out
    assert f"cause:     out of device memory: {reason}" in shown
    assert "queues it again: retry 1 of 1" in shown
    assert "runtime.accumulation" in shown
    said = orch("watch", "--once").out
    assert f"{run} planned again: out of device memory" in said
    assert "retried:   out of device memory (1)" in orch("show", run).out


def test_that_a_turn_waits_for_the_lock_once_and_skips_otherwise(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    orch("submit", count_sweep(seeds=[0]))
    asked = len(stub_slurm.log)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.watch.time.sleep", stop)
    with Root(orch.root).lock():
        assert "stopped" in orch("watch", expect=130).err
    assert len(stub_slurm.log) == asked


def test_that_ctrl_c_ends_it_at_once(stub_slurm: StubSlurm, count_sweep: Sweep, orch: Command, tmp_path: Path) -> None:
    """As in a terminal: tests started by a script's `&` would hand it a SIGINT that is ignored."""
    orch("submit", count_sweep(seeds=[0]))
    (run,) = orch.runs()
    write_outcome(Root(orch.root).run_dir(run), Outcome(status=Status.DONE, attempt=1))
    stub_slurm.forget()
    code = (
        "from orchestrator import shipping\nshipping.try_to_ship = lambda *_: ''\nfrom orchestrator.cli.main import main; main()"
    )
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", code, "--root", str(orch.root), "watch", "--every", "3600"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert "queued -> done" in process.stdout.readline()  # it has turned
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in words) == (130, False)
    assert read_attempts(Root(orch.root).run_dir(run)) == []
