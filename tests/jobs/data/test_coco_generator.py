"""The miniature COCO: the original's layout, every peculiarity in it, the same whenever and however it is made."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]  # ships no type information

from jobs.data.coco_annotations import read_annotations
from jobs.data.coco_files import annotation_file, check_layout
from jobs.data.coco_generator import draw, write_miniature
from jobs.data.coco_masks import instance_masks
from jobs.data_spec import CocoGeneratorSpec

SPEC = CocoGeneratorSpec(seed=3, train_images=20, val_images=16, largest_side=96)


def tree(path: Path) -> dict[str, str]:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "coco"
    assert write_miniature(SPEC, path, should_stop=lambda: False)
    return path


def content(folder: Path, split: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "annotations" / f"instances_{split}2017.json").read_text())
    return loaded


def test_that_the_layout_is_the_originals(folder: Path) -> None:
    check_layout(folder)
    assert len(list((folder / "train2017").glob("*.jpg"))) == 20
    assert all(len(path.stem) == 12 and path.stem.isdigit() for path in folder.glob("*2017/*"))
    for split in ("train", "val"):
        found = content(folder, split)
        assert list(found) == ["info", "licenses", "images", "annotations", "categories"]
        assert {"id", "file_name", "height", "width", "coco_url"} <= set(found["images"][0])
        keys = {"segmentation", "area", "iscrowd", "image_id", "bbox", "category_id", "id"}
        assert all(set(annotation) == keys for annotation in found["annotations"])
        ids = [image["id"] for image in found["images"]]
        assert ids != sorted(ids)
        assert len({*ids}) == len(ids)
    assert not {image["id"] for image in content(folder, "train")["images"]} & {
        image["id"] for image in content(folder, "val")["images"]
    }


def test_that_every_peculiarity_of_the_real_files_is_there(folder: Path) -> None:
    found = content(folder, "val")
    crowds = [one for one in found["annotations"] if one["iscrowd"]]
    objects = [one for one in found["annotations"] if not one["iscrowd"]]
    assert all(isinstance(one["segmentation"]["counts"], list) for one in crowds)
    assert any(len(one["segmentation"]) == 2 for one in objects)
    images = read_annotations(annotation_file(folder, "test"))
    assert any(not image.instances for image in images)
    assert any(image.instances and all(one.crowd for one in image.instances) for image in images)
    assert any(len({one.category for one in image.instances}) < len(image.instances) for image in images)
    masks = [instance_masks(image, Path("f")) for image in images]
    assert any(sum(one.mask_HW.astype(int) for one in several).max() > 1 for several in masks if several)
    assert len({one.category for several in masks for one in several}) >= 5
    with_ids = {category["id"] for category in found["categories"]}
    assert with_ids != set(range(1, len(with_ids) + 1))
    assert len({(image["width"], image["height"]) for image in found["images"]}) >= 5
    modes = {Image.open(path).mode for path in (folder / "val2017").iterdir()}
    assert modes == {"RGB", "L"}


def test_that_pycocotools_reads_it_and_agrees_on_areas_and_boxes(folder: Path) -> None:
    coco = COCO(annotation_file(folder, "test"))
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert abs(int(mask.sum()) - annotation["area"]) <= 0.15 * annotation["area"] + 20
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (
            np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - [x, y, x + width, y + height]).max() <= 2.5
        )


def test_that_objects_stand_out_from_the_background(folder: Path) -> None:
    for image in read_annotations(annotation_file(folder, "test")):
        with Image.open(folder / "val2017" / image.file_name) as opened:
            if opened.mode == "L":
                continue
            pixels = np.asarray(opened, dtype=float)
        saturation = pixels.max(axis=2) - pixels.min(axis=2)
        masks = instance_masks(image, Path("f"))
        for one in masks:
            assert saturation[one.mask_HW].mean() > 100
        free = ~np.any([one.mask_HW for one in masks], axis=0) if masks else np.ones(saturation.shape, dtype=bool)
        assert np.median(saturation[free]) < 30


def test_that_an_image_depends_on_seed_split_and_index_alone(folder: Path, tmp_path: Path) -> None:
    picture = draw(SPEC, "train", 6)
    assert (folder / "train2017" / picture.listed["file_name"]).read_bytes() == picture.jpeg
    assert draw(SPEC.model_copy(update={"train_images": 7, "val_images": 1}), "train", 6) == picture
    others = [draw(SPEC, "test", 6), draw(SPEC, "train", 7), draw(SPEC.model_copy(update={"seed": 4}), "train", 6)]
    assert len({one.jpeg for one in (picture, *others)}) == 4


def test_that_an_interrupted_miniature_is_completed_to_the_same(folder: Path, tmp_path: Path) -> None:
    stops = 0
    looks = itertools.count(1)
    while not write_miniature(SPEC, tmp_path, should_stop=lambda: next(looks) % 9 == 0):
        stops += 1
        assert not annotation_file(tmp_path, "test").exists()
        next(looks)
        if stops > 3:
            break
    assert stops > 3
    assert write_miniature(SPEC, tmp_path, should_stop=lambda: False)
    assert tree(tmp_path) == tree(folder)
