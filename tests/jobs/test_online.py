"""Training with the ViT in the loop: the same tokens as from an `embed` run, one backbone per process, resumable."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import attempt, outcome_of, said

from jobs import attempt as attempts
from jobs import forks, weights
from jobs.compare import differences
from jobs.contract import RunDir, Status
from jobs.journal import read_journal

BACKBONE = {"name": "vit_tiny_patch16_224", "weights": "random", "block": 1, "tokens": 4, "feature_size": 192}
MODEL = {
    "kind": "dinosaur",
    "tokens": 4,
    "feature_size": 192,
    "num_slots": 3,
    "slot_size": 8,
    "decoder": {"hidden": 16, "kind": "patch_mlp"},
}
TRAIN = {
    "kind": "train", "steps": 4, "batch_size": 4, "flip": True, "model": MODEL, "validation": {"every_steps": 2, "images": 3},
    "optimizer": {"warmup_steps": 0, "learning_rate": 1e-3}, "runtime": {"log_every": 1, "checkpoint_every_steps": 2},
}  # fmt: skip


def done(root: Path, name: str, config: dict[str, Any], needs: dict[str, str], hook: Callable[[], None] | None = None) -> RunDir:
    run_dir = forks.make_run(root, name, config, needs)
    assert attempt(run_dir, hook=hook) == [0], said(run_dir)
    assert outcome_of(run_dir).status is Status.DONE
    return run_dir


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with prepared miniature images of 32 pixels, as run `data`."""
    root = tmp_path_factory.mktemp("online")
    generator = {"train_images": 6, "val_images": 3, "largest_side": 64}
    data = {"kind": "coco", "generator": generator, "resolution": 32, "protocols": ["gd"]}
    done(root, "data", {"kind": "prepare", "data": data}, {})
    return root


def series(run_dir: RunDir, name: str) -> list[float]:
    return [entry.metrics[name] for entry in read_journal(run_dir.journals).counting() if name in entry.metrics]


def test_that_online_tokens_train_as_those_of_an_embed_run_in_fp32(prepared: Path) -> None:
    embed = {"kind": "embed", "backbone": BACKBONE, "dtype": "fp32", "shard_images": 4}
    done(prepared, "tokens", embed, {"prepare": "data"})
    cached = done(prepared, "cached", TRAIN, {"prepare": "data", "embed": "tokens"})
    online = done(prepared, "online", TRAIN | {"online": BACKBONE}, {"prepare": "data"})
    for name in ("train/loss", "train/grad_norm", "valid/mse"):
        assert series(online, name) == pytest.approx(series(cached, name), rel=1e-4)
    assert len(series(online, "train/loss")) == 4


def test_that_a_backbone_is_loaded_once_though_validation_needs_it_too(prepared: Path, tmp_path: Path) -> None:
    def counted() -> None:
        load = weights.load_backbone

        def noted(*args: Any) -> Any:
            with open(tmp_path / "loads", "a") as file:
                file.write("x")
            return load(*args)

        weights.load_backbone = noted  # in this fork only

    once = done(prepared, "once", TRAIN | {"online": BACKBONE}, {"prepare": "data"}, counted)
    assert len(series(once, "valid/mse")) == 1
    assert (tmp_path / "loads").read_text() == "x"


def test_that_a_killed_run_with_online_tokens_ends_as_one_that_was_not(prepared: Path) -> None:
    config = TRAIN | {"online": BACKBONE}
    whole = done(prepared, "whole", config, {"prepare": "data"})

    def die() -> None:
        save = attempts.Run.checkpoint

        def dying(run: attempts.Run, step: int, write: Any, **named: Any) -> Any:
            save(run, step, write, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        attempts.Run.checkpoint = dying  # type: ignore[method-assign]  # in this fork only

    struck = forks.make_run(prepared, "struck", config, {"prepare": "data"})
    assert attempt(struck, hook=die) == [-signal.SIGKILL]
    assert attempt(struck) == [0], said(struck)
    assert differences(whole, struck) == []
