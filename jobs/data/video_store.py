"""Owns what a `prepare` run leaves of videos: a manifest alone (jobs.data.manifest_store). Frames are drawn or decoded on demand.

Legend: N videos, B of them, T frames, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from pydantic import BaseModel, ConfigDict

from jobs.data.manifest_store import check_planned, check_unchanged, commit
from jobs.data.store import Counts, FileFacts, SplitName
from jobs.data.toy_video import open_toy_video
from jobs.data.video import UInt8, VideoData, Videos
from jobs.data.video_files import open_videos, videos_content_hash
from jobs.data_spec import ToyVideoSpec, VideoFilesSpec

VideoSource = ToyVideoSpec | VideoFilesSpec


class VideoManifest(BaseModel):
    """The content of a video store's `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["videos-1"] = "videos-1"
    """Layout of the store and its version."""
    counts: Counts
    """Videos of each split."""
    video_frames: int
    """Frames of each."""
    resolution: int
    has_labels: bool
    """Whether the test videos have masks."""
    source: Mapping[str, Any]
    """The configuration, without the place on this disk."""
    files: Mapping[str, FileFacts] = {}
    """None: the manifest is all there is."""


@dataclass(frozen=True, kw_only=True)
class FirstFrames:
    """First frames of a split's videos as if they lay in one array, uint8 [N,S,S,3]: the pictures that stand for the videos."""

    videos: Videos

    def __len__(self) -> int:
        return self.videos.count

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N,S,S,3]"""
        return (self.videos.count, self.videos.resolution, self.videos.resolution, 3)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8"""
        return np.dtype(np.uint8)

    def __getitem__(self, chosen: np.ndarray | slice) -> UInt8:
        """Of videos by number, or a range of them; raises IndexError and DataError as `Videos.read` does."""
        videos_B = np.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else np.asarray(chosen)
        return self.videos.read(videos_B, np.zeros((len(videos_B), 1), np.int64)).images_BTSS3[:, 0]


@dataclass(frozen=True, kw_only=True)
class VideoStore:
    """Prepared videos, opened."""

    path: Path
    manifest: VideoManifest
    data: VideoData

    @classmethod
    def open(cls, path: Path, source: VideoSource) -> VideoStore:
        """Open the videos of a configuration that a `prepare` run has looked at.

        Raises:
            DataError: no manifest; or the videos are not what they were then; or as `open_videos`.
        """
        data = open_source(source)
        manifest = check_unchanged(path, video_manifest(source, data), told=_told, what="videos")
        return cls(path=path, manifest=manifest, data=data)

    def videos(self, split: SplitName) -> Videos:
        """The videos of a split."""
        return self.data.train if split == "train" else self.data.test

    def images(self, split: SplitName) -> FirstFrames:
        """The first frames of a split's videos."""
        return FirstFrames(videos=self.videos(split))


def open_source(source: VideoSource) -> VideoData:
    """The videos of a configuration; raises DataError as `open_videos` does."""
    match source:
        case ToyVideoSpec():
            return open_toy_video(source)
        case VideoFilesSpec():
            return open_videos(source)
        case _:
            assert_never(source)


def video_manifest(source: VideoSource, data: VideoData) -> VideoManifest:
    """What a `prepare` run writes down."""
    return VideoManifest(
        counts={"train": data.train.count, "test": data.test.count},
        video_frames=data.test.video_frames,
        resolution=data.test.resolution,
        has_labels=data.test.has_labels,
        source=source.model_dump(mode="json", exclude={"path"}),
    )


def prepare_videos(source: VideoSource, output: Path, *, may_commit: Callable[[], bool]) -> VideoManifest | None:
    """Look at the videos and write the manifest below `output`; None, and nothing written, when told not to commit.

    Raises:
        DataError: as `open_videos`; files that are not those that the run was planned with; or another store is there.
    """
    if isinstance(source, VideoFilesSpec) and source.content is not None:
        check_planned(Path(source.path).expanduser(), source.content, found=videos_content_hash(source), what="videos")
    return commit(video_manifest(source, open_source(source)), output, may_commit=may_commit)


def _told(manifest: VideoManifest) -> str:
    masks = "with masks" if manifest.has_labels else "without masks"
    return f"{manifest.counts['train']} + {manifest.counts['test']} videos of {manifest.video_frames} frames, {masks}"
