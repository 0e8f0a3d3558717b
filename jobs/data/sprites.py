"""Procedural Multi-dSprites: record i is a function of (generator spec, i) alone, whatever was made before it.

The numbers of record i are words i*W .. i*W + W-1 of one Philox stream keyed by the seed (counter-based: Salmon et al.,
SC 2011), and uniforms are made from the words here, so neither the batch size nor numpy's version changes a record.

Choices where the original is not documented: background factors are 0 with visibility 1; a sprite without a visible pixel
has visibility 0 and keeps its factors; sprites take any of the entity slots 1 .. max_sprites, and a higher slot is drawn
on top; orientation is continuous; colours are uniform over 8-bit values, and the `color` factor is value / 255.

Legend: N records, K = max_sprites, E = K + 1 entities, H = W = resolution, C = 3 colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.data.multi_dsprites import FACTORS, MASK_ON, SCALAR_FACTORS, Record
from jobs.data.shapes import Float64, Shape, rasterise
from jobs.data_spec import SpriteGeneratorSpec

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

PHILOX_BLOCK = 4
"""Words per counter value of Philox 4x64."""
SCENE_WORDS = 5
"""Number of sprites, background colour (3), hue of the first sprite."""
SPRITE_WORDS = 9
"""Slot order, shape, scale, orientation, x, y, colour (3)."""
DRAW_PIXELS = 1 << 18
"""Pixels of sprite grids rasterised at a time, so that they stay in the cache."""

RING_RADIUS = (0.26, 0.32)
"""Of the image side: three sprites of a third of the side on this ring hardly overlap and stay on the canvas."""
RING_JITTER = 0.3
"""Of the angle between neighbours."""

SATURATED_HUE_JITTER = 0.25
"""Of the distance between neighbouring hues."""
SATURATED_SPRITE_VALUE = (0.8, 1.0)
SATURATED_BACKGROUND_BYTES = 32
"""Background channels are below this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scenes:
    """What N scenes consist of, before drawing."""

    exists_NK: npt.NDArray[np.bool_]
    shape_NK: Int64
    scale_NK: Float64
    orientation_NK: Float64
    position_NK2: Float64
    """x and y, each in [0, 1) over the middle half of the image (a little beyond when placed on a ring)."""
    color_NE3: UInt8
    """Background first."""


def generate(spec: SpriteGeneratorSpec, *, first: int, count: int) -> list[Record]:
    """Return records `first` .. `first + count - 1`."""
    scenes = _draw_scenes(spec, first=first, count=count)
    labels_NHW = _draw_labels(spec, scenes)
    images_NHW3 = np.take_along_axis(scenes.color_NE3, labels_NHW.reshape(count, -1, 1).astype(np.intp), axis=1).reshape(
        *labels_NHW.shape, 3
    )
    entities_E = np.arange(spec.max_sprites + 1, dtype=np.uint8)
    masks_NEHW = (labels_NHW[:, None] == entities_E[:, None, None]) * np.uint8(MASK_ON)
    factors_NE9 = _factors(scenes, visible_NE=masks_NEHW.any(axis=(2, 3)))
    return [
        Record(image_HW3=image, masks_EHW=masks, factors_E9=factors)
        for image, masks, factors in zip(images_NHW3, masks_NEHW, factors_NE9, strict=True)
    ]


def _uniforms(spec: SpriteGeneratorSpec, *, first: int, count: int) -> Float64:
    """Return [N, words per record] in [0, 1): 53 bits of each word of the stream."""
    blocks = -(-(SCENE_WORDS + SPRITE_WORDS * spec.max_sprites) // PHILOX_BLOCK)
    stream = np.random.Philox(key=spec.seed, counter=first * blocks)
    words = stream.random_raw(count * blocks * PHILOX_BLOCK)
    uniforms: Float64 = (words >> np.uint64(11)).reshape(count, -1).astype(np.float64) * 2.0**-53
    return uniforms


def _choice(uniform: Float64, options: int) -> Int64:
    """Return integers in [0, options)."""
    return np.minimum((uniform * options).astype(np.int64), options - 1)


def _draw_scenes(spec: SpriteGeneratorSpec, *, first: int, count: int) -> _Scenes:
    sprites = spec.max_sprites
    uniforms = _uniforms(spec, first=first, count=count)
    scene_NS = uniforms[:, :SCENE_WORDS]
    sprite_NKS = uniforms[:, SCENE_WORDS : SCENE_WORDS + SPRITE_WORDS * sprites].reshape(count, sprites, SPRITE_WORDS)
    number_N = spec.min_sprites + _choice(scene_NS[:, 0], spec.max_sprites - spec.min_sprites + 1)
    rank_NK = np.argsort(np.argsort(sprite_NKS[:, :, 0], axis=1, kind="stable"), axis=1, kind="stable")
    if spec.palette == "saturated":
        background_N3, color_NK3 = _saturated_colors(scene_NS, sprite_NKS[:, :, 6:9])
    else:
        background_N3, color_NK3 = _choice(scene_NS[:, 1:4], 256), _choice(sprite_NKS[:, :, 6:9], 256)
    return _Scenes(
        exists_NK=rank_NK < number_N[:, None],
        shape_NK=1 + _choice(sprite_NKS[:, :, 1], len(Shape)),
        scale_NK=np.asarray(spec.scales, np.float64)[_choice(sprite_NKS[:, :, 2], len(spec.scales))],
        orientation_NK=sprite_NKS[:, :, 3] * (2 * np.pi),
        position_NK2=_ring(sprite_NKS[:, :, 4:6], rank_NK) if spec.placement == "ring" else sprite_NKS[:, :, 4:6],
        color_NE3=np.concatenate([background_N3[:, None], color_NK3], axis=1).astype(np.uint8),
    )


def _ring(uniform_NK2: Float64, rank_NK: Int64) -> Float64:
    """Return positions [N, K, 2] at equal angles but for a jitter, in the order of the sprites' ranks."""
    sprites = uniform_NK2.shape[1]
    turn_NK = uniform_NK2[:, :1, 0] + (rank_NK + RING_JITTER * (uniform_NK2[:, :, 0] - 0.5)) / sprites
    low, high = RING_RADIUS
    radius_NK = 2 * (low + (high - low) * uniform_NK2[:, :, 1])  # positions span half the side
    angle_NK = 2 * np.pi * turn_NK
    position_NK2: Float64 = 0.5 + radius_NK[:, :, None] * np.stack([np.cos(angle_NK), np.sin(angle_NK)], axis=2)
    return position_NK2


def _saturated_colors(scene_NS: Float64, uniform_NK3: Float64) -> tuple[Int64, Int64]:
    """Return dark backgrounds [N, 3] and full-saturation sprite colours [N, K, 3] whose hues are spread over the circle."""
    sprites = uniform_NK3.shape[1]
    jitter_NK = SATURATED_HUE_JITTER * (uniform_NK3[:, :, 0] - 0.5)
    hue_NK = (scene_NS[:, 4:5] + (np.arange(sprites) + jitter_NK) / sprites) % 1.0
    low, high = SATURATED_SPRITE_VALUE
    value_NK = low + (high - low) * uniform_NK3[:, :, 1]
    # HSV to RGB at saturation 1: channel n = v * (1 - clip(min(k, 4 - k), 0, 1)), k = (n + 6 h) mod 6, n = 5, 3, 1.
    k_NKC = (np.array([5.0, 3.0, 1.0]) + 6 * hue_NK[:, :, None]) % 6
    channel_NKC = value_NK[:, :, None] * (1 - np.clip(np.minimum(k_NKC, 4 - k_NKC), 0, 1))
    return _choice(scene_NS[:, 1:4], SATURATED_BACKGROUND_BYTES), np.rint(255 * channel_NKC).astype(np.int64)


def _draw_labels(spec: SpriteGeneratorSpec, scenes: _Scenes) -> UInt8:
    """Return uint8 [N, H, W]: the number of the topmost sprite of each pixel, 0 where there is none."""
    side = spec.resolution
    labels_NHW: UInt8 = np.zeros((len(scenes.exists_NK), side, side), np.uint8)
    # Measured: an unoccluded centroid lies at 15.5 + 32 x of 64 pixels, the middle half of the image.
    center_NK2 = side / 4 - 0.5 + scenes.position_NK2 * (side / 2)
    for slot in range(spec.max_sprites):
        (present,) = np.nonzero(scenes.exists_NK[:, slot])
        step = max(1, DRAW_PIXELS // (side * side))
        for start in range(0, len(present), step):
            chosen = present[start : start + step]
            inside_SHW = rasterise(
                shape_S=scenes.shape_NK[chosen, slot],
                center_S2=center_NK2[chosen, slot],
                scale_S=scenes.scale_NK[chosen, slot],
                orientation_S=scenes.orientation_NK[chosen, slot],
                resolution=side,
            )
            labels_NHW[chosen] = np.where(inside_SHW, np.uint8(slot + 1), labels_NHW[chosen])
    return labels_NHW


def _factors(scenes: _Scenes, *, visible_NE: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return float32 [N, E, 9], columns as FACTORS; zero for null entities."""
    count, entities = visible_NE.shape
    factors_NE9 = np.zeros((count, entities, len(FACTORS)), np.float32)
    columns: dict[str, npt.NDArray[np.generic]] = {
        "x": scenes.position_NK2[:, :, 0],
        "y": scenes.position_NK2[:, :, 1],
        "shape": scenes.shape_NK,
        "orientation": scenes.orientation_NK,
        "scale": scenes.scale_NK,
    }
    for name, values_NK in columns.items():
        factors_NE9[:, 1:, FACTORS.index(name)] = values_NK
    factors_NE9[:, :, len(SCALAR_FACTORS) :] = scenes.color_NE3 / np.float32(255)
    factors_NE9[:, 1:] *= scenes.exists_NK[:, :, None]
    factors_NE9[:, :, FACTORS.index("visibility")] = visible_NE
    factors_NE9[:, 0, FACTORS.index("visibility")] = 1
    return factors_NE9
