"""Training on tokens: mirrored or not, AdaSlot over ranks and restarts, a warm start, and what is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from running import attempt, outcome_of, said

from jobs import forks, loop
from jobs.compare import differences, series
from jobs.contract import Cause, ExitCode, RunDir, Status
from jobs.journal import read_journal

BACKBONE = {
    "name": "vit_tiny_patch16_224", "weights": "random", "block": 1, "tokens": 4, "feature_size": 192, "normalise": "imagenet"
}  # fmt: skip
MODEL = {
    "kind": "dinosaur", "tokens": 4, "feature_size": 192, "num_slots": 3, "num_iterations": 2, "slot_size": 8,
    "decoder": {"kind": "patch_mlp", "hidden": 16, "layers": 3},
}  # fmt: skip
GATED = MODEL | {"num_slots": 5, "gate": {"temperature": 1.0}}
SPARSE = {"kind": "reconstruction", "sparsity": 0.5}
NEEDS = {"prepare": "data", "embed": "tokens"}


def config(**changes: Any) -> dict[str, Any]:
    """Six steps of four images; validation at the fourth."""
    plain: dict[str, Any] = {
        "kind": "train", "steps": 6, "batch_size": 4, "model": MODEL, "flip": True,
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 2, "decay_steps": 20, "grad_clip": 1.0},
        "validation": {"every_steps": 4, "images": 4},
        "runtime": {"log_every": 1, "checkpoint_every_steps": 2, "max_attempts_without_progress": 1000},
    }  # fmt: skip
    return plain | changes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature COCO of ten training images, embedded by one block of a ViT, in fp32."""
    folder = tmp_path_factory.mktemp("coco")
    generator = {"seed": 1, "train_images": 10, "val_images": 4, "largest_side": 64}
    data = {"kind": "coco", "generator": generator, "resolution": 32}
    prepare = forks.make_run(folder, "data", {"kind": "prepare", "data": data}, {})
    embed = forks.make_run(
        folder, "tokens", {"kind": "embed", "backbone": BACKBONE, "dtype": "fp32", "shard_images": 4}, {"prepare": "data"}
    )
    for run_dir in (prepare, embed):
        assert forks.wait(forks.start(run_dir)).code == 0, said(run_dir)
    return folder


def run(root: Path, folder: Path, spec: dict[str, Any], needs: dict[str, str] = NEEDS, *, name: str = "trained") -> RunDir:
    """A run whose needs lie in `root`."""
    folder.mkdir(exist_ok=True)
    for need in needs.values():
        if not (folder / need).exists():
            (folder / need).symlink_to(root / need)
    return forks.make_run(folder, name, spec, needs)


def finished(run_dir: RunDir, *, world_size: int = 1) -> RunDir:
    assert attempt(run_dir, world_size=world_size) == [0] * world_size, said(run_dir)
    assert outcome_of(run_dir).status is Status.DONE
    return run_dir


def values(run_dir: RunDir, name: str) -> list[float]:
    return [entry.metrics[name] for entry in read_journal(run_dir.journals).counting() if name in entry.metrics]


def killed_at(step: int) -> Any:
    """A hook: SIGKILL after `step` finished steps."""

    def hook() -> None:
        one_step = loop.Training._one_step

        def dying(training: loop.Training, *arguments: Any) -> None:
            one_step(training, *arguments)
            if training.state.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        loop.Training._one_step = dying  # type: ignore[method-assign]  # in a fork

    return hook


def test_that_mirroring_is_of_the_run(root: Path, tmp_path: Path) -> None:
    mirrored, plain = (finished(run(root, tmp_path, config(flip=flip), name=f"flip-{flip}")) for flip in (True, False))
    assert values(mirrored, "train/loss") != pytest.approx(values(plain, "train/loss"), rel=1e-4)


def test_that_a_gated_model_resumes_exactly_and_logs_what_its_gate_does(root: Path, tmp_path: Path) -> None:
    spec = config(model=GATED, objective=SPARSE)
    calm = finished(run(root, tmp_path / "calm", spec))
    struck = run(root, tmp_path / "struck", spec)
    attempt(struck, hook=killed_at(3))
    finished(struck)
    assert differences(calm, struck) == []
    assert series(calm) == series(struck)
    kept, penalty = values(calm, "train/kept_slots"), values(calm, "train/sparsity")
    assert len(kept) == len(values(calm, "train/keep_probability")) == 6
    assert penalty == pytest.approx([0.5 * slots / 5 for slots in kept], abs=1e-6)
    loss, mse = values(calm, "train/loss"), values(calm, "train/mse")
    assert loss == pytest.approx([a + b for a, b in zip(mse, penalty, strict=True)], abs=1e-5)


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 2), (3, 2)])
def test_that_a_gated_step_is_that_of_the_global_batch(world_size: int, accumulation: int, root: Path, tmp_path: Path) -> None:
    spec = config(model=GATED, objective=SPARSE, steps=2, batch_size=5)
    alone = finished(run(root, tmp_path / "alone", spec))
    spec["runtime"] = spec["runtime"] | {"accumulation": accumulation}
    shared = finished(run(root, tmp_path / "shared", spec), world_size=world_size)
    for name in ("loss", "mse", "sparsity", "kept_slots", "keep_probability", "grad_norm"):
        assert values(shared, f"train/{name}") == pytest.approx(values(alone, f"train/{name}"), rel=1e-5, abs=1e-6), name


def test_that_a_second_stage_begins_with_the_firsts_weights_and_a_fresh_gate(root: Path, tmp_path: Path) -> None:
    first = finished(run(root, tmp_path, config(), name="first"))
    spec = config(model=GATED, objective=SPARSE, steps=0, warm_start={"fresh": ["gate"]})
    second = finished(run(tmp_path, tmp_path, spec, NEEDS | {"train": "first"}, name="second"))
    before, after = (torch.load(one.output / "model.pt", weights_only=True) for one in (first, second))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"gate"}
    (event,) = [one for one in read_journal(second.journals).counting() if one.event == "warm_start"]
    assert (event.detail["source"], event.detail["loaded"]) == ("first", len(before))


def test_that_a_restart_goes_on_from_its_own_checkpoint_and_not_from_the_first_stage(root: Path, tmp_path: Path) -> None:
    finished(run(root, tmp_path, config(), name="first"))
    needs = NEEDS | {"train": "first"}
    spec = config(model=GATED, objective=SPARSE, warm_start={"fresh": ["gate"]})
    calm = finished(run(tmp_path, tmp_path, spec, needs, name="calm"))
    struck = run(tmp_path, tmp_path, spec, needs, name="struck")
    attempt(struck, hook=killed_at(5))
    finished(struck)
    assert differences(calm, struck) == []


def test_that_a_first_stage_of_another_size_is_refused(root: Path, tmp_path: Path) -> None:
    finished(run(root, tmp_path, config(model=MODEL | {"slot_size": 4}, steps=1), name="first"))
    spec = config(model=GATED, objective=SPARSE, warm_start={"fresh": ["gate"]})
    second = run(tmp_path, tmp_path, spec, NEEDS | {"train": "first"}, name="second")
    assert attempt(second) == [ExitCode.FAILED]
    outcome = outcome_of(second)
    assert outcome.cause is Cause.REFUSED
    assert outcome.reason.startswith("cannot start from first")  # `refused` is the cause
    assert "of another shape" in outcome.reason


def test_that_tokens_of_another_backbone_are_refused(root: Path, tmp_path: Path) -> None:
    """The embed run's directory says another backbone than its store: it was replaced by hand."""
    spec = {"kind": "embed", "backbone": BACKBONE | {"block": 2}, "dtype": "fp32", "shard_images": 4}
    other = forks.make_run(tmp_path, "tokens", spec, {"prepare": "data"})
    other.output.symlink_to(root / "tokens" / "output")
    (other.path / "outcome.json").write_text((root / "tokens" / "outcome.json").read_text(encoding="utf-8"), encoding="utf-8")
    trained = run(root, tmp_path, config())
    assert attempt(trained) == [ExitCode.FAILED]
    assert outcome_of(trained).cause is Cause.DATA
    assert "block" in outcome_of(trained).reason
    assert not outcome_of(trained).reason.startswith("DataError")


def test_that_an_evaluation_reads_the_tokens_and_counts_kept_slots(root: Path, tmp_path: Path) -> None:
    finished(run(root, tmp_path, config(model=GATED, objective=SPARSE)))
    found = {}
    for gate in ("noisy", "deterministic"):
        spec = {"kind": "evaluate", "noise_seeds": [0, 1], "protocol": "official", "gate": gate, "panel_images": 2}
        found[gate] = finished(run(tmp_path, tmp_path, spec, NEEDS | {"train": "trained"}, name=gate))
    noisy, calm = (outcome_of(found[gate]).values for gate in ("noisy", "deterministic"))
    assert 0 <= noisy["eval/kept_slots"] <= 5
    assert noisy["eval/kept_slots_noise_sd"] > 0
    assert noisy["eval/mse"] != calm["eval/mse"]
    assert noisy["eval/images"] == 4
    assert {path.name for path in found["noisy"].artifacts.iterdir()} == {"masks.png", "kept_slots.png", "kept_slots.json"}
