"""What may go: as decisions over every state, on real directories, killed in the middle, and as a command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.checkpoint import CheckpointStore
from jobs.contract import Attempt, Outcome, Status, claim, write_outcome
from orchestrator import removal
from orchestrator.gc import (
    QUIET_S,
    CheckpointSeen,
    Keep,
    Kind,
    LogSeen,
    Removal,
    RunSeen,
    SnapshotsSeen,
    Thing,
    removals_of,
    removals_of_snapshots,
    why_left_alone,
)
from orchestrator.lifecycle import ACTIVE, RESUMABLE, RunState
from orchestrator.records import CellRecord, RunRecord
from orchestrator.removal import Removed, look, look_at_all, look_at_snapshots, remove_of_run, remove_snapshots, with_checksums
from orchestrator.store.runs import Change, Store
from orchestrator.workspace import Root, freeze
from tests.orchestrator.stub import Command, StubSlurm

NOW = 1_700_000_000.0
NOBODY = frozenset[str]()
RUN = "train-1"
Sweep = Callable[..., Path]


# --- decisions -----------------------------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> RunSeen:
    """Any run, also ones that cannot be."""
    steps = [f"runs/{RUN}/checkpoints/step-{step:010d}" for step in range(draw(st.integers(0, 5)))]
    logs = draw(st.lists(st.tuples(st.sampled_from(["1_0", "2_0", "3_0", "x"]), st.floats(0, 9)), max_size=8))
    thing = st.builds(Thing, path=st.just("x"), bytes=st.integers(0, 9))
    return RunSeen(
        id=RUN,
        state=draw(st.sampled_from(RunState)),
        job=draw(st.sampled_from(["", "7_0"])),
        attempt=draw(st.integers(0, 2)),
        attempt_job=draw(st.sampled_from(["", "7_0", "8_0"])),
        process_lives=draw(st.sampled_from([None, False, True])),
        ended=draw(st.booleans()),
        whole=draw(st.booleans()),
        written_at=draw(st.sampled_from([NOW - 1, NOW - 2 * QUIET_S])),
        checkpoints=[CheckpointSeen(path=path, bytes=1, removable=draw(st.booleans())) for path in steps],
        newest_valid=draw(st.sampled_from([None, *steps])),
        leftovers=draw(st.lists(thing, max_size=2)),
        scratch=draw(st.none() | st.just(Thing(path=f"runs/{RUN}/work", bytes=1))),
        logs=[LogSeen(path=f"{job}.{i}.log", bytes=1, job=job, modified_at=at) for i, (job, at) in enumerate(logs)],
        trash=draw(st.lists(thing, max_size=2)),
    )


keeps = st.builds(Keep, logs=st.integers(1, 3), finished_checkpoints=st.booleans())
lives = st.sampled_from([None, NOBODY, frozenset({"7_0"}), frozenset({"8_0"})])


def finished(run: RunSeen) -> bool:
    return run.state is RunState.DONE and run.whole


@given(runs(), keeps, lives)
def test_that_the_newest_valid_checkpoint_of_an_unfinished_run_survives_everything(
    run: RunSeen, keep: Keep, live: frozenset[str] | None
) -> None:
    gone = {one.path for one in removals_of(run, keep, live, NOW)}
    if not finished(run) or not keep.finished_checkpoints:
        assert run.newest_valid not in gone
    if not finished(run):
        paths = [one.path for one in run.checkpoints]
        kept = paths if run.newest_valid is None else paths[paths.index(run.newest_valid) :]
        assert not gone & {*kept, f"runs/{RUN}/work"}


@given(runs(), keeps, lives)
def test_that_nothing_of_a_run_that_somebody_may_work_on_is_removed(
    run: RunSeen, keep: Keep, live: frozenset[str] | None
) -> None:
    unsaid = run.attempt > 0 and not run.ended
    works = run.state in ACTIVE or run.process_lives or bool((live or NOBODY) & {run.job, run.attempt_job})
    unknown = unsaid and live is None and bool(run.attempt_job)
    if works or unknown:
        assert why_left_alone(run, live, NOW)
        assert removals_of(run, keep, live, NOW) == []


@given(runs(), keeps)
def test_that_the_newest_jobs_logs_stay_with_all_their_ranks(run: RunSeen, keep: Keep) -> None:
    gone = {one.path for one in removals_of(run, keep, NOBODY, NOW) if one.kind is Kind.LOG}
    stay = [log for log in run.logs if log.path not in gone]
    assert {log.job for log in stay}.isdisjoint(log.job for log in run.logs if log.path in gone)
    assert len({log.job for log in stay}) >= min(keep.logs, len({log.job for log in run.logs}))
    newest = max(run.logs, key=lambda log: log.modified_at, default=None)
    assert newest is None or any(log.modified_at == newest.modified_at for log in stay)


def test_that_a_node_that_slurm_has_lost_has_an_hour_to_fall_silent() -> None:
    lost = RunSeen(id=RUN, state=RunState.LOST, attempt=1, attempt_job="7_0", written_at=NOW - QUIET_S + 1)
    assert "has not said that it ended" in why_left_alone(lost, NOBODY, NOW)
    assert why_left_alone(lost, NOBODY, NOW + 2) == ""
    assert "Slurm cannot be asked" in why_left_alone(lost, None, NOW + 2)
    here = replace(lost, attempt_job="", process_lives=False)
    assert why_left_alone(here, None, NOW) == ""


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")), st.booleans())
def test_that_code_that_a_run_links_to_stays_and_all_code_while_a_link_is_unknown(
    trees: set[str], linked: set[str], unknown: bool
) -> None:
    seen = SnapshotsSeen(
        trees=[Thing(path=f"snapshots/{tree}", bytes=1) for tree in sorted(trees)],
        linked=frozenset(linked),
        unknown=["train-2"] if unknown else [],
    )
    assert {one.path[-1] for one in removals_of_snapshots(seen)} == (set() if unknown else trees - linked)


# --- real directories ------------------------------------------------------------------------------------------------------


def put(store: Store, *runs: str, state: RunState = RunState.STOPPED, job: str = "") -> None:
    """Runs in the store."""
    store.add(
        name="s", path="s.yaml", title="", definition="", comment="", partial=True,
        cells=[CellRecord(coordinates={"run": run}, runs={"train": run}) for run in runs],
        runs=[RunRecord(id=run, kind="train", state=RunState.PLANNED, code_tree="used") for run in runs],
    )  # fmt: skip
    if state is not RunState.PLANNED:
        store.apply([Change(run=run, state=RunState.RUNNING, job=job) for run in runs], now=NOW)
        store.apply([Change(run=run, state=state) for run in runs], now=NOW)


def save(root: Root, step: int, *, run: str = RUN, content: bytes = b"weights") -> Path:
    """A valid checkpoint."""
    store = CheckpointStore(directory=root.run_dir(run).checkpoints, config_hash=run, keep=100)

    def write(folder: Path) -> None:
        (folder / "state").write_bytes(content)

    store.save(step, write, world_size=1, threads=1, may_commit=lambda: True)
    return root.run_dir(run).checkpoints / f"step-{step:010d}"


def end(root: Root, status: Status, *, run: str = RUN) -> None:
    """An attempt and its last word."""
    attempt = claim(root.run_dir(run), Attempt(number=0, claimant="c"))
    write_outcome(root.run_dir(run), Outcome(status=status, attempt=attempt.number))


def tidy(root: Root, store: Store, keep: Keep | None = None, *, live: frozenset[str] | None = NOBODY) -> Removed:
    """What the command does with everything."""
    removed = Removed()
    for run in look_at_all(root, store.runs().values(), live, NOW):
        remove_of_run(root, store, run, removals_of(run, keep or Keep(), live, NOW), removed)
    remove_snapshots(root, store, removed)
    return removed


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def stopped(root: Root, store: Store) -> Root:
    """A stopped run with three valid checkpoints, a half-written one, scratch and everything that must stay."""
    freeze(root, RUN, {"id": RUN, "code_tree": "used"}, tree="used")
    put(store, RUN)
    for step in (1, 2, 3):
        save(root, step)
    end(root, Status.STOPPED)
    run_dir = root.run_dir(RUN)
    (run_dir.checkpoints / ".saving-dead").mkdir()
    (run_dir.checkpoints / ".saving-dead" / "state").write_bytes(b"12345")
    for name in ("work/shard", "journal/0001.jsonl", "output/w", "artifacts/p.png", "cancel"):
        (run_dir.path / name).parent.mkdir(exist_ok=True)
        (run_dir.path / name).write_text("x")
    for tree in ("used", "unused", ".half.0123"):
        (root.snapshots / tree / "jobs").mkdir(parents=True)
        (root.snapshots / tree / "jobs" / "a.py").write_text("123")
    return root


def test_that_a_stopped_run_keeps_its_newest_valid_checkpoint_its_scratch_and_its_record(stopped: Root, store: Store) -> None:
    run_dir = stopped.run_dir(RUN)
    before = set(names(run_dir.path))
    removed = tidy(stopped, store)
    assert names(run_dir.checkpoints) == ["step-0000000003"]
    assert set(names(run_dir.path)) == before
    assert (run_dir.path / "work" / "shard").exists()
    assert names(stopped.snapshots) == ["used"]
    sizes = {one.path: one.bytes for one in removed.done}
    assert sizes[f"runs/{RUN}/checkpoints/.saving-dead"] == 5
    assert sizes["snapshots/unused"] == 3
    assert removed.failed == {}
    assert tidy(stopped, store).done == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "manifest"])
def test_that_the_older_valid_checkpoint_is_kept_when_the_newest_is_damaged(damage: str, stopped: Root, store: Store) -> None:
    newest = stopped.run_dir(RUN).checkpoints / "step-0000000003"
    match damage:
        case "flip":
            (newest / "state").write_bytes(b"weightz")
        case "truncate":
            (newest / "state").write_bytes(b"wei")
        case _:
            (newest / "manifest.json").unlink()
    tidy(stopped, store)
    assert names(stopped.run_dir(RUN).checkpoints) == ["step-0000000002", "step-0000000003"]


def test_that_without_any_valid_checkpoint_all_stay(stopped: Root, store: Store) -> None:
    for path in stopped.run_dir(RUN).checkpoints.glob("step-*/state"):
        path.write_bytes(b"")
    tidy(stopped, store)
    assert [name for name in names(stopped.run_dir(RUN).checkpoints) if name.startswith("step-")] == [
        "step-0000000001", "step-0000000002", "step-0000000003",
    ]  # fmt: skip


def test_that_a_finished_run_keeps_one_checkpoint_unless_told_and_its_scratch_goes(stopped: Root, store: Store) -> None:
    end(stopped, Status.DONE)
    store.apply([Change(run=RUN, state=RunState.PLANNED), Change(run=RUN, state=RunState.DONE)], now=NOW)
    run_dir = stopped.run_dir(RUN)
    tidy(stopped, store)
    assert names(run_dir.checkpoints) == ["step-0000000003"]
    assert not (run_dir.path / "work").exists()
    tidy(stopped, store, Keep(finished_checkpoints=True))
    assert names(run_dir.checkpoints) == []
    assert all((run_dir.path / name).exists() for name in ("output/w", "artifacts/p.png", "journal/0001.jsonl", "outcome.json"))


def test_that_a_finished_run_whose_output_is_damaged_keeps_what_it_would_go_on_from(stopped: Root, store: Store) -> None:
    write_outcome(stopped.run_dir(RUN), Outcome(status=Status.DONE, attempt=1, files={"output/w": 2}))
    store.apply([Change(run=RUN, state=RunState.PLANNED), Change(run=RUN, state=RunState.DONE)], now=NOW)
    tidy(stopped, store, Keep(finished_checkpoints=True))
    assert names(stopped.run_dir(RUN).checkpoints) == ["step-0000000003"]
    assert (stopped.run_dir(RUN).path / "work").exists()


def test_that_old_logs_go_by_job(stopped: Root, store: Store) -> None:
    logs = stopped.run_dir(RUN).logs
    for at, name in enumerate(["9_0.0.log", "9_0.1.log", "local.0002.log", "10_0.0.log", "10_0.1.log", "notes.txt"]):
        (logs / name).write_text("x")
        os.utime(logs / name, (NOW + at, NOW + at))
    tidy(stopped, store, Keep(logs=2))
    assert names(logs) == ["10_0.0.log", "10_0.1.log", "local.0002.log", "notes.txt"]


def test_that_a_live_process_and_an_unknown_job_are_left_alone(stopped: Root, store: Store) -> None:
    record = store.runs()[RUN]
    before = names(stopped.run_dir(RUN).checkpoints)
    claim(stopped.run_dir(RUN), Attempt(number=0, claimant="d", job_id="7_0"))
    for live in (None, frozenset({"7_0"})):
        assert why_left_alone(look(stopped, record), live, NOW)
        tidy(stopped, store, live=live)
    assert names(stopped.run_dir(RUN).checkpoints) == before


def test_that_an_attempt_of_this_machine_is_asked_by_its_process(
    stopped: Root, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platform
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "input()", str(stopped.run_dir(RUN).path)], stdin=subprocess.PIPE)
    try:
        claim(stopped.run_dir(RUN), Attempt(number=0, claimant="d", node=platform.node(), pid=child.pid))
        assert look(stopped, store.runs()[RUN]).process_lives is True
    finally:
        child.communicate(b"\n")
    assert look(stopped, store.runs()[RUN]).process_lives is False


# --- beside others ---------------------------------------------------------------------------------------------------------


def test_that_a_run_that_is_taken_up_after_the_look_is_not_touched(stopped: Root, store: Store) -> None:
    before = names(stopped.run_dir(RUN).checkpoints)
    (seen,) = look_at_all(stopped, store.runs().values(), NOBODY, NOW)
    decided = removals_of(seen, Keep(), NOBODY, NOW)
    assert decided
    for change in ("attempt", "state"):
        if change == "attempt":
            claim(stopped.run_dir(RUN), Attempt(number=0, claimant="d"))
        else:
            seen = with_checksums(stopped, look(stopped, store.runs()[RUN]))
            store.apply([Change(run=RUN, state=RunState.PLANNED), Change(run=RUN, state=RunState.QUEUED, job="9_0")], now=NOW)
        removed = Removed()
        remove_of_run(stopped, store, seen, decided, removed)
        assert (removed.done, removed.moved_on) == ([], [RUN])
    assert names(stopped.run_dir(RUN).checkpoints) == before


def test_that_nothing_older_goes_when_the_kept_checkpoint_has_vanished_since(stopped: Root, store: Store) -> None:
    (seen,) = look_at_all(stopped, store.runs().values(), NOBODY, NOW)
    checkpoints = stopped.run_dir(RUN).checkpoints
    (checkpoints / "step-0000000003" / "manifest.json").unlink()
    removed = Removed()
    remove_of_run(stopped, store, seen, removals_of(seen, Keep(), NOBODY, NOW), removed)
    assert removed.moved_on == [RUN]
    assert {"step-0000000001", "step-0000000002"} <= set(names(checkpoints))


def test_that_code_frozen_after_the_look_stays(stopped: Root, store: Store) -> None:
    assert "snapshots/unused" in [one.path for one in removals_of_snapshots(look_at_snapshots(stopped, store.runs()))]
    freeze(stopped, "train-2", {"code_tree": "unused"}, tree="unused")  # in no store yet: its submission is under way
    remove_snapshots(stopped, store, Removed())
    assert names(stopped.snapshots) == ["unused", "used"]


def test_that_a_spec_alone_holds_its_code_and_an_unreadable_one_all_code(stopped: Root, store: Store) -> None:
    freeze(stopped, "train-2", {"code_tree": "unused"}, tree="unused")
    stopped.run_dir("train-2").code.unlink()
    assert look_at_snapshots(stopped, store.runs()).linked == {"used", "unused"}
    stopped.run_dir("train-2").spec.write_text("{")
    seen = look_at_snapshots(stopped, store.runs())
    assert seen.unknown == ["train-2"]
    remove_snapshots(stopped, store, Removed())
    assert names(stopped.snapshots) == ["unused", "used"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing behind it runs."""


@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("function", ["rename", "unlink", "rmtree"])
def test_that_a_gc_killed_at_any_line_leaves_a_good_checkpoint_and_the_next_one_finishes(
    function: str, at: int, stopped: Root, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = removal.shutil if function == "rmtree" else removal.os
    real, calls = getattr(where, function), 0

    def dies(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(where, function, dies)
        with suppress(Killed):
            tidy(stopped, store)
    kept = CheckpointStore(directory=stopped.run_dir(RUN).checkpoints, config_hash=RUN).newest()[0]
    assert kept is not None
    assert kept.step == 3
    for path in stopped.run_dir(RUN).checkpoints.glob("step-*"):
        assert (path / "manifest.json").exists()
        assert (path / "state").read_bytes() == b"weights"
    tidy(stopped, store)
    assert names(stopped.run_dir(RUN).checkpoints) == ["step-0000000003"]
    assert names(stopped.snapshots) == ["used"]


def test_that_a_second_gc_that_was_faster_is_no_failure(stopped: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = removal.shutil.rmtree

    def twice(name: str, **named: int) -> None:
        real(name, **named)
        real(name, **named)  # the other one is behind us: FileNotFoundError

    monkeypatch.setattr(removal.shutil, "rmtree", twice)
    removed = tidy(stopped, store)
    assert removed.failed == {}
    assert names(stopped.run_dir(RUN).checkpoints) == ["step-0000000003"]


# --- links -----------------------------------------------------------------------------------------------------------------


def test_that_links_out_of_the_root_are_never_followed(stopped: Root, store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    run_dir = stopped.run_dir(RUN)
    put(store, "train-2", "train-3")
    for step in (1, 2):
        save(stopped, step, run="train-2")
        save(stopped, step, run="train-3")
    os.rename(stopped.run_dir("train-2").path, outside)
    stopped.run_dir("train-2").path.symlink_to(outside)
    end(stopped, Status.STOPPED, run="train-3")
    moved = tmp_path / "moved"
    os.rename(stopped.run_dir("train-3").checkpoints, moved)
    stopped.run_dir("train-3").checkpoints.symlink_to(moved)
    first = tmp_path / "first"
    os.rename(run_dir.checkpoints / "step-0000000001", first)
    (run_dir.checkpoints / "step-0000000001").symlink_to(first)
    (run_dir.checkpoints / ".saving-link").symlink_to(first)
    (run_dir.checkpoints / ".saving-dead" / "inside").symlink_to(first)
    (stopped.snapshots / "linked").symlink_to(tmp_path)
    removed = tidy(stopped, store)
    assert removed.failed == {}  # links are passed over, not stumbled upon
    assert (first / "state").exists()
    assert names(moved) == names(outside / "checkpoints") == ["step-0000000001", "step-0000000002"]
    assert (stopped.snapshots / "linked").is_symlink()
    assert {Path(one.path).name for one in removed.done} == {".saving-dead", "step-0000000002", "unused", ".half.0123"}


@pytest.mark.parametrize(
    "path", [f"runs/{RUN}/checkpoints/step-0000000001", "runs/link/checkpoints/x", "../x", "runs", "runs//x"]
)
def test_that_a_link_that_appears_on_the_way_is_refused(path: str, stopped: Root, tmp_path: Path) -> None:
    checkpoints, moved = stopped.run_dir(RUN).checkpoints, tmp_path / "moved"
    os.rename(checkpoints, moved)
    checkpoints.symlink_to(moved)
    (tmp_path / "x").mkdir()
    asked, removed = Removal(kind=Kind.CHECKPOINT, path=path, bytes=0, reason=""), Removed()
    if path.startswith(f"runs/{RUN}"):
        assert removed.take(stopped, asked) is None
        assert list(removed.failed) == [path]
    elif path.startswith("runs/link"):
        assert removed.take(stopped, asked) is None
    else:
        with pytest.raises(ValueError, match="not a path below the root"):
            removed.take(stopped, asked)
    assert "step-0000000001" in names(moved)
    assert (tmp_path / "x").exists()


# --- the command -----------------------------------------------------------------------------------------------------------


def test_that_gc_without_a_submission_makes_no_root(orch: Command) -> None:
    assert "nothing was submitted here yet" in orch("gc", "--apply", expect=2).err
    assert not orch.root.exists()


@pytest.fixture
def ended(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> str:
    """One run of a submitted sweep that has stopped with two checkpoints; the other is queued."""
    orch("submit", count_sweep(seeds=[0, 1]))
    root, run = Root(orch.root), next(iter(orch.runs()))
    for step in (1, 2):
        save(root, step, run=run)
    end(root, Status.STOPPED, run=run)
    queue = stub_slurm.state / "queue"
    queue.write_text("".join(line for line in queue.read_text().splitlines(keepends=True) if not line.startswith("101_0")))
    return run


def test_that_gc_says_what_would_go_and_touches_nothing_until_it_is_told(orch: Command, ended: str) -> None:
    checkpoints = Root(orch.root).run_dir(ended).checkpoints
    said = orch("gc").out
    assert f"runs/{ended}/checkpoints/step-0000000001" in said
    assert "would remove 1 thing" in said
    assert "left alone: " in said
    assert "queued" in said
    assert names(checkpoints) == ["step-0000000001", "step-0000000002"]
    assert "removed 1 thing" in orch("gc", "--apply").out
    assert names(checkpoints) == ["step-0000000002"]
    assert "would remove 0 things, 0 bytes\n" in orch("gc").out


def test_that_gc_prints_json_and_takes_sweeps_and_runs(orch: Command, ended: str) -> None:
    (Root(orch.root).snapshots / "unused").mkdir()
    said = json.loads(orch("gc", "--json").out)
    assert [one["path"] for one in said["things"]] == [f"runs/{ended}/checkpoints/step-0000000001", "snapshots/unused"]
    assert said["bytes"] == sum(one["bytes"] for one in said["things"]) > 0
    assert list(said["left_alone"].values()) == ["queued"]
    assert [one["kind"] for one in json.loads(orch("gc", "counting", "--json").out)["things"]] == ["checkpoints"]
    applied = json.loads(orch("gc", ended, "--apply", "--json").out)
    assert (applied["removed"], len(applied["things"]), applied["failed"]) == (True, 1, {})
    assert (Root(orch.root).snapshots / "unused").exists()


def test_that_gc_of_a_name_that_nobody_knows_is_exit_2_and_removes_nothing(orch: Command, ended: str) -> None:
    assert "did you mean counting?" in orch("gc", "countin", "--apply", expect=2).err
    assert len(names(Root(orch.root).run_dir(ended).checkpoints)) == 2


def test_that_gc_skips_what_may_be_at_work_while_slurm_does_not_answer(orch: Command, stub_slurm: StubSlurm, ended: str) -> None:
    claim(Root(orch.root).run_dir(ended), Attempt(number=0, claimant="d", job_id="101_0"))
    stub_slurm.down()
    said = orch("gc", "--apply").out
    assert "Slurm did not answer" in said
    assert "removed 0 things" in said
    assert len(names(Root(orch.root).run_dir(ended).checkpoints)) == 2


def test_that_gc_looks_at_a_root_of_somebody_else_and_cannot_change_it(orch: Command, ended: str) -> None:
    orch("status")
    (orch.root / "lock").unlink()
    (orch.root / "lock").mkdir()  # stands for a directory that we may only read
    said = orch("gc").out
    assert "read-only" in said
    assert "would remove 1 thing" in said
    assert "cannot be written" in orch("gc", "--apply", expect=2).err
    assert len(names(Root(orch.root).run_dir(ended).checkpoints)) == 2


def test_that_gc_names_what_it_could_not_remove_and_goes_on(orch: Command, ended: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (Root(orch.root).snapshots / "unused").mkdir()
    real = removal.os.rename

    def refuses(name: str, *rest: object, **named: object) -> None:
        if str(name).startswith("step-"):
            raise PermissionError(13, "Permission denied")
        real(name, *rest, **named)  # type: ignore[arg-type]  # os.rename's own

    with monkeypatch.context() as patch:
        patch.setattr(removal.os, "rename", refuses)
        said = orch("gc", "--apply", expect=2)
    assert "1 thing could not be removed, the first: Permission denied" in said.err
    assert "removed 1 thing" in said.out
    assert "removed 1 thing" in orch("gc", "--apply").out


def test_that_every_state_but_the_active_ones_can_be_tidied() -> None:
    for state in RESUMABLE | {RunState.DONE, RunState.PLANNED}:
        assert why_left_alone(RunSeen(id=RUN, state=state, attempt=1, ended=True), None, NOW) == ""
