"""Owns videos on disk as videos by number: layout, hash of what lies there, pixels when asked for.

FOLDER/train/images/NAME.mp4          a video (.avi, .mp4, .mkv), or a folder NAME/ of frames in the order of their names
FOLDER/train/masks/NAME/0000.png      optional, for all videos of the split or none: 8-bit grey, 0 background
FOLDER/test/...                       the same for the test split

With format `movi` the folder holds TFRecord shards instead (jobs.data.movi). Videos are numbered in the order of their names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jobs.data.clips_files import IMAGES, MASKS, frame_files, list_folder, media_names
from jobs.data.errors import DataError, Place
from jobs.data.movi import movi_shards, open_movi
from jobs.data.store import SPLITS, SplitName
from jobs.data.video import Int64, VideoBatch, VideoData, Videos, check_numbers
from jobs.data.video_media import fitted, read_frames, read_masks
from jobs.data_spec import VideoFilesSpec

LAYOUT = "train/images/NAME.mp4 or train/images/NAME/*.png, the same in test/; masks in masks/NAME/*.png"
LAYOUT_HINT = "`path` must be the folder that holds train/ and test/ (layout in jobs/data/README.md)"


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """The videos of one split; see jobs.data.video.Videos."""

    spec: VideoFilesSpec
    media: tuple[Path, ...]
    """Video or folder of frames of each video."""
    masks: tuple[Path, ...] | None
    """Folder of masks of each video."""

    @property
    def count(self) -> int:
        """How many videos were found, or as many as the specification takes."""
        return len(self.media)

    @property
    def video_frames(self) -> int:
        """As the specification says; what follows in a longer video is left out."""
        return self.spec.video_frames

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        return self.spec.resolution

    @property
    def num_labels(self) -> int:
        """As the specification says, background included; 1 without masks."""
        return 1 if self.masks is None else self.spec.max_objects + 1

    @property
    def has_labels(self) -> bool:
        """Whether there is a folder of masks."""
        return self.masks is not None

    def read(self, videos_B: Int64, frames_BT: Int64) -> VideoBatch:
        """Read frames; each video is opened once per row.

        Raises:
            IndexError: a number out of range.
            DataError: a video that is damaged or too short, or masks that do not fit it.
        """
        check_numbers(videos_B, frames_BT, count=self.count, video_frames=self.video_frames)
        side = self.resolution
        images_BTSS3 = np.empty((*frames_BT.shape, side, side, 3), np.uint8)
        labels_BTSS = None if self.masks is None else np.empty((*frames_BT.shape, side, side), np.uint8)
        for row, (video, wanted) in enumerate(zip(videos_B.tolist(), frames_BT.tolist(), strict=True)):
            path, masks = self.media[video], None
            images = read_frames(path, wanted, video_frames=self.video_frames)
            if self.masks is not None:
                media, path = path, self.masks[video]
                masks = read_masks(path, wanted, media=media, video_frames=self.video_frames)
            place = Place(file=str(path))
            images_BTSS3[row], labels_TSS = fitted(images, masks, side=side, max_objects=self.spec.max_objects, place=place)
            if labels_BTSS is not None and labels_TSS is not None:
                labels_BTSS[row] = labels_TSS
        return VideoBatch(images_BTSS3=images_BTSS3, labels_BTSS=labels_BTSS)


def open_videos(spec: VideoFilesSpec) -> VideoData:
    """List both splits; of MOVi's shards the place of every record is read.

    Raises:
        DataError: no such folder, an empty split, masks for some videos only; with format `movi` as `open_movi`.
    """
    train, test = (_split(spec, split) for split in SPLITS)
    return VideoData(train=train, test=test)


def check_videos(spec: VideoFilesSpec) -> list[str]:
    """Look, on the login node, whether the videos can be used: the lists, and the first video's first and last frame.

    Returns what was found, line by line. Raises DataError as `open_videos` and `read` do.
    """
    data = open_videos(spec)
    found = []
    for split, videos in (("training", data.train), ("test", data.test)):
        ends_12 = np.unique([0, spec.video_frames - 1])[None]
        videos.read(np.zeros(1, np.int64), ends_12)
        masks = "with masks" if videos.has_labels else "without masks"
        found.append(f"{videos.count} {split} videos of at least {spec.video_frames} frames, {masks}, from {spec.path}")
    return found


def videos_content_hash(spec: VideoFilesSpec) -> str:
    """sha256, in hex, over the names and sizes of videos or shards, the names of frames, and the names of masks' folders.

    Pixels are not read. Raises DataError as `open_videos`.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        if spec.format == "movi":
            shards = movi_shards(Path(spec.path).expanduser(), split)
            facts = [f"{path.name} {path.stat().st_size}" for path in shards]
        else:
            videos = _listed(spec, split)
            facts = [_facts(path) for path in videos.media]
            facts += [f"masks {path.name}" for path in videos.masks or ()]
        digest.update("".join(f"{split} {fact}\n" for fact in facts).encode())
    return digest.hexdigest()


def _facts(path: Path) -> str:
    if path.is_dir():
        return f"{path.name} {' '.join(frame.name for frame in frame_files(path))}"
    return f"{path.name} {path.stat().st_size}"


def _split(spec: VideoFilesSpec, split: SplitName) -> Videos:
    if spec.format == "movi":
        return open_movi(spec, split)
    found, taken = _listed(spec, split), slice(spec.max_videos)
    return replace(found, media=found.media[taken], masks=None if found.masks is None else found.masks[taken])


def _listed(spec: VideoFilesSpec, split: SplitName) -> VideoFiles:
    """All that are there, also for trials: what the hash is of."""
    folder = Path(spec.path).expanduser() / split
    if not (folder / IMAGES).is_dir():
        raise DataError("no such folder", place=Place(file=str(folder / IMAGES)), expected=LAYOUT, hint=LAYOUT_HINT)
    media = media_names(folder)
    if not media:
        raise DataError("holds no videos", place=Place(file=str(folder / IMAGES)), expected=LAYOUT, hint=LAYOUT_HINT)
    names = sorted(media)
    masks = None
    if (folder / MASKS).is_dir():
        there = {path.name for path in list_folder(folder / MASKS)}
        if missing := [name for name in names if name not in there]:
            raise DataError(
                f"no masks of {missing[0]} ({len(missing)} of {len(names)} videos have none)",
                place=Place(file=str(folder / MASKS)),
                expected="masks of all videos of the split or of none",
                hint="copy the missing ones, or rename the folder to do without masks",
            )
        masks = tuple(folder / MASKS / name for name in names)
    return VideoFiles(spec=spec, media=tuple(media[name] for name in names), masks=masks)
