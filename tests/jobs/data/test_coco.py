"""From COCO's files to rows of the store: which images, and what the login node says of a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.data.coco import open_coco
from jobs.data.coco_annotations import read_annotations
from jobs.data.coco_files import annotation_file, coco_content_hash
from jobs.data.coco_generator import write_miniature
from jobs.data.coco_images import squares
from jobs.data.coco_masks import instance_masks, label_maps
from jobs.data.errors import DataError
from jobs.data.source import check_source, content_hash
from jobs.data_spec import CocoGeneratorSpec, CocoSpec

GENERATOR = CocoGeneratorSpec(seed=1, train_images=18, val_images=16, largest_side=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "coco"
    write_miniature(GENERATOR, path, should_stop=lambda: False)
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(made, tmp_path / "coco"))


def spec(folder: Path, **changes: Any) -> CocoSpec:
    return CocoSpec.model_validate({"path": str(folder), "resolution": 32, **changes})


def test_that_rows_are_the_images_by_id_and_their_masks(made: Path) -> None:
    data = spec(made, target_resolution=16)
    listed = read_annotations(annotation_file(made, "test"))
    with open_coco(data, made) as source:
        rows = source.rows("test", at=4, count=3)
        train = source.rows("train", at=0, count=18)
    assert set(rows) == {
        "test/images.npy", "test/targets.npy", "test/image_ids.npy", "test/official/instances.npy",
        "test/official/classes.npy", "test/gd/instances.npy", "test/gd/classes.npy", "test/annotated.npy",
    }  # fmt: skip
    assert set(train) == {"train/images.npy", "train/targets.npy", "train/image_ids.npy"}
    assert (np.diff(train["train/image_ids.npy"]) > 0).all()
    for place, image in enumerate(listed[4:7]):
        assert rows["test/image_ids.npy"][place] == image.id
        with Image.open(made / "val2017" / image.file_name) as opened:
            large, small = squares(opened.convert("RGB"), "official", (32, 16))
        assert np.array_equal(rows["test/images.npy"][place], large)
        assert np.array_equal(rows["test/targets.npy"][place], small)
        masks = instance_masks(image, Path("f"))
        for protocol in ("official", "gd"):
            expected = label_maps(protocol, masks, height=image.height, width=image.width)  # type: ignore[arg-type]  # a literal
            for kind, array in zip(("instances", "classes"), expected, strict=True):
                assert np.array_equal(rows[f"test/{protocol}/{kind}.npy"][place], array)


def test_that_threads_change_nothing(made: Path) -> None:
    with open_coco(spec(made), made) as one, open_coco(spec(made), made, workers=3) as three:
        for split in ("train", "test"):
            ours, theirs = (source.rows(split, at=0, count=16) for source in (one, three))  # type: ignore[arg-type]  # a literal
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_that_annotated_training_images_have_an_object_that_is_no_crowd_and_all_test_images_stay(made: Path) -> None:
    listed = read_annotations(annotation_file(made, "train"))
    expected = [image.id for image in listed if any(not one.crowd for one in image.instances)]
    assert 0 < len(expected) < len([image for image in listed if image.instances]) < len(listed)
    with open_coco(spec(made, train_images="annotated"), made) as source:
        assert [image.id for image in source.images["train"]] == expected
        assert len(source.images["test"]) == 16
    with open_coco(spec(made), made) as source:
        assert [image.id for image in source.images["train"]] == [image.id for image in listed]


def test_that_the_first_images_by_id_are_taken(made: Path) -> None:
    with open_coco(spec(made), made) as source, open_coco(spec(made, max_train=5, max_val=3), made) as fewer:
        for split, count in (("train", 5), ("test", 3)):
            assert fewer.images[split] == source.images[split][:count]  # type: ignore[index]  # a literal
    with open_coco(spec(made, max_train=3, train_images="annotated"), made) as source:
        assert len(source.images["train"]) == 3


def test_that_a_good_folder_is_described(made: Path) -> None:
    lines = check_source(spec(made))
    assert lines[0].startswith("18 training and 16 test images of 32 px, preprocessing official, masks by official, gd, from ")
    stored = 34 * (32 * 32 * 3 + 8) + 16 * 2 * (320**2 + 224**2)
    assert lines[1] == f"the store will take {stored / 1e6:.1f} MB"
    assert check_source(spec(made, train_images="annotated"))[0].startswith("at most 18 training and 16 test images")


def test_that_generated_data_are_described_without_a_folder() -> None:
    lines = check_source(CocoSpec(generator=GENERATOR, max_train=4))
    assert lines[0] == "4 training and 16 test images of 224 px, preprocessing official, masks by official, gd, generated"


def test_that_the_content_is_that_of_both_annotation_files(folder: Path) -> None:
    before = content_hash(folder)
    assert before == coco_content_hash(folder)
    assert len(before) == 64
    for split in ("train", "val"):
        path = folder / "annotations" / f"instances_{split}2017.json"
        text = path.read_text()
        path.write_text(text + " ")
        assert coco_content_hash(folder) != before
        path.write_text(text)
    assert coco_content_hash(folder) == before
    both = [folder / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")]
    one, other = (path.read_text() for path in both)
    both[0].write_text(other)
    both[1].write_text(one)
    assert coco_content_hash(folder) != before


@pytest.mark.parametrize(
    "missing",
    ["", "train2017", "val2017", "annotations", "annotations/instances_train2017.json", "annotations/instances_val2017.json"],
)
def test_that_what_is_missing_is_named_with_its_origin(missing: str, folder: Path) -> None:
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    asked: list[Callable[[], object]] = [lambda: check_source(spec(folder)), lambda: coco_content_hash(folder)]
    for ask in asked:
        with pytest.raises(DataError, match="no such f") as caught:
            ask()
        assert str(caught.value).startswith(str(path))
        assert "annotations/instances_{train,val}2017.json" in caught.value.expected
        assert "http://images.cocodataset.org/zips/train2017.zip" in caught.value.hint


def test_that_missing_images_are_found_before_work_begins(folder: Path) -> None:
    images = sorted((folder / "train2017").iterdir())
    images[3].unlink()
    images[5].unlink()
    with (
        pytest.raises(DataError, match=rf"{images[3].name}: image \d+: no such file \(and 1 more\)"),
        open_coco(spec(folder), folder),
    ):
        pass
    with pytest.raises(DataError, match="no such file"):
        check_source(spec(folder))
    with open_coco(spec(folder, max_train=3), folder) as source:
        assert len(source.images["train"]) == 3


def test_that_damaged_images_and_annotations_are_named(folder: Path) -> None:
    image = sorted((folder / "val2017").iterdir())[0]
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(DataError, match=rf"{image.name}: image \d+ cannot be decoded"):
        check_source(spec(folder))
    path = annotation_file(folder, "test")
    content = json.loads(path.read_text())
    broken = next(one for one in content["annotations"] if not one["iscrowd"])
    broken["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content))
    with (
        open_coco(spec(folder), folder) as source,
        pytest.raises(DataError, match=rf"instances_val2017.json: annotation {broken['id']} \(image {broken['image_id']}\)"),
    ):
        source.rows("test", at=1, count=15)


def test_that_a_list_without_images_is_told(folder: Path) -> None:
    path = annotation_file(folder, "train")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": []}))
    with pytest.raises(DataError, match="no image to prepare"), open_coco(spec(folder), folder):
        pass


def test_that_the_login_node_loads_no_image_library_before_it_needs_one() -> None:
    code = "import sys, jobs.data.source; print([n for n in ('torch', 'PIL.Image', 'pycocotools') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import sys, jobs.prepare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
