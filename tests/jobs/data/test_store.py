"""The image store on disk: opened only when its manifest and its files agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from jobs.data.clip_store import ClipManifest
from jobs.data.coco_store import CocoManifest
from jobs.data.errors import DataError
from jobs.data.feature_manifest import FeatureManifest
from jobs.data.multi_dsprites import FACTORS, Record, label_map
from jobs.data.part_store import PartManifest
from jobs.data.store import ImageStore, Manifest, write_manifest
from jobs.data.video_store import VideoManifest
from jobs.data.writer import StoreWriter


@pytest.fixture(scope="module")
def built(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    manifest = Manifest(resolution=64, entities=5, counts={"train": 20, "test": 4}, source={"made": "by a test"})
    with StoreWriter(path, manifest, may_create=True) as writer:
        writer.write("test", at=0, records=records[20:24])
        writer.write("train", at=10, records=records[10:20])
        writer.write("train", at=0, records=records[:10])
    write_manifest(path, manifest)
    return path


@pytest.fixture
def store_path(built: Path, tmp_path: Path) -> Path:
    """A store to damage."""
    return Path(shutil.copytree(built, tmp_path / "store"))


def test_that_a_store_holds_the_records(built: Path, records: list[Record]) -> None:
    store = ImageStore.open(built)
    store.verify()
    for name, first in (("train", 0), ("test", 20)):
        split = store.split(name)  # type: ignore[arg-type]  # a literal, from a tuple
        for place in range(len(split.images)):
            record = records[first + place]
            assert np.array_equal(split.images[place], record.image_HW3)
            assert np.array_equal(split.labels[place], label_map(record))
            assert np.array_equal(split.factors[place], record.factors_E9)


def test_that_splits_are_read_only_memory_maps_of_plain_npy_files(built: Path) -> None:
    split = ImageStore.open(built).split("train")
    for array in (split.images, split.labels, split.factors):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert np.array_equal(np.load(built / "train" / "labels.npy"), split.labels)


def test_that_the_manifest_says_what_is_there(built: Path) -> None:
    content = json.loads((built / "manifest.json").read_text())
    assert content["store"] == "images-1"
    assert content["counts"] == {"train": 20, "test": 4}
    assert content["factors"] == list(FACTORS)
    assert content["files"]["train/images.npy"]["bytes"] == 128 + 20 * 64 * 64 * 3
    assert sorted(content["files"]) == sorted(str(path.relative_to(built)) for path in built.glob("*/*.npy"))


def test_that_a_directory_without_manifest_is_no_store(store_path: Path) -> None:
    (store_path / "manifest.json").unlink()
    with pytest.raises(DataError, match="no image store here") as caught:
        ImageStore.open(store_path)
    assert caught.value.place.file == str(store_path / "manifest.json")
    assert "prepare" in caught.value.expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a manifest"),
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        ("{}", "not a manifest of an image store: resolution Field required"),
        ('{"store": "images-2"}', "store Input should be 'images-1'"),
        ('{"resolution": 64, "entities": 5, "counts": {"train": 1, "test": 1}, "source": {}}', r"lists the files \[\]"),
        ('{"resolution": 64, "entities": 5, "counts": {"train": 1}, "source": {}}', "counts .*no count of test"),
        ('{"resolution": 64, "entities": 5, "counts": {"train": -1, "test": 1}, "source": {}}', "greater than or equal to 0"),
    ],
)
def test_that_a_foreign_manifest_is_refused(store_path: Path, text: str, message: str) -> None:
    (store_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        ImageStore.open(store_path)


def test_that_a_manifest_of_bytes_is_refused(store_path: Path) -> None:
    (store_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not a text file"):
        ImageStore.open(store_path)


@pytest.mark.parametrize("manifest", [Manifest, ClipManifest, CocoManifest, FeatureManifest, PartManifest, VideoManifest])
def test_that_every_manifest_counts_every_split(manifest: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as caught:
        manifest.model_validate({"counts": {"train": 3}})
    assert [error["msg"] for error in caught.value.errors() if error["loc"] == ("counts",)] == ["Value error, no count of test"]


def test_that_a_missing_file_is_named(store_path: Path) -> None:
    (store_path / "test" / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"test/labels.npy: cannot be read") as caught:
        ImageStore.open(store_path)
    assert "prepare" in caught.value.hint


def test_that_a_file_of_another_size_is_named(store_path: Path) -> None:
    with open(store_path / "train" / "images.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"train/images.npy: 1000 bytes long"):
        ImageStore.open(store_path)


def test_that_verify_finds_one_changed_byte(store_path: Path) -> None:
    with open(store_path / "train" / "labels.npy", "r+b") as file:
        file.seek(5000)
        file.write(b"\x09")
    store = ImageStore.open(store_path)
    with pytest.raises(DataError, match=r"train/labels.npy: sha256 is"):
        store.verify()


def test_that_an_array_of_another_shape_is_refused(store_path: Path) -> None:
    images = np.load(store_path / "test" / "images.npy")
    np.save(store_path / "test" / "images.npy", images.reshape(4, 64, 32, 6))
    with pytest.raises(DataError, match=r"holds uint8 \[4, 64, 32, 6\]"):
        ImageStore.open(store_path).split("test")


def test_that_a_file_that_is_no_array_is_refused(store_path: Path) -> None:
    size = (store_path / "test" / "images.npy").stat().st_size
    (store_path / "test" / "images.npy").write_bytes(bytes(size))
    with pytest.raises(DataError, match=r"test/images.npy: not a .npy array"):
        ImageStore.open(store_path).split("test")
