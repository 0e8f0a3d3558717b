"""Owns the reading of COCO's instance annotations: every entry checked, and named when it is wrong; imports no pixels.

An annotation file is one JSON object with `images`, `annotations` and `categories` (cocodataset.org, format data).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.data.coco_files import DOWNLOAD_HINT, read_text
from jobs.data.errors import DataError, Place

MAX_LABEL = 254
"""Largest instance number and category id that fits beside 255, void."""
SPACE = " \t\r\n"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One annotation of an image."""

    id: int
    category: int
    crowd: bool
    segmentation: object
    """As it stands in the file: a list of polygons, or a dictionary with run lengths. Not checked yet."""


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One listed image."""

    id: int
    file_name: str
    height: int
    width: int
    instances: tuple[Instance, ...] = ()
    """By ascending id; empty where annotations were not asked for."""


def read_images(path: Path) -> list[CocoImage]:
    """Return the listed images by ascending id, without annotations, parsing no further than the list.

    (COCO's own files have the list before the annotations: 35 of 450 MB are parsed.)

    Raises:
        DataError: not JSON up to there, keys that lack, duplicate ids.
    """
    text = read_text(path)
    try:
        return _images(path, {"images": _first_value(text, "images", path)})
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error


def read_annotations(path: Path) -> list[CocoImage]:
    """Return the listed images by ascending id, with their annotations by ascending id.

    Raises:
        DataError: not JSON, keys that lack, duplicate ids, an annotation of an image that is not listed, or of a category
            that is not. Segmentations are not looked at.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise _not_json(path, error) from error
    if not isinstance(content, dict):
        raise _wrong(path, f"a JSON {type(content).__name__}", expected="an object with images, annotations, categories")
    images = _images(path, content)
    categories = {_integer(path, entry, "id", "category") for entry in _entries(path, content, "categories")}
    instances: dict[int, list[Instance]] = {image.id: [] for image in images}
    seen: set[int] = set()
    for entry in _entries(path, content, "annotations"):
        instance, image = _instance(path, entry, categories)
        if image not in instances:
            raise _wrong(
                path,
                f"annotation {instance.id} is of image {image}, which is not listed",
                expected="an id of the file's `images`",
                hint="are the annotations and the list of images of the same split?",
            )
        if instance.id in seen:
            raise _wrong(path, f"annotation id {instance.id} occurs twice", expected="unique ids")
        seen.add(instance.id)
        instances[image].append(instance)
    return [replace(image, instances=tuple(sorted(instances[image.id], key=lambda one: one.id))) for image in images]


def _instance(path: Path, entry: Mapping[str, Any], categories: set[int]) -> tuple[Instance, int]:
    number = _integer(path, entry, "id", "annotation")
    name = f"annotation {number}"
    category, crowd = _integer(path, entry, "category_id", name), _integer(path, entry, "iscrowd", name)
    if category not in categories or not 1 <= category <= MAX_LABEL:
        raise _wrong(path, f"{name}: category_id {category}", expected=f"a listed category between 1 and {MAX_LABEL}")
    if crowd not in (0, 1):
        raise _wrong(path, f"{name}: iscrowd {crowd}", expected="0 or 1")
    if "segmentation" not in entry:
        raise _wrong(path, f"{name} lacks the key `segmentation`", expected="polygons or run lengths")
    instance = Instance(id=number, category=category, crowd=bool(crowd), segmentation=entry["segmentation"])
    return instance, _integer(path, entry, "image_id", name)


def _images(path: Path, content: Mapping[str, Any]) -> list[CocoImage]:
    images: dict[int, CocoImage] = {}
    for entry in _entries(path, content, "images"):
        number = _integer(path, entry, "id", "image")
        name = f"image {number}"
        if number in images:
            raise _wrong(path, f"image id {number} occurs twice", expected="unique ids")
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not file_name or Path(file_name).name != file_name:
            raise _wrong(path, f"{name}: file_name {file_name!r}", expected="the name of a file in the image folder")
        height, width = (_integer(path, entry, key, name) for key in ("height", "width"))
        if height < 1 or width < 1:
            raise _wrong(path, f"{name} is {width} x {height} pixels", expected="a width and a height of at least 1")
        images[number] = CocoImage(id=number, file_name=file_name, height=height, width=width)
    return [images[number] for number in sorted(images)]


def _entries(path: Path, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    if key not in content:
        raise _wrong(path, f"lacks the key `{key}`", expected="images, annotations, categories")
    entries = content[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _wrong(path, f"`{key}` is not a list of objects", expected="COCO's object instance format")
    return entries


def _integer(path: Path, entry: Mapping[str, Any], key: str, name: str) -> int:
    value = entry.get(key)
    if type(value) is not int:
        what = f"`{key}` of {name} is {value!r}" if key in entry else f"{name} lacks the key `{key}` ({_shown(entry)})"
        raise _wrong(path, what, expected="an integer")
    return value


def _first_value(text: str, key: str, path: Path) -> object:
    """The value of `key` in the JSON object `text`; what comes behind it is not parsed."""
    decoder = json.JSONDecoder()

    def skip(at: int, mark: str) -> int:
        while at < len(text) and text[at] in SPACE:
            at += 1
        if not text.startswith(mark, at):
            raise json.JSONDecodeError(f"Expecting {mark!r}", text, at)
        return at + len(mark)

    def value(at: int) -> tuple[Any, int]:
        while at < len(text) and text[at] in SPACE:
            at += 1
        return decoder.raw_decode(text, at)

    at = skip(0, "{")
    while True:
        name, at = value(at)
        found, at = value(skip(at, ":"))
        if name == key:
            return found
        try:
            at = skip(at, ",")
        except json.JSONDecodeError:
            skip(at, "}")
            raise _wrong(path, f"lacks the key `{key}`", expected="images, annotations, categories") from None


def _shown(entry: Mapping[str, Any]) -> str:
    text = json.dumps(entry)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _not_json(path: Path, error: ValueError | RecursionError) -> DataError:
    """Also of a number of thousands of digits, and of brackets in brackets: neither says a line."""
    where = f"line {error.lineno}, column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
    return DataError(f"not JSON ({where})", place=Place(file=str(path)), hint=DOWNLOAD_HINT)


def _wrong(path: Path, what: str, *, expected: str, hint: str = DOWNLOAD_HINT) -> DataError:
    return DataError(what, place=Place(file=str(path)), expected=expected, hint=hint)
