"""COCO's annotation files: what is read, and every wrong entry named with file and id."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.data.coco_annotations import read_annotations, read_images
from jobs.data.errors import DataError

SQUARE = [[0, 0, 5, 0, 5, 5]]
GOOD: dict[str, Any] = {
    "info": {"note": 'a "quoted" { brace'},
    "images": [
        {"id": 9, "file_name": "9.jpg", "height": 10, "width": 12},
        {"id": 4, "file_name": "4.jpg", "height": 8, "width": 8},
    ],
    "annotations": [
        {"id": 31, "image_id": 9, "category_id": 18, "iscrowd": 0, "segmentation": SQUARE},
        {"id": 7, "image_id": 9, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [120], "size": [10, 12]}},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "instances_val2017.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_that_images_and_annotations_come_by_ascending_id(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    first, second = read_annotations(path)
    assert (first.id, first.file_name, first.instances) == (4, "4.jpg", ())
    assert (second.id, second.height, second.width) == (9, 10, 12)
    assert [(one.id, one.category, one.crowd) for one in second.instances] == [(7, 1, True), (31, 18, False)]
    assert [image.id for image in read_images(path)] == [4, 9]


def test_that_the_list_of_images_is_read_without_what_follows(tmp_path: Path) -> None:
    text = json.dumps(GOOD, indent=1)
    path = written(tmp_path, text[: text.index('"annotations"') + 30])
    assert [image.id for image in read_images(path)] == [4, 9]
    with pytest.raises(DataError, match="not JSON"):
        read_annotations(path)


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    change(content)
    return content


ANNOTATION: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c["annotations"][0].update(image_id=5), "annotation 31 is of image 5, which is not listed"),
    (lambda c: c["annotations"][0].update(id=7), "annotation id 7 occurs twice"),
    (lambda c: c["annotations"][0].pop("image_id"), "annotation 31 lacks the key `image_id`"),
    (lambda c: c["annotations"][0].pop("iscrowd"), "annotation 31 lacks the key `iscrowd`"),
    (lambda c: c["annotations"][0].pop("segmentation"), "annotation 31 lacks the key `segmentation`"),
    (lambda c: c["annotations"][0].pop("id"), "annotation lacks the key `id`"),
    (lambda c: c["annotations"][0].update(id="31"), "`id` of annotation is '31'"),
    (lambda c: c["annotations"][0].update(category_id=2), "annotation 31: category_id 2"),
    (lambda c: c["annotations"][0].update(iscrowd=2), "annotation 31: iscrowd 2"),
    (lambda c: (c["annotations"][0].update(category_id=255), c["categories"].append({"id": 255})), "category_id 255"),
    (lambda c: c.pop("annotations"), "lacks the key `annotations`"),
    (lambda c: c.pop("categories"), "lacks the key `categories`"),
    (lambda c: c.update(annotations=[1]), "`annotations` is not a list of objects"),
]
IMAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c["images"][0].update(id=4), "image id 4 occurs twice"),
    (lambda c: c["images"][0].pop("id"), "image lacks the key `id`"),
    (lambda c: c["images"][0].pop("file_name"), "image 9: file_name None"),
    (lambda c: c["images"][0].update(file_name="../9.jpg"), "image 9: file_name '../9.jpg'"),
    (lambda c: c["images"][0].pop("height"), "image 9 lacks the key `height`"),
    (lambda c: c["images"][0].update(width=0), "image 9 is 0 x 10 pixels"),
    (lambda c: c.update(images={}), "`images` is not a list of objects"),
    (lambda c: c.pop("images"), "lacks the key `images`"),
]


@pytest.mark.parametrize(("change", "message"), ANNOTATION + IMAGE)
def test_that_a_wrong_entry_is_named(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, changed(change))
    with pytest.raises(DataError, match=message) as caught:
        read_annotations(path)
    assert caught.value.place.file == str(path)
    assert caught.value.expected
    assert caught.value.hint


@pytest.mark.parametrize(("change", "message"), IMAGE)
def test_that_a_wrong_image_is_named_without_reading_annotations(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_images(written(tmp_path, changed(change)))


@pytest.mark.parametrize("text", ["", "<html>", "{", '{"images": [', '{"images" 1}', '{"info": {}'])
def test_that_a_file_that_is_not_json_is_told(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    for read in (read_images, read_annotations):
        with pytest.raises(DataError, match=r"instances_val2017.json: not JSON \(line 1, column") as caught:
            read(path)
        assert "annotations_trainval2017.zip" in caught.value.hint


def test_that_a_list_bytes_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a JSON list"):
        read_annotations(written(tmp_path, "[]"))
    path = tmp_path / "bytes.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not a text file"):
        read_images(path)
    with pytest.raises(DataError, match="no such file"):
        read_images(tmp_path / "absent.json")
