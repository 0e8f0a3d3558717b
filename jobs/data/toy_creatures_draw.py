"""Owns how the toy creatures look: from scenes to antialiased pixels, exact part maps and keypoints; no randomness.

Every piece is a small patch: distances to its outline in pixels, coverage = clip(1/2 - distance, 0, 1), laid from back to
front. A pixel belongs to the part of the nearest piece whose outline its centre is in. Textures move with their piece.
Only + - * / sqrt floor, min and max on float32: the same bytes on every machine.

Legend: S side of the image, h x w of a patch, Q keypoints.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
import numpy.typing as npt

from jobs.data.part_store import PartRecord
from jobs.data.toy_creatures_background import draw_background
from jobs.data.toy_creatures_scene import KEYPOINTS, PARTS, Piece, Scene, Texture
from jobs.data.toy_creatures_warp import pixel_weights, unwarped

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

STRIPE, CHECK, DOT = 0.05, 0.052, 0.062
"""Periods of the textures."""
DOT_RADIUS = 0.02
EDGE_PIXELS = 2
"""Room around a patch."""


def draw_creature(scene: Scene, *, resolution: int) -> PartRecord:
    """A creature as a record of the part store."""
    image_3SS = draw_background(scene, resolution=resolution)
    parts_SS = np.zeros((resolution, resolution), np.uint8)
    x_SS, y_SS, reach = _creature_places(scene, resolution)
    pixel = np.float32(1 / (resolution * scene.scale))
    for piece in scene.pieces:
        rows, columns = _patch(scene, piece, reach, resolution)
        along, across, distance = _outline(piece, x_SS[rows, columns], y_SS[rows, columns])
        cover = np.clip(np.float32(0.5) - distance / pixel, 0, 1)
        ground, figure = (np.array(color, np.float32)[:, None, None] for color in piece.colors)
        amount = _figure(piece.texture, along, across, pixel, piece.radii[1])
        below = image_3SS[:, rows, columns]
        below += cover * (ground + (figure - ground) * amount - below)
        parts_SS[rows, columns][distance <= 0] = piece.part
    keypoints_Q2 = _keypoints(scene, resolution)
    return PartRecord(
        image_SS3=np.ascontiguousarray((image_3SS * 255 + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0)),
        parts_SS=parts_SS,
        foreground_SS=(parts_SS > 0).astype(np.uint8),
        keypoints_Q2=keypoints_Q2,
        visible_Q=_visible(keypoints_Q2, parts_SS),
        scale_2=np.full(2, resolution, np.float32),
    )


def _creature_places(scene: Scene, resolution: int) -> tuple[Float32, Float32, float]:
    """x and y [S, S] of the pixels' centres in the creature's own frame, and the largest displacement in image sides."""
    moved_2M = np.ascontiguousarray(scene.warp_C2.T) @ pixel_weights(resolution)
    x_SS, y_SS = moved_2M.reshape(2, resolution, resolution)
    across_S = (np.arange(resolution) + 0.5) / resolution - 0.5
    turned = -scene.scale if scene.mirrored else scene.scale
    return (
        ((x_SS + (across_S - scene.shift[0])) / turned).astype(np.float32),
        ((y_SS + (across_S[:, None] - scene.shift[1])) / scene.scale).astype(np.float32),
        float(np.abs(moved_2M).max()),
    )


def _keypoints(scene: Scene, resolution: int) -> Float32:
    """(x, y) [Q, 2] in pixels, centres of pixels at integers."""
    turned_2 = np.array([-scene.scale if scene.mirrored else scene.scale, scene.scale])
    places_Q2 = unwarped(scene.keypoints_Q2 * turned_2 + np.array(scene.shift), scene.warp_C2)
    return ((places_Q2 + 0.5) * resolution - 0.5).astype(np.float32)


def _visible(keypoints_Q2: Float32, parts_SS: UInt8) -> UInt8:
    """1 where the keypoint's part owns the pixel that it lies in."""
    side = len(parts_SS)
    column_Q, row_Q = np.floor(keypoints_Q2.astype(np.float64) + 0.5).astype(np.int64).T
    inside_Q = (column_Q >= 0) & (column_Q < side) & (row_Q >= 0) & (row_Q < side)
    owner_Q = parts_SS[np.clip(row_Q, 0, side - 1), np.clip(column_Q, 0, side - 1)]
    part_Q = np.array([PARTS.index(part) + 1 for part in KEYPOINTS.values()])
    visible_Q: UInt8 = (inside_Q & (owner_Q == part_Q)).astype(np.uint8)
    return visible_Q


def _patch(scene: Scene, piece: Piece, reach: float, resolution: int) -> tuple[slice, slice]:
    """Rows and columns outside of which the piece covers nothing."""
    slices = []
    for direction in (1, 0):
        start = piece.at[direction]
        end = start + piece.axis[direction] if piece.limb else start
        most = max(piece.radii)
        sign = -1 if scene.mirrored and direction == 0 else 1
        ends = [sign * scene.scale * place + scene.shift[direction] for place in (start, end)]
        room = scene.scale * most + reach
        first, last = (min(ends) - room + 0.5) * resolution, (max(ends) + room + 0.5) * resolution
        slices.append(slice(max(0, int(first) - EDGE_PIXELS), max(0, int(last) + EDGE_PIXELS)))
    return slices[0], slices[1]


def _outline(piece: Piece, x: Float32, y: Float32) -> tuple[Float32, Float32, Float32]:
    """Coordinates along and across a piece's axis, and distances to its outline (negative inside), each [h, w]."""
    dx, dy = x - np.float32(piece.at[0]), y - np.float32(piece.at[1])
    length = float(np.sqrt(piece.axis[0] * piece.axis[0] + piece.axis[1] * piece.axis[1]))
    cosine, sine = np.float32(piece.axis[0] / length), np.float32(piece.axis[1] / length)
    along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
    first, second = (np.float32(radius) for radius in piece.radii)
    distance: Float32
    if piece.limb:
        share = np.clip(along * np.float32(1 / length), 0, 1)
        beyond = along - share * np.float32(length)
        distance = np.sqrt(beyond * beyond + across * across) - (first + (second - first) * share)
        return along, across, distance
    # The implicit function over its gradient's length: exact on the outline, good near it.
    one, other = along / first, across / second
    value: Float32 = np.sqrt(one * one + other * other)
    one, other = one / first, other / second
    slope: Float32 = np.sqrt(one * one + other * other)
    tiny = np.float32(1e-6)
    distance = (value - np.float32(1)) * (value + tiny) / (slope + tiny / second)
    return along, across, distance


def _figure(texture: Texture, along: Float32, across: Float32, pixel: np.float32, half_width: float) -> Float32 | np.float32:
    """How much of the second colour there is [h, w], in [0, 1]."""
    match texture:
        case "plain":
            return np.float32(0)
        case "gradient":
            amount: Float32 = np.clip((across / np.float32(half_width) + 1) / 2, 0, 1)
        case "stripes":
            amount = _bands(along, STRIPE, pixel)
        case "checker":
            one, other = _bands(along, CHECK, pixel), _bands(across + np.float32(CHECK / 4), CHECK, pixel)
            amount = one * other + (1 - one) * (1 - other)
        case "dots":
            u, v = _within(along, DOT), _within(across, DOT)
            amount = np.clip(np.float32(0.5) - (np.sqrt(u * u + v * v) - np.float32(DOT_RADIUS)) / pixel, 0, 1)
        case _:
            assert_never(texture)
    return amount


def _bands(place: Float32, period: float, pixel: np.float32) -> Float32:
    """1 in every other band of half a period, antialiased."""
    bands: Float32 = np.clip(np.float32(0.5) + (np.abs(_within(place, period)) - np.float32(period / 4)) / pixel, 0, 1)
    return bands


def _within(place: Float32, period: float) -> Float32:
    """The distance from the nearest multiple of the period."""
    turns = place * np.float32(1 / period)
    distance: Float32 = (turns - np.floor(turns + np.float32(0.5))) * np.float32(period)
    return distance
