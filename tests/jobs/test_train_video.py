"""Training on clips, end to end in forks: prepare, train on one or two ranks, struck and resumed, and what it leaves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import attempt, killed_at, outcome_of, said, train_config

from jobs import forks
from jobs.compare import differences, newest_state, series
from jobs.contract import RunDir
from jobs.metrics import METRICS
from jobs.state import WEIGHTS

SIDE, SLOTS, FRAMES = 32, 3, 3
VIDEO = {
    "kind": "toy_video", "resolution": SIDE, "video_frames": 8, "min_objects": 2, "max_objects": 3,
    "train": {"first": 0, "count": 7}, "test": {"first": 7, "count": 2},
}  # fmt: skip
MODEL = {
    "kind": "video_slots", "resolution": SIDE, "num_slots": SLOTS, "num_iterations": 2, "slot_size": 8, "slot_mlp_size": 9,
    "encoder_channels": 6, "encoder_layers": 2, "decoder": {"kind": "upsampling", "channels": 6, "initial_resolution": 16},
    "recurrence": {"detach_every": 2, "num_iterations": 1, "predictor": {"kind": "mlp", "hidden": 7}},
}  # fmt: skip
OBJECTIVE = {"kind": "video", "future_masks": 0.5, "future_channels": 4}


def config(**changes: Any) -> dict[str, Any]:
    """Five steps of three clips: 7 videos, the third batch of an epoch has one; so a second rank has none."""
    settings: dict[str, Any] = {
        "steps": 5, "batch_size": 3, "model": MODEL, "objective": OBJECTIVE, "clip": {"frames": FRAMES, "step": 2},
        "validation": {"every_steps": 3, "images": 2, "panel_images": 2}, "runtime": {"checkpoint_every_steps": 1},
    }  # fmt: skip
    return train_config(**settings | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the prepared videos `data`."""
    forks.warm()
    folder = tmp_path_factory.mktemp("videos")
    data = forks.make_run(folder, "data", {"kind": "prepare", "data": VIDEO}, {})
    assert attempt(data) == [0], said(data)
    assert outcome_of(data).values == {"prepare/records": 9.0}
    return folder


def trained(root: Path, name: str, *, world_size: int = 1, **changes: Any) -> RunDir:
    run_dir = forks.make_run(root, name, config(**changes), {"prepare": "data"})
    assert attempt(run_dir, world_size=world_size) == [0] * world_size, said(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def whole(root: Path) -> RunDir:
    """Trained by one process without a stop."""
    return trained(root, "whole")


def test_that_a_step_is_logged_with_its_terms_and_videos_are_looked_at(whole: RunDir) -> None:
    found = {(step, name): value for step, name, value in series(whole)}
    assert {name for _, name in found} <= set(METRICS["train"])
    for step in range(1, 6):
        loss = found[step, "train/mse"] + 0.5 * found[step, "train/future_masks"]
        assert found[step, "train/loss"] == pytest.approx(loss, rel=1e-6)
    assert {name.removeprefix("valid/") for _, name in found if name.startswith("valid/")} == {
        "mse", "fg_ari", "video_fg_ari", "video_fg_ari_fixed",
    }  # fmt: skip
    assert found[3, "valid/video_fg_ari"] != found[3, "valid/video_fg_ari_fixed"]
    with Image.open(whole.artifacts / "panel-0000000003.png") as picture:
        assert picture.height >= 2 * 4 * SIDE


def test_that_the_weights_file_and_the_checkpoint_hold_the_evaluation_noise(whole: RunDir) -> None:
    weights = torch.load(whole.output / WEIGHTS, weights_only=True)
    assert weights["eval_noise_KD"].shape == (SLOTS, 8)
    (saved,) = (value for name, value in newest_state(whole).items() if name.endswith("model/eval_noise_KD"))
    assert torch.equal(saved, weights["eval_noise_KD"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_that_a_struck_training_run_is_that_of_an_untouched_one(root: Path, whole: RunDir, world_size: int) -> None:
    untouched = whole if world_size == 1 else trained(root, "untouched-2", world_size=2)
    struck = forks.make_run(root, f"struck-{world_size}", config(), {"prepare": "data"})

    assert -signal.SIGKILL in attempt(struck, world_size=world_size, hook=killed_at(3))
    assert attempt(struck, world_size=world_size) == [0] * world_size, said(struck)
    assert differences(untouched, struck) == []


def test_that_two_ranks_train_what_one_trains(root: Path, whole: RunDir) -> None:
    other = trained(root, "two", world_size=2)
    one, two = (torch.load(run.output / WEIGHTS, weights_only=True) for run in (whole, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)


def test_that_loader_processes_change_nothing(root: Path, whole: RunDir) -> None:
    loaded = trained(root, "loaded", runtime={"workers": 2, "checkpoint_every_steps": 1})
    assert differences(whole, loaded) == []
