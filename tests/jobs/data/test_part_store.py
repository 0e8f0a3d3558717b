"""The part store on disk: what goes in as records comes out as maps, and it opens only when manifest and files agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.data.errors import DataError
from jobs.data.part_store import PartManifest, PartRecord, PartStore, part_rows
from jobs.data.store import SPLITS, SplitName, write_manifest
from jobs.data.writer import StoreWriter

MANIFEST = PartManifest(
    counts={"train": 5, "test": 2},
    resolution=12,
    part_names=("head", "torso"),
    keypoint_names=("nose", "tail", "paw"),
    has_parts=True,
    has_foreground=True,
    source={"made": "by a test"},
)


def records(manifest: PartManifest, split: SplitName) -> list[PartRecord]:
    random = np.random.default_rng(len(split))
    side, keypoints = manifest.resolution, len(manifest.keypoint_names)
    return [
        PartRecord(
            image_SS3=random.integers(0, 256, (side, side, 3), np.uint8),
            parts_SS=random.choice(np.array([0, 1, 2, 255], np.uint8), (side, side)),
            foreground_SS=random.integers(0, 2, (side, side), np.uint8),
            keypoints_Q2=random.uniform(-1, side, (keypoints, 2)).astype(np.float32),
            visible_Q=random.integers(0, 2, keypoints, np.uint8),
            scale_2=random.uniform(1, side, 2).astype(np.float32),
        )
        for _ in range(manifest.counts[split])
    ]


def build(path: Path, manifest: PartManifest) -> None:
    with StoreWriter(path, manifest, may_create=True) as writer:
        for split in SPLITS:
            rows = records(manifest, split)
            writer.put(part_rows(split, rows[1:]), at=1)
            writer.put(part_rows(split, rows[:1]), at=0)
    write_manifest(path, manifest)


@pytest.mark.parametrize("keypoint_names", [MANIFEST.keypoint_names, ()])
def test_that_a_store_gives_back_its_records_as_read_only_maps(keypoint_names: tuple[str, ...], tmp_path: Path) -> None:
    manifest = MANIFEST.model_copy(update={"keypoint_names": keypoint_names})
    build(tmp_path, manifest)
    store = PartStore.open(tmp_path)
    store.verify()
    for split in SPLITS:
        found, expected = store.split(split), records(manifest, split)
        assert len(found) == len(expected)
        for row, record in enumerate(expected):
            assert np.array_equal(found.images[row], record.image_SS3)
            assert np.array_equal(found.parts[row], record.parts_SS)
            assert np.array_equal(found.foreground[row], record.foreground_SS)
            assert np.array_equal(found.keypoints[row], record.keypoints_Q2)
            assert np.array_equal(found.visible[row], record.visible_Q)
            assert np.array_equal(found.scale[row], record.scale_2)
        with pytest.raises(ValueError, match="read-only"):
            found.images[0] = 0


def test_that_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    build(tmp_path, MANIFEST)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["store"] == "parts-1"
    assert content["part_names"] == ["head", "torso"]
    assert sorted(content["files"]) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy"))
    assert PartStore.open(tmp_path).manifest.with_files({}) == MANIFEST


def test_that_a_manifest_from_before_fits_on_all_training_images() -> None:
    written = MANIFEST.model_dump(mode="json")
    del written["fit_images"]
    assert PartManifest.model_validate(written) == MANIFEST
    assert MANIFEST.fit_images is None


def test_that_damage_is_told(tmp_path: Path) -> None:
    build(tmp_path, MANIFEST)
    parts = tmp_path / "test" / "parts.npy"
    content = bytearray(parts.read_bytes())
    content[-1] ^= 1
    parts.write_bytes(content)
    with pytest.raises(DataError, match=r"test/parts.npy: sha256 is"):
        PartStore.open(tmp_path).verify()
    parts.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"test/parts.npy: \d+ bytes long"):
        PartStore.open(tmp_path)
    parts.unlink()
    with pytest.raises(DataError, match=r"test/parts.npy: cannot be read"):
        PartStore.open(tmp_path)


def test_that_a_manifest_of_another_store_is_refused(tmp_path: Path) -> None:
    build(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("parts-1", "parts-9"))
    with pytest.raises(DataError, match="not a manifest of an image store"):
        PartStore.open(tmp_path)
