"""A language model from its clips to its scores: prepare, embed, train, evaluate, on any number of ranks and through a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import attempt, outcome_of, said, train_config

from jobs import evaluate as job
from jobs import forks, preemption
from jobs.contract import ExitCode, RunDir
from jobs.data.clips_actions import FRAMES
from jobs.data.clips_writer import write_clips
from jobs.data_spec import ToyClevrSpec
from jobs.metrics import METRICS
from jobs.panels import CAPTION, GAP

SIDE, SLOTS, CLIPS, EVERY = 64, 3, 3, 5
CLEVR = {
    "kind": "toy_clevr", "resolution": SIDE, "fine_grained": False,
    "train": {"first": 0, "count": 2}, "test": {"first": 2, "count": CLIPS},
}  # fmt: skip
TOWERS = {
    "kind": "clip", "name": "tiny-vit", "pretrained": None, "weights": "random",
    "tokens": 16, "feature_size": 32, "text_size": 16,
}  # fmt: skip
MODEL = {
    "kind": "language_slots", "resolution": SIDE, "tokens": 16, "feature_size": 32, "text_size": 16, "num_slots": SLOTS,
    "num_iterations": 2, "slot_size": 8, "slot_mlp_size": 16, "text2slot": {"kind": "mlp", "hidden_sizes": [8]},
    "decoder": {"initial_resolution": 16, "channels": [8, 8]},
}  # fmt: skip
NEEDS = {"prepare": "data", "embed": "texts"}


def make(folder: Path, data: dict[str, Any], model: dict[str, Any]) -> Path:
    """Finished runs `data`, `texts` and `trained`."""
    forks.warm()
    train = train_config(
        steps=2, batch_size=4, model=model, online=TOWERS, objective={"kind": "reconstruction"},
        validation={"every_steps": 1, "images": 4},
    )  # fmt: skip
    texts = {"kind": "embed", "backbone": TOWERS, "images": "none", "flips": False}
    for name, config, needs in (
        ("data", {"kind": "prepare", "data": data}, {}),
        ("texts", texts, {"prepare": "data"}),
        ("trained", train, NEEDS),
    ):
        run_dir = forks.make_run(folder, name, config, needs)
        assert attempt(run_dir) == [0], said(run_dir)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("language"), CLEVR, MODEL)


def evaluation(root: Path, folder: Path, **changes: Any) -> RunDir:
    folder.mkdir(exist_ok=True)
    for name in ("data", "texts", "trained"):
        (folder / name).symlink_to(root / name)
    config = {"kind": "evaluate", "noise_seeds": [0, 1], "batch_size": 4, "every": EVERY, "panel_images": 5} | changes
    return forks.make_run(folder, "scored", config, NEEDS | {"train": "trained"})


def scores(run_dir: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir.output / "scores.json").read_text())
    return found


def small() -> None:
    job.PIECE_IMAGES = 8  # in a fork: three pieces of two batches each, the last of 5 images


GROUNDED = {
    "named_iou", "named_recall", "unnamed_iou", "unnamed_recall", "binding_accuracy", "binding_chance",
    "fg_ari_attention", "mbo_attention", "miou_attention", "swap_masks", "swap_mse", "swap_named_iou",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(root: Path) -> RunDir:
    """An evaluation by one process in one piece per noise seed."""
    run_dir = evaluation(root, root / "whole")
    assert attempt(run_dir) == [0], said(run_dir)
    return run_dir


def test_that_a_language_model_is_scored_by_what_its_sentences_name(whole: RunDir) -> None:
    values = scores(whole)["values"]
    assert values == outcome_of(whole).values
    assert {f"eval/{name}" for name in GROUNDED} <= set(values) <= set(METRICS["evaluate"])
    assert not any(np.isnan(value) for value in values.values())
    assert values["eval/images"] == -(-CLIPS * FRAMES // EVERY)
    assert values["eval/images_without_objects"] == 0
    assert values["eval/binding_chance"] == pytest.approx(1 / SLOTS)
    assert 1 / SLOTS <= values["eval/binding_accuracy"] <= 1
    assert 0 < values["eval/swap_masks"] < 1
    with Image.open(whole.artifacts / "masks.png") as picture:
        assert picture.size == ((4 + SLOTS) * (2 * SIDE + 2 * GAP), 5 * (2 * SIDE + 2 * GAP + CAPTION))


@pytest.mark.parametrize("world_size", [1, 3])
def test_that_pieces_and_ranks_find_what_one_pass_finds(root: Path, whole: RunDir, tmp_path: Path, world_size: int) -> None:
    cut = evaluation(root, tmp_path / "cut")
    assert attempt(cut, world_size=world_size, hook=small) == [0] * world_size, said(cut)
    assert scores(cut) == scores(whole)
    assert (cut.artifacts / "masks.png").read_bytes() == (whole.artifacts / "masks.png").read_bytes()


def test_that_a_struck_evaluation_of_sentences_scores_the_same(root: Path, whole: RunDir, tmp_path: Path) -> None:
    struck = evaluation(root, tmp_path / "struck")

    def hook() -> None:
        small()
        score = job.score_images

        def watched(*arguments: Any, **named: Any) -> Any:
            found = score(*arguments, **named)
            if (named["noise_seed"], named["first"]) == (0, 8):
                os.kill(os.getpid(), signal.SIGTERM)
                while not preemption.install().wait(0.1):
                    pass
            return found

        job.score_images = watched

    assert attempt(struck, hook=hook) == [ExitCode.STOPPED], said(struck)
    assert outcome_of(struck).step == 2
    assert attempt(struck, hook=small) == [0], said(struck)
    assert scores(struck) == scores(whole)


def test_that_clips_without_masks_are_scored_by_reconstruction_and_swap_alone(tmp_path: Path) -> None:
    clips = {"train": {"first": 0, "count": 1}, "test": {"first": 1, "count": 2}}
    write_clips(ToyClevrSpec.model_validate(CLEVR | clips), tmp_path / "clips", form="frames", masks=False)
    data = {"kind": "clips", "path": str(tmp_path / "clips"), "resolution": SIDE, "fine_grained": False}
    root = make(tmp_path, data, MODEL)
    run_dir = evaluation(root, tmp_path / "evaluated", noise_seeds=[0], every=9)
    assert attempt(run_dir) == [0], said(run_dir)
    values = scores(run_dir)["values"]
    named = {name for name in values if not name.endswith("_noise_sd")}
    assert named == {"eval/mse", "eval/stripe", "eval/swap_masks", "eval/swap_mse", "eval/images"}
    assert not any(np.isnan(value) for value in values.values())
