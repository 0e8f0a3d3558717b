"""Owns the evaluation masks of COCO: from an image's annotations to two label maps, by each original's rules.

Crowds are left out in all of them. Instances are numbered 1, 2, ... by ascending annotation id; one that the crop or a
smaller side removes leaves its number unused.

| protocol   | geometry                                         | pixels of several instances      | classes there       |
|------------|--------------------------------------------------|----------------------------------|---------------------|
| `official` | short side 320 nearest-exact, centre crop 320    | void: 255                        | largest category id |
| `adaslot`  | the same at 224                                  | the same                         | the same            |
| `gd`       | maps at original size, then short side 224 by    | no object: 0, before resizing    | no object: 0        |
|            | PIL's NEAREST, centre crop 224                   |                                  |                     |
| `covloss`  | each mask squashed to 128 x 128                  | no object: 0                     | no object: 0        |

`covloss` resizes uint8 masks of 0 and 1 bilinearly, without antialiasing (torchvision of that time, of a tensor), and
rounds: inside is where the interpolated value is *above* one half (exactly one half rounds to 0). That it was a tensor and
not a PIL image, which would be antialiased, is our reading. It zeroes overlaps and scores labelled pixels only, so they
are no object and not void; its class map is ours by the same rule.

Legend: H x W original pixels, P x P pixels of the protocol's masks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from jobs.data.coco_annotations import MAX_LABEL, CocoImage, Instance
from jobs.data.coco_images import crop_window, linear_taps, nearest_exact, resized_size
from jobs.data.coco_store import MASK_SIDES, VOID, Protocol
from jobs.data.errors import DataError, Place

UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

REPAIR_HINT = "is the annotation file whole and COCO's own? Compare with annotations_trainval2017.zip"


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceMask:
    """Where one object is."""

    category: int
    mask_HW: Bool


def instance_masks(image: CocoImage, path: Path) -> list[InstanceMask]:
    """Decode the masks of an image's annotations, without crowds (which are checked all the same), by ascending id.

    Args:
        image: with its annotations.
        path: the annotation file, for errors.

    Raises:
        DataError: a broken polygon, run lengths that do not fit the image, or more than 254 instances.
    """
    masks = []
    for instance in image.instances:
        runs = _encoded(instance, image, path)
        if not instance.crowd:
            masks.append(InstanceMask(category=instance.category, mask_HW=_decoded(runs)))
    if len(masks) > MAX_LABEL:
        raise DataError(
            f"image {image.id} has {len(masks)} instances",
            place=Place(file=str(path)),
            expected=f"at most {MAX_LABEL}: labels are 8 bits wide (COCO's own images have at most 93)",
            hint="leave the image out of the annotation file",
        )
    return masks


def label_maps(protocol: Protocol, masks: Sequence[InstanceMask], *, height: int, width: int) -> tuple[UInt8, UInt8]:
    """Return (instances, classes), each uint8 [P, P], of an image of `height` x `width` original pixels."""
    match protocol:
        case "official" | "adaslot":
            return _official(masks, height, width, side=MASK_SIDES[protocol])
        case "gd":
            return _gd(masks, height, width)
        case "covloss":
            return _covloss(masks, height, width)
        case never:
            assert_never(never)


def _official(masks: Sequence[InstanceMask], height: int, width: int, *, side: int) -> tuple[UInt8, UInt8]:
    resized = resized_size(height, width, side)
    rows = nearest_exact(height, resized[0])[crop_window(resized[0], side)]
    columns = nearest_exact(width, resized[1])[crop_window(resized[1], side)]
    instances, classes, cover = (np.zeros((side, side), dtype=np.uint8) for _ in range(3))
    for number, one in enumerate(masks, start=1):
        inside = one.mask_HW[rows[:, None], columns]
        instances[inside] = number
        classes[inside] = np.maximum(classes[inside], one.category)
        cover += inside
    instances[cover > 1] = VOID
    return instances, classes


def _gd(masks: Sequence[InstanceMask], height: int, width: int) -> tuple[UInt8, UInt8]:
    from PIL import Image

    side = MASK_SIDES["gd"]
    resized = resized_size(height, width, side)
    rows, columns = crop_window(resized[0], side), crop_window(resized[1], side)

    def square(labels_HW: UInt8) -> UInt8:
        small = Image.fromarray(labels_HW).resize((resized[1], resized[0]), Image.Resampling.NEAREST)
        return np.asarray(small, dtype=np.uint8)[rows, columns]

    instances, classes = _exclusive([(one.category, one.mask_HW) for one in masks], (height, width))
    return square(instances), square(classes)


def _covloss(masks: Sequence[InstanceMask], height: int, width: int) -> tuple[UInt8, UInt8]:
    side = MASK_SIDES["covloss"]
    rows, row_weights = linear_taps(height, side)
    columns, column_weights = linear_taps(width, side)

    def squash(mask_HW: Bool) -> Bool:
        corners = mask_HW[rows[:, None, :, None], columns[None, :, None, :]].astype(np.float32)
        inside: Bool = np.einsum("yxij,yi,xj->yx", corners, row_weights, column_weights) > 0.5
        return inside

    return _exclusive([(one.category, squash(one.mask_HW)) for one in masks], (side, side))


def _exclusive(masks: Sequence[tuple[int, Bool]], shape: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """Label maps of the pixels that exactly one mask covers; all others are 0."""
    instances, classes, cover = (np.zeros(shape, dtype=np.uint8) for _ in range(3))
    for number, (category, mask) in enumerate(masks, start=1):
        instances[mask] = number
        classes[mask] = category
        cover += mask
    several = cover > 1
    instances[several] = classes[several] = 0
    return instances, classes


def _encoded(instance: Instance, image: CocoImage, path: Path) -> dict[str, Any]:
    """An annotation's run lengths, compressed, after looking at everything that the decoder would stumble over."""
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]  # ships no type information

    def wrong(what: str, expected: str) -> DataError:
        return DataError(
            f"annotation {instance.id} (image {image.id}): {what}",
            place=Place(file=str(path)),
            expected=expected,
            hint=REPAIR_HINT,
        )

    segmentation = instance.segmentation
    size = [image.height, image.width]
    if isinstance(segmentation, list):
        if not segmentation:
            raise wrong("segmentation is empty", "at least one polygon")
        for polygon in segmentation:
            _check_polygon(polygon, wrong)
        merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        return merged
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise wrong("segmentation is neither polygons nor run lengths", "a list of polygons, or an object of size and counts")
    if segmentation["size"] != size:
        raise wrong(f"run lengths of size {segmentation['size']}", f"{size}, the image's height and width")
    counts = segmentation["counts"]
    try:
        runs = list(_runs(counts)) if isinstance(counts, str) else counts
    except ValueError as error:
        raise wrong(f"run lengths cannot be decoded ({error})", "COCO's compressed run lengths") from error
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise wrong("run lengths are not a list of non-negative integers", "pixels outside, inside, outside, ...")
    if sum(runs) != image.height * image.width:
        expected = f"{image.height * image.width}, height times width of the image"
        raise wrong(f"run lengths sum up to {sum(runs)} pixels", expected)
    encoded: dict[str, Any] = coco_mask.frPyObjects({"size": size, "counts": runs}, *size)
    return encoded


def _check_polygon(polygon: object, wrong: Any) -> None:
    expected = "at least three points x, y, x, y, ..."
    if not isinstance(polygon, list):
        raise wrong(f"a polygon is {polygon!r}", expected)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in polygon):
        raise wrong("a polygon has coordinates that are not numbers", expected)
    if len(polygon) % 2:
        raise wrong(f"a polygon has an odd number of coordinates, {len(polygon)}", expected)
    if len(polygon) < 6:
        raise wrong(f"a polygon has {len(polygon) // 2} points", expected)


def _runs(text: str) -> Iterator[int]:
    """Run lengths of COCO's compressed form: 5 bits per character from `0` on, bit 5 says that more follow, the sign is
    the last character's bit 4; from the fourth run on, the difference to the run two before is stored."""
    runs: list[int] = []
    characters = iter(text.encode("ascii"))
    for first in characters:
        value = 0
        for place, character in enumerate(itertools.chain([first], characters)):
            bits = character - ord("0")
            if not 0 <= bits < 64:
                raise ValueError(f"character {chr(character)!r}")
            value |= (bits & 0x1F) << (5 * place)
            if not bits & 0x20:
                value -= (bits & 0x10) << (5 * place + 1)
                break
        else:
            raise ValueError("it ends within a number")
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        yield runs[-1]


def _decoded(encoded: dict[str, Any]) -> Bool:
    from pycocotools import mask as coco_mask  # as above

    mask: Bool = coco_mask.decode(encoded).astype(np.bool_)
    return mask
