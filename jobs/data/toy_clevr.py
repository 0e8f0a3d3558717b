"""Owns toy-CLEVR as frames by number: every frame is drawn when asked for, from (seed, clip, frame) alone; no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.data.clips_actions import FRAMES, PHASE_OF_FRAME, clip_text, name_numbers, named_objects, phase_texts
from jobs.data.clips_frames import ClipData, FrameBatch, Int64, clip_and_frame
from jobs.data.clips_texts import TextTable, phase_table
from jobs.data.toy_clevr_draw import draw_frames
from jobs.data.toy_clevr_scene import Scenes, draw_scenes
from jobs.data_spec import RecordRange, ToyClevrSpec

SCENES_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ToyClevrFrames:
    """The frames of one split; see jobs.data.clips_frames.Frames."""

    spec: ToyClevrSpec
    clips: RecordRange
    texts: TextTable

    @property
    def count(self) -> int:
        """34 per clip."""
        return self.clips.count * FRAMES

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        return self.spec.resolution

    @property
    def has_labels(self) -> bool:
        """Always."""
        return True

    def read(self, indices_B: Int64) -> FrameBatch:
        """Draw frames by number; the cost of each is the same. Raises IndexError for a number outside [0, count)."""
        clip_B, frame_B = clip_and_frame(indices_B, count=self.count, frames=FRAMES)
        scenes = draw_scenes(self.spec, clip_B + self.clips.first)
        images_BSS3, labels_BSS = draw_frames(scenes, frame_B, resolution=self.spec.resolution)
        phases = [PHASE_OF_FRAME[frame] for frame in frame_B.tolist()]
        named = [named_objects(scenes.actions(row))[phase] for row, phase in enumerate(phases)]
        names = [name_numbers(scenes.nouns(row), pair) for row, pair in enumerate(named)]
        return FrameBatch(
            images_BSS3=images_BSS3,
            labels_BSS=labels_BSS,
            sentences_B=self._sentences(scenes, frame_B),
            named_B2=np.array(named, np.int64).reshape(-1, 2),
            names_B22=np.array(names, np.int64).reshape(-1, 2, 2),
        )

    def sentences(self, indices_B: Int64) -> Int64:
        """As the protocol says."""
        clip_B, frame_B = clip_and_frame(indices_B, count=self.count, frames=FRAMES)
        return self._sentences(draw_scenes(self.spec, clip_B + self.clips.first), frame_B)

    def _sentences(self, scenes: Scenes, frame_B: Int64) -> Int64:
        fine_grained = self.spec.fine_grained
        texts = [frame_text(scenes, row, frame, fine_grained=fine_grained) for row, frame in enumerate(frame_B.tolist())]
        return np.array([self.texts.number(text) for text in texts], np.int64)


def frame_text(scenes: Scenes, clip: int, frame: int, *, fine_grained: bool) -> str:
    """The sentence that goes with a frame of the `clip`-th scene."""
    nouns, actions = scenes.nouns(clip), scenes.actions(clip)
    return phase_texts(nouns, actions)[PHASE_OF_FRAME[frame]] if fine_grained else clip_text(nouns, actions)


def open_toy_clevr(spec: ToyClevrSpec) -> ClipData:
    """Both splits. With sentences of whole clips every clip's text is composed here (0.3 s for 20 000)."""
    texts = phase_table() if spec.fine_grained else TextTable.of(_clip_texts(spec))
    train, test = (ToyClevrFrames(spec=spec, clips=clips, texts=texts) for clips in (spec.train, spec.test))
    return ClipData(texts=texts, train=train, test=test)


def _clip_texts(spec: ToyClevrSpec) -> list[str]:
    """The texts of all clips, training clips first."""
    made = []
    for clips in (spec.train, spec.test):
        for first in range(clips.first, clips.first + clips.count, SCENES_AT_ONCE):
            last = min(first + SCENES_AT_ONCE, clips.first + clips.count)
            scenes = draw_scenes(spec, np.arange(first, last))
            made += [clip_text(scenes.nouns(row), scenes.actions(row)) for row in range(last - first)]
    return made
