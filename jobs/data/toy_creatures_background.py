"""Owns what is behind the toy creatures: smooth noise, a gradient between four colours, or other shapes on one; no randomness.

Only + - * / sqrt, min and max on float32: the same bytes on every machine. Legend: S side of the image; h x w of a patch.
"""

from __future__ import annotations

from functools import cache
from typing import assert_never

import numpy as np
import numpy.typing as npt

from jobs.data.toy_creatures_scene import Litter, Scene

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

OCTAVES = (0.42, 0.24, 0.16, 0.18)
"""Weights of the noise's lattices; they sum to 1."""
TINT = 0.35
"""Share of each colour channel's own noise; the rest lies between two colours."""
RING_WIDTH, BAR_WIDTH, CROSS_WIDTH = 0.3, 0.35, 0.3
"""Half widths, in sizes."""


def draw_background(scene: Scene, *, resolution: int) -> Float32:
    """Colours [3, S, S] in [0, 1]."""
    corners_43 = scene.corners_43.astype(np.float32)
    match scene.background:
        case "noise":
            return _noise(scene, resolution)
        case "gradient" | "clutter":
            image_3SS = _spread(corners_43.T.reshape(3, 2, 2), resolution)
            for litter in scene.clutter:
                _lay(image_3SS, litter)
            return image_3SS
        case _:
            assert_never(scene.background)


def _noise(scene: Scene, resolution: int) -> Float32:
    """Coarse and fine noise between two colours, and some of every channel's own."""
    noise_3SS = np.zeros((3, resolution, resolution), np.float32)
    for weight, lattice in zip(OCTAVES, scene.lattices, strict=True):
        noise_3SS += np.float32(weight / 255) * _spread(lattice.astype(np.float32), resolution)
    stretched_3SS = np.clip(noise_3SS * 2 - np.float32(0.5), 0, 1)
    first, second = scene.corners_43[:2].astype(np.float32)[:, :, None, None]
    image_3SS: Float32 = first + (second - first) * stretched_3SS[0]
    image_3SS += np.float32(TINT) * (stretched_3SS - image_3SS)
    return image_3SS


def _lay(image_3SS: Float32, litter: Litter) -> None:
    """Draw a shape into its patch of the image."""
    side = image_3SS.shape[1]
    slices = []
    for place in (litter.at[1], litter.at[0]):
        first, last = ((place + sign * 1.5 * litter.size + 0.5) * side for sign in (-1, 1))
        slices.append(slice(max(0, int(first) - 2), max(0, int(last) + 3)))
    rows, columns = slices
    y = ((np.arange(side)[rows] + 0.5) / side - 0.5 - litter.at[1]).astype(np.float32)[:, None]
    x = ((np.arange(side)[columns] + 0.5) / side - 0.5 - litter.at[0]).astype(np.float32)
    cosine, sine = (np.float32(number) for number in litter.direction)
    cover = np.clip(np.float32(0.5) - _distance(litter, x * cosine + y * sine, y * cosine - x * sine) * np.float32(side), 0, 1)
    patch = image_3SS[:, rows, columns]
    patch += cover * (np.array(litter.color, np.float32)[:, None, None] - patch)


def _distance(litter: Litter, u: Float32, v: Float32) -> Float32:
    """Distances [h, w] to the outline, negative inside."""
    size = np.float32(litter.size)
    distance: Float32
    match litter.kind:
        case "bar":
            distance = np.maximum(np.abs(u) - size, np.abs(v) - np.float32(BAR_WIDTH) * size)
        case "triangle":  # as wide as high: its sides rise 2 for 1
            distance = np.maximum((2 * np.abs(u) - (v + size)) / np.sqrt(np.float32(5)), v - size)
        case "ring":
            width = np.float32(RING_WIDTH) * size
            distance = np.abs(np.sqrt(u * u + v * v) - (size - width)) - width
        case "cross":
            width = np.float32(CROSS_WIDTH) * size
            bars = [np.maximum(np.abs(one) - size, np.abs(other) - width) for one, other in ((u, v), (v, u))]
            distance = np.minimum(*bars)
        case _:
            assert_never(litter.kind)
    return distance


def _spread(grids_3GG: Float32, side: int) -> Float32:
    """Grids brought to the image's size [3, S, S], bilinearly: corners of the grids lie on corners of the image."""
    low_S, share_S = _places(grids_3GG.shape[1], side)
    rows = grids_3GG[:, low_S] + share_S[:, None] * (grids_3GG[:, low_S + 1] - grids_3GG[:, low_S])
    spread: Float32 = rows[:, :, low_S] + share_S * (rows[:, :, low_S + 1] - rows[:, :, low_S])
    return spread


@cache
def _places(grid: int, side: int) -> tuple[Int64, Float32]:
    """For every pixel the grid line before it, and how far it is on the way to the next."""
    place_S = (np.arange(side) + 0.5) * ((grid - 1) / side)
    low_S = place_S.astype(np.int64)
    return low_S, (place_S - low_S).astype(np.float32)
