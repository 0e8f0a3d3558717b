"""Part models are scored over the whole test set at once: in pieces, on any number of ranks, and through a kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from painted_parts import SIDE, Painted, mistaken, write_store
from PIL import Image
from running import attempt, outcome_of, said, train_config

from jobs import evaluate, forks, preemption
from jobs import evaluate_parts as job
from jobs.contract import Cause, ExitCode, RunDir
from jobs.data.part_store import PartStore
from jobs.metrics import METRICS
from jobs.panels import GAP, LEAST_SIDE
from jobs.scoring_parts import FIT, PartTruth, pooled_means, regression_means, score_parts
from jobs.spec import EvaluateSpec, TrainSpec
from models.spec_parts import LinearHead, PartSlotsSpec, PixelHead

TEST, TRAIN, SEEDS = 7, 9, (0, 1)
PIECES = 8
"""Of 4 images: three pieces of test images, the second with the first training images, and so on, for two noise seeds."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "store"
    write_store(path, mistaken(TEST), mistaken(TRAIN, first=100))
    return path


def small(store: Path, *, pieces: int = 4) -> Callable[[], None]:
    """In a fork: pieces of so many images, and a painted model of the store instead of a trained one."""

    def hook() -> None:
        job.PIECE_IMAGES = pieces

        def built(run: Any, spec: Any, group: Any, watchdog: Any) -> job.PartEvaluation:
            trained = TrainSpec.model_validate(train_config())
            opened = PartStore.open(store)
            return job.PartEvaluation(
                run=run, spec=spec, group=group, watchdog=watchdog, trained=trained, store=opened, model=Painted().eval()
            )

        evaluate._evaluation = built

    return hook


def evaluation(folder: Path, **changes: Any) -> RunDir:
    config = {"kind": "evaluate", "noise_seeds": list(SEEDS), "batch_size": 3, "panel_images": 5} | changes
    return forks.make_run(folder, "scored", config, {})


def scores(run_dir: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir.output / "scores.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """An evaluation by one process in one piece per noise seed."""
    run_dir = evaluation(tmp_path_factory.mktemp("whole"))
    assert attempt(run_dir, hook=small(store, pieces=1000)) == [0], said(run_dir)
    return run_dir


def test_that_scores_are_of_the_whole_test_set(store: Path, whole: RunDir) -> None:
    found, opened = scores(whole), PartStore.open(store)
    test, fit = PartTruth.of(opened, "test"), PartTruth.of(opened, "train")
    model, settings = Painted().eval(), {"noise_seed": 1, "batch_size": 3, "device": CPU}
    tested = score_parts(model, test, np.arange(TEST), **settings).per_image
    fitted = score_parts(model, fit, np.arange(TRAIN), purpose=FIT, **settings).per_image
    places = fit.places(np.arange(TRAIN), fitted), test.places(np.arange(TEST), tested)
    expected = pooled_means(tested) | regression_means(*places, eye_distance=False)
    assert found["per_noise_seed"]["1"] == pytest.approx(expected, rel=1e-6)
    assert found["values"] == outcome_of(whole).values
    assert set(found["values"]) <= set(METRICS["evaluate"])
    assert found["values"]["eval/images"] == TEST
    assert found["values"]["eval/fit_images"] == TRAIN
    assert found["values"]["eval/keypoint_error_noise_sd"] > 0


def test_that_the_test_images_are_shown(whole: RunDir) -> None:
    with Image.open(whole.artifacts / "masks.png") as panel:
        assert panel.height == 5 * (LEAST_SIDE + 2 * GAP)
        reds = np.asarray(panel)[GAP :: LEAST_SIDE + 2 * GAP, GAP : GAP + LEAST_SIDE : LEAST_SIDE // SIDE, 0]
    first = np.stack([one.image_SS3[0, :, 0] for one in mistaken(5)])
    assert (reds == first).mean() > 0.9  # but for dots


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_that_pieces_and_ranks_find_what_one_pass_finds(store: Path, whole: RunDir, tmp_path: Path, world_size: int) -> None:
    cut = evaluation(tmp_path)
    assert attempt(cut, world_size=world_size, hook=small(store)) == [0] * world_size, said(cut)
    assert outcome_of(cut).step == PIECES
    assert scores(cut) == scores(whole)


def test_that_ranks_draw_the_same_panel(store: Path, tmp_path: Path) -> None:
    drawn = []
    for world_size in (1, 2):
        run_dir = evaluation(tmp_path / str(world_size), noise_seeds=[0], batch_size=2)
        assert attempt(run_dir, world_size=world_size, hook=small(store)) == [0] * world_size, said(run_dir)
        drawn.append((run_dir.artifacts / "masks.png").read_bytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_that_a_struck_evaluation_scores_the_same(store: Path, whole: RunDir, tmp_path: Path, world_size: int) -> None:
    struck = evaluation(tmp_path)

    def hook() -> None:
        small(store)()
        score = job.score_parts

        def watched(*arguments: Any, **named: Any) -> Any:
            found = score(*arguments, **named)
            if named["noise_seed"] == 1 and 0 in arguments[2]:  # rank 0 alone is told
                os.kill(os.getpid(), signal.SIGTERM)
                while not preemption.install().wait(0.1):
                    pass
            return found

        job.score_parts = watched

    assert attempt(struck, world_size=world_size, hook=hook)[0] == ExitCode.STOPPED, said(struck)
    assert 0 < outcome_of(struck).step < PIECES
    assert attempt(struck, world_size=world_size, hook=small(store)) == [0] * world_size, said(struck)
    assert scores(struck) == scores(whole)


def test_that_a_stride_leaves_out_test_images_and_not_those_of_the_fit(store: Path, tmp_path: Path) -> None:
    run_dir = evaluation(tmp_path, every=3, noise_seeds=[0])
    assert attempt(run_dir, hook=small(store)) == [0], said(run_dir)
    values = scores(run_dir)["values"]
    assert (values["eval/images"], values["eval/fit_images"]) == (3, TRAIN)


def test_that_training_images_are_not_read_without_keypoints(tmp_path: Path) -> None:
    bare = [replace(one, keypoints_Q2=np.zeros((0, 2), np.float32), visible_Q=np.zeros(0, np.uint8)) for one in mistaken(4)]
    write_store(tmp_path / "store", bare, bare)
    run_dir = evaluation(tmp_path, noise_seeds=[0])
    assert attempt(run_dir, hook=small(tmp_path / "store")) == [0], said(run_dir)
    values = scores(run_dir)["values"]
    assert values["eval/images"] == 4
    assert not {"eval/fit_images", "eval/keypoint_error", "eval/landmark_nme"} & set(values)


@pytest.mark.parametrize("lacking", ["parts and keypoints", "test images"])
def test_that_data_that_cannot_be_scored_are_refused(tmp_path: Path, lacking: str) -> None:
    bare = [replace(one, keypoints_Q2=np.zeros((0, 2), np.float32), visible_Q=np.zeros(0, np.uint8)) for one in mistaken(2)]
    if lacking == "test images":
        write_store(tmp_path / "store", mistaken(1), mistaken(2), counts={"train": 2, "test": 0})
    else:
        write_store(tmp_path / "store", bare, bare, part_names=(), has_parts=False)
    run_dir = evaluation(tmp_path)
    assert attempt(run_dir, hook=small(tmp_path / "store")) != [0]
    outcome = outcome_of(run_dir)
    assert outcome.cause is not Cause.HANG
    told = "no test images" if lacking == "test images" else "neither parts nor keypoints"
    assert told in (outcome.reason or "")


CREATURES = {"kind": "toy_creatures", "resolution": 32, "train_images": 6, "test_images": 5}
TINY = {"name": "tiny", "weights": "random"}
MODEL = {
    "kind": "part_slots", "resolution": 32, "num_parts": 3, "slot_size": 8, "slot_mlp_size": 9, "num_iterations": 1,
    "trunk": TINY, "start": "gaussian", "masks": {"kind": "mlp", "layers": 2, "hidden": 8},
}  # fmt: skip


def test_that_trained_part_slots_are_scored_on_creatures(tmp_path: Path) -> None:
    forks.warm()
    train = train_config(steps=1, batch_size=3, model=MODEL, objective={"kind": "parts", "features": TINY, "resolution": 8})
    asked = {"kind": "evaluate", "noise_seeds": [0, 1], "batch_size": 2}
    for name, config, needs in (
        ("data", {"kind": "prepare", "data": CREATURES}, {}),
        ("trained", train, {"prepare": "data"}),
        ("scored", asked, {"prepare": "data", "train": "trained"}),
        ("together", asked, {"prepare": "data", "train": "trained"}),
    ):
        run_dir, world_size = forks.make_run(tmp_path, name, config, needs), 2 if name == "together" else 1
        assert attempt(run_dir, world_size=world_size) == [0] * world_size, said(run_dir)
    found = scores(run_dir)
    assert found == scores(RunDir(tmp_path / "scored"))
    assert set(found["values"]) <= set(METRICS["evaluate"])
    assert {"nmi", "fg_nmi", "part_miou", "foreground_iou_hard", "mask_vectors", "keypoint_error"} <= set(
        found["per_noise_seed"]["1"]
    )
    assert (found["values"]["eval/images"], found["values"]["eval/fit_images"]) == (5, 6)


@pytest.mark.parametrize(("asked", "fitted"), [(None, TRAIN), (4, 4), (0, 0), (TRAIN + 1, TRAIN)])
def test_that_keypoints_are_regressed_on_the_first_training_images_that_the_store_names(
    tmp_path: Path, asked: int | None, fitted: int
) -> None:
    store = write_store(tmp_path / "store", mistaken(TEST), mistaken(TRAIN, first=100), fit_images=asked)
    run_dir = evaluation(tmp_path, noise_seeds=[0])
    assert attempt(run_dir, hook=small(store.path)) == [0], said(run_dir)
    found = scores(run_dir)["values"]
    assert found.get("eval/fit_images", 0) == fitted
    test, fit = PartTruth.of(store, "test"), PartTruth.of(store, "train")
    model, settings = Painted().eval(), {"noise_seed": 0, "batch_size": 3, "device": CPU}
    if fitted:
        fit_columns = score_parts(model, fit, np.arange(fitted), purpose=FIT, **settings).per_image
        test_columns = score_parts(model, test, np.arange(TEST), **settings).per_image
        places = fit.places(np.arange(fitted), fit_columns), test.places(np.arange(TEST), test_columns)
        expected = regression_means(*places, eye_distance=False)["keypoint_error"]
        assert found["eval/keypoint_error"] == pytest.approx(expected, rel=1e-6)
    else:
        assert "eval/keypoint_error" not in found


@pytest.mark.parametrize(
    ("model", "seeds"),
    [
        (PartSlotsSpec(start="gaussian"), SEEDS),
        (PartSlotsSpec(start="gaussian", masks=LinearHead()), SEEDS),
        (PartSlotsSpec(start="learned"), SEEDS[:1]),
        (PartSlotsSpec(masks=PixelHead()), SEEDS[:1]),
    ],
)
def test_that_a_model_that_draws_nothing_is_scored_once(store: Path, model: PartSlotsSpec, seeds: tuple[int, ...]) -> None:
    trained = TrainSpec.model_validate(train_config()).model_copy(update={"model": model})
    spec = EvaluateSpec(noise_seeds=SEEDS)
    one: Any = None
    found = job.PartEvaluation(
        run=one, spec=spec, group=one, watchdog=one, trained=trained, store=PartStore.open(store), model=Painted()
    )
    assert found.noise_seeds == seeds
