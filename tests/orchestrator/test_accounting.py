"""What runs have used, from their directories into the store and before people: read once when they stop, live while they run."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobs.contract import Outcome, Status, write_outcome
from jobs.journal import AT_WORK, CHECKPOINT, END
from orchestrator import accounting, shipping, tick
from orchestrator.goodput import Spent, Usage
from orchestrator.lifecycle import RunState
from orchestrator.records import CellRecord, RunRecord
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.store import usages
from orchestrator.store.runs import Change, Store
from orchestrator.workspace import Root
from tests.orchestrator.stub import Command, StubSlurm

NOW = 1_700_000_000.0
Sweep = Callable[..., Path]


def add(store: Store, runs: Sequence[str], *, sweep: str = "s", gpus: int = 0) -> None:
    resources = {"gpus_per_node": gpus} if gpus else {}
    store.add(
        name=sweep, path=f"{sweep}.yaml", title="", definition="", comment="", partial=False,
        cells=[CellRecord(coordinates={"seed": run}, runs={"count": run}) for run in runs],
        runs=[RunRecord(id=run, kind="count", state=RunState.PLANNED, resources=resources, steps=9) for run in runs],
    )  # fmt: skip


def worked(
    root: Root, run: str, number: int, *, at: float, seconds: float, job: str = "7_0", ranks: int = 1, restored: int = 0,
    end: str = END,
) -> None:  # fmt: skip
    """One attempt as a job leaves it: two seconds of start-up, a second in saves, a step a second."""
    place = root.run_dir(run)
    for folder in (place.attempts, place.journals):
        folder.mkdir(parents=True, exist_ok=True)
    told = {"number": number, "claimant": "c", "job_id": job, "world_size": ranks, "started_at": at}
    (place.attempts / f"{number:04d}.json").write_text(json.dumps(told))
    step, ms = restored + int(seconds), round(1000 * at)
    lines = [
        {"attempt": number, "restored": restored, "time": at + 1},
        {"s": restored, "t": ms + 2000, "e": AT_WORK, "d": {}},
        {"s": step, "t": ms + round(1000 * seconds), "e": CHECKPOINT, "d": {"waited": 1.0}},
        {"s": step, "t": ms + round(1000 * seconds), "e": end, "d": {"waited": 1.0}},
    ]
    (place.journals / f"{number:04d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def finished(root: Root, store: Store, run: str, **more: object) -> None:
    """A run that was handed to Slurm at NOW, began 100 s later, worked for 10 s and is done; the store has not looked yet."""
    root.run_dir(run).path.mkdir(parents=True, exist_ok=True)
    store.intend(f"t{run}", [run], after={}, now=NOW)
    store.submitted(f"t{run}", "7", now=NOW + 1)
    worked(root, run, 1, **({"at": NOW + 100, "seconds": 10} | more))  # type: ignore[arg-type]  # a test's shorthand
    write_outcome(root.run_dir(run), Outcome(status=Status.DONE, attempt=1, step=10, finished_at=NOW + 110))


def look(root: Root, store: Store) -> None:
    tick.look(root, store, FakeSlurm(), now=NOW + 500)


def used(store: Store, *runs: str) -> dict[str, Usage]:
    return usages.of(store.connection, runs or store.runs())


TEN_SECONDS = Spent(productive_ms=7000, checkpointing_ms=1000, restarting_ms=2000)


# --- read once -------------------------------------------------------------------------------------------------------


def test_that_a_run_that_ended_is_read_once_and_never_again(root: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, ["a", "b"])
    finished(root, store, "a")
    look(root, store)
    assert used(store) == {"a": Usage(tasks=TEN_SECONDS, queued_ms=100_000)}
    monkeypatch.setattr(accounting, "read_times", None)  # reading anything would raise
    look(root, store)
    assert usages.total(store.connection) == Usage(tasks=TEN_SECONDS, queued_ms=100_000)


def test_that_time_is_of_gpus_where_the_resources_ask_for_them(root: Root, store: Store) -> None:
    add(store, ["a"], gpus=4)
    finished(root, store, "a", ranks=4)
    look(root, store)
    assert used(store)["a"] == Usage(gpus=TEN_SECONDS.times(4), queued_ms=100_000)


def test_that_resources_that_nobody_can_read_cost_the_word_gpu_alone(root: Root, store: Store) -> None:
    add(store, ["a"])
    store.connection.execute("""UPDATE runs SET resources = '{"gpus_per_node": "many"}'""")
    finished(root, store, "a")
    look(root, store)
    assert used(store)["a"].tasks == TEN_SECONDS


def test_that_a_resumed_run_keeps_its_usage_and_renews_it_when_it_ends_again(root: Root, store: Store) -> None:
    add(store, ["a"])
    finished(root, store, "a")
    write_outcome(root.run_dir("a"), Outcome(status=Status.FAILED, attempt=1, step=10))
    look(root, store)
    before = used(store)["a"]
    store.apply([Change(run="a", state=RunState.PLANNED)], now=NOW + 600)
    store.intend("again", ["a"], after={"a": 1}, now=NOW + 700)
    store.submitted("again", "8", now=NOW + 700)
    look(root, store)
    assert used(store)["a"] == before
    worked(root, "a", 2, at=NOW + 730, seconds=20, job="8_0", restored=10)
    write_outcome(root.run_dir("a"), Outcome(status=Status.DONE, attempt=2, step=30))
    look(root, store)
    after = used(store)["a"]
    assert after.queued_ms == before.queued_ms + 30_000  # not from the failure on
    assert after.tasks.total_ms == 30_000


def test_that_a_run_that_waits_in_the_queue_again_is_counted(root: Root, store: Store) -> None:
    add(store, ["a"])
    finished(root, store, "a", end="left")
    root.run_dir("a").outcome.unlink()
    store.apply([Change(run="a", state=RunState.RUNNING), Change(run="a", state=RunState.QUEUED, reason="requeued")], now=NOW)
    accounting.renew_stopped(root, store)
    assert used(store)["a"].tasks == TEN_SECONDS


def test_that_news_of_a_running_run_is_not_its_end(root: Root, store: Store) -> None:
    add(store, ["a"])
    store.apply([Change(run="a", state=RunState.RUNNING), Change(run="a", state=RunState.RUNNING, reason="odd")], now=NOW)
    assert usages.stale(store.connection, limit=9) == []


def test_that_what_is_shipped_was_read_before(root: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, ["ended", "running", "elsewhere"])
    for run in ("ended", "running", "elsewhere"):
        finished(root, store, run)
    store.apply([Change(run="ended", state=RunState.DONE), Change(run="running", state=RunState.RUNNING)], now=NOW)
    shipped: dict[str, Usage | None] = {}
    monkeypatch.setattr(shipping, "gather_sweep", lambda *_: None)
    monkeypatch.setattr(
        shipping, "ship", lambda uri, path, facts, *_, **__: shipped.update({one.run_id: one.usage for one in facts})
    )
    shipping.ship_sweeps(root, store, "", ["s"])
    counted = Usage(tasks=TEN_SECONDS, queued_ms=100_000)
    assert shipped == {"ended": counted, "running": counted, "elsewhere": None}


def test_that_a_run_that_never_started_is_not_read(root: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, ["a"])
    store.intend("t", ["a"], after={}, now=NOW)
    monkeypatch.setattr(accounting, "read_times", None)
    look(root, store)
    store.apply([Change(run="a", state=RunState.PLANNED)], now=NOW)
    look(root, store)
    assert used(store) == {}


def test_that_dying_before_the_record_leaves_the_run_to_the_next_look(
    root: Root, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, ["a"])
    finished(root, store, "a")
    with monkeypatch.context() as patch:
        patch.setattr(usages, "put", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            look(root, store)
    assert store.runs()["a"].state is RunState.DONE
    assert used(store) == {}
    look(root, store)
    assert used(store)["a"].tasks == TEN_SECONDS


def test_that_a_run_that_changed_while_it_was_read_is_read_again(root: Root, store: Store) -> None:
    add(store, ["a"])
    finished(root, store, "a")
    look(root, store)
    seen = store.runs()
    store.apply([Change(run="a", state=RunState.PLANNED), Change(run="a", state=RunState.RUNNING)], now=NOW + 900)
    store.apply([Change(run="a", state=RunState.FAILED)], now=NOW + 901)
    usages.put(store.connection, {"a": Usage()}, seen, at=NOW)
    assert usages.stale(store.connection, limit=9) == ["a"]


def test_that_a_look_reads_at_most_so_many_and_the_next_ones_the_rest(
    root: Root, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "AT_ONCE", 2)
    names = [f"r{i}" for i in range(5)]
    add(store, names)
    for run in names:
        finished(root, store, run)
    look(root, store)
    assert (len(used(store)), usages.missing(store.connection)) == (2, 3)
    for _ in range(2):
        look(root, store)
    assert (len(used(store)), usages.missing(store.connection)) == (5, 0)


def test_that_a_damaged_clock_adds_up_without_an_error(root: Root, store: Store) -> None:
    add(store, ["a", "b"])
    huge = Usage(tasks=Spent(productive_ms=2**70), queued_ms=2**63)
    usages.put(store.connection, {"a": huge, "b": huge}, store.runs(), at=NOW)
    assert usages.total(store.connection).tasks.productive_ms == 2**54


# --- older stores ----------------------------------------------------------------------------------------------------


def test_that_a_store_of_the_first_schema_learns_what_its_ended_runs_used(root: Root, store: Store) -> None:
    add(store, ["done", "never", "failed"])
    finished(root, store, "done")
    finished(root, store, "failed")
    look(root, store)
    store.connection.execute("UPDATE runs SET state = 'failed' WHERE id = 'failed'")
    store.connection.execute("DROP TABLE usage")
    store.connection.execute("PRAGMA user_version = 2")
    older = Store(root.store)
    assert sorted(usages.stale(older.connection, limit=9)) == ["done", "failed"]
    look(root, older)
    assert sorted(used(older)) == ["done", "failed"]
    older.close()


# --- people ----------------------------------------------------------------------------------------------------------

LINE = "goodput 70 % of 10.0 task-seconds (productive 7.0, checkpointing 1.0, restarting 2.0, replayed 0.0); queued 1.7 min"


@pytest.fixture
def two_sweeps(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> list[str]:
    """The runs of two sweeps; the first run of the first sweep is done."""
    orch("submit", count_sweep("one", seeds=[0]))
    orch("submit", count_sweep("two", seeds=[1, 2]))
    stub_slurm.forget()
    runs = list(orch.runs())
    with sqlite3.connect(orch.root / "orch.db") as connection:
        connection.execute("UPDATE events SET at = ? WHERE what = 'submitting'", (NOW,))
    worked(Root(orch.root), runs[0], 1, at=NOW + 100, seconds=10)
    write_outcome(Root(orch.root).run_dir(runs[0]), Outcome(status=Status.DONE, attempt=1, step=10, finished_at=NOW + 110))
    return runs


def test_that_status_tells_what_became_of_the_time_by_sweep_in_total_and_by_run(orch: Command, two_sweeps: list[str]) -> None:
    lines = orch("status").out.splitlines()
    assert lines[lines.index(next(line for line in lines if line.startswith("one: "))) + 1] == f"  {LINE}"
    assert LINE in lines  # in total
    assert len([line for line in lines if "goodput" in line]) == 2  # nothing to tell of sweep two
    assert LINE in orch("status", "one").out
    assert "goodput" not in orch("status", "two").out
    told = orch.runs()
    assert told[two_sweeps[0]]["usage"] == {
        "goodput": 0.7, "queued_seconds": 100.0,
        "task_seconds": {"productive": 7.0, "checkpointing": 1.0, "restarting": 2.0, "replayed": 0.0},
    }  # fmt: skip
    assert told[two_sweeps[1]]["usage"] is None


def test_that_show_tells_what_became_of_a_runs_time(orch: Command, two_sweeps: list[str]) -> None:
    assert f"attempts: 1\n  {LINE}" in orch("show", two_sweeps[0]).out
    assert json.loads(orch("show", two_sweeps[0], "--json").out)["usage"]["goodput"] == 0.7
    assert "goodput" not in orch("show", two_sweeps[1]).out


def test_that_a_running_run_is_counted_up_to_its_last_line(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep("one", seeds=[0]))
    (run,) = orch.runs()
    queue = (stub_slurm.state / "queue").read_text()
    (stub_slurm.state / "queue").write_text(queue.replace("PENDING", "RUNNING"))
    assert "goodput" not in orch("status").out
    for seconds in (10, 20):
        worked(Root(orch.root), run, 1, at=NOW, seconds=seconds, end="start")
        assert f"{seconds}.0 task-seconds" in orch("status").out
        assert f"{seconds}.0 task-seconds" in orch("show", run).out


def test_that_of_many_running_runs_those_read_longest_ago_are_read(root: Root, store: Store) -> None:
    add(store, ["a", "b", "c"])
    store.apply([Change(run=run, state=RunState.RUNNING) for run in ("a", "b", "c")], now=NOW)
    assert usages.missing(store.connection) == 3
    seen = []
    for _ in range(4):
        (run,) = usages.running(store.connection, limit=1)
        seen.append(run)
        accounting.renew(root, store, [run])
    assert seen == ["a", "b", "c", "a"]
    assert usages.missing(store.connection) == 0


def test_that_status_says_how_many_runs_it_has_not_read(
    orch: Command, two_sweeps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "AT_ONCE", 0)
    assert "goodput: 1 still to be read" in orch("status").out


def test_that_a_root_that_is_only_read_shows_what_is_recorded(orch: Command, two_sweeps: list[str]) -> None:
    orch("status")
    (orch.root / "lock").unlink()
    (orch.root / "lock").mkdir()  # stands for a directory that we may only read
    assert LINE in orch("status").out


def test_that_status_of_many_finished_runs_opens_no_journal(root: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"r{i}" for i in range(50)]
    add(store, names)
    for run in names:
        finished(root, store, run)
    look(root, store)
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: (opened.append(str(path)), real(path, *rest, **more))[1])
    look(root, store)
    assert usages.total(store.connection).tasks.total_ms == 500_000
    assert not [path for path in opened if "journal" in path]
