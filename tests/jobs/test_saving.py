"""Saving behind training: the same bytes as blocking, a death costs nothing, whoever leaves waits, a failure is heard."""

from __future__ import annotations

import copy
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import attempt, outcome_of, said, train_config, train_run, until

from jobs import checkpoint, loop, saving
from jobs.attempt import Run
from jobs.background import Background
from jobs.checkpoint import CheckpointStore
from jobs.compare import differences
from jobs.contract import Attempt, Cause, ExitCode, RunDir, Status, claim, read_attempts
from jobs.journal import AT_WORK, CHECKPOINT, END, SAVING, JournalWriter, read_attempt
from jobs.preemption import NOTICES, Flag
from jobs.ranks import Ranks
from jobs.saving import Saver, lifetimes_s
from jobs.snapshot import Snapshot
from jobs.spec import FrozenRun, RuntimeSpec, TrainSpec
from jobs.state import TrainState, build_state, save_content

BLOCKING = {"background_checkpoints": False}
training: loop.Training | None = None
"""That of this fork, once a hook has caught it."""


def catching(then: Callable[[loop.Training], None] = lambda _: None) -> None:
    """In a fork: remember the loop, and call `then` after each of its steps."""
    one_step = loop.Training._one_step

    def watched(self: loop.Training, batch: Any, forward: Any) -> None:
        global training
        training = self
        one_step(self, batch, forward)
        then(self)

    loop.Training._one_step = watched  # type: ignore[method-assign]


def instead_of_writing(act: Callable[[int, Callable[[], None]], None]) -> None:
    """In a fork: `act(step, write)` on the background's thread; it may call `write` or not."""

    def write(content: dict[str, Any], folder: Path) -> None:
        act(content["step"], lambda: save_content(content, folder))

    saving.save_content = write


def steps_later(count: int) -> Callable[[], None]:
    """A hook: a state is written only when training has gone on for `count` steps."""

    def act(step: int, write: Callable[[], None]) -> None:
        until(lambda: training is not None and training.state.step >= min(step + count, 10))
        write()

    def hook() -> None:
        catching()
        instead_of_writing(act)

    return hook


def run_once(root: Path, data: Path, hook: Callable[[], None] | None = None, **runtime: Any) -> RunDir:
    run_dir = train_run(root, data, train_config(runtime=runtime))
    assert attempt(run_dir, hook=hook) == [0], said(run_dir)
    return run_dir


def steps_on_disk(run_dir: RunDir) -> list[int]:
    return sorted(int(path.name[5:]) for path in run_dir.checkpoints.glob("step-*"))


def test_that_a_late_write_holds_the_bytes_of_a_blocking_one(data: Path, tmp_path: Path) -> None:
    """The state was changed in place twice between the copy and the write."""
    blocking = run_once(tmp_path / "blocking", data, **BLOCKING, keep_checkpoints=9)
    late = run_once(tmp_path / "late", data, steps_later(2), keep_checkpoints=9)
    assert steps_on_disk(blocking) == steps_on_disk(late) == [3, 6, 9, 10]
    for step in (3, 6, 9, 10):
        name = f"step-{step:010d}"
        for file in ("state.pt", "manifest.json"):
            assert (blocking.checkpoints / name / file).read_bytes() == (late.checkpoints / name / file).read_bytes(), (
                step,
                file,
            )
    assert differences(blocking, late) == []


def test_that_a_line_is_in_the_journal_before_the_checkpoint_that_covers_it(data: Path, tmp_path: Path) -> None:
    run_dir = run_once(tmp_path, data, steps_later(2))
    journal = read_attempt(run_dir.journals / "0001.jsonl")
    assert journal is not None
    saved = [(place, entry.step) for place, entry in enumerate(journal.entries) if entry.event == CHECKPOINT]
    assert [step for _, step in saved] == [3, 6, 9, 10]
    for place, step in saved:
        assert all(entry.step > step for entry in journal.entries[place + 1 :] if entry.metrics)
    assert max(entry.step for entry in journal.entries[: saved[0][0]]) >= 5  # training was not waiting


def test_that_a_checkpoint_says_how_long_training_waited_for_it_and_not_how_long_it_took(data: Path, tmp_path: Path) -> None:
    copy_s, slow_s = 0.2, 0.8

    def slowly() -> None:
        take = Snapshot.take

        def taking(snapshot: Snapshot, content: dict[str, Any]) -> dict[str, Any]:
            time.sleep(copy_s)
            return take(snapshot, content)

        Snapshot.take = taking  # type: ignore[method-assign]  # in a fork

        def write(content: dict[str, Any], folder: Path) -> None:
            time.sleep(slow_s)
            save_content(content, folder)

        saving.save_content = write

    def slow_save() -> None:
        save = TrainState.save

        def write(state: TrainState, folder: Path) -> None:
            time.sleep(slow_s)
            save(state, folder)

        TrainState.save = write  # type: ignore[method-assign]  # in a fork

    behind = run_once(tmp_path / "behind", data, slowly, checkpoint_every_steps=9)
    blocking = run_once(tmp_path / "blocking", data, slow_save, **BLOCKING, checkpoint_every_steps=5)
    for run_dir in (behind, blocking):
        journal = read_attempt(run_dir.journals / "0001.jsonl")
        assert journal is not None
        saves = [entry for entry in journal.entries if entry.event == CHECKPOINT]
        waited = [float(entry.detail["waited"]) for entry in (*saves, journal.entries[-1])]
        assert waited == sorted(waited)
        assert (len(saves), journal.entries[-1].event) == (2, END)
        if run_dir is behind:  # the first: its copy alone; the last one, of step 10, waits for it and is blocking
            assert copy_s <= waited[0] < slow_s <= float(saves[0].detail["seconds"])
            assert saves[0].detail["until"] <= saves[0].time_ms - 1000 * slow_s
            assert "until" not in saves[1].detail
            assert waited[1] > waited[0]
        else:
            assert waited[0] >= slow_s
            assert waited[1] >= 2 * slow_s


def test_that_nothing_is_written_behind_when_told_not_to(data: Path, tmp_path: Path) -> None:
    def hook() -> None:
        def start(self: Background, work: Callable[[], None]) -> None:
            raise AssertionError("a thread")

        Background.start = start  # type: ignore[method-assign]  # in a fork

    assert steps_on_disk(run_once(tmp_path, data, hook, **BLOCKING)) == [9, 10]


def dying_at(number: int) -> Callable[[], None]:
    """A hook: SIGKILL at the n-th fsync, checksum or rename of the background, once training has gone on meanwhile."""

    def hook() -> None:
        catching()
        calls = iter(range(10_000))

        def before(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                if threading.current_thread().name == "checkpoint" and next(calls) == number:
                    assert training is not None
                    begun = training.saver.saved_step
                    until(lambda: training is not None and training.state.step >= min(begun + 2, 9))
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **named)

            return call

        for name in ("fsync", "rename"):
            setattr(os, name, before(getattr(os, name)))
        checkpoint.sha256 = before(checkpoint.sha256)
        instead_of_writing(before(lambda _, write: write()))

    return hook


@pytest.mark.parametrize("seed", range(2))
def test_that_a_death_at_any_moment_of_a_write_costs_nothing(seed: int, data: Path, tmp_path: Path) -> None:
    plain = run_once(tmp_path / "plain", data, **BLOCKING)
    struck = train_run(tmp_path / "struck", data, train_config())
    store = CheckpointStore(directory=struck.checkpoints, config_hash=struck.id)
    moments = random.Random(seed)
    newest = 0
    for _ in range(3):
        if attempt(struck, hook=dying_at(moments.randrange(16))) == [0]:
            break
        found, skipped = store.newest()
        assert skipped == []
        step = 0 if found is None else found.step
        assert step >= newest
        newest = step
    assert attempt(struck) == [0], said(struck)
    assert len(read_attempts(struck)) >= 2
    assert differences(plain, struck) == []


def test_that_a_full_disk_ends_the_run_with_its_reason_and_the_old_checkpoint(data: Path, tmp_path: Path) -> None:
    def act(step: int, write: Callable[[], None]) -> None:
        if step == 6:
            raise OSError(28, "No space left on device")
        write()

    run_dir = train_run(tmp_path / "full", data, train_config())
    assert attempt(run_dir, hook=lambda: instead_of_writing(act)) == [ExitCode.FAILED]
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.cause) == (Status.FAILED, Cause.EXCEPTION)
    assert outcome.reason == "OSError: [Errno 28] No space left on device"
    assert outcome.step <= 9  # the next save at the latest
    assert steps_on_disk(run_dir) == [3]
    assert not list(run_dir.checkpoints.glob(".saving-*"))
    assert attempt(run_dir) == [0]
    assert differences(run_once(tmp_path / "plain", data), run_dir) == []


def test_that_a_superseded_attempt_does_not_commit_what_it_was_writing(data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config())

    def act(step: int, write: Callable[[], None]) -> None:
        write()
        if step == 6:
            claim(run_dir, Attempt(number=0, claimant="newer"))

    assert attempt(run_dir, hook=lambda: instead_of_writing(act)) == [0], said(run_dir)
    assert "a newer attempt owns this run" in said(run_dir)
    assert steps_on_disk(run_dir) == [3]
    assert not run_dir.outcome.exists()
    journal = read_attempt(run_dir.journals / "0001.jsonl")
    assert journal is not None
    assert [entry.step for entry in journal.entries if entry.event == CHECKPOINT] == [3]


@pytest.mark.parametrize("end", ["fails", "leaves"])
def test_that_whoever_ends_waits_for_the_write_on_its_way(end: str, data: Path, tmp_path: Path) -> None:
    ending = threading.Event()

    def end_at_5(caught: loop.Training) -> None:
        if caught.state.step == 5:
            ending.set()
            if end == "fails":
                raise ZeroDivisionError("odd")
            os.kill(os.getpid(), signal.SIGTERM)
            assert caught.run.flag.wait(10)

    def act(step: int, write: Callable[[], None]) -> None:
        assert ending.wait(30)
        write()

    def hook() -> None:
        catching(end_at_5)
        instead_of_writing(act)

    run_dir = train_run(tmp_path, data, train_config())
    code = attempt(run_dir, hook=hook)
    assert code == [ExitCode.FAILED if end == "fails" else ExitCode.STOPPED], said(run_dir)
    assert steps_on_disk(run_dir) == ([3] if end == "fails" else [3, 5])
    if end == "fails":
        assert outcome_of(run_dir).reason == "ZeroDivisionError: odd"
    journal = read_attempt(run_dir.journals / "0001.jsonl")
    assert journal is not None
    events = [entry.event for entry in journal.entries if entry.event]
    assert events[:4] == ["start", AT_WORK, SAVING, CHECKPOINT]  # then how it ended


# The pieces


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    config = train_config()
    frozen = FrozenRun.model_validate({"id": "one", "config": config})
    place = Ranks(rank=0, world_size=1, local_rank=0, launch="here", address="127.0.0.1")
    run_dir = RunDir(tmp_path / "one")
    run_dir.path.mkdir()
    number = claim(run_dir, Attempt(number=0, claimant="me"))
    run = Run(run_dir=run_dir, frozen=frozen, attempt=number, ranks=place, flag=Flag(), slurm=None)
    run.restore_point()
    spec = TrainSpec.model_validate(config)
    made = Saver(run=run, state=build_state(spec, torch.device("cpu")), runtime=spec.runtime)
    made.restored(0)
    yield made
    made.close()


def test_that_a_second_save_waits_for_the_first(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, order = threading.Event(), list[tuple[str, int]]()

    def write(content: dict[str, Any], folder: Path) -> None:
        order.append(("begun", content["step"]))
        assert gate.wait(30)
        save_content(content, folder)
        order.append(("ended", content["step"]))

    monkeypatch.setattr(saving, "save_content", write)
    saver.state.step = 3
    saver.save(whole=False)  # returns though nothing can be written
    saver.state.step = 6
    second = threading.Thread(target=lambda: saver.save(whole=False))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join()
    saver.save(whole=True)  # the same step: only waits
    assert order == [("begun", 3), ("ended", 3), ("begun", 6), ("ended", 6)]
    assert steps_on_disk(saver.run.run_dir) == [3, 6]


def test_that_a_failed_write_is_heard_at_the_next_boundary_and_by_the_next_save(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: dict[str, Any], folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_content", full)
    saver.state.step = 3
    saver.save(whole=False)
    until(lambda: not saver._background.busy)
    with pytest.raises(OSError, match="No space left"):
        saver.check()
    saver.check()  # said once
    saver.state.step = 6
    saver.save(whole=False)
    saver.state.step = 7
    with pytest.raises(OSError, match="No space left"):
        saver.save(whole=False)


def test_that_a_failure_while_another_is_on_its_way_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("full")

    background = Background("checkpoint")
    background.start(fail)
    background.close()
    assert "the checkpoint failed too: OSError: full" in caplog.text


def test_that_signals_are_blocked_in_the_thread() -> None:
    found = set[int]()
    background = Background("one")
    background.start(lambda: found.update(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    background.wait()
    assert set(NOTICES) <= found


def adam_state() -> tuple[dict[str, Any], list[torch.nn.Parameter]]:
    """A state whose tensors share memory, lie with strides and inside larger storages."""
    torch.manual_seed(0)
    tied = torch.nn.Linear(5, 5)
    model = torch.nn.Sequential(tied, torch.nn.BatchNorm1d(5), tied)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    large = torch.arange(40.0)
    views = {
        "part": large[3:9],
        "turned": large.view(8, 5).T,
        "none": torch.zeros(0),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "views": views, "step": 7}
    return content, list(model.parameters())


def test_that_a_copy_is_saved_with_the_same_bytes(tmp_path: Path) -> None:
    content, parameters = adam_state()
    snapshot = Snapshot()
    for turn in ("first", "again"):
        for name, saved in ((f"{turn}-1", content), (f"{turn}-2", snapshot.take(content))):
            (tmp_path / name).mkdir()
            save_content(saved, tmp_path / name)
        assert (tmp_path / f"{turn}-1" / "state.pt").read_bytes() == (tmp_path / f"{turn}-2" / "state.pt").read_bytes()
        with torch.no_grad():
            parameters[0].mul_(3)


def test_that_a_copy_does_not_follow_the_original_and_its_memory_is_used_again() -> None:
    content, parameters = adam_state()
    before = copy.deepcopy(content)
    snapshot = Snapshot()
    taken = snapshot.take(content)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1)
    content["optimizer"]["state"][0]["exp_avg"].zero_()
    for name, value in before["model"].items():
        assert torch.equal(taken["model"][name], value)
    assert torch.equal(taken["optimizer"]["state"][0]["exp_avg"], before["optimizer"]["state"][0]["exp_avg"])
    where = taken["model"]["0.weight"].data_ptr()
    assert snapshot.take(content)["model"]["0.weight"].data_ptr() == where


def test_that_earlier_attempts_tell_how_long_runs_live(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    now = time.time()
    for age_s in (500.0, 250.0, 100.0):
        number = claim(run_dir, Attempt(number=0, claimant=f"at {age_s}", started_at=now - age_s)).number
        journal = JournalWriter(run_dir.journals, attempt=number, restored_step=0)
        if number != 2:  # which died before its first line
            journal.metrics(1, {"loss": 1.0})
        journal.close()
    assert lifetimes_s(run_dir, before=3) == [pytest.approx(500, abs=60), 0.0]


def test_that_a_chosen_interval_stands_for_both_fixed_ones(saver: Saver) -> None:
    saver.state.step = 10_000
    assert saver.due()
    auto = {"floor_s": 0.001, "ceiling_s": 50.0, "prior_uptime_s": 1e9}
    saver.runtime = RuntimeSpec.model_validate({"checkpoint_auto": auto, "checkpoint_every_steps": 1})
    assert not saver.due()
    assert saver.interval_s == pytest.approx(0.001)  # what a save costs is not known: soon
    until(saver.overdue)
    saver.save(whole=True)
    assert not saver.overdue()
    assert saver.interval_s == pytest.approx(50.0)  # nobody interrupts it: the ceiling
