"""The feature store: what was written is what is read, by any mixture of images, and damage is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.data.errors import DataError
from jobs.data.feature_manifest import STORED, DTypeName, FeatureManifest, backbone_differences, backbone_facts
from jobs.data.feature_writer import FeatureWriter, pooled_error_floor
from jobs.data.features import FeatureStore
from jobs.data.store import SplitName
from models.spec import BackboneSpec

BACKBONE = BackboneSpec(name="vit_tiny_patch16_224", weights="random", block=2, tokens=3, feature_size=4)
COUNTS: dict[SplitName, int] = {"train": 11, "test": 5}


def manifest(dtype: DTypeName = "bf16", *, flips: bool = True) -> FeatureManifest:
    return FeatureManifest(
        prepare="data", backbone=backbone_facts(BACKBONE), weights="w", resolution=32, dtype=dtype, tokens=3, feature_size=4,
        counts=COUNTS, flips=flips, shard_images=4,
    )  # fmt: skip


def value(part: str, image: int) -> np.ndarray:
    """Tokens [3, 4] that tell part and image apart, exact in every dtype."""
    return np.full((3, 4), {"train": 0, "train_mirrored": 16, "test": 32}[part] + image, dtype=np.float32) + np.eye(
        3, 4, dtype=np.float32
    )


def make(folder: Path, content: FeatureManifest, *, leave_out: str = "") -> Path:
    """A store with those values; without `leave_out` shards nothing is renamed."""
    writer = FeatureWriter(folder / "work", content.layout, made_with="x")
    for shard in content.layout.shards():
        rows = torch.from_numpy(np.stack([value(shard.part, shard.first + at) for at in range(shard.count)]))
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[content.dtype]
        kept = rows.to(dtype)
        stored = (kept.view(torch.uint16) if content.dtype == "bf16" else kept).numpy().astype(STORED[content.dtype])
        if shard.name != leave_out:
            assert writer.commit(shard, stored, squared_error=float(shard.count), may_commit=lambda: True)
    if not leave_out:
        writer.finish(content, folder / "features")
    return folder / "features"


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_that_any_mixture_of_images_is_read_back(dtype: DTypeName, flips: bool, tmp_path: Path) -> None:
    store = FeatureStore.open(make(tmp_path, manifest(dtype, flips=flips)))
    features = store.split("train")
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, 11, size=7)
        mirrored = rng.integers(0, 2, size=7).astype(bool) & flips
        tokens = features.read(indices, mirrored)
        assert tokens.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
        parts = ["train_mirrored" if flag else "train" for flag in mirrored]
        assert np.array_equal(tokens.float().numpy(), np.stack([value(*one) for one in zip(parts, indices, strict=True)]))


def test_that_the_test_split_is_read_back(tmp_path: Path) -> None:
    features = FeatureStore.open(make(tmp_path, manifest())).split("test")
    assert features.count == 5
    tokens = features.read(np.array([4, 0]), np.zeros(2, dtype=bool))
    assert np.array_equal(tokens.float().numpy(), np.stack([value("test", 4), value("test", 0)]))


def test_that_no_images_are_no_tokens(tmp_path: Path) -> None:
    tokens = (
        FeatureStore.open(make(tmp_path, manifest())).split("test").read(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    )
    assert tokens.shape == (0, 3, 4)


def test_that_a_fork_reads_on_its_own(tmp_path: Path) -> None:
    features = FeatureStore.open(make(tmp_path, manifest())).split("train")
    features.read(np.array([0]), np.zeros(1, dtype=bool))  # one shard is mapped before the fork
    pid = os.fork()
    if pid == 0:
        tokens = features.read(np.arange(11), np.zeros(11, dtype=bool))
        os._exit(0 if np.array_equal(tokens.float().numpy(), np.stack([value("train", image) for image in range(11)])) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(features._mapped) == 1


@pytest.mark.parametrize(("split", "flips"), [("train", False), ("test", True)])
def test_that_mirrored_tokens_that_are_not_stored_are_refused(split: SplitName, flips: bool, tmp_path: Path) -> None:
    features = FeatureStore.open(make(tmp_path, manifest(flips=flips))).split(split)
    with pytest.raises(DataError, match=f"no tokens of mirrored {split} images") as caught:
        features.read(np.array([0, 1]), np.array([False, True]))
    assert "flips=true" in caught.value.hint


@pytest.mark.parametrize("index", [-1, 11])
def test_that_an_image_outside_the_split_is_refused(index: int, tmp_path: Path) -> None:
    features = FeatureStore.open(make(tmp_path, manifest())).split("train")
    with pytest.raises(IndexError, match="of 11"):
        features.read(np.array([index, 3]), np.zeros(2, dtype=bool))


def test_that_a_store_is_absent_until_its_last_shard_is_there(tmp_path: Path) -> None:
    path = make(tmp_path, manifest(), leave_out="train/00002.npy")
    with pytest.raises(DataError, match="no feature store here") as caught:
        FeatureStore.open(path)
    assert "orch status" in caught.value.hint


def test_that_a_missing_shard_keeps_the_store_from_being_made(tmp_path: Path) -> None:
    make(tmp_path, manifest(), leave_out="train/00002.npy")
    writer = FeatureWriter(tmp_path / "work", manifest().layout, made_with="x")
    with pytest.raises(DataError, match=r"train/00002.npy: is missing"):
        writer.finish(manifest(), tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_that_a_lost_or_cut_shard_is_told_when_the_store_is_opened(tmp_path: Path) -> None:
    path = make(tmp_path, manifest())
    content = (path / "train/00001.npy").read_bytes()
    (path / "train/00001.npy").write_bytes(content[:-5])
    with pytest.raises(DataError, match=rf"train/00001.npy: {len(content) - 5} bytes long"):
        FeatureStore.open(path)
    (path / "train/00001.npy").unlink()
    with pytest.raises(DataError, match=r"train/00001.npy: cannot be read"):
        FeatureStore.open(path)


def test_that_a_changed_byte_is_found_by_verify(tmp_path: Path) -> None:
    path = make(tmp_path, manifest())
    FeatureStore.open(path).verify()
    content = bytearray((path / "test/00000.npy").read_bytes())
    content[-3] ^= 1
    (path / "test/00000.npy").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"test/00000.npy: sha256 is"):
        FeatureStore.open(path).verify()


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.uint16), np.zeros((4, 3, 4), np.int16), np.zeros((4, 3, 4), np.uint16, order="F")]
)
def test_that_a_shard_of_another_layout_is_told_when_it_is_read(array: np.ndarray, tmp_path: Path) -> None:
    path = make(tmp_path, manifest())
    np.save(path / "train/00000.npy", array)  # of the same size
    features = FeatureStore.open(path).split("train")
    with pytest.raises(DataError, match=r"train/00000.npy: holds .*\n.*expected: uint16 \[4, 3, 4\]"):
        features.read(np.array([1]), np.zeros(1, dtype=bool))


def test_that_a_manifest_of_another_layout_is_told(tmp_path: Path) -> None:
    path = make(tmp_path, manifest())
    content = json.loads((path / "manifest.json").read_text())
    for key, broken in (("store", "images-1"), ("counts", {"train": 13, "test": 5})):
        (path / "manifest.json").write_text(json.dumps(content | {key: broken}))
        with pytest.raises(
            DataError, match=r"manifest.json: (not a manifest of a feature store: store|lists 8 shards; .*train/00003.npy)"
        ):
            FeatureStore.open(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"name": "vit_small_patch16_224"},
            "backbone.name is 'vit_small_patch16_224', the store's tokens were made with 'vit_tiny",
        ),
        ({"block": 3}, "backbone.block is 3, the store's tokens were made with 2"),
        ({"normalise": "none"}, "backbone.normalise is 'none'"),
        (
            {"weights": "file", "path": "/w.pth", "content": "ab"},
            "backbone.content is 'ab', the store's tokens were made with None",
        ),
    ],
)
def test_that_a_store_of_another_backbone_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    store = FeatureStore.open(make(tmp_path, manifest()))
    store.check_backbone(BACKBONE, resolution=32)
    with pytest.raises(DataError) as caught:
        store.check_backbone(BACKBONE.model_copy(update=changes), resolution=224)
    assert said in str(caught.value)
    assert "images have 224 pixels, the store's tokens were made from 32" in str(caught.value)


def test_that_the_place_of_the_weights_is_no_difference() -> None:
    made = BACKBONE.model_copy(update={"weights": "file", "path": "/here.pth", "content": "ab"})
    content = manifest().model_copy(update={"backbone": backbone_facts(made)})
    assert backbone_differences(content, made.model_copy(update={"path": "/there.pth"})) == []


def test_that_error_floors_are_means_over_values(tmp_path: Path) -> None:
    store = FeatureStore.open(make(tmp_path, manifest()))
    assert store.manifest.error_floor == {part: pytest.approx(1 / 12) for part in ("train", "train_mirrored", "test")}
    skewed = store.manifest.model_copy(update={"error_floor": {"train": 1.0, "train_mirrored": 3.0, "test": 9.0}})
    assert pooled_error_floor(skewed) == pytest.approx(2.0)


def test_that_a_shard_of_other_tokens_counts_as_absent(tmp_path: Path) -> None:
    make(tmp_path, manifest(), leave_out="train/00002.npy")
    first = next(manifest().layout.shards())
    assert FeatureWriter(tmp_path / "work", manifest().layout, made_with="x").is_intact(first)
    assert not FeatureWriter(tmp_path / "work", manifest().layout, made_with="y").is_intact(first)


def test_that_a_superseded_writer_commits_nothing(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "work", manifest().layout, made_with="x")
    first = next(manifest().layout.shards())
    rows = np.zeros((4, 3, 4), dtype=np.uint16)
    assert not writer.commit(first, rows, squared_error=0.0, may_commit=lambda: False)
    assert writer.facts(first) is None
    assert list((tmp_path / "work" / "new").iterdir()) == []
