"""Owns the common interface of procedural videos and videos on disk, and which frames make a training clip.

All videos of a data set have the same number of frames. Legend: B videos, T frames of each, S pixels of the square's side, 3 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jobs.randomness import generator

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoBatch:
    """Frames in the order in which they were asked for."""

    images_BTSS3: UInt8
    labels_BTSS: UInt8 | None
    """0 background; any other number is the same object in all frames of its video. None where the data has no masks."""


class Videos(Protocol):
    """The videos of one split."""

    @property
    def count(self) -> int:
        """How many videos there are."""
        ...

    @property
    def video_frames(self) -> int:
        """Frames of each video."""
        ...

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        ...

    @property
    def num_labels(self) -> int:
        """Masks hold numbers below this, 0 (background) included; 1 without masks."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether `read` returns masks."""
        ...

    def read(self, videos_B: Int64, frames_BT: Int64) -> VideoBatch:
        """Chosen frames, ascending and without repetition within a video, of chosen videos.

        Raises:
            IndexError: a video or frame out of range.
            DataError: a file that is missing or damaged (videos on disk).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class VideoData:
    """A data set of videos."""

    train: Videos
    test: Videos


@dataclass(frozen=True, kw_only=True)
class ClipWindows:
    """Training clips: `clip_frames` frames, `frame_step` apart, from a place drawn anew for each (seed, epoch, video).

    Nothing is remembered between draws, so a resumed run, another batch size and another world size see the same clips.
    """

    seed: int
    video_frames: int
    clip_frames: int
    frame_step: int = 1

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise ValueError(f"{self.clip_frames} frames, {self.frame_step} apart, do not fit into {self.video_frames}")

    @property
    def starts(self) -> int:
        """At how many frames a clip can begin."""
        return self.video_frames - (self.clip_frames - 1) * self.frame_step

    def frames(self, epoch: int, videos_B: Int64) -> Int64:
        """Frame numbers [B, T] of the clips of these videos in an epoch; every start is as likely."""
        drawn = [int(generator(self.seed, "clip", epoch, video).integers(self.starts)) for video in videos_B.tolist()]
        frames_BT: Int64 = np.array(drawn, np.int64)[:, None] + self.frame_step * np.arange(self.clip_frames)
        return frames_BT


def check_numbers(videos_B: Int64, frames_BT: Int64, *, count: int, video_frames: int) -> None:
    """Raise IndexError for a video outside [0, count) or a frame outside [0, video_frames)."""
    for name, numbers, end in (("video", videos_B, count), ("frame", frames_BT, video_frames)):
        outside = (numbers < 0) | (numbers >= end)
        if outside.any():
            raise IndexError(f"{name} {int(numbers[outside][0])} does not exist; there are {end}, counted from 0")
