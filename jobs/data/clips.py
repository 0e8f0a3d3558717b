"""Owns clips on disk as frames by number: scene files read once, pixels when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from jobs.data.clips_actions import FRAMES, PHASE_OF_FRAME, clip_text, name_numbers, named_objects, phase_texts
from jobs.data.clips_files import IMAGES, MASKS, SCENES, SPLIT_LISTS, media_names, missing_media, scene_names
from jobs.data.clips_frames import ClipData, FrameBatch, Int64, UInt8, clip_and_frame
from jobs.data.clips_media import read_frames, read_masks
from jobs.data.clips_scene import ClipScene, read_scene
from jobs.data.clips_texts import TextTable, phase_table
from jobs.data.errors import DataError, Place
from jobs.data.store import SPLITS, SplitName
from jobs.data_spec import ClipsSpec


@dataclass(frozen=True, kw_only=True)
class _Clip:
    scene: ClipScene
    media: Path
    """Video, or folder of frames."""
    sentences: tuple[int, ...]
    """Number of each phase's sentence."""


@dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """The frames of one split; see jobs.data.clips_frames.Frames."""

    clips: tuple[_Clip, ...]
    resolution: int
    masks: Path | None
    """Folder that holds a folder of masks for each clip."""

    @property
    def count(self) -> int:
        """34 per clip."""
        return len(self.clips) * FRAMES

    @property
    def has_labels(self) -> bool:
        """Whether there is a folder of masks."""
        return self.masks is not None

    def read(self, indices_B: Int64) -> FrameBatch:
        """Read frames by number; each clip asked for is opened once.

        Raises:
            IndexError: a number outside [0, count).
            DataError: a clip that is damaged or has fewer than 34 frames, or masks of another size than its frames.
        """
        clip_B, frame_B = clip_and_frame(indices_B, count=self.count, frames=FRAMES)
        side = self.resolution
        images_BSS3 = np.empty((len(clip_B), side, side, 3), np.uint8)
        labels_BSS = None if self.masks is None else np.empty((len(clip_B), side, side), np.uint8)
        named_B2, names_B22 = np.empty((len(clip_B), 2), np.int64), np.empty((len(clip_B), 2, 2), np.int64)
        for number in np.unique(clip_B).tolist():
            clip = self.clips[number]
            (rows,) = np.nonzero(clip_B == number)
            wanted, place = np.unique(frame_B[rows], return_inverse=True)
            images = read_frames(clip.media, wanted.tolist())
            images_BSS3[rows] = np.stack([square(image, side, Image.Resampling.BICUBIC) for image in images])[place]
            if labels_BSS is not None and self.masks is not None:
                masks = read_masks(self.masks / clip.scene.clip, wanted.tolist(), media=clip.media)
                _check_masks(clip, masks, images, self.masks)
                labels_BSS[rows] = np.stack([square(mask, side, Image.Resampling.NEAREST) for mask in masks])[place]
            named = named_objects(clip.scene.actions)
            for row in rows.tolist():
                phase = PHASE_OF_FRAME[frame_B[row]]
                named_B2[row], names_B22[row] = named[phase], name_numbers(clip.scene.nouns, named[phase])
        return FrameBatch(
            images_BSS3=images_BSS3,
            labels_BSS=labels_BSS,
            sentences_B=self._sentences(clip_B, frame_B),
            named_B2=named_B2,
            names_B22=names_B22,
        )

    def sentences(self, indices_B: Int64) -> Int64:
        """As the protocol says."""
        return self._sentences(*clip_and_frame(indices_B, count=self.count, frames=FRAMES))

    def _sentences(self, clip_B: Int64, frame_B: Int64) -> Int64:
        pairs = zip(clip_B.tolist(), frame_B.tolist(), strict=True)
        return np.array([self.clips[clip].sentences[PHASE_OF_FRAME[frame]] for clip, frame in pairs], np.int64)


def square(pixels: UInt8, side: int, resampling: Literal[Image.Resampling.BICUBIC, Image.Resampling.NEAREST]) -> UInt8:
    """Resize the short side, crop the middle, as CLIP's own preprocessing does; nothing happens to a square of that size."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    resized: UInt8 = np.asarray(Image.fromarray(pixels).resize(size, resampling))
    return resized[top : top + side, left : left + side]


def open_clips(spec: ClipsSpec) -> ClipData:
    """Read the lists and all scene files.

    Raises:
        DataError: what is missing or damaged, by file; no clip is left by `max_n_objects`; a clip without images.
    """
    folder = Path(spec.path).expanduser()
    scenes = {split: _scenes(folder, split, spec.max_n_objects)[: spec.max_clips] for split in SPLITS}
    every = [scene for split in SPLITS for _, scene in scenes[split]]
    texts = phase_table() if spec.fine_grained else TextTable.of(clip_text(scene.nouns, scene.actions) for scene in every)
    media = media_names(folder)
    masks = folder / MASKS if (folder / MASKS).is_dir() else None
    parts: dict[SplitName, ClipFrames] = {}
    for split in SPLITS:
        clips = []
        for path, scene in scenes[split]:
            if scene.clip not in media:
                raise missing_media(folder, scene.clip, path)
            spoken = phase_texts(scene.nouns, scene.actions)
            whole = (clip_text(scene.nouns, scene.actions),) * len(spoken)
            numbers = tuple(map(texts.number, spoken if spec.fine_grained else whole))
            clips.append(_Clip(scene=scene, media=media[scene.clip], sentences=numbers))
        parts[split] = ClipFrames(clips=tuple(clips), resolution=spec.resolution, masks=masks)
    return ClipData(texts=texts, train=parts["train"], test=parts["test"])


def check_clips(spec: ClipsSpec) -> list[str]:
    """Look, on the login node, whether the clips can be used: all scene files and the first clip's first and last frame.

    Returns what was found, line by line. Raises DataError as `open_clips` and `ClipFrames.read` do.
    """
    data = open_clips(spec)
    found = []
    for split, frames in (("training", data.train), ("test", data.test)):
        batch = frames.read(np.array([0, FRAMES - 1]))
        masks = "with masks" if batch.labels_BSS is not None else "without masks"
        found.append(f"{frames.count // FRAMES} {split} clips of {FRAMES} frames, {masks}, from {Path(spec.path) / IMAGES}")
    return [*found, f"{len(data.texts)} sentences"]


def _scenes(folder: Path, split: SplitName, max_n_objects: int) -> list[tuple[Path, ClipScene]]:
    paths = [folder / SCENES / name for name in scene_names(folder, split)]
    scenes = [(path, read_scene(path)) for path in paths]
    kept = [(path, scene) for path, scene in scenes if len(scene.objects) <= max_n_objects]
    if not kept:
        fewest = min(len(scene.objects) for _, scene in scenes)
        raise DataError(
            f"no clip has at most {max_n_objects} objects",
            place=Place(file=str(folder / SPLIT_LISTS[split])),
            expected=f"max_n_objects of at least {fewest}",
            hint="max_n_objects chooses clips; the number of slots is a key of the model",
        )
    return kept


def _check_masks(clip: _Clip, masks: list[UInt8], images: list[UInt8], folder: Path) -> None:
    place = Place(file=str(folder / clip.scene.clip))
    if masks[0].shape != images[0].shape[:2]:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (masks[0].shape, images[0].shape)]
        raise DataError(f"masks are {sizes[0]} pixels, frames {sizes[1]}", place=place, expected="the same size")
    largest = max(int(mask.max()) for mask in masks)
    if largest > len(clip.scene.objects):
        raise DataError(
            f"a mask holds object {largest}",
            place=place,
            expected=f"0 (background) .. {len(clip.scene.objects)}, the objects of the scene",
        )
