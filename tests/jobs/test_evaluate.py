"""Evaluation: a mean and a spread over noise seeds that depend on neither batch size nor interruptions; its pictures."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import attempt, outcome_of, said, train_config, train_run

from jobs import evaluate as job
from jobs.contract import Cause, ExitCode, RunDir, Status
from jobs.data.store import ImageStore
from jobs.forks import make_run
from jobs.journal import AT_WORK, SAVING, START, read_journal
from jobs.metrics import METRICS
from jobs.pieces import Progress, summarise
from jobs.protocols import label_set
from jobs.samples import ImageSamples
from jobs.scoring import Scored, score_images
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
    assert outcome.values["eval/images_without_objects"] == 0
    assert "eval/kept_slots" not in outcome.values
    assert not (run_dir.artifacts / "kept_slots.png").exists()
    assert "eval/mbo_class" not in outcome.values
    assert 0 < outcome.values["eval/nmi"] <= 1
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
    begun = [[entry.event for entry in one.entries][:3] for one in read_journal(struck.journals).attempts]
    assert begun == [[START, AT_WORK, SAVING]] * 2  # the first piece is no start-up
    assert scores(plain) == scores(struck)


@pytest.mark.parametrize("world_size", [2, 3])
def test_that_ranks_find_what_one_process_finds_and_count_no_image_twice(trained: Path, tmp_path: Path, world_size: int) -> None:
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    # two pieces per noise seed, of two batches and one: with three ranks some have nothing to do
    alone, together = (
        evaluation(trained, tmp_path / name, noise_seeds=[0, 1], batch_size=2, panel_images=4) for name in ("alone", "together")
    )

    def small() -> None:
        job.PIECE_IMAGES = 4

    assert attempt(alone, hook=small) == [0], said(alone)
    assert attempt(together, world_size=world_size, hook=small) == [0] * world_size, said(together)
    assert scores(together) == scores(alone)
    assert (together.artifacts / "masks.png").read_bytes() == (alone.artifacts / "masks.png").read_bytes()


def test_that_ranks_leave_together_between_pieces_and_go_on(trained: Path, tmp_path: Path) -> None:
    for name in ("plain", "struck"):
        (tmp_path / name).mkdir()
    plain, struck = (evaluation(trained, tmp_path / name, batch_size=2) for name in ("plain", "struck"))

    def hook() -> None:
        score = job.score_images

        def watched(*arguments: Any, **named: Any) -> Any:
            found = score(*arguments, **named)
            if (named["noise_seed"], named["first"]) == (1, 0):  # rank 0 alone is told
                os.kill(os.getpid(), signal.SIGTERM)
                while not _pending_seen():
                    pass
            return found

        job.score_images = watched

    assert attempt(plain) == [0]
    assert attempt(struck, world_size=2, hook=hook) == [ExitCode.STOPPED, 0], said(struck)
    assert outcome_of(struck).step == 2
    assert attempt(struck, world_size=2) == [0, 0], said(struck)
    assert scores(plain) == scores(struck)


def test_that_an_evaluation_that_hangs_ends_with_the_reason(trained: Path, tmp_path: Path) -> None:
    run_dir = evaluation(trained, tmp_path, runtime={"hang_timeout_s": 1.0})

    def hook() -> None:
        job.score_images = lambda *arguments, **named: time.sleep(60)

    assert attempt(run_dir, hook=hook) == [ExitCode.FAILED]
    assert outcome_of(run_dir).cause is Cause.HANG


def test_that_an_evaluation_struck_within_a_noise_seed_scores_the_same(trained: Path, tmp_path: Path) -> None:
    for name in ("plain", "struck"):
        (tmp_path / name).mkdir()
    plain, struck = (evaluation(trained, tmp_path / name, noise_seeds=[0, 1]) for name in ("plain", "struck"))
    calls: list[tuple[int, int]] = []

    def small() -> None:
        job.PIECE_IMAGES = 4  # in a fork: two pieces of 4 and 2 images

    def hook() -> None:
        small()
        score = job.score_images

        def watched(*arguments: Any, **named: Any) -> Any:
            found = score(*arguments, **named)
            calls.append((named["noise_seed"], named["first"]))
            if calls[-1] == (1, 0):
                os.kill(os.getpid(), signal.SIGTERM)
                while not _pending_seen():
                    pass
            return found

        job.score_images = watched

    assert attempt(plain, hook=small) == [0], said(plain)
    assert attempt(struck, hook=hook) == [ExitCode.STOPPED], said(struck)
    assert outcome_of(struck).step == 3
    assert attempt(struck, hook=small) == [0], said(struck)
    assert scores(plain) == scores(struck)
    assert outcome_of(struck).values["eval/images"] == 6


def test_that_progress_survives_a_checkpoint(tmp_path: Path) -> None:
    progress = Progress()
    for first_seed in (True, False):
        piece = {"fg_ari": np.array([0.5, math.nan, 1 / 3]), "kept_slots": np.array([2.0, 1.0, 2.0])}
        progress.add(Scored(per_image=piece, objects_N=np.array([3, 0, 3])), first_seed=first_seed)
    progress.finish(7)
    progress.add(Scored(per_image=piece, objects_N=np.array([3, 0, 3])), first_seed=False)
    progress.save(tmp_path)
    found = Progress.load(tmp_path)
    assert found.per_seed == {"7": {"fg_ari": pytest.approx(5 / 12), "kept_slots": pytest.approx(5 / 3)}}
    assert (found.without_objects, found.kept) == (1, {(3, 2): 6, (0, 1): 3})
    np.testing.assert_array_equal(found.pieces[0]["fg_ari"], piece["fg_ari"])


def _pending_seen() -> bool:
    """Whether the waiting thread took the SIGTERM."""
    from jobs import preemption

    return preemption.install().wait(0.1)


def model_and_store(data: Path) -> tuple[Any, ImageStore]:
    spec = TrainSpec.model_validate(train_config())
    return build_state(spec, torch.device("cpu")).model, ImageStore.open(data / "data" / "output" / "store")


def test_that_a_score_does_not_depend_on_the_batch_size(data: Path) -> None:
    model, store = model_and_store(data)
    images = store.split("test").images
    found = [
        score_images(
            model,
            ImageSamples(images_NHWC=images),
            label_set(store, "own"),
            noise_seed=3,
            batch_size=size,
            device=torch.device("cpu"),
            pictures_NHWC=images,
            keep=5,
        )
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
    assert summarise({"0": {"a": 1.0}}) == {"eval/a": 1.0}, "one draw says nothing about a spread"
