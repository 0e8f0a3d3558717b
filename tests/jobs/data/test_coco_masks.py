"""Evaluation masks of COCO: each protocol against a slow form, pixel by pixel, and segmentations that are broken."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]  # ships no type information
from torchvision.transforms.functional import InterpolationMode, resize

from jobs.data.coco_annotations import CocoImage, Instance
from jobs.data.coco_masks import instance_masks, label_maps
from jobs.data.coco_store import MASK_SIDES, Protocol
from jobs.data.errors import DataError

HEIGHT, WIDTH = 40, 50
FILE = Path("instances_val2017.json")
RECTANGLES = {11: (18, 2, 3, 30, 25), 12: (1, 20, 10, 45, 38), 13: (90, 0, 30, 8, 40), 14: (1, 24, 12, 28, 20)}
"""annotation id -> category, left, top, right, bottom; 11, 12 and 14 overlap, 14 lies within both."""
CROWD = {"counts": [WIDTH * HEIGHT // 2, WIDTH * HEIGHT // 2], "size": [HEIGHT, WIDTH]}


def rectangle(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def image(instances: list[Instance], *, height: int = HEIGHT, width: int = WIDTH) -> CocoImage:
    return CocoImage(id=5, file_name="5.jpg", height=height, width=width, instances=tuple(instances))


def instance(segmentation: object, *, number: int = 7, category: int = 1, crowd: bool = False) -> Instance:
    return Instance(id=number, category=category, crowd=crowd, segmentation=segmentation)


def picture() -> CocoImage:
    """The rectangles, and a crowd over the right half."""
    objects = [instance([rectangle(*box)], number=number, category=category) for number, (category, *box) in RECTANGLES.items()]
    return image([*objects, instance(CROWD, number=99, category=3, crowd=True)])


def maps(protocol: Protocol, listed: CocoImage) -> tuple[np.ndarray, np.ndarray]:
    return label_maps(protocol, instance_masks(listed, FILE), height=listed.height, width=listed.width)


def covering(row: int, column: int) -> list[tuple[int, int]]:
    """(number, category) of the rectangles over an original pixel."""
    return [
        (number, category)
        for number, (category, left, top, right, bottom) in enumerate(RECTANGLES.values(), start=1)
        if left <= column < right and top <= row < bottom
    ]


def source(place: int, size: int, side: int, short: int) -> int:
    """The original pixel under pixel `place` of the crop, along an axis of `size` pixels."""
    resized = side * size // short
    first = round(Fraction(resized - side, 2))
    return int((place + first + Fraction(1, 2)) * size / resized)


@pytest.mark.parametrize(("protocol", "side"), [("official", 320), ("adaslot", 224)])
def test_that_official_masks_leave_out_overlaps_and_crowds_and_take_the_largest_class(protocol: Protocol, side: int) -> None:
    instances, classes = maps(protocol, picture())
    assert instances.shape == classes.shape == (side, side)
    for row in range(side):
        for column in range(side):
            there = covering(source(row, HEIGHT, side, HEIGHT), source(column, WIDTH, side, HEIGHT))
            number = 255 if len(there) > 1 else sum(number for number, _ in there)
            assert instances[row, column] == number
            assert classes[row, column] == max([category for _, category in there], default=0)
    assert set(np.unique(instances)) == {0, 1, 2, 3, 255}
    assert set(np.unique(classes)) == {0, 1, 18, 90}


def test_that_gd_masks_make_overlaps_background() -> None:
    instances, classes = maps("gd", picture())
    assert instances.shape == classes.shape == (224, 224)
    for row in range(224):
        for column in range(224):
            there = covering(source(row, HEIGHT, 224, HEIGHT), source(column, WIDTH, 224, HEIGHT))
            number, category = there[0] if len(there) == 1 else (0, 0)
            assert (instances[row, column], classes[row, column]) == (number, category)
    assert set(np.unique(instances)) == {0, 1, 2, 3}


def test_that_covloss_masks_are_squashed_bilinearly_above_one_half_and_lose_overlaps() -> None:
    def share(place: int, size: int) -> list[tuple[int, Fraction]]:
        centre = max(Fraction(0), (place + Fraction(1, 2)) * size / 128 - Fraction(1, 2))
        left = int(centre)
        return [(left, 1 - centre + left), (min(left + 1, size - 1), centre - left)]

    instances, classes = maps("covloss", picture())
    for row in range(0, 128, 2):
        for column in range(128):
            corners = [(y, x, a * b) for y, a in share(row, HEIGHT) for x, b in share(column, WIDTH)]
            amount: dict[tuple[int, int], Fraction] = {}
            for y, x, part in corners:
                for there in covering(y, x):
                    amount[there] = amount.get(there, Fraction(0)) + part
            inside = [there for there, total in amount.items() if total > Fraction(1, 2)]
            expected = inside[0] if len(inside) == 1 else (0, 0)
            assert (instances[row, column], classes[row, column]) == expected
    assert set(np.unique(instances)) == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [(97, 131), (60, 41), (128, 300), (256, 256)])
def test_that_covloss_masks_are_torchvisions_of_a_uint8_tensor(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(size[0]).integers(0, 2, size, dtype=np.uint8)
    encoded = coco_mask.encode(np.asfortranarray(mask))
    segmentation = {"counts": encoded["counts"].decode(), "size": list(size)}
    instances, _ = maps("covloss", image([instance(segmentation)], height=size[0], width=size[1]))
    theirs = resize(torch.from_numpy(mask)[None], [128, 128], InterpolationMode.BILINEAR, antialias=False)[0].numpy()
    assert np.array_equal(instances, theirs)


@pytest.mark.parametrize("protocol", MASK_SIDES)
def test_that_an_image_without_objects_has_empty_masks(protocol: Protocol) -> None:
    for listed in (image([]), image([instance(CROWD, crowd=True)])):
        instances, classes = maps(protocol, listed)
        assert not instances.any()
        assert not classes.any()
        assert instances.shape == (MASK_SIDES[protocol],) * 2


def test_that_instances_of_several_polygons_and_run_lengths_are_decoded() -> None:
    two = instance([rectangle(0, 0, 4, 4), rectangle(10, 10, 14, 13)])
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[0:4, 0:4] = mask[10:13, 10:14] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"))) + 1
    runs = [0, *np.diff([0, *changes, mask.size]).tolist()]
    forms: list[Any] = [two, instance({"counts": runs, "size": [HEIGHT, WIDTH]})]
    forms.append(instance({"counts": encoded["counts"].decode(), "size": [HEIGHT, WIDTH]}))
    for form in forms:
        assert np.array_equal(instance_masks(image([form]), FILE)[0].mask_HW, mask)


@pytest.mark.parametrize("seed", range(5))
def test_that_compressed_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.repeat(random.integers(0, 2, (HEIGHT, 5), dtype=np.uint8), WIDTH // 5, axis=1)
    mask[: 10 * seed] = 0
    segmentation = {"counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode(), "size": [HEIGHT, WIDTH]}
    assert np.array_equal(instance_masks(image([instance(segmentation)]), FILE)[0].mask_HW, mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "segmentation is empty"),
        (None, "neither polygons nor run lengths"),
        ({"counts": [2000]}, "neither polygons nor run lengths"),
        ([[1, 2, 3, 4]], "a polygon has 2 points"),
        ([[1, 2, 3, 4, 5]], "a polygon has an odd number of coordinates, 5"),
        ([rectangle(0, 0, 5, 5), [1, 2]], "a polygon has 1 points"),
        ([[1, 2, 3, "4", 5, 6]], "coordinates that are not numbers"),
        ([[1, 2, 3, float("nan"), 5, 6]], "coordinates that are not numbers"),
        ([[1, 2, 3, None, 5, 6]], "coordinates that are not numbers"),
        ([1, 2, 3, 4, 5, 6], "a polygon is 1"),
        ({"counts": [2000], "size": [50, 40]}, r"run lengths of size \[50, 40\]"),
        ({"counts": [1999], "size": [40, 50]}, "run lengths sum up to 1999 pixels"),
        ({"counts": [2001, -1], "size": [40, 50]}, "not a list of non-negative integers"),
        ({"counts": [1000, 1000.0], "size": [40, 50]}, "not a list of non-negative integers"),
        ({"counts": 2000, "size": [40, 50]}, "not a list of non-negative integers"),
        ({"counts": "o", "size": [40, 50]}, "it ends within a number"),
        ({"counts": "\u00e9", "size": [40, 50]}, "cannot be decoded"),
        ({"counts": "1", "size": [40, 50]}, "run lengths sum up to 1 pixels"),
    ],
)
@pytest.mark.parametrize("crowd", [False, True])
def test_that_a_broken_segmentation_is_named(segmentation: object, message: str, crowd: bool) -> None:
    with pytest.raises(DataError, match=message) as caught:
        instance_masks(image([instance(segmentation, number=4711, crowd=crowd)]), FILE)
    assert caught.value.place.file == str(FILE)
    assert "annotation 4711 (image 5)" in str(caught.value)
    assert caught.value.expected
    assert caught.value.hint


def test_that_more_instances_than_labels_are_refused() -> None:
    many = [instance([rectangle(0, 0, 3, 3)], number=number) for number in range(255)]
    assert len(instance_masks(image(many[:254]), FILE)) == 254
    with pytest.raises(DataError, match="image 5 has 255 instances") as caught:
        instance_masks(image(many), FILE)
    assert "at most 254" in caught.value.expected
