"""The record schema of Multi-dSprites (deepmind/multi_object_datasets, multi_dsprites.py), between bytes and arrays.

Legend: H = W = resolution, E entities (background first), N records, 9 = FACTORS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.data.errors import DataError, Place
from jobs.data.example import Float32, UInt8, floats, one_byte_strings, parse_example, serialise_example

ORIGINAL_URL = "https://storage.googleapis.com/multi-object-datasets/multi_dsprites/multi_dsprites_colored_on_colored.tfrecords"
"""Public home of the original file (GZIP TFRecord, 1 000 000 records, no split)."""

SCALAR_FACTORS = ("x", "y", "shape", "visibility", "orientation", "scale")
FACTORS = (*SCALAR_FACTORS, "color_r", "color_g", "color_b")
"""Columns of a record's factors."""
MASK_ON = 255


@dataclass(frozen=True, kw_only=True)
class RecordShape:
    """What the arrays of a record measure."""

    resolution: int
    """Side of the square image, in pixels; 64 in the original."""
    entities: int
    """Entities, background included; 5 in colored_on_colored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One scene."""

    image_HW3: UInt8
    masks_EHW: UInt8
    """0 or 255; entity 0 is the background, each pixel belongs to exactly one entity, a null entity has no pixel."""
    factors_E9: Float32
    """Columns as FACTORS; `visibility` is 1 for entities that exist and show at least one pixel."""


def encode(record: Record) -> bytes:
    """Serialise a record as the original file holds it: one-byte strings, masks as [H, W, E, 1], colours as [E, 3]."""
    factors = record.factors_E9
    features: dict[str, UInt8 | Float32] = {
        "image": record.image_HW3,
        "mask": record.masks_EHW.transpose(1, 2, 0),
        "color": factors[:, len(SCALAR_FACTORS) :].reshape(-1),
    }
    features |= {name: factors[:, column] for column, name in enumerate(SCALAR_FACTORS)}
    return serialise_example(features)


def decode(payload: bytes, *, shape: RecordShape, place: Place) -> Record:
    """Decode one record.

    Args:
        payload: a serialised tf.Example.
        shape: what is expected.
        place: for messages.

    Raises:
        DataError: a feature is missing, of another kind or length, or the masks do not part the image.
    """
    side, entities = shape.resolution, shape.entities
    features = parse_example(payload, place=place)
    missing = [name for name in ("image", "mask", *SCALAR_FACTORS, "color") if name not in features]
    if missing:
        raise DataError(
            f"no feature {', '.join(f'`{name}`' for name in missing)}",
            place=place,
            expected="image, mask, color, " + ", ".join(SCALAR_FACTORS) + f"; found {', '.join(sorted(features)) or 'none'}",
            hint="the file must be Multi-dSprites, variant colored_on_colored",
        )
    image = one_byte_strings(features["image"], name="image", count=side * side * 3, place=place)
    mask = one_byte_strings(features["mask"], name="mask", count=side * side * entities, place=place)
    masks_HWE = mask.reshape(side, side, entities)
    _check_masks(masks_HWE, place=place)
    factors_E9 = np.empty((entities, len(FACTORS)), np.float32)
    for column, name in enumerate(SCALAR_FACTORS):
        factors_E9[:, column] = floats(features[name], name=name, count=entities, place=place)
    color = floats(features["color"], name="color", count=3 * entities, place=place)
    factors_E9[:, len(SCALAR_FACTORS) :] = color.reshape(entities, 3)
    return Record(image_HW3=image.reshape(side, side, 3), masks_EHW=masks_HWE.transpose(2, 0, 1), factors_E9=factors_E9)


def label_map(record: Record) -> UInt8:
    """Return uint8 [H, W]: 0 for the background, k for entity k."""
    labels_HW: UInt8 = np.zeros(record.masks_EHW.shape[1:], np.uint8)
    for entity, mask_HW in enumerate(record.masks_EHW):
        labels_HW |= mask_HW & np.uint8(entity)
    return labels_HW


def _check_masks(masks_HWE: UInt8, *, place: Place) -> None:
    """Refuse masks with other values than 0 and 255, or that do not cover each pixel exactly once."""
    counted: npt.NDArray[np.uint8] = np.zeros(masks_HWE.shape[:2], np.uint8)
    for entity in range(masks_HWE.shape[2]):
        mask_HW = masks_HWE[:, :, entity]
        on_HW = mask_HW & np.uint8(1)
        if not np.array_equal(on_HW * np.uint8(MASK_ON), mask_HW):
            raise DataError(f"the mask of entity {entity} has other values than 0 and {MASK_ON}", place=place)
        counted += on_HW
    if not (counted == 1).all():
        pixels = int((counted != 1).sum())
        raise DataError(f"{pixels} pixels belong to no entity or to several", place=place, expected="masks that part the image")
