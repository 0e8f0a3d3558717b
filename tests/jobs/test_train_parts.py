"""Training part slots, end to end in forks: prepare, train on one or two ranks with warped views and pooled terms, struck."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision  # type: ignore[import-untyped]  # ships no marker
from PIL import Image
from pydantic import ValidationError
from running import attempt, killed_at, outcome_of, said, train_config

from jobs import forks
from jobs.compare import differences, newest_state, series
from jobs.contract import RunDir
from jobs.metrics import METRICS
from jobs.needs import check_needs
from jobs.optimizer import set_rate
from jobs.samples_parts import PartSamples
from jobs.spec import PrepareSpec, TrainSpec
from jobs.state import WEIGHTS, build_state
from jobs.weights_file import weights_content
from models.feature_net import build_feature_net
from models.part_slots import PartSlots
from models.spec_parts import FeatureNetSpec, TrunkSpec
from models.warps import WARP_NUMBERS, colour_jitter, warp_grid, warped

SIDE = 32
CREATURES = {"kind": "toy_creatures", "resolution": SIDE, "train_images": 10, "test_images": 4}
MODEL = {
    "kind": "part_slots", "resolution": SIDE, "num_parts": 3, "slot_size": 8, "slot_mlp_size": 9, "num_iterations": 2,
    "trunk": {"name": "tiny", "weights": "random"}, "masks": {"kind": "mlp", "layers": 2, "hidden": 8},
}  # fmt: skip
TINY = {"name": "tiny", "weights": "random"}
OBJECTIVE = {
    "kind": "parts", "features": TINY, "resolution": 8, "concentration": 0.1, "equivariance": 0.2, "landmarks": 0.3,
    "orthonormality": 0.01, "compactness": 0.1, "contrast": 0.2, "colour_variance": 0.1, "background": 0.1,
}  # fmt: skip


def config(**changes: Any) -> dict[str, Any]:
    """Five steps of four images: 10 images, the third batch of an epoch has two."""
    settings: dict[str, Any] = {
        "steps": 5, "batch_size": 4, "model": MODEL, "objective": OBJECTIVE, "flip": True,
        "validation": {"every_steps": 3, "images": 4, "panel_images": 2}, "runtime": {"checkpoint_every_steps": 1},
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 3, "decay_steps": 20, "trunk_rate": 0.0003},
    }  # fmt: skip
    return train_config(**settings | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the prepared creatures `data`."""
    forks.warm()
    folder = tmp_path_factory.mktemp("parts")
    data = forks.make_run(folder, "data", {"kind": "prepare", "data": CREATURES}, {})
    assert attempt(data) == [0], said(data)
    assert outcome_of(data).values == {"prepare/records": 14.0}
    return folder


def trained(root: Path, name: str, *, world_size: int = 1, **changes: Any) -> RunDir:
    run_dir = forks.make_run(root, name, config(**changes), {"prepare": "data"})
    assert attempt(run_dir, world_size=world_size) == [0] * world_size, said(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def whole(root: Path) -> RunDir:
    """Trained by one process without a stop."""
    return trained(root, "whole")


def test_that_a_step_is_logged_with_its_terms_and_no_reconstruction(whole: RunDir) -> None:
    found = {(step, name): value for step, name, value in series(whole)}
    assert {name for _, name in found} <= set(METRICS["train"])
    weights = {"semantic": 1.0} | {name: value for name, value in OBJECTIVE.items() if f"train/{name}" in METRICS["train"]}
    for step in range(1, 6):
        loss = sum(weight * found[step, f"train/{name}"] for name, weight in weights.items())  # type: ignore[operator]
        assert found[step, "train/loss"] == pytest.approx(loss, rel=1e-5)
        assert (step, "train/mse") not in found
        assert found[step, "train/semantic_energy"] > 0
    assert {name.removeprefix("valid/") for _, name in found if name.startswith("valid/")} == {
        "nmi", "fg_nmi", "nmi_hard", "fg_nmi_hard",
    }  # fmt: skip
    with Image.open(whole.artifacts / "panel-0000000003.png") as picture:
        assert np.asarray(picture).std() > 10


def test_that_the_trunk_is_saved_and_the_frozen_net_is_not(whole: RunDir) -> None:
    weights = torch.load(whole.output / WEIGHTS, weights_only=True)
    assert any(name.startswith("trunk.") for name in weights)
    assert not [name for name in newest_state(whole) if "features" in name or "net." in name]


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


def test_that_a_warp_is_named_by_epoch_and_sample_and_nothing_else() -> None:
    images = np.zeros((6, SIDE, SIDE, 3), np.uint8)
    samples = PartSamples(images_NSS3=images, foreground_NSS=images[..., 0], warp_seed=3)
    unmirrored = np.zeros(3, np.bool_)

    def numbers(indices: list[int], epoch: int) -> torch.Tensor:
        return samples.read(np.array(indices, dtype=np.int64), unmirrored[: len(indices)], epoch=epoch)[-1]

    assert numbers([1, 4, 5], 0).shape == (3, WARP_NUMBERS)
    assert torch.equal(numbers([1, 4, 5], 0)[1:2], numbers([4], 0))
    assert not torch.equal(numbers([4], 0), numbers([4], 1))
    assert numbers([], 0).shape == (0, WARP_NUMBERS)


def test_that_the_second_view_is_jittered_then_warped_and_features_are_of_the_first() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    net = build_feature_net(FeatureNetSpec.model_validate(TINY), layers=("relu3_2", "relu5_4"), state=None)
    samples = PartSamples(images_NSS3=images, net=net, warp_seed=3)
    stored = samples.read(np.array([2, 0]), np.array([False, True]), epoch=1)
    inputs, targets = samples.convert(stored)
    numbers = stored[-1]
    assert inputs.warped is not None
    assert inputs.features is not None
    grid = warp_grid(numbers, SIDE)
    assert torch.equal(inputs.warped.grid_BHW2, grid)
    assert torch.equal(inputs.warped.images_B3HW, warped(colour_jitter(targets, numbers), grid))
    for found, expected in zip(inputs.features, net(targets), strict=True):
        assert torch.equal(found, expected)


def test_that_a_trunk_begins_with_the_weights_of_its_file_and_learns_at_its_own_rate(tmp_path: Path) -> None:
    published = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(published, tmp_path / "resnet50.pth")
    trunk = TrunkSpec(weights="file", path=str(tmp_path / "resnet50.pth"))
    spec = TrainSpec.model_validate(config(model=MODEL | {"trunk": trunk.model_dump()}))
    planned = spec.model.model_copy(update={"trunk": trunk.model_copy(update={"content": weights_content(trunk)})})
    state = build_state(spec.model_copy(update={"model": planned}), torch.device("cpu"))
    assert isinstance(state.model, PartSlots)
    drawn = build_state(TrainSpec.model_validate(config(model=MODEL | {"trunk": {"weights": "random"}})), torch.device("cpu"))
    first, other = (next(iter(one.model.trunk.parameters())) for one in (state, drawn))  # type: ignore[union-attr]
    scale = published["bn1.weight"] / (published["bn1.running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(first.detach(), published["conv1.weight"] * scale.view(-1, 1, 1, 1), rtol=1e-4, atol=1e-6)
    assert not torch.equal(first, other)
    set_rate(state.optimizer, 1.0)
    rates = {id(parameter): group["lr"] for group in state.optimizer.param_groups for parameter in group["params"]}
    slow = {id(parameter) for parameter in state.model.trunk.parameters()}
    assert {round(rates[one], 9) for one in slow} == {0.1}
    assert {rate for one, rate in rates.items() if one not in slow} == {1.0}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("frozen", {"masks": {"kind": "linear"}, "start": "gaussian", "train_slots": False}),
        ("attention", {"masks": {"kind": "attention"}}),
        ("product", {"masks": {"kind": "product"}}),
        ("pixels", {"masks": {"kind": "pixels"}}),
    ],
)
def test_that_every_kind_of_masks_trains(root: Path, name: str, model: dict[str, Any]) -> None:
    settings = MODEL | model
    if name == "pixels":
        settings = {key: value for key, value in settings.items() if key != "num_iterations"}
    run_dir = trained(root, name, model=settings, steps=2)
    weights = torch.load(run_dir.output / WEIGHTS, weights_only=True)
    begun = build_state(TrainSpec.model_validate(config(model=settings, steps=2)), torch.device("cpu")).model.state_dict()
    moved = {part for part, value in weights.items() if not torch.equal(value, begun[part])}
    assert any(part.startswith("trunk.") for part in moved)
    assert any(part.startswith("slots.") for part in moved) == (name not in ("frozen", "pixels"))


def test_that_image_and_foreground_are_mirrored_together() -> None:
    images = np.random.default_rng(0).integers(0, 2, (2, SIDE, SIDE, 3), dtype=np.uint8) * 255
    samples = PartSamples(images_NSS3=images, foreground_NSS=images[..., 0] // 255)
    inputs, targets = samples.convert(samples.read(np.array([0, 1]), np.array([True, False])))
    assert inputs.foreground_BHW is not None
    assert torch.equal(inputs.images_B3HW, targets)
    assert torch.equal(inputs.foreground_BHW, targets[:, 0])
    assert torch.equal(targets[0, 0].flip(1), torch.from_numpy(images[0, ..., 0] / 255).float())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"kind": "reconstruction"}}, "go together"),
        ({"objective": OBJECTIVE | {"resolution": 64}}, "above model.resolution"),
        ({"objective": {"kind": "parts", "features": TINY, "semantic": 0}}, "every weight"),
        ({"model": {"kind": "slot_autoencoder"}, "objective": {"kind": "reconstruction"}}, "trunk_rate"),
        ({"clip": {"frames": 2}}, "clip"),
        ({"objective": OBJECTIVE | {"semantic": 0, "concentration": 1, "background_row": True}}, "background_row is a row of"),
        (
            {"objective": OBJECTIVE | {"foreground": "none"}},
            "compactness and objective.contrast and .* need objective.foreground",
        ),
        ({"model": MODEL | {"masks": {"kind": "attention"}, "num_iterations": 1}}, "num_iterations 1 uses no slot"),
        ({"objective": OBJECTIVE | {"contrast": 1}, "batch_size": 1}, "batch_size is 1, it must be 2"),
        ({"model": MODEL | {"masks": {"kind": "pixels"}}}, "leave num_iterations at the default"),
        (
            {"model": MODEL | {"masks": {"kind": "pixels"}, "start": "gaussian"}},
            "leave start and num_iterations at the default",
        ),
    ],
)
def test_that_what_does_not_fit_is_refused_before_anything_is_queued(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainSpec.model_validate(config(**changes))


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        (CREATURES | {"resolution": 64}, {}, "64 x 64"),
        ({"kind": "mdsprites"}, {}, "needs data of kind"),
        (
            CREATURES,
            {"model": {"kind": "slot_autoencoder"}, "objective": {"kind": "reconstruction"}, "optimizer": {}},
            "is not for",
        ),
    ],
)
def test_that_a_part_model_and_other_data_are_refused(data: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    problems = check_needs(
        TrainSpec.model_validate(config(**changes)), {"prepare": PrepareSpec.model_validate({"kind": "prepare", "data": data})}
    )
    assert any(words in problem for problem in problems), problems
