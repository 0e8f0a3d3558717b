"""Training: resuming equals not having stopped, bit for bit; a look at the images changes nothing; failures have a cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import OBJECTIVES, REPOSITORY, attempt, outcome_of, python_m_jobs, said, train_config, train_run, until

from jobs import attempt as attempts
from jobs import forks, loop, state
from jobs.checkpoint import CheckpointStore
from jobs.compare import differences, newest_state, series
from jobs.contract import Cause, ExitCode, RunDir, Status, read_attempts
from jobs.distributed import Group
from jobs.journal import read_journal
from jobs.spec import TrainSpec


def finished(root: Path, data: Path, config: dict[str, Any], *, world_size: int = 1) -> RunDir:
    """A run that nobody touched."""
    run_dir = train_run(root, data, config)
    assert attempt(run_dir, world_size=world_size) == [0] * world_size, said(run_dir)
    assert outcome_of(run_dir).status is Status.DONE
    return run_dir


def after_checkpoint(number: int, what: Callable[[], None]) -> Callable[[], None]:
    """A hook: `what` happens right after the attempt's n-th checkpoint."""

    def hook() -> None:
        save, calls = attempts.Run.checkpoint, iter(range(1000))

        def watched(run: attempts.Run, step: int, write: Any, **named: Any) -> Any:
            saved = save(run, step, write, **named)
            if next(calls) == number:
                what()
            return saved

        attempts.Run.checkpoint = watched  # type: ignore[method-assign,assignment]  # in a fork

    return hook


def at_step(step: int, what: Callable[[loop.Training], None], *, rank: int | None = None) -> Callable[[], None]:
    """A hook: `what` happens after `step` finished steps, on all ranks or on one."""

    def hook() -> None:
        one_step = loop.Training._one_step

        def watched(training: loop.Training, batch: Any, forward: Any) -> None:
            one_step(training, batch, forward)
            if training.state.step == step and rank in (None, training.group.rank):
                what(training)

        loop.Training._one_step = watched  # type: ignore[method-assign]  # in a fork

    return hook


def with_rows_up_to(most: int, hook: Callable[[], None]) -> Callable[[], None]:
    """A hook: as another, and the model refuses larger micro-batches."""

    def both() -> None:
        hook()
        one_step = loop.Training._one_step

        def watched(training: loop.Training, batch: Any, forward: Any) -> None:
            def counted(inputs: Any, noise: torch.Tensor) -> Any:
                assert len(noise) <= most
                return forward(inputs, noise)

            one_step(training, batch, counted)

        loop.Training._one_step = watched  # type: ignore[method-assign]  # in a fork

    return both


def kill_self(training: loop.Training | None = None) -> None:
    if training is not None:
        training.saver.close()  # the checkpoint on its way is whole, on a slow disk too: the tests count on its step
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_self(training: loop.Training) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert training.run.flag.wait(10)


def all_equal(one: RunDir, other: RunDir) -> None:
    """Weights, optimiser, series, and the output that others read."""
    assert differences(one, other) == []
    models = [torch.load(run_dir.output / "model.pt", weights_only=True) for run_dir in (one, other)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_that_resuming_equals_not_having_stopped(world_size: int, data: Path, tmp_path: Path) -> None:
    plain = finished(tmp_path / "plain", data, train_config(), world_size=world_size)
    struck = train_run(tmp_path / "struck", data, train_config())
    attempt(struck, world_size=world_size, hook=at_step(2, kill_self))  # before any checkpoint
    attempt(struck, world_size=world_size, hook=at_step(5, kill_self))  # between checkpoints: steps 4 and 5 are done again
    codes = attempt(struck, world_size=world_size, hook=at_step(5, terminate_self))
    assert codes == [ExitCode.STOPPED] + [ExitCode.DONE] * (world_size - 1), said(struck)[-3000:]
    assert attempt(struck, world_size=world_size) == [0] * world_size, said(struck)
    restored = [one.restored_step for one in read_journal(struck.journals).attempts]
    assert restored[:3] == [0, 0, 3]
    assert restored[3] >= 5
    all_equal(plain, struck)
    assert [step for step, name, _ in series(struck) if name == "train/loss"] == list(range(1, 11))


def test_that_a_dependence_on_the_attempt_is_seen(data: Path, tmp_path: Path) -> None:
    """As DDP's: something, here the order of a sum, is another at the first step of an attempt."""

    def like_ddp() -> None:
        sum_gradients, calls = Group.sum_gradients, iter(range(1000))

        def rebuilt(group: Group, parameters: Any, extra: torch.Tensor) -> torch.Tensor:
            if next(calls) == 0:
                for parameter in parameters:
                    parameter.grad.mul_(1 + 1e-6)
            return sum_gradients(group, parameters, extra)

        Group.sum_gradients = rebuilt  # type: ignore[method-assign]  # in a fork

    plain, struck = (train_run(tmp_path / name, data, train_config()) for name in ("plain", "struck"))
    attempt(plain, hook=like_ddp)
    attempt(struck, hook=lambda: (like_ddp(), after_checkpoint(0, kill_self)()))  # type: ignore[func-returns-value]
    attempt(struck, hook=like_ddp)
    found = differences(plain, struck)
    assert any(line.startswith("state state/model/") for line in found)


def test_that_another_world_size_sees_the_same_batches(data: Path, tmp_path: Path) -> None:
    one = finished(tmp_path / "one", data, train_config())
    three = train_run(tmp_path / "three", data, train_config())
    attempt(three, world_size=2, hook=at_step(5, kill_self))
    assert attempt(three, world_size=3) == [0, 0, 0], said(three)
    assert "the checkpoint was made with 2 ranks" in said(three)
    np.testing.assert_allclose(
        [value for _, name, value in series(one) if name == "train/loss"],
        [value for _, name, value in series(three) if name == "train/loss"],
        rtol=1e-4,
    )


def test_that_an_attempt_of_another_world_size_cuts_its_batches_no_larger_than_planned(data: Path, tmp_path: Path) -> None:
    """Covariance with a projection pools the batch: over ranks at first, then over micro-batches."""
    one = finished(tmp_path / "one", data, train_config())
    elastic = train_run(tmp_path / "elastic", data, train_config())
    frozen = json.loads(elastic.spec.read_text())
    elastic.spec.write_text(json.dumps(frozen | {"planned_tasks": 3}))
    assert attempt(elastic, world_size=3, hook=with_rows_up_to(2, at_step(4, terminate_self)))[0] == ExitCode.STOPPED
    assert attempt(elastic, world_size=1, hook=with_rows_up_to(2, at_step(8, terminate_self)))[0] == ExitCode.STOPPED
    assert attempt(elastic, world_size=2, hook=with_rows_up_to(2, lambda: None)) == [0, 0], said(elastic)
    starts = [entry.detail for entry in read_journal(elastic.journals).counting() if entry.event == "start"]
    assert [(start["world_size"], start["accumulation"]) for start in starts] == [(3, 1), (1, 3), (2, 2)]
    for name in ("train/loss", "train/mse"):
        losses = [[(step, value) for step, metric, value in series(run) if metric == name] for run in (one, elastic)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("changes", [{"runtime": {"workers": 2}}, {"runtime": {"checkpoint_every_steps": 1}}], ids=repr)
def test_that_how_a_run_is_executed_changes_nothing(changes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    plain = finished(tmp_path / "plain", data, train_config())
    all_equal(plain, finished(tmp_path / "other", data, train_config(**changes)))


def test_that_looks_do_not_change_training(data: Path, tmp_path: Path) -> None:
    often = finished(tmp_path / "often", data, train_config(validation={"every_steps": 1}))
    never = finished(tmp_path / "never", data, train_config(validation={"every_steps": 1000}))
    assert [line for line in differences(often, never) if line.startswith("state")] == []
    looks = [step for step, name, _ in series(often) if name == "valid/fg_ari"]
    assert looks == list(range(1, 10))
    assert [row for row in series(often) if row[1].startswith("train/")] == series(never)
    assert len(list(often.artifacts.glob("panel-*.png"))) == 9


def test_that_panels_fall_on_the_same_steps_after_a_resume(data: Path, tmp_path: Path) -> None:
    config = train_config(validation={"every_steps": 1, "panel_every": 4})
    plain = finished(tmp_path / "plain", data, config)
    struck = train_run(tmp_path / "struck", data, config)
    attempt(struck, hook=at_step(5, terminate_self))
    attempt(struck)
    panels = [sorted(path.name for path in run.artifacts.iterdir()) for run in (plain, struck)]
    assert panels[0] == panels[1] == ["panel-0000000004.png", "panel-0000000008.png"]


def test_that_zero_steps_give_the_untrained_model(data: Path, tmp_path: Path) -> None:
    config = train_config(steps=0)
    run_dir = finished(tmp_path, data, config)
    spec = TrainSpec.model_validate(config)
    expected = state.build_state(spec, torch.device("cpu")).model.state_dict()
    found = torch.load(run_dir.output / "model.pt", weights_only=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert outcome_of(run_dir).files == {"output/model.pt": (run_dir.output / "model.pt").stat().st_size}


def test_that_a_signal_to_the_whole_group_does_not_take_the_loader_first(data: Path, tmp_path: Path) -> None:
    """Slurm may signal every process of a step: the workers of the loader must live until the checkpoint is made."""
    run_dir = train_run(tmp_path, data, train_config(steps=100_000, runtime={"workers": 2, "checkpoint_every_steps": 100_000}))
    pid = forks.start(run_dir)
    until(lambda: "train/loss" in "".join(path.read_text() for path in run_dir.journals.glob("*")), timeout_s=60)
    os.killpg(pid, signal.SIGTERM)
    assert forks.wait(pid).code == ExitCode.STOPPED, said(run_dir)
    assert outcome_of(run_dir).status is Status.STOPPED
    assert outcome_of(run_dir).step == newest_state(run_dir)["state/step"] > 0


def nan_batches(_: object = None) -> None:
    """A hook: the loss is not finite from step 5 on."""
    load = loop.step_batches

    def poisoned(*arguments: Any, **named: Any) -> Any:
        for step, batch in enumerate(load(*arguments, **named), start=named["start"] + 1):
            yield batch._replace(inputs=batch.inputs * float("nan")) if step >= 5 else batch

    loop.step_batches = poisoned  # type: ignore[assignment]  # in a fork


def test_that_a_diverged_run_says_so_and_keeps_its_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    """Also when the loss was last looked at before it broke."""
    run_dir = train_run(tmp_path, data, train_config(runtime={"log_every": 8, "checkpoint_every_steps": 2}))
    assert attempt(run_dir, hook=nan_batches) == [ExitCode.FAILED]
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.cause) == (Status.FAILED, Cause.DIVERGED)
    found, _ = CheckpointStore(directory=run_dir.checkpoints, config_hash=run_dir.id).newest()
    assert found is not None
    assert found.step == 4
    assert attempt(run_dir) == [0]  # without the poison it goes on from there


def raising(error: BaseException) -> Callable[[loop.Training], None]:
    def act(_: loop.Training) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError("no more"), Cause.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Cause.OUT_OF_MEMORY),
        (ZeroDivisionError("odd"), Cause.EXCEPTION),
        (OSError(28, "No space left on device"), Cause.EXCEPTION),
    ],
)
def test_that_a_failure_has_its_cause(error: Exception, cause: Cause, data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config(steps=3))
    assert attempt(run_dir, hook=at_step(2, raising(error))) == [ExitCode.FAILED]
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.cause) == (Status.FAILED, cause)
    assert str(error) in outcome.reason


def test_that_a_corrupt_store_is_a_failure_of_the_data(data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config())
    (run_dir.path.parent / "data").unlink()
    subprocess.run(["cp", "-r", str(data / "data"), str(tmp_path / "data")], check=True)
    manifest = tmp_path / "data" / "output" / "store" / "manifest.json"
    manifest.write_text("x" * manifest.stat().st_size)
    assert attempt(run_dir) == [ExitCode.FAILED]
    assert outcome_of(run_dir).cause is Cause.DATA


@pytest.mark.parametrize("victim", [0, 1])
def test_that_a_rank_that_is_killed_ends_the_attempt(victim: int, data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config())
    begun = time.monotonic()
    codes = attempt(run_dir, world_size=2, hook=at_step(4, kill_self, rank=victim))
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == ExitCode.FAILED
    assert time.monotonic() - begun < 30
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.cause) == (Status.FAILED, Cause.RANK_DIED)
    assert outcome.reason.startswith("another rank of the attempt ended")


def test_that_the_rank_that_failed_has_the_word(data: Path, tmp_path: Path) -> None:
    """The other one loses its peer at the same time, and must not say that first."""
    run_dir = train_run(tmp_path, data, train_config())
    codes = attempt(run_dir, world_size=2, hook=at_step(4, raising(ZeroDivisionError("the culprit")), rank=1))
    assert codes == [1, 1]
    assert outcome_of(run_dir).reason == "ZeroDivisionError: the culprit"


@pytest.mark.parametrize("world_size", [1, 2])
def test_that_a_rank_that_hangs_ends_the_attempt(world_size: int, data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config(runtime={"hang_timeout_s": 4.0}))
    hook = at_step(4, lambda _: time.sleep(600), rank=world_size - 1)
    assert attempt(run_dir, world_size=world_size, hook=hook) == [ExitCode.FAILED] * world_size
    outcome = outcome_of(run_dir)
    assert (outcome.status, outcome.cause) == (Status.FAILED, Cause.HANG), outcome.reason
    assert "time.sleep" in said(run_dir) or "at_step" in said(run_dir) or "test_train" in said(run_dir)  # where it hung


def test_that_a_superseded_group_ends_quietly(data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config())

    def newer(training: loop.Training) -> None:
        number = read_attempts(run_dir)[-1].number + 1
        (run_dir.attempts / f"{number:04d}.json").write_text("{}")

    assert attempt(run_dir, world_size=2, hook=at_step(4, newer, rank=0)) == [0, 0], said(run_dir)
    assert not run_dir.outcome.exists()
    assert sorted(path.name for path in run_dir.checkpoints.glob("step-*")) == ["step-0000000003"]


@pytest.mark.parametrize("changes", [{"precision": "tf32"}, {"precision": "bf16"}, {"runtime": {"accumulation": 2}}], ids=repr)
def test_that_other_precisions_resume_exactly_too(changes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    config = train_config(steps=5, **changes)
    plain = finished(tmp_path / "plain", data, config)
    struck = train_run(tmp_path / "struck", data, config)
    attempt(struck, hook=after_checkpoint(0, kill_self))
    attempt(struck)
    all_equal(plain, struck)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_that_every_objective_trains_and_logs_its_parts(objective: str, data: Path, tmp_path: Path) -> None:
    run_dir = finished(tmp_path, data, train_config(steps=4, objective=OBJECTIVES[objective], optimizer={"grad_clip": 1.0}))
    parts = {f"train/{part}" for part in state.PARTS[OBJECTIVES[objective]["kind"]]}
    logged = {name for step, name, _ in series(run_dir) if step == 4}
    assert logged == {"train/loss", "train/mse", "train/learning_rate", "train/grad_norm"} | parts


def test_that_a_checkpoint_loads_with_weights_only(data: Path, tmp_path: Path) -> None:
    run_dir = finished(tmp_path, data, train_config())
    leaves = newest_state(run_dir)  # loads with weights_only=True
    assert leaves["state/step"] == 10
    assert any(name.startswith("state/optimizer/") for name in leaves)
    assert any(name.startswith("state/objective/head") for name in leaves)


def test_that_a_real_process_trains_without_the_tracker(data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config(steps=2))
    program = (
        "import sys; from jobs.__main__ import main; code = main(sys.argv[1:]);"
        "print('IMPORTED', *[name for name in ('mlflow', 'orchestrator', 'hydra', 'torch') if name in sys.modules]);"
        "sys.exit(code)"
    )
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program, str(run_dir.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["IMPORTED", "torch"]


@pytest.mark.skipif(os.environ.get("ORCH_FULL") != "1", reason="ORCH_FULL=1: compiling takes one to three minutes")
def test_that_a_compiled_model_trains(data: Path, tmp_path: Path) -> None:
    config = train_config(steps=2, compile=True, batch_size=2, runtime={"checkpoint_every_steps": 1, "hang_timeout_s": 900.0})
    run_dir = train_run(tmp_path, data, config)
    process = python_m_jobs(run_dir, environment={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")})
    said_ = process.communicate(timeout=500)[0]
    assert process.returncode == 0, said_
    assert said_.count("checkpoint at step") == 2
    assert not any("_orig_mod" in name for name in newest_state(run_dir))


def test_that_starts_are_journalled_at_the_step_of_the_restore(data: Path, tmp_path: Path) -> None:
    run_dir = train_run(tmp_path, data, train_config())
    attempt(run_dir, hook=at_step(5, terminate_self))
    attempt(run_dir)
    journal = read_journal(run_dir.journals)
    starts = [entry for entry in journal.counting() if entry.event == "start"]
    assert [entry.step for entry in starts] == [0, 5]
    assert json.loads(json.dumps(dict(starts[1].detail)))["world_size"] == 1
