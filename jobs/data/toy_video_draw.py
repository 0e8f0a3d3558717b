"""Owns how the toy videos look: from positions to antialiased pixels and instance masks; no randomness.

Every object is a small patch: distances to its outline (in pixels), coverage = clip(1/2 - distance, 0, 1). The k-th objects of
all frames are laid at once, from back to front. A pixel belongs to the nearest object whose outline its centre is in. Only
+ - * / sqrt, min and max on float32: the same bytes on every machine.

Legend: N videos, T frames, B = N * T pictures, M objects laid at once, P side of a patch, S side of the image; pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jobs.data.toy_video_scene import OCCLUDER_HALF_WIDTH, RADII, RGB, SHAPES, Float64, Int64, VideoScenes

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

BACKGROUND = (20.0, 60.0)
"""Grey levels between which a video's background lies."""
OCCLUDER_GREY = 165.0
AT_ONCE = 64
"""Pictures drawn together: they stay in the cache."""


def draw_videos(scenes: VideoScenes, frames_NT: Int64, *, resolution: int) -> tuple[UInt8, UInt8]:
    """Images [N, T, S, S, 3] and masks [N, T, S, S] of the wanted frames of each video.

    No videos make none. Masks hold 0 for the background, k for the k-th object (counted from 1), number + 1 for an occluder.
    """
    videos, frames = frames_NT.shape
    centers_BK2 = scenes.centers(frames_NT).reshape(videos * frames, scenes.color_NK.shape[1], 2)
    video_B = np.repeat(np.arange(videos), frames)
    images_BSS3 = np.empty((len(video_B), resolution, resolution, 3), np.uint8)
    labels_BSS = np.zeros((len(video_B), resolution, resolution), np.uint8)
    for first in range(0, len(video_B), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        _draw(scenes, video_B[rows], centers_BK2[rows], images_BSS3[rows], labels_BSS[rows])
    shape = (videos, frames, resolution, resolution)
    return images_BSS3.reshape(*shape, 3), labels_BSS.reshape(shape)


def _draw(scenes: VideoScenes, video_B: Int64, centers_BK2: Float64, images_BSS3: UInt8, labels_BSS: UInt8) -> None:
    """Fill pictures whose masks are still zero."""
    resolution = labels_BSS.shape[1]
    low, high = BACKGROUND
    images_BSS3[:] = (low + (high - low) * scenes.background_N[video_B]).astype(np.uint8)[:, None, None, None]
    rgb_C3 = np.array(list(RGB.values()), np.float32)
    for number in range(centers_BK2.shape[1]):
        (picture_M,) = np.nonzero(scenes.exists[video_B, number])
        video_M = video_B[picture_M]
        top_M, left_M, distance_MPP = _distances(
            scenes.shape_NK[video_M, number],
            scenes.radius_NK[video_M, number] * resolution,
            centers_BK2[picture_M, number] * resolution,
            resolution=resolution,
        )
        span_P = np.arange(distance_MPP.shape[1])
        at = (picture_M[:, None, None], (top_M[:, None] + span_P)[:, :, None], (left_M[:, None] + span_P)[:, None, :])
        color_M3 = rgb_C3[scenes.color_NK[video_M, number]]
        images_BSS3[at] = _laid(images_BSS3[at], distance_MPP, color_M3[:, None, None])
        labels_BSS[at] = np.where(distance_MPP <= 0, np.uint8(number + 1), labels_BSS[at])
    (picture_M,) = np.nonzero(scenes.occluder_N[video_B])
    if picture_M.size:
        video_M = video_B[picture_M]
        offset_MS = np.arange(resolution) + 0.5 - resolution * scenes.occluder_x_N[video_M][:, None]
        beyond_MS = (np.abs(offset_MS) - resolution * OCCLUDER_HALF_WIDTH).astype(np.float32)
        distance_MSS = np.broadcast_to(beyond_MS[:, None], (len(picture_M), resolution, resolution))
        images_BSS3[picture_M] = _laid(images_BSS3[picture_M], distance_MSS, np.full(3, OCCLUDER_GREY, np.float32))
        number_M11 = (scenes.number_N[video_M] + 1).astype(np.uint8)[:, None, None]
        labels_BSS[picture_M] = np.where(distance_MSS <= 0, number_M11, labels_BSS[picture_M])


def _laid(below_MPP3: UInt8, distance_MPP: Float32, color: Float32) -> UInt8:
    """What is seen after a shape of one colour was laid over something."""
    cover_MPP1 = np.clip(np.float32(0.5) - distance_MPP, 0, 1)[..., None]
    laid: UInt8 = (below_MPP3 * (1 - cover_MPP1) + (color * cover_MPP1 + np.float32(0.5))).astype(np.uint8)
    return laid


def _distances(shape_M: Int64, radius_M: Float64, center_M2: Float64, *, resolution: int) -> tuple[Int64, Int64, Float32]:
    """Rows and columns [M] where patches begin, and distances [M, P, P] to the outlines, negative inside."""
    side = int(2 * RADII[1] * resolution) + 4
    corner_M2 = np.clip(np.floor(center_M2 - side / 2).astype(np.int64), 0, resolution - side)
    offset_M2 = corner_M2 - center_M2
    x_M1P = (offset_M2[:, :1] + (np.arange(side) + 0.5)).astype(np.float32)[:, None, :]
    y_MP1 = (offset_M2[:, 1:] + (np.arange(side) + 0.5)).astype(np.float32)[:, :, None]
    distance_MPP = np.empty((len(shape_M), side, side), np.float32)
    for shape, name in enumerate(SHAPES):
        (chosen,) = np.nonzero(shape_M == shape)
        x, y, radius = x_M1P[chosen], y_MP1[chosen], radius_M[chosen].astype(np.float32)[:, None, None]
        match name:
            case "disc":
                distance_MPP[chosen] = np.sqrt(x * x + y * y) - radius
            case "square":
                distance_MPP[chosen] = np.maximum(np.abs(x), np.abs(y)) - radius
            case "triangle":  # tip up, as wide as high: its sides rise 2 for 1
                sides = (2 * np.abs(x) - (y + radius)) / np.sqrt(np.float32(5))
                distance_MPP[chosen] = np.maximum(sides, y - radius)
    return corner_M2[:, 1], corner_M2[:, 0], distance_MPP
