"""The COCO store on disk: opened only when its manifest and its files agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.data.coco_store import CocoManifest, CocoStore
from jobs.data.errors import DataError
from jobs.data.store import ImageStore, write_manifest
from jobs.data.writer import StoreWriter

MANIFEST = CocoManifest(
    counts={"train": 3, "test": 2},
    resolution=16,
    target_resolution=None,
    preprocessing="official",
    protocols={"gd": 8, "official": 12},
    source={"made": "by a test"},
)


def build(path: Path, manifest: CocoManifest) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    rows = {name: random.integers(0, 255, shape).astype(dtype) for name, (dtype, shape) in manifest.arrays().items()}
    with StoreWriter(path, manifest, may_create=True) as writer:
        writer.put(rows, at=0)
    write_manifest(path, manifest)
    return rows


def test_that_a_store_gives_back_its_arrays_as_read_only_maps(tmp_path: Path) -> None:
    rows = build(tmp_path, MANIFEST)
    store = CocoStore.open(tmp_path)
    store.verify()
    assert (store.count("train"), store.count("test")) == (3, 2)
    assert np.array_equal(store.images("train"), rows["train/images.npy"])
    assert np.array_equal(store.image_ids("test"), rows["test/image_ids.npy"])
    assert store.image_ids("test").dtype == np.int64
    assert np.array_equal(store.annotated(), rows["test/annotated.npy"])
    assert store.annotated().dtype == np.bool_
    assert store.targets("train") is None
    for name, array in zip(("instances", "classes"), store.masks("official"), strict=True):
        assert np.array_equal(array, rows[f"test/official/{name}.npy"])
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_that_a_second_copy_of_the_images_is_there_if_asked_for(tmp_path: Path) -> None:
    rows = build(tmp_path, MANIFEST.model_copy(update={"target_resolution": 4}))
    targets = CocoStore.open(tmp_path).targets("train")
    assert targets is not None
    assert np.array_equal(targets, rows["train/targets.npy"])


def test_that_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    build(tmp_path, MANIFEST)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert (content["kind"], content["store"]) == ("coco", "coco-2")
    assert content["counts"] == {"train": 3, "test": 2}
    assert content["protocols"] == {"gd": 8, "official": 12}
    assert content["preprocessing"] == "official"
    assert sorted(content["files"]) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy"))
    assert list(CocoStore.open(tmp_path).manifest.protocols) == ["gd", "official"]


def test_that_masks_that_are_not_stored_are_told(tmp_path: Path) -> None:
    build(tmp_path, MANIFEST)
    with pytest.raises(DataError, match="holds no masks of protocol covloss") as caught:
        CocoStore.open(tmp_path).masks("covloss")
    assert "gd, official" in caught.value.expected
    assert "data.protocols" in caught.value.hint


def test_that_damage_is_told(tmp_path: Path) -> None:
    build(tmp_path / "good", MANIFEST)
    changed = Path(shutil.copytree(tmp_path / "good", tmp_path / "changed"))
    with open(changed / "test" / "gd" / "classes.npy", "r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    with pytest.raises(DataError, match=r"test/gd/classes.npy: sha256 is"):
        CocoStore.open(changed).verify()
    (changed / "test" / "gd" / "classes.npy").unlink()
    with pytest.raises(DataError, match=r"test/gd/classes.npy: cannot be read"):
        CocoStore.open(changed)
    with pytest.raises(DataError, match="no image store here"):
        CocoStore.open(tmp_path)


def test_that_the_two_kinds_of_store_are_not_mixed_up(tmp_path: Path) -> None:
    build(tmp_path, MANIFEST)
    with pytest.raises(DataError, match="store Input should be 'images-1'"):
        ImageStore.open(tmp_path)
