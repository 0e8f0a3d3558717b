"""Owns the toy videos as videos by number: every frame is drawn when asked for, from (seed, video, frame) alone; no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.data.toy_video_draw import draw_videos
from jobs.data.toy_video_scene import VideoScenes, draw_scenes
from jobs.data.video import Int64, VideoBatch, VideoData, check_numbers
from jobs.data_spec import RecordRange, ToyVideoSpec


@dataclass(frozen=True, kw_only=True)
class ToyVideos:
    """The videos of one split; see jobs.data.video.Videos."""

    spec: ToyVideoSpec
    videos: RecordRange

    @property
    def count(self) -> int:
        """As the specification says."""
        return self.videos.count

    @property
    def video_frames(self) -> int:
        """As the specification says."""
        return self.spec.video_frames

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        return self.spec.resolution

    @property
    def num_labels(self) -> int:
        """Background, objects, and one for an occluder if there can be any."""
        return 1 + self.spec.max_objects + (1 if self.spec.occluders else 0)

    @property
    def has_labels(self) -> bool:
        """Always."""
        return True

    def read(self, videos_B: Int64, frames_BT: Int64) -> VideoBatch:
        """Draw frames; the cost of each is the same. Raises IndexError for a number out of range."""
        check_numbers(videos_B, frames_BT, count=self.count, video_frames=self.video_frames)
        images_BTSS3, labels_BTSS = draw_videos(self._scenes(videos_B), frames_BT, resolution=self.resolution)
        return VideoBatch(images_BTSS3=images_BTSS3, labels_BTSS=labels_BTSS)

    def crossings(self, videos_B: Int64) -> npt.NDArray[np.bool_]:
        """Whether two objects that look alike cross in a video: bool [B]."""
        return self._scenes(videos_B).crosses_N

    def _scenes(self, videos_B: Int64) -> VideoScenes:
        return draw_scenes(self.spec, videos_B + self.videos.first)


def open_toy_video(spec: ToyVideoSpec) -> VideoData:
    """Both splits; costs nothing."""
    return VideoData(train=ToyVideos(spec=spec, videos=spec.train), test=ToyVideos(spec=spec, videos=spec.test))
