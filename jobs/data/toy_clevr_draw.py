"""Owns how toy-CLEVR looks: from positions to antialiased pixels and instance masks; no randomness, no clips.

Every object is a small patch: distances to its outline (in pixels), coverage = clip(1/2 - distance, 0, 1), a gradient of light
from the upper left. Patches of all frames are computed together and laid over the floor from back to front, first the
shadows, which say where on the ground an object stands. A pixel belongs to the nearest object whose outline its centre is in.
Only + - * / sqrt, min and max on float32: the same bytes on every machine.

Legend: B frames, K objects, M objects of all frames, P side of a patch, S side of the image; pixels unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.data.clips_actions import COLORS, SHAPES
from jobs.data.toy_clevr_scene import HALF_HEIGHTS, HALF_SIZES, Scenes

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

RGB = {
    "blue": (42, 75, 215), "brown": (129, 74, 25), "cyan": (41, 208, 208), "gray": (87, 87, 87),
    "green": (29, 105, 20), "purple": (129, 38, 192), "red": (173, 35, 35), "yellow": (255, 238, 51),
}  # fmt: skip
"""CLEVR's colours."""
FLOOR_TOP, FLOOR_BOTTOM, FLOOR_TINT = 150.0, 205.0, 16.0
"""Brightness of the floor's far and near end, and how much a channel may be added."""
CORNER = {"cube": 0.18, "cylinder": 0.75, "sphere": 1.0, "cone": 0.0}
"""Radius of the rounded corners, and below that the half widths, in units of the half size."""
HALF_WIDTHS = {"cube": 1.0, "cylinder": 0.75, "sphere": 1.0, "cone": 1.0}
LIGHT = 0.28
"""How much brighter than its colour an object is at the upper left, and darker at the lower right."""
SHADOW = 0.45
SHADOW_FLATNESS = 0.35
"""Height of a shadow over its width."""
ELEVATION_NEARNESS = 1e-3
"""An object on top of another is drawn after it."""
AT_ONCE = 32
"""Frames drawn together: their patches stay in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Patches:
    """Light and coverage of M objects."""

    left_M: Int64
    top_M: Int64
    keep_MPP1: Float32
    """Share of what lies below that stays."""
    add_MPP3: Float32
    """Added to it."""
    inside_MPP: npt.NDArray[np.bool_]


def draw_frames(scenes: Scenes, frame_B: Int64, *, resolution: int) -> tuple[UInt8, UInt8]:
    """Images [B, S, S, 3] and masks [B, S, S] of frame `frame_B` [B] of each of the B scenes."""
    foot_BK2, height_BK = scenes.positions(frame_B)
    nearness_BK = np.where(scenes.exists, foot_BK2[:, :, 1] + ELEVATION_NEARNESS * height_BK, -1.0)
    order_BK = np.argsort(nearness_BK, axis=1, kind="stable")
    images_BSS3 = _floor(scenes, resolution)
    labels_BSS: UInt8 = np.zeros(images_BSS3.shape[:3], np.uint8)
    for first in range(0, len(frame_B), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        frame_M, place_M = np.nonzero(np.take_along_axis(scenes.exists[rows], order_BK[rows], axis=1))
        frame_M += first
        slot_M = order_BK[frame_M, place_M]
        half_M = np.asarray(HALF_SIZES)[scenes.size_NK[frame_M, slot_M]] * resolution
        pair_M = scenes.pair_NK[frame_M, slot_M]
        foot_M2 = foot_BK2[frame_M, slot_M] * resolution
        shadows = _shadows(half_M, pair_M % len(SHAPES), foot_M2, resolution=resolution)
        center_M2 = foot_M2.copy()
        center_M2[:, 1] -= (height_BK + scenes.half_heights)[frame_M, slot_M] * resolution
        objects = _objects(half_M, pair_M, center_M2, resolution=resolution)
        _lay(images_BSS3, frame_M, shadows)
        _lay(images_BSS3, frame_M, objects)
        side = objects.inside_MPP.shape[1]
        for at, (frame, left, top) in enumerate(
            zip(frame_M.tolist(), objects.left_M.tolist(), objects.top_M.tolist(), strict=True)
        ):
            labels_BSS[frame, top : top + side, left : left + side][objects.inside_MPP[at]] = slot_M[at] + 1
    return images_BSS3, labels_BSS


def _floor(scenes: Scenes, resolution: int) -> UInt8:
    """Images [N, S, S, 3] without objects: every row has one colour."""
    brightness_S = FLOOR_TOP + (FLOOR_BOTTOM - FLOOR_TOP) * (np.arange(resolution) + 0.5) / resolution
    images_NSS3 = np.empty((len(scenes.floor_N3), resolution, resolution, 3), np.uint8)
    images_NSS3[:, :, 0] = brightness_S[:, None] + FLOOR_TINT * scenes.floor_N3[:, None]
    done = 1
    while done < resolution:  # long runs: ten times as fast as spreading three bytes
        images_NSS3[:, :, done : 2 * done] = images_NSS3[:, :, : min(done, resolution - done)]
        done *= 2
    return images_NSS3


def _grid(
    center_M2: npt.NDArray[np.float64], *, width: int, height: int, resolution: int
) -> tuple[Int64, Int64, Float32, Float32]:
    """Corners [M] of patches around centres, kept on the image; pixel centres from the middle on, [M, 1, P], [M, P, 1]."""
    size = np.array([width, height])
    corner_M2 = np.clip(np.floor(center_M2 - size / 2).astype(np.int64), 0, resolution - size)
    offset_M2 = corner_M2 - center_M2
    x_M1P = (offset_M2[:, :1] + (np.arange(width) + 0.5)).astype(np.float32)[:, None, :]
    y_MP1 = (offset_M2[:, 1:] + (np.arange(height) + 0.5)).astype(np.float32)[:, :, None]
    return corner_M2[:, 0], corner_M2[:, 1], x_M1P, y_MP1


def _objects(half_M: npt.NDArray[np.float64], pair_M: Int64, center_M2: npt.NDArray[np.float64], *, resolution: int) -> _Patches:
    side = int(2 * max(HALF_SIZES) * max(HALF_HEIGHTS.values()) * resolution) + 4
    left_M, top_M, x_M1P, y_MP1 = _grid(center_M2, width=side, height=side, resolution=resolution)
    shape_M = pair_M % len(SHAPES)
    half_width_M, half_height_M, corner_M = (
        (half_M * np.array([factors[shape] for shape in SHAPES])[shape_M]).astype(np.float32)[:, None, None]
        for factors in (HALF_WIDTHS, HALF_HEIGHTS, CORNER)
    )
    distance_MPP = np.empty((len(half_M), side, side), np.float32)
    (cones,) = np.nonzero(shape_M == SHAPES.index("cone"))
    (boxes,) = np.nonzero(shape_M != SHAPES.index("cone"))
    distance_MPP[boxes] = _box(x_M1P[boxes], y_MP1[boxes], half_width_M[boxes], half_height_M[boxes], corner_M[boxes])
    distance_MPP[cones] = _triangle(x_M1P[cones], y_MP1[cones], half_width_M[cones], half_height_M[cones])
    cover_MPP = np.clip(np.float32(0.5) - distance_MPP, 0, 1)
    light_MPP = 1 - np.float32(LIGHT / 2) * (x_M1P / half_width_M + y_MP1 / half_height_M)
    rgb_M3 = np.array([RGB[color] for color in COLORS], np.float32)[pair_M // len(SHAPES)]
    lit_MPP3 = np.minimum(light_MPP[..., None] * rgb_M3[:, None, None], np.float32(255)) * cover_MPP[..., None]
    return _Patches(
        left_M=left_M, top_M=top_M, keep_MPP1=(1 - cover_MPP)[..., None], add_MPP3=lit_MPP3, inside_MPP=distance_MPP <= 0
    )


def _box(x: Float32, y: Float32, half_width: Float32, half_height: Float32, corner: Float32) -> Float32:
    """Distance to a rectangle with rounded corners: square, capsule and disc alike; negative inside."""
    beyond_x, beyond_y = np.abs(x) - (half_width - corner), np.abs(y) - (half_height - corner)
    outer_x, outer_y = np.maximum(beyond_x, 0), np.maximum(beyond_y, 0)
    distance: Float32 = np.sqrt(outer_x * outer_x + outer_y * outer_y) + np.minimum(np.maximum(beyond_x, beyond_y), 0) - corner
    return distance


def _triangle(x: Float32, y: Float32, half_width: Float32, half_height: Float32) -> Float32:
    """Distance to a triangle with its tip up; too small beyond its corners, where nothing is drawn."""
    slant = np.sqrt(4 * half_height * half_height + half_width * half_width)
    sides = (np.abs(x) * (2 * half_height) - (y + half_height) * half_width) / slant
    distance: Float32 = np.maximum(sides, y - half_height)
    return distance


def _shadows(half_M: npt.NDArray[np.float64], shape_M: Int64, foot_M2: npt.NDArray[np.float64], *, resolution: int) -> _Patches:
    """Soft dark ellipses around the feet."""
    width, height = (int(2.4 * part * max(HALF_SIZES) * resolution) + 4 for part in (1.0, SHADOW_FLATNESS))
    left_M, top_M, x_M1P, y_MP1 = _grid(foot_M2, width=width, height=height, resolution=resolution)
    radius_M = (1.2 * half_M * np.array([HALF_WIDTHS[shape] for shape in SHAPES])[shape_M]).astype(np.float32)[:, None, None]
    u_M1P, v_MP1 = x_M1P / radius_M, y_MP1 / (np.float32(SHADOW_FLATNESS) * radius_M)
    dark_MPP = np.float32(SHADOW) * np.maximum(1 - (u_M1P * u_M1P + v_MP1 * v_MP1), 0)
    nothing = np.zeros((1, 1, 1, 1), np.float32)
    return _Patches(
        left_M=left_M, top_M=top_M, keep_MPP1=(1 - dark_MPP)[..., None],
        add_MPP3=np.broadcast_to(nothing, (*dark_MPP.shape, 3)), inside_MPP=dark_MPP > 0,
    )  # fmt: skip


def _lay(images_BSS3: UInt8, frame_M: Int64, patches: _Patches) -> None:
    """Lay patches over the images, in the order of M."""
    height, width = patches.keep_MPP1.shape[1:3]
    half = np.float32(0.5)
    for at, (frame, left, top) in enumerate(zip(frame_M.tolist(), patches.left_M.tolist(), patches.top_M.tolist(), strict=True)):
        below_PP3 = images_BSS3[frame, top : top + height, left : left + width]
        below_PP3[:] = below_PP3 * patches.keep_MPP1[at] + (patches.add_MPP3[at] + half)
