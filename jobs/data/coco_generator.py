"""Owns the miniature COCO: JPEGs and annotations in the original's layout, each image a function of (seed, split, index).

Not a likeness of COCO but of its files: several sizes and aspect ratios, grey-scale JPEGs, polygons (of one or two parts),
crowds with uncompressed run lengths, overlapping objects, several of one category, category and image ids with gaps, images
and annotations in no order. Objects are saturated shapes on a dull background with a gradient and noise; a category is a
shape and a hue. Of every 16 images one has no annotation and one nothing but a crowd. The same bytes come from the same
versions of Pillow and its JPEG library.
"""

from __future__ import annotations

import colorsys
import io
import json
import math
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.contract import write_atomically
from jobs.data.coco_files import ORIGINAL_SPLITS, annotation_file, image_folder
from jobs.data.store import SplitName
from jobs.data_spec import CocoGeneratorSpec
from jobs.randomness import generator, permutation

if TYPE_CHECKING:
    from PIL import Image

CYCLE = 16
"""Images after which the peculiarities below come again."""
EMPTY, CROWD_ONLY, CROWDS, GREY, TWO_PARTS, ONE_CATEGORY = 5, 11, (2, 7), (3, 12), (0, 4, 8), (1, 6, 9)
"""Which images of a cycle have no annotation, only a crowd, a crowd too, no colour, an object of two parts, one category."""
ASPECTS = ((4, 3), (3, 4), (1, 1), (3, 2), (16, 9), (5, 8))
"""Width and height."""
LONG_SIDES = (1.0, 0.8, 0.9)
"""Of the generator's largest side."""
MAX_OBJECTS = 5
TRIES = 4
"""Spots to choose from: enough that objects mostly stay apart, few enough that they overlap now and then."""
CROWD_MEMBERS = 14
JPEG_QUALITY = 92
CROWD_ANNOTATION = 900_100_000_000
"""Added to the image id."""


@dataclass(frozen=True, kw_only=True)
class _Category:
    id: int
    name: str
    supercategory: str
    corners: int
    """Of the shape; many make it round."""
    hue: float


CATEGORIES = (
    _Category(id=1, name="person", supercategory="person", corners=24, hue=0.02),
    _Category(id=3, name="car", supercategory="vehicle", corners=4, hue=0.60),
    _Category(id=13, name="stop sign", supercategory="outdoor", corners=8, hue=0.95),
    _Category(id=18, name="dog", supercategory="animal", corners=5, hue=0.10),
    _Category(id=38, name="kite", supercategory="sports", corners=3, hue=0.45),
    _Category(id=62, name="chair", supercategory="furniture", corners=6, hue=0.78),
    _Category(id=90, name="toothbrush", supercategory="indoor", corners=4, hue=0.30),
)
"""COCO's ids, which have gaps."""


@dataclass(frozen=True, kw_only=True)
class _Spot:
    """A disc in pixels; of a whole image, its middle."""

    x: float
    y: float
    radius: float

    def distance(self, other: _Spot) -> float:
        """Between the middles, in units of both radii together."""
        return math.hypot(self.x - other.x, self.y - other.y) / (self.radius + other.radius)


Points = list[tuple[float, float]]


def write_miniature(spec: CocoGeneratorSpec, folder: Path, *, should_stop: Callable[[], bool]) -> bool:
    """Write both splits below `folder`; False when told to stop before the end.

    Every file is whole or absent, and what is there is kept: a restart goes on, and a second writer does no harm.
    """
    counts: dict[SplitName, int] = {"train": spec.train_images, "test": spec.val_images}
    for split, count in counts.items():
        if annotation_file(folder, split).exists():
            continue
        image_folder(folder, split).mkdir(parents=True, exist_ok=True)
        annotation_file(folder, split).parent.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index in permutation(count, spec.seed, "coco", split, "listing").tolist():
            if should_stop():
                return False
            picture = draw(spec, split, index)
            path = image_folder(folder, split) / picture.listed["file_name"]
            if not path.exists():
                _write(path, picture.jpeg)
            images.append(picture.listed)
            annotations += picture.annotations
        content = {
            "info": {"description": "Miniature of the COCO 2017 layout, generated", "version": "1.0", "year": 2017},
            "licenses": [{"id": 1, "name": "No licence needed: generated", "url": ""}],
            "images": images,
            "annotations": annotations,
            "categories": [{"supercategory": one.supercategory, "id": one.id, "name": one.name} for one in CATEGORIES],
        }
        write_atomically(annotation_file(folder, split), json.dumps(content))
    return True


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as the files have it."""

    jpeg: bytes
    listed: dict[str, Any]
    """Its entry of `images`."""
    annotations: list[dict[str, Any]]
    """Its entries of `annotations`, the last drawn first."""


def draw(spec: CocoGeneratorSpec, split: SplitName, index: int) -> Picture:
    """Return image `index` of a split."""
    from PIL import ImageDraw

    random = generator(spec.seed, "coco", split, index)
    place = index % CYCLE
    long = round(spec.largest_side * LONG_SIDES[index % len(LONG_SIDES)])
    across, down = ASPECTS[index % len(ASPECTS)]
    width, height = (max(1, round(long * side / max(across, down))) for side in (across, down))
    image_id = 5 * index + (9 if split == "train" else 1_000_139) + int(random.integers(0, 4))
    image = _background(random, height, width)
    pencil = ImageDraw.Draw(image)
    annotations = []
    if place in CROWDS or place == CROWD_ONLY:
        annotations.append(_crowd(random, image, image_id))
    taken = [_Spot(x=width / 2, y=height / 2, radius=0.0)]
    if place not in (EMPTY, CROWD_ONLY):
        category = CATEGORIES[int(random.integers(0, len(CATEGORIES)))]
        for number in range(int(random.integers(2, MAX_OBJECTS + 1))):
            parts = _shape(random, category, taken, two_parts=place in TWO_PARTS and number == 0)
            for part in parts:
                pencil.polygon(part, fill=_colour(random, category))
            annotations.append(_annotation(100 * image_id + number, image_id, category, parts))
            if place not in ONE_CATEGORY:
                category = CATEGORIES[int(random.integers(0, len(CATEGORIES)))]
    grainy = np.asarray(image, dtype=np.float32) + random.normal(0.0, 4.0, (height, width, 1)).astype(np.float32)
    file_name = f"{image_id:012d}.jpg"
    listed = {
        "license": 1,
        "file_name": file_name,
        "coco_url": f"http://images.cocodataset.org/{ORIGINAL_SPLITS[split]}/{file_name}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 11:18:45",
        "id": image_id,
    }
    return Picture(jpeg=_jpeg(grainy, grey=place in GREY), listed=listed, annotations=annotations[::-1])


def _background(random: np.random.Generator, height: int, width: int) -> Image.Image:
    from PIL import Image

    corners = random.uniform(90, 150) + random.uniform(-25, 25, (2, 2, 1)) + random.uniform(-6, 6, 3)
    down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top, bottom = (row[0] * (1 - across) + row[1] * across for row in corners)
    return Image.fromarray((top * (1 - down) + bottom * down).astype(np.uint8))


def _shape(random: np.random.Generator, category: _Category, taken: list[_Spot], *, two_parts: bool) -> list[Points]:
    """Polygons of one object within the image, apart from others if it can be; coordinates with two decimals.

    Args:
        taken: first the whole image, then the spots of earlier objects; the new one is added.
    """
    canvas = taken[0]
    spots = [_spot(random, canvas) for _ in range(TRIES)]
    spot = max(spots, key=lambda one: min([1.0, *(one.distance(other) for other in taken[1:])]))
    taken.append(spot)
    turn, stretch = random.uniform(0, 2 * math.pi), random.uniform(0.6, 1.0)
    parts = [_polygon(category.corners, spot, turn, stretch, canvas)]
    if two_parts:
        beside = spot.x + math.copysign(1.6 * spot.radius, canvas.x - spot.x)
        small = _Spot(x=beside, y=spot.y, radius=0.45 * spot.radius)
        parts.append(_polygon(category.corners, small, turn, stretch, canvas))
    return parts


def _spot(random: np.random.Generator, canvas: _Spot) -> _Spot:
    radius = min(canvas.x, canvas.y) * random.uniform(0.24, 0.5)
    return _Spot(x=canvas.x * random.uniform(0.35, 1.65), y=canvas.y * random.uniform(0.35, 1.65), radius=radius)


def _polygon(corners: int, spot: _Spot, turn: float, stretch: float, canvas: _Spot) -> Points:
    points = []
    for corner in range(corners):
        angle = 2 * math.pi * corner / corners
        along, across = spot.radius * math.cos(angle), spot.radius * stretch * math.sin(angle)
        x = spot.x + along * math.cos(turn) - across * math.sin(turn)
        y = spot.y + along * math.sin(turn) + across * math.cos(turn)
        points.append((round(min(max(x, 0.0), 2 * canvas.x), 2), round(min(max(y, 0.0), 2 * canvas.y), 2)))
    return points


def _crowd(random: np.random.Generator, image: Image.Image, image_id: int) -> dict[str, Any]:
    """Draw many small members of one category; their region becomes run lengths."""
    from PIL import Image, ImageDraw

    category = CATEGORIES[int(random.integers(0, len(CATEGORIES)))]
    region = Image.new("L", image.size, 0)
    pencils = ImageDraw.Draw(image), ImageDraw.Draw(region)
    canvas = _Spot(x=image.width / 2, y=image.height / 2, radius=0.0)
    for _ in range(CROWD_MEMBERS):
        x, y = random.uniform(0.1, 0.9) * image.width, random.uniform(0.05, 0.3) * image.height
        member = _polygon(category.corners, _Spot(x=x, y=y, radius=0.05 * min(image.size)), 0.0, 1.0, canvas)
        pencils[0].polygon(member, fill=_colour(random, category))
        pencils[1].polygon(member, fill=1)
    mask_HW = np.asarray(region, dtype=np.uint8)
    counts = _run_lengths(mask_HW)
    return {
        "segmentation": {"counts": counts, "size": [image.height, image.width]},
        "area": int(mask_HW.sum()),
        "iscrowd": 1,
        "image_id": image_id,
        "bbox": [float(value) for value in _box(np.argwhere(mask_HW)[:, ::-1])],
        "category_id": category.id,
        "id": CROWD_ANNOTATION + image_id,
    }


def _annotation(number: int, image_id: int, category: _Category, parts: list[Points]) -> dict[str, Any]:
    return {
        "segmentation": [[value for point in part for value in point] for part in parts],
        "area": round(sum(_area(part) for part in parts), 4),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [round(value, 2) for value in _box(np.array([point for part in parts for point in part]))],
        "category_id": category.id,
        "id": number,
    }


def _run_lengths(mask_HW: np.ndarray) -> list[int]:
    """Lengths of runs down the columns: outside, inside, outside, ...; the first may be 0."""
    pixels = mask_HW.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels)) + 1
    counts: list[int] = np.diff(np.concatenate([[0], changes, [len(pixels)]])).tolist()
    return [0, *counts] if pixels[0] else counts


def _area(polygon: Points) -> float:
    """Of a polygon, by the shoelace formula, in pixels."""
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in pairs)) / 2


def _box(points_N2: np.ndarray) -> list[float]:
    """x, y, width, height."""
    low, high = points_N2.min(axis=0), points_N2.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _colour(random: np.random.Generator, category: _Category) -> tuple[int, int, int]:
    hue = (category.hue + random.uniform(-0.03, 0.03)) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, random.uniform(0.8, 1.0), random.uniform(0.75, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _jpeg(pixels_HW3: np.ndarray, *, grey: bool) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.clip(pixels_HW3, 0, 255).astype(np.uint8))
    stream = io.BytesIO()
    (image.convert("L") if grey else image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
