"""A video model from its videos to its scores: prepare, train, evaluate, on any number of ranks and through a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import attempt, outcome_of, said, train_config
from sklearn.metrics import adjusted_rand_score

from jobs import evaluate_video as job
from jobs import forks, preemption
from jobs.contract import ExitCode, RunDir
from jobs.films import NAMES_PX
from jobs.journal import announced_steps
from jobs.metrics import METRICS
from jobs.needs import check_needs
from jobs.panels import CAPTION
from jobs.spec import EvaluateSpec, TrainSpec
from models.video_slots import VideoOutput, VideoSlots, VideoState, signed

SIDE, SLOTS, FRAMES, VIDEOS = 32, 3, 5, 4
TOY = {
    "kind": "toy_video", "resolution": SIDE, "video_frames": FRAMES,
    "train": {"first": 0, "count": 2}, "test": {"first": 2, "count": VIDEOS},
}  # fmt: skip
MODEL: dict[str, Any] = {
    "kind": "video_slots", "resolution": SIDE, "num_slots": SLOTS, "num_iterations": 1, "slot_size": 8, "slot_mlp_size": 8,
    "encoder_channels": 4, "encoder_layers": 1, "decoder": {"initial_resolution": 8, "channels": 4},
    "recurrence": {"num_iterations": 1},
}  # fmt: skip
GT = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [2, 2, 0, 0]])
SWAPPED = np.array([[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [1, 1, 0, 0]])
WITHOUT_MASKS = {"mse", "psnr", "mask_entropy", "slots_used", "largest_share"}
WITH_MASKS = WITHOUT_MASKS | {
    "fg_ari", "video_fg_ari", "fg_ari_gap", "tube_miou", "tube_mbo", "id_switches_per_100_frames", "mota", "idf1",
}  # fmt: skip
"""`motp` too, where anything is matched."""


def make(folder: Path, data: dict[str, Any], model: dict[str, Any]) -> Path:
    """Finished runs `data` and `trained`."""
    forks.warm()
    train = train_config(
        steps=1, batch_size=2, model=model, objective={"kind": "video"}, clip={"frames": 2},
        validation={"every_steps": 2, "images": 1},
    )  # fmt: skip
    for name, config, needs in (
        ("data", {"kind": "prepare", "data": data}, {}),
        ("trained", train, {"prepare": "data"}),
    ):
        run_dir = forks.make_run(folder, name, config, needs)
        assert attempt(run_dir) == [0], said(run_dir)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("video"), TOY, MODEL)


def evaluation(root: Path, folder: Path, **changes: Any) -> RunDir:
    folder.mkdir(exist_ok=True)
    for name in ("data", "trained"):
        (folder / name).symlink_to(root / name)
    # two frames at a time, of one video
    config = {"kind": "evaluate", "noise_seeds": [0, 1], "batch_size": 2, "chunk": 2, "panel_images": 3} | changes
    return forks.make_run(folder, "scored", config, {"prepare": "data", "train": "trained"})


def scored(run_dir: RunDir) -> dict[str, Any]:
    """The scores of an evaluation that is carried out now."""
    assert attempt(run_dir) == [0], said(run_dir)
    return scores(run_dir)


def scores(run_dir: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir.output / "scores.json").read_text())
    return found


def names(found: dict[str, Any]) -> set[str]:
    return {name.removeprefix("eval/") for name in found["values"] if not name.endswith("_noise_sd")}


def small() -> None:
    job.PIECE_FRAMES = 3 * FRAMES  # in a fork: two pieces of three videos and one


@pytest.fixture(scope="module")
def whole(root: Path) -> RunDir:
    """An evaluation by one process in one piece per noise seed."""
    run_dir = evaluation(root, root / "whole")
    scored(run_dir)
    return run_dir


def test_that_a_video_model_is_scored_over_time_and_filmed(whole: RunDir) -> None:
    found = scores(whole)
    assert found["values"] == outcome_of(whole).values
    assert set(found["values"]) <= set(METRICS["evaluate"])
    assert names(found) - {"motp"} == WITH_MASKS | {"videos", "videos_without_objects"}
    assert found["values"]["eval/videos"] == VIDEOS
    assert found["values"]["eval/videos_without_objects"] == 0
    assert found["values"]["eval/mse_noise_sd"] > 0
    assert announced_steps(whole.journals) == outcome_of(whole).step > 0
    with Image.open(whole.artifacts / "masks.gif") as film:
        assert film.n_frames == FRAMES
    with Image.open(whole.artifacts / "masks.png") as sheet:
        assert (sheet.height - CAPTION) / (sheet.width - NAMES_PX) == pytest.approx(3 * 4 / FRAMES)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_that_pieces_and_ranks_find_what_one_pass_finds(root: Path, whole: RunDir, tmp_path: Path, world_size: int) -> None:
    cut = evaluation(root, tmp_path / "cut")
    assert attempt(cut, world_size=world_size, hook=small) == [0] * world_size, said(cut)
    assert scores(cut) == scores(whole)
    for name in ("masks.png", "masks.gif"):
        assert (cut.artifacts / name).read_bytes() == (whole.artifacts / name).read_bytes()


@pytest.mark.parametrize("world_size", [1, 2])
def test_that_a_struck_evaluation_scores_the_same(root: Path, whole: RunDir, tmp_path: Path, world_size: int) -> None:
    struck = evaluation(root, tmp_path / "struck")

    def hook() -> None:
        small()
        score = job.score_videos

        def watched(*arguments: Any, **named: Any) -> Any:
            found = score(*arguments, **named)
            if named["noise_seed"] == 1 and 0 in arguments[2]:  # rank 0 alone is told
                os.kill(os.getpid(), signal.SIGTERM)
                while not preemption.install().wait(0.1):
                    pass
            return found

        job.score_videos = watched

    assert attempt(struck, world_size=world_size, hook=hook)[0] == ExitCode.STOPPED, said(struck)
    assert outcome_of(struck).step == 3
    assert attempt(struck, world_size=world_size, hook=small) == [0] * world_size, said(struck)
    assert scores(struck) == scores(whole)


def test_that_fixed_noise_is_the_checkpoints_and_scored_once(root: Path, tmp_path: Path) -> None:
    seen = tmp_path / "noise.pt"

    def hook() -> None:
        forward = VideoSlots.forward

        def watched(self: VideoSlots, clips: Any, noise: Any, state: Any = None) -> VideoOutput:
            torch.save(noise, seen)
            return forward(self, clips, noise, state)

        VideoSlots.forward = watched  # type: ignore[method-assign]

    run_dir = evaluation(root, tmp_path / "fixed", noise="fixed", noise_seeds=[4, 5])
    assert attempt(run_dir, hook=hook) == [0], said(run_dir)
    assert list(scores(run_dir)["per_noise_seed"]) == ["4"]
    weights = torch.load(root / "trained" / "output" / "model.pt", weights_only=True)
    noise_BTKD = torch.load(seen)
    assert torch.equal(noise_BTKD, weights["eval_noise_KD"].expand(noise_BTKD.shape))
    assert not torch.equal(noise_BTKD, torch.zeros_like(noise_BTKD))


def test_that_noise_fixed_per_seed_has_a_spread_over_seeds(root: Path, tmp_path: Path) -> None:
    found = scored(evaluation(root, tmp_path / "per_seed", noise="fixed_per_seed"))
    assert found["per_noise_seed"]["0"] != found["per_noise_seed"]["1"]
    assert found["values"]["eval/mse_noise_sd"] > 0


def test_that_chunks_and_a_stride_of_videos_are_as_configured(root: Path, whole: RunDir, tmp_path: Path) -> None:
    other = scored(evaluation(root, tmp_path / "chunks", chunk=24, batch_size=64))["values"]
    assert other["eval/mse"] == pytest.approx(scores(whole)["values"]["eval/mse"], rel=1e-4)
    assert scored(evaluation(root, tmp_path / "every", every=3))["values"]["eval/videos"] == 2


def write_videos(folder: Path, frames_TSS: list[np.ndarray], truth_TSS: list[np.ndarray] | None) -> dict[str, Any]:
    """Both splits with one video, whose images say the slot of a pixel by their red; 12 pixels a side."""
    for split in ("train", "test"):
        for kind, frames in (("images", frames_TSS), ("masks", truth_TSS)):
            for number, ids_SS in enumerate(frames or []):
                ids = np.kron(ids_SS, np.ones((3, 3), int)).astype(np.uint8)
                shown = np.stack([ids, ids + 100, 0 * ids], axis=2) if kind == "images" else ids
                path = folder / split / kind / "video" / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(shown).save(path)
    return {"kind": "video_files", "path": str(folder), "resolution": 12, "video_frames": len(frames_TSS), "max_objects": 2}


TINY = MODEL | {"resolution": 12, "decoder": {"initial_resolution": 3, "channels": 4}}


def reads_slots() -> None:
    """In a fork: the model is an oracle that finds the slots in the red of the images."""

    def forward(self: VideoSlots, clips: Any, noise: Any, state: Any = None) -> VideoOutput:
        masks = torch.nn.functional.one_hot((clips[:, :, 0] * 255).round().long(), SLOTS).movedim(-1, 2).float()
        nothing = VideoState(slots_BKD=noise[:, 0], noise_BKD=noise[:, 0], frames=0)
        return VideoOutput(signed(clips), masks, noise, noise, masks[:, :, :, None].repeat(1, 1, 1, 3, 1, 1), nothing)

    VideoSlots.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("swapped", [False, True])
def test_that_a_swap_of_identities_counts_on_the_whole_path(tmp_path: Path, swapped: bool) -> None:
    slots, truth = [GT, SWAPPED if swapped else GT], [GT, GT]
    root = make(tmp_path, write_videos(tmp_path / "files", slots, truth), TINY)
    run_dir = evaluation(root, tmp_path / "evaluated", noise_seeds=[0], chunk=1)
    assert attempt(run_dir, hook=reads_slots) == [0], said(run_dir)
    found = {name.removeprefix("eval/"): value for name, value in scores(run_dir)["values"].items()}
    labels, ids = (np.kron(frames, np.ones((1, 3, 3), int)) for frames in (truth, slots))
    assert found["fg_ari"] == 1.0
    assert found["video_fg_ari"] == pytest.approx(adjusted_rand_score(labels[labels > 0], ids[labels > 0]))
    assert found["mse"] == 0.0
    one = {"tube_miou": 1.0, "tube_mbo": 1.0, "id_switches_per_100_frames": 0.0, "mota": 1.0, "motp": 1.0, "idf1": 1.0}
    two = {"tube_miou": 0.325, "tube_mbo": 0.325, "id_switches_per_100_frames": 50.0, "mota": 0.5, "motp": 1.0, "idf1": 0.5}
    assert {name: found[name] for name in one} == pytest.approx(two if swapped else one)


def test_that_videos_without_masks_are_scored_by_reconstruction_and_use_of_slots_alone(tmp_path: Path) -> None:
    root = make(tmp_path, write_videos(tmp_path / "files", [GT, GT.T, GT], None), TINY)
    run_dir = evaluation(root, tmp_path / "evaluated", noise_seeds=[0])
    found = scored(run_dir)
    assert names(found) == WITHOUT_MASKS | {"videos"}
    assert not any(np.isnan(value) for value in found["values"].values())
    with Image.open(run_dir.artifacts / "masks.gif") as film:
        assert film.n_frames == 3


def test_that_noise_of_videos_is_refused_for_other_models() -> None:
    video = TrainSpec.model_validate(train_config(model=MODEL, objective={"kind": "video"}, clip={"frames": 2}))
    images = TrainSpec.model_validate(train_config())
    for noise in ("fixed", "fixed_per_seed"):
        spec = EvaluateSpec.model_validate({"noise": noise})
        told = f"noise={noise} is for model.kind video_slots, not slot_autoencoder: leave it at fresh"
        assert told in check_needs(spec, {"prepare": None, "train": images})
        assert check_needs(spec, {"prepare": None, "train": video}) == []
