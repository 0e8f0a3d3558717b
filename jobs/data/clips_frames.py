"""Owns the common interface of procedural clips and clips on disk: frames by number, with mask, sentence and named objects.

Frame i is frame i % 34 of clip i // 34 of a split. Any order of frames, repeated or not, may be asked for.
Legend: B frames, S pixels of the square's side, 3 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jobs.data.clips_texts import TextTable

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameBatch:
    """Frames in the order in which they were asked for."""

    images_BSS3: UInt8
    labels_BSS: UInt8 | None
    """0 background, k the k-th object of the clip (counted from 1); None where the data has no masks."""
    sentences_B: Int64
    """Numbers in the data's text table."""
    named_B2: Int64
    """Mask numbers of source and destination in the frame's phase; NOT_NAMED (-1) where a phase names one object.
    They follow the phase also where the sentence is that of the whole clip."""
    names_B22: Int64
    """Colour and shape numbers (places in COLORS and SHAPES) of both; NOT_NAMED where a phase names one object."""


class Frames(Protocol):
    """The frames of one split."""

    @property
    def count(self) -> int:
        """How many frames there are: 34 per clip."""
        ...

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether `read` returns masks."""
        ...

    def sentences(self, indices_B: Int64) -> Int64:
        """The numbers of the frames' sentences, without a look at pixels; raises IndexError."""
        ...

    def read(self, indices_B: Int64) -> FrameBatch:
        """Frames by number, each in [0, count).

        Raises:
            IndexError: a number out of range.
            DataError: a file that is missing or damaged (clips on disk).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ClipData:
    """A data set of clips: one text table for both splits."""

    texts: TextTable
    train: Frames
    test: Frames


def clip_and_frame(indices_B: Int64, *, count: int, frames: int) -> tuple[Int64, Int64]:
    """Part frame numbers into clip [B] and frame within it [B]; raises IndexError outside [0, count)."""
    wanted_B = np.asarray(indices_B, dtype=np.int64)
    outside_B = (wanted_B < 0) | (wanted_B >= count)
    if outside_B.any():
        raise IndexError(f"frame {int(wanted_B[outside_B][0])} does not exist; there are {count}, counted from 0")
    return wanted_B // frames, wanted_B % frames
