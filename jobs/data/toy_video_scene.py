"""Owns what the toy videos consist of: shapes, colours, and where every object is at any frame; no pixels.

The numbers of video i are words i*W .. i*W + W-1 of one Philox stream keyed by the seed, so a video is a function of (seed, i)
and of the ranges and shares in its configuration. Every object has a constant velocity and bounces off the walls; its position
is the reflection of a straight line, so any frame costs the same. Objects pass in front of each other (a higher number is
nearer to the viewer) and never collide. No two objects of a video share a colour, but for the pair of a crossing.

A crossing: objects 0 and 1 look alike, come from opposite sides and nearly meet at one frame of the middle third.
An occluder: an upright bar, nearest of all and immobile; the last object is wholly behind it at one frame of the middle third.

Legend: N videos, T frames, K = max_objects; lengths are parts of the image's side, x to the right, y down. Only + - * / and
remainders on float64: the same positions on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.data_spec import ToyVideoSpec

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

SHAPES = ("disc", "square", "triangle")
RGB = {
    "red": (230, 50, 50), "orange": (245, 150, 30), "yellow": (240, 230, 70), "green": (60, 190, 75),
    "cyan": (70, 215, 225), "blue": (60, 90, 235), "purple": (150, 50, 200), "pink": (245, 130, 200),
}  # fmt: skip
COLORS = tuple(RGB)
RADII = (0.08, 0.13)
"""Half of the width and of the height."""
SPEEDS = (0.02, 0.05)
"""Per frame."""
CROSSING_SLOPE = 0.4
"""Largest |u| of a pair that crosses: within 44 degrees of the horizontal."""
HIDDEN_SLOPE = 0.25
"""Largest |u| of the object that goes behind an occluder: within 28 degrees of the horizontal."""
LEAST_CROSSING_SPEED = 0.03
"""Of those three objects: both sides of the event fit into the video."""
NEAR_MISS = 0.3
"""Largest distance between the centres of a crossing pair along x and y, in radii."""
OCCLUDER_HALF_WIDTH = 0.16

PHILOX_BLOCK = 4
MOST_OBJECTS = 8
VIDEO_WORDS = 11
"""Number, crossing, occluder, frames of both events, meeting place (2), near miss (2), occluder's place, background."""
OBJECT_WORDS = 7
"""Shape, radius, x, y, speed, direction, its sign."""
WORDS = VIDEO_WORDS + len(COLORS) + OBJECT_WORDS * MOST_OBJECTS


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoScenes:
    """N videos before drawing. Rows of objects beyond `number_N` mean nothing."""

    number_N: Int64
    """Moving objects; an occluder is not counted."""
    crosses_N: Bool
    occluder_N: Bool
    occluder_x_N: Float64
    color_NK: Int64
    shape_NK: Int64
    radius_NK: Float64
    start_NK2: Float64
    """Centre at frame 0 on the straight line, which may lie outside of the walls."""
    velocity_NK2: Float64
    background_N: Float64
    """In [0, 1)."""

    @property
    def exists(self) -> Bool:
        """Whether there is a moving object [N, K]."""
        exists: Bool = np.arange(self.color_NK.shape[1]) < self.number_N[:, None]
        return exists

    def centers(self, frames_NT: Int64) -> Float64:
        """Centres [N, T, K, 2], reflected so that each object touches a wall at most."""
        line_NTK2 = self.start_NK2[:, None] + self.velocity_NK2[:, None] * frames_NT[:, :, None, None]
        margin_N1K1 = self.radius_NK[:, None, :, None]
        room_N1K1 = 1 - 2 * margin_N1K1
        turned_NTK2 = np.remainder(line_NTK2 - margin_N1K1, 2 * room_N1K1)
        centers: Float64 = margin_N1K1 + np.minimum(turned_NTK2, 2 * room_N1K1 - turned_NTK2)
        return centers


def draw_scenes(spec: ToyVideoSpec, videos_N: Int64) -> VideoScenes:
    """The videos of these numbers, each independent of the others asked for."""
    uniform_NW = _uniforms(spec.seed, videos_N)
    video_NV, colors_NC, objects_NO = np.split(uniform_NW, np.cumsum([VIDEO_WORDS, len(COLORS)]), axis=1)
    object_NKO = objects_NO.reshape(len(videos_N), MOST_OBJECTS, OBJECT_WORDS)[:, : spec.max_objects]
    number_N = spec.min_objects + _choice(video_NV[:, 0], spec.max_objects - spec.min_objects + 1)
    crosses_N, occluder_N = video_NV[:, 1] < spec.crossings, video_NV[:, 2] < spec.occluders
    row_N = np.arange(len(videos_N))
    last_N = number_N - 1

    looks_NKO = object_NKO.copy()
    looks_NKO[crosses_N, 1, :2] = looks_NKO[crosses_N, 0, :2]
    color_NK = np.argsort(colors_NC, axis=1, kind="stable")[:, : spec.max_objects]
    color_NK[crosses_N, 1] = color_NK[crosses_N, 0]
    radius_NK = _between(RADII, looks_NKO[:, :, 1])

    speed_NK = _between(SPEEDS, object_NKO[:, :, 4])
    slope_NK = 2 * object_NKO[:, :, 5] - 1
    sign_NK = np.where(object_NKO[:, :, 6] < 0.5, -1.0, 1.0)
    hidden_NK = np.zeros(slope_NK.shape, np.bool_)
    hidden_NK[row_N[occluder_N], last_N[occluder_N]] = True
    meeting_NK = np.zeros(slope_NK.shape, np.bool_)
    meeting_NK[crosses_N, :2] = True
    slope_NK = np.where(hidden_NK, HIDDEN_SLOPE * slope_NK, np.where(meeting_NK, CROSSING_SLOPE * slope_NK, slope_NK))
    fast_NK = _between((LEAST_CROSSING_SPEED, SPEEDS[1]), object_NKO[:, :, 4])
    speed_NK = np.where(hidden_NK | meeting_NK, fast_NK, speed_NK)
    sign_NK[crosses_N, 1] = -sign_NK[crosses_N, 0]
    velocity_NK2 = (speed_NK * sign_NK)[:, :, None] * _direction(slope_NK)

    occluder_x_N = _between((0.4, 0.6), video_NV[:, 9])
    start_NK2 = radius_NK[:, :, None] + (1 - 2 * radius_NK[:, :, None]) * object_NKO[:, :, 2:4]
    cross_frame_N, hide_frame_N = (_middle_frame(spec, video_NV[:, word]) for word in (3, 4))
    meet_N2 = _between((0.35, 0.65), video_NV[:, 5:7])
    miss_N2 = NEAR_MISS * radius_NK[:, :1] * (2 * video_NV[:, 7:9] - 1)
    at_NK2 = np.stack([meet_N2, meet_N2 + miss_N2], axis=1)
    met_NK2 = at_NK2 - velocity_NK2[:, :2] * cross_frame_N[:, None, None]
    start_NK2[:, :2] = np.where(meeting_NK[:, :2, None], met_NK2, start_NK2[:, :2])
    behind_N2 = np.stack([occluder_x_N, start_NK2[row_N, last_N, 1]], axis=1)
    gone_N2 = behind_N2 - velocity_NK2[row_N, last_N] * hide_frame_N[:, None]
    start_NK2[row_N, last_N] = np.where(occluder_N[:, None], gone_N2, start_NK2[row_N, last_N])
    return VideoScenes(
        number_N=number_N, crosses_N=crosses_N, occluder_N=occluder_N, occluder_x_N=occluder_x_N, color_NK=color_NK,
        shape_NK=_choice(looks_NKO[:, :, 0], len(SHAPES)), radius_NK=radius_NK, start_NK2=start_NK2,
        velocity_NK2=velocity_NK2, background_N=video_NV[:, 10],
    )  # fmt: skip


def _direction(slope: Float64) -> Float64:
    """Unit vectors at the angle 2 arctan(u), in a new last axis: rational, hence the same on every machine."""
    square = slope * slope
    direction: Float64 = np.stack([(1 - square) / (1 + square), 2 * slope / (1 + square)], axis=-1)
    return direction


def _middle_frame(spec: ToyVideoSpec, uniform_N: Float64) -> Int64:
    """A frame of the middle third of the video."""
    first = spec.video_frames // 3
    return first + _choice(uniform_N, spec.video_frames - 2 * first)


def _between(ends: tuple[float, float], uniform: Float64) -> Float64:
    return ends[0] + (ends[1] - ends[0]) * uniform


def _choice(uniform: Float64, options: int) -> Int64:
    """Integers in [0, options)."""
    return np.minimum((uniform * options).astype(np.int64), options - 1)


def _uniforms(seed: int, videos_N: Int64) -> Float64:
    """[N, WORDS] in [0, 1): 53 bits of each word of the stream."""
    blocks = -(-WORDS // PHILOX_BLOCK)
    words_NW = np.empty((len(videos_N), blocks * PHILOX_BLOCK), np.uint64)
    for row, video in enumerate(videos_N.tolist()):
        words_NW[row] = np.random.Philox(key=seed, counter=video * blocks).random_raw(blocks * PHILOX_BLOCK)
    uniform_NW: Float64 = (words_NW[:, :WORDS] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform_NW
