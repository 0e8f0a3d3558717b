"""Owns what clips know of their frames beside the pixels: masks, named objects and sentences, read when they are asked for.

Legend: N frames of a split, B of a batch, S pixels of a side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jobs.data.clips_frames import FrameBatch, Frames
from jobs.data.clips_texts import TextTable


@dataclass(kw_only=True)
class FrameLabels:
    """The masks of a split as if they lay in one array [N,S,S], and what is said.

    The frames asked for last are held, so that their masks and what is named in them cost one reading.
    """

    frames: Frames
    texts: TextTable
    _asked: np.ndarray | None = field(default=None, init=False, repr=False)
    _held: FrameBatch | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return self.frames.count

    def __getitem__(self, images: np.ndarray) -> np.ndarray:
        """Masks uint8 [B,S,S] of frames by number; raises ValueError where there are none, else as `Frames.read`."""
        labels_BSS = self._read(images).labels_BSS
        if labels_BSS is None:
            raise ValueError("these clips have no masks")
        return labels_BSS

    def named(self, images: np.ndarray) -> np.ndarray:
        """Mask numbers of source and destination, int64 [B,2]; -1 for one that is not named."""
        return self._read(images).named_B2

    def sentences(self, images: np.ndarray) -> list[str]:
        """What is said with each frame."""
        return [self.texts.text(number) for number in self.frames.sentences(images).tolist()]

    def _read(self, images: np.ndarray) -> FrameBatch:
        if self._held is None or self._asked is None or not np.array_equal(self._asked, images):
            self._asked, self._held = np.array(images), self.frames.read(images)
        return self._held
