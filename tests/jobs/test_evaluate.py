"""Evaluation: a mean and a spread over noise seeds that depend on neither batch size nor interruptions; its pictures."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import attempt, outcome_of, said, train_config, train_run

from jobs import evaluate as job
from jobs.contract import ExitCode, RunDir, Status
from jobs.data.store import ImageStore
from jobs.evaluate import summarise
from jobs.forks import make_run
from jobs.metrics import METRICS
from jobs.panels import GAP, draw_panel, save_panel
from jobs.scoring import Look, score_images
from jobs.spec import TrainSpec
from jobs.state import build_state


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    assert attempt(train_run(root, data, train_config(steps=2))) == [0]
    return root


def evaluation(trained: Path, root: Path, **changes: Any) -> RunDir:
    for name in ("data", "trained"):
        (root / name).symlink_to(trained / name)
    config = {"kind": "evaluate", "noise_seeds": [0, 1, 2], "batch_size": 4} | changes
    return make_run(root, "scored", config, {"prepare": "data", "train": "trained"})


def scores(run_dir: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir.output / "scores.json").read_text())
    return found


def test_that_scores_are_a_mean_and_a_spread_over_noise(trained: Path, tmp_path: Path) -> None:
    run_dir = evaluation(trained, tmp_path)
    assert attempt(run_dir) == [0], said(run_dir)
    outcome, found = outcome_of(run_dir), scores(run_dir)
    assert outcome.status is Status.DONE
    assert outcome.values == found["values"]
    per_seed = [found["per_noise_seed"][seed]["mse"] for seed in "012"]
    assert outcome.values["eval/mse"] == pytest.approx(float(np.mean(per_seed)))
    assert outcome.values["eval/mse_noise_sd"] == pytest.approx(float(np.std(per_seed, ddof=1)))
    assert outcome.values["eval/mse_noise_sd"] > 0
    assert outcome.values["eval/images"] == 6
    assert set(outcome.values) <= set(METRICS["evaluate"])
    assert (run_dir.artifacts / "masks.png").exists()


def test_that_an_interrupted_evaluation_scores_the_same(trained: Path, tmp_path: Path) -> None:
    for name in ("plain", "struck"):
        (tmp_path / name).mkdir()
    plain, struck = (evaluation(trained, tmp_path / name) for name in ("plain", "struck"))
    assert attempt(plain) == [0]

    def hook() -> None:
        score = job.score_images

        def watched(*arguments: Any, **named: Any) -> Any:
            found = score(*arguments, **named)
            if named["noise_seed"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                while not struck.cancel_mark.exists() and not _pending_seen():
                    pass
            return found

        job.score_images = watched  # in a fork

    assert attempt(struck, hook=hook) == [ExitCode.STOPPED], said(struck)
    assert outcome_of(struck).step == 2
    assert attempt(struck) == [0]
    assert scores(plain) == scores(struck)


def _pending_seen() -> bool:
    """Whether the waiting thread took the SIGTERM."""
    from jobs import preemption

    return preemption.install().wait(0.1)


def model_and_split(data: Path) -> tuple[Any, Any]:
    spec = TrainSpec.model_validate(train_config())
    return build_state(spec, torch.device("cpu")).model, ImageStore.open(data / "data" / "output" / "store").split("test")


def test_that_a_score_does_not_depend_on_the_batch_size(data: Path) -> None:
    model, split = model_and_split(data)
    found = [
        score_images(model, split.images, split.labels, noise_seed=3, batch_size=size, device=torch.device("cpu"), keep=5)
        for size in (1, 4, 6)
    ]
    for other in found[1:]:
        for name, values in found[0].per_image.items():
            np.testing.assert_allclose(other.per_image[name], values, rtol=1e-5, atol=1e-6, equal_nan=True)
        assert len(other.kept) == 5
    assert found[0].per_image["mse"].shape == (6,)


def test_that_undefined_scores_are_left_out_of_a_summary() -> None:
    values = summarise({"0": {"a": 1.0, "b": math.nan}, "1": {"a": 3.0, "b": math.nan}})
    assert values == {"eval/a": 2.0, "eval/a_noise_sd": pytest.approx(math.sqrt(2))}
    assert summarise({"0": {"a": 1.0}})["eval/a_noise_sd"] == 0.0


def look(side: int = 16, slots: int = 3) -> Look:
    masks = np.zeros((slots, side, side), dtype=np.float32)
    masks[0] = 1
    image = np.full((side, side, 3), 200, dtype=np.uint8)
    return Look(image_HWC=image, labels_HW=np.zeros((side, side), dtype=np.uint8), reconstruction_HWC=image, masks_KHW=masks)


def test_that_a_panel_shows_a_row_per_image_and_a_column_per_slot(tmp_path: Path) -> None:
    panel = draw_panel([look(), look()])
    tile = 96 + 2 * GAP
    assert panel.size == ((4 + 3) * tile, 2 * tile)
    pixels = np.asarray(panel)
    assert pixels[tile // 2, tile // 2].tolist() == [200, 200, 200]
    assert pixels[tile // 2, 4 * tile + tile // 2].tolist() == [200, 200, 200]  # the slot that has it all
    assert pixels[tile // 2, 5 * tile + tile // 2].tolist() == [255, 255, 255]
    save_panel([look(128)], tmp_path / "artifacts" / "a.png")
    save_panel([], tmp_path / "artifacts" / "b.png")
    assert os.listdir(tmp_path / "artifacts") == ["a.png"]
    with Image.open(tmp_path / "artifacts" / "a.png") as image:
        assert image.size == (7 * (128 + 2 * GAP), 128 + 2 * GAP)
