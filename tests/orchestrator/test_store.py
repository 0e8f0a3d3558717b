"""The store: every step legal, every write whole, every old file readable."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.lifecycle import LEGAL, RunState
from orchestrator.records import CellRecord, RunRecord
from orchestrator.store import schema
from orchestrator.store.cursors import StoredCursors
from orchestrator.store.runs import Change, Store
from orchestrator.store.schema import MIGRATIONS, open_store

NOW = 1_700_000_000.0


def add(store: Store, sweep: str, runs: Iterable[str], *, partial: bool = False, title: str = "") -> list[str]:
    """One cell per run."""
    names = list(runs)
    return store.add(
        name=sweep, path=f"{sweep}.yaml", title=title, definition="text", comment="", partial=partial,
        cells=[CellRecord(coordinates={"seed": name}, runs={"count": name}) for name in names],
        runs=[RunRecord(id=name, kind="count", state=RunState.PLANNED, resources={"nodes": 1}, steps=7) for name in names],
    )  # fmt: skip


def state(store: Store, run: str) -> RunState:
    return store.runs([run])[run].state


def move(store: Store, run: str, *states: RunState) -> None:
    for one in states:
        store.apply([Change(run=run, state=one)], now=NOW)


# --- sweeps and runs -------------------------------------------------------------------------------------------------


def test_that_a_run_comes_back_as_it_went_in(store: Store) -> None:
    run = RunRecord(id="a", kind="train", state=RunState.PLANNED, needs={"prepare": "p"}, resources={"nodes": 2}, steps=9)
    store.add(name="s", path="p", title="t", definition="d", comment="c", cells=[], runs=[run], partial=False)
    found = store.runs()["a"]
    assert (found.kind, found.needs, found.resources, found.steps) == ("train", {"prepare": "p"}, {"nodes": 2}, 9)


def test_that_one_run_in_two_sweeps_is_one_run(store: Store) -> None:
    assert add(store, "one", ["a", "b"]) == ["a", "b"]
    move(store, "b", RunState.QUEUED, RunState.RUNNING)
    assert add(store, "two", ["b", "c"]) == ["c"]
    assert list(store.runs()) == ["a", "b", "c"]
    assert state(store, "b") is RunState.RUNNING
    assert store.sweeps_of("b") == ["one", "two"]
    assert list(store.of_sweep("two")) == ["b", "c"]


def test_that_submitting_a_changed_sweep_forgets_its_old_cells_but_a_partial_one_keeps_them(store: Store) -> None:
    add(store, "s", ["a", "b"])
    add(store, "s", ["c"], partial=True)
    assert [cell.runs["count"] for cell in store.cells("s")] == ["a", "b", "c"]
    add(store, "s", ["c"])
    assert [cell.runs["count"] for cell in store.cells("s")] == ["c"]
    assert store.sweeps_of("a") == []


def test_that_a_withdrawn_new_sweep_leaves_nothing(store: Store) -> None:
    new = add(store, "s", ["a", "b"])
    store.withdraw("s", new, before=None)
    for table in ("sweeps", "cells", "members", "runs", "events", "tasks"):
        assert store.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0, table


def test_that_a_withdrawn_resubmission_puts_the_sweep_back_as_it_was(store: Store) -> None:
    add(store, "s", ["a", "b"], title="first")
    before, members = store.known_sweep("s"), list(store.of_sweep("s"))
    new = add(store, "s", ["b", "c"], title="second")
    store.withdraw("s", new, before=before)
    assert store.known_sweep("s") == before
    assert list(store.of_sweep("s")) == members
    assert list(store.runs()) == ["a", "b"]


# --- changes ---------------------------------------------------------------------------------------------------------


def test_that_an_illegal_step_is_refused_and_nothing_of_its_batch_is_written(store: Store) -> None:
    add(store, "s", ["a", "b"])
    move(store, "b", RunState.QUEUED, RunState.DONE)
    with pytest.raises(ValueError, match="cannot go from done to running"):
        store.apply([Change(run="a", state=RunState.QUEUED), Change(run="b", state=RunState.RUNNING)], now=NOW)
    assert state(store, "a") is RunState.PLANNED


def test_that_every_end_can_be_planned_again_and_done_leads_nowhere_else() -> None:
    assert LEGAL[RunState.DONE] == {RunState.PLANNED}
    for ended in (RunState.FAILED, RunState.TIMED_OUT, RunState.LOST, RunState.CANCELLED, RunState.STOPPED):
        assert RunState.PLANNED in LEGAL[ended]


def test_that_every_change_of_state_is_an_event_and_a_repeated_look_is_none(store: Store) -> None:
    add(store, "s", ["a"])
    store.apply([Change(run="a", state=RunState.QUEUED, reason="Priority")], now=NOW)
    store.apply([Change(run="a", state=RunState.QUEUED, reason="Resources")], now=NOW)
    store.apply([Change(run="a", state=RunState.FAILED, reason="exception: no")], now=NOW)
    assert [(event.what, event.detail) for event in store.events_of("a")] == [
        ("planned", "s"), ("queued", "Priority"), ("failed", "exception: no"),
    ]  # fmt: skip


# --- submissions -----------------------------------------------------------------------------------------------------


def test_that_an_intent_is_answered_by_a_job(store: Store) -> None:
    add(store, "s", ["a", "b"])
    store.intend("t", ["b", "a"], after={"a": 3}, now=NOW)
    assert [one.token for one in store.unanswered(since=0)] == ["t"]
    assert state(store, "a") is RunState.SUBMITTING
    store.submitted("t", "7", now=NOW)
    assert {run: (one.job, one.after_attempt) for run, one in store.runs().items()} == {"b": ("7_0", 0), "a": ("7_1", 3)}
    assert store.unanswered(since=0) == []
    assert store.tasks("t") == ["b", "a"]


def test_that_packed_runs_share_the_job_of_their_task(store: Store) -> None:
    names = [f"run-{i}" for i in range(5)]
    add(store, "s", names)
    store.intend("t", names, after={}, now=NOW, runs_per_task=2)
    assert [one.tasks for one in store.unanswered(since=0)] == [3]
    store.submitted("t", "7", now=NOW)
    assert [one.job for one in store.runs().values()] == ["7_0", "7_0", "7_1", "7_1", "7_2"]
    assert {one.runs_per_task for one in (*store.runs().values(), *store.of_sweep("s").values())} == {2}
    store.apply([Change(run="run-4", state=RunState.FAILED), Change(run="run-4", state=RunState.PLANNED)], now=NOW)
    store.intend("u", ["run-4"], after={}, now=NOW)
    assert store.runs(["run-4"])["run-4"].runs_per_task == 1


def test_that_a_withdrawn_intent_plans_its_runs_again_and_can_still_be_adopted(store: Store) -> None:
    add(store, "s", ["a"])
    store.intend("t", ["a"], after={}, now=NOW)
    store.withdrawn("t", reason="its submission never reached Slurm", now=NOW)
    assert store.runs()["a"].reason == "its submission never reached Slurm"
    assert [one.state for one in store.unanswered(since=NOW - 1)] == ["withdrawn"]
    assert store.unanswered(since=NOW + 1) == []
    store.submitted("t", "7", now=NOW)
    assert (state(store, "a"), store.runs()["a"].job) == (RunState.QUEUED, "7_0")


def test_that_a_late_answer_does_not_touch_runs_that_were_submitted_again_or_ended(store: Store) -> None:
    add(store, "s", ["a", "b"])
    store.intend("old", ["a", "b"], after={}, now=NOW)
    store.withdrawn("old", reason="", now=NOW)
    store.intend("new", ["a"], after={}, now=NOW)
    move(store, "b", RunState.CANCELLED)
    store.submitted("old", "7", now=NOW)
    assert (state(store, "a"), store.runs()["a"].job) == (RunState.SUBMITTING, "")
    assert state(store, "b") is RunState.CANCELLED
    assert "queued" not in [event.what for run in ("a", "b") for event in store.events_of(run)]


def test_that_an_intent_for_a_run_that_is_not_planned_is_refused_whole(store: Store) -> None:
    add(store, "s", ["a", "b"])
    move(store, "b", RunState.QUEUED)
    move(store, "b", RunState.FAILED)
    with pytest.raises(ValueError, match="cannot go"):
        store.intend("t", ["a", "b"], after={}, now=NOW)
    assert state(store, "a") is RunState.PLANNED
    assert store.unanswered(since=0) == []


def test_that_cursors_survive_closing(store: Store, tmp_path: Path) -> None:
    cursors = StoredCursors(store.connection)
    assert cursors.get("a").step == -1
    cursors.set_run("a", "mlflow-id")
    cursors.advance("a", 40)
    other = open_store(tmp_path / "root" / "orch.db")
    assert (StoredCursors(other).get("a").tracker_run, StoredCursors(other).get("a").step) == ("mlflow-id", 40)
    other.close()


# --- the file --------------------------------------------------------------------------------------------------------


def of_schema(path: Path, version: int) -> None:
    """A store file as the orch of that schema wrote it, with a run in it."""
    connection = sqlite3.connect(path)
    for script in MIGRATIONS[:version]:
        connection.executescript(script)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("INSERT INTO runs (id, kind, state, updated_at) VALUES ('count-1', 'count', 'running', 1.0)")
    connection.execute("INSERT INTO sweeps VALUES ('s', 'p', 't', 'd', 'c', 1.0)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_that_a_file_of_every_schema_opens_with_its_runs(version: int, tmp_path: Path) -> None:
    of_schema(tmp_path / "orch.db", version)
    store = Store(tmp_path / "orch.db")
    assert store.runs()["count-1"].state is RunState.RUNNING
    assert store.runs()["count-1"].runs_per_task == 1
    assert store.connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    store.close()


def test_that_the_first_schema_is_never_edited(tmp_path: Path) -> None:
    """Files of schema 1 exist: a change is a new migration. This is the text that made them."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(MIGRATIONS[0])
    tables = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    golden = Path(__file__).parent / "golden" / "schema_1.sql"
    assert "\n".join(" ".join(sql.split()) for (sql,) in tables) + "\n" == golden.read_text()


def test_that_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_schema(tmp_path / "orch.db", 1)
    monkeypatch.setattr(schema, "MIGRATIONS", (MIGRATIONS[0], "CREATE TABLE later (x); CREATE TABLE runs (x)"))
    with pytest.raises(UserError, match="cannot open the store"):
        open_store(tmp_path / "orch.db")
    connection = sqlite3.connect(tmp_path / "orch.db")
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'later'").fetchone()[0] == 0
    assert connection.execute("PRAGMA user_version").fetchone()[0] == 1


def test_that_a_newer_file_and_a_foreign_file_are_refused_with_a_way_out(tmp_path: Path) -> None:
    of_schema(tmp_path / "newer.db", len(MIGRATIONS))
    connection = sqlite3.connect(tmp_path / "newer.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(UserError, match="newer orch"):
        open_store(tmp_path / "newer.db")
    (tmp_path / "text.db").write_text("this is no database, but it is long enough to be read as one" * 10)
    with pytest.raises(UserError, match="cannot open the store"):
        open_store(tmp_path / "text.db")


def _open_at_once(path: Path, barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        store = Store(path)
        add(store, f"s{multiprocessing.current_process().name}", ["a"])
        answers.put("")  # type: ignore[attr-defined]
    except Exception as error:
        answers.put(repr(error))  # type: ignore[attr-defined]


def test_that_processes_that_open_a_fresh_store_at_once_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_ in range(3):
        barrier, answers = context.Barrier(4), context.Queue()
        processes = [context.Process(target=_open_at_once, args=(tmp_path / f"{round_}.db", barrier, answers)) for _ in range(4)]
        for process in processes:
            process.start()
        assert [answers.get(timeout=60) for _ in processes] == [""] * 4
        for process in processes:
            process.join()
        store = Store(tmp_path / f"{round_}.db")
        assert list(store.runs()) == ["a"]
        assert len(store.sweeps()) == 4
        store.close()
