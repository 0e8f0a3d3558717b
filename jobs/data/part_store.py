"""Owns the store of images with parts: a directory of plain .npy files that a manifest makes valid, opened as memory maps.

    STORE/train/images.npy      uint8 [N, S, S, 3]: RGB
    STORE/train/parts.npy       uint8 [N, S, S]: 0 background, k part k, 255 not annotated
    STORE/train/foreground.npy  uint8 [N, S, S]: 1 on the object, else 0
    STORE/train/keypoints.npy   float32 [N, Q, 2]: (x, y) in stored pixels, pixel centres at integers
    STORE/train/visible.npy     uint8 [N, Q]: 1 where the keypoint is to be seen, else 0 (its place then means nothing)
    STORE/train/scale.npy       float32 [N, 2]: what errors along x and y are divided by, in stored pixels
    STORE/test/...              the same
    STORE/manifest.json         written last: counts, names, source, bytes and sha256 of every file

Legend: N images of a split, S x S stored pixels, Q keypoints (0 where the data have none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from jobs.data.store import (
    MANIFEST,
    SPLITS,
    ArrayLayout,
    Counts,
    FileFacts,
    SplitName,
    check_files,
    map_array,
    read_manifest,
    verify_files,
)

VOID = 255
"""Label of a pixel that nobody has annotated."""

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class PartManifest(BaseModel):
    """The content of a part store's `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["parts-1"] = "parts-1"
    """Layout of the store and its version."""
    counts: Counts
    """Images of each split."""
    resolution: int
    part_names: tuple[str, ...]
    """Of labels 1, 2 ...; the background has none."""
    keypoint_names: tuple[str, ...]
    has_parts: bool
    """false: `parts.npy` is 255 throughout."""
    has_foreground: bool
    """false: `foreground.npy` is 1 throughout."""
    fit_images: int | None = None
    """Keypoints are regressed on the first so many training images; None (also in older stores): on all."""
    source: Mapping[str, Any]
    """Where the images come from: the configuration, without the place on this disk."""
    files: Mapping[str, FileFacts] = {}
    """Path below the store -> facts."""

    def with_files(self, files: Mapping[str, FileFacts]) -> PartManifest:
        """Return the same manifest with the facts of its files."""
        return self.model_copy(update={"files": files})

    def arrays(self) -> ArrayLayout:
        """Return dtype and shape of every array, by path below the store."""
        pixels, numbers, side = np.dtype(np.uint8), np.dtype(np.float32), self.resolution
        layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for split in SPLITS:
            count, keypoints = self.counts[split], len(self.keypoint_names)
            layout[f"{split}/images.npy"] = pixels, (count, side, side, 3)
            layout[f"{split}/parts.npy"] = pixels, (count, side, side)
            layout[f"{split}/foreground.npy"] = pixels, (count, side, side)
            layout[f"{split}/keypoints.npy"] = numbers, (count, keypoints, 2)
            layout[f"{split}/visible.npy"] = pixels, (count, keypoints)
            layout[f"{split}/scale.npy"] = numbers, (count, 2)
        return layout


@dataclass(frozen=True, kw_only=True, eq=False)
class PartRecord:
    """One image with its annotations; as the arrays of the store, one row each."""

    image_SS3: UInt8
    parts_SS: UInt8
    foreground_SS: UInt8
    keypoints_Q2: Float32
    visible_Q: UInt8
    scale_2: Float32


class PartSource(Protocol):
    """A data set on its way into a store."""

    @property
    def manifest(self) -> PartManifest:
        """Of the store to be, without the facts of its files."""
        ...

    def read(self, split: SplitName, at: int, count: int) -> Sequence[PartRecord]:
        """Images `at` .. `at + count - 1` of a split, the same whenever they are read; raises DataError for damaged files."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PartSplit:
    """The arrays of one split, read-only and memory-mapped: a page is read when it is touched."""

    images: UInt8
    """[N, S, S, 3]"""
    parts: UInt8
    """[N, S, S]"""
    foreground: UInt8
    """[N, S, S]"""
    keypoints: Float32
    """[N, Q, 2]"""
    visible: UInt8
    """[N, Q]"""
    scale: Float32
    """[N, 2]"""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class PartStore:
    """A whole store on disk."""

    path: Path
    manifest: PartManifest

    @classmethod
    def open(cls, path: Path) -> PartStore:
        """Open a store after comparing its files' sizes with the manifest (milliseconds; `verify` reads everything).

        Raises:
            DataError: no manifest, one of another layout, or files that are missing or of another size.
        """
        manifest = read_manifest(path / MANIFEST, PartManifest)
        check_files(path, manifest)
        return cls(path=path, manifest=manifest)

    def split(self, name: SplitName) -> PartSplit:
        """Map the arrays of one split.

        Raises:
            DataError: an array is not what the manifest says.
        """
        kinds = ("images", "parts", "foreground", "keypoints", "visible", "scale")
        return PartSplit(**{kind: map_array(self.path, self.manifest, f"{name}/{kind}.npy") for kind in kinds})

    def verify(self) -> None:
        """Read every file and compare its sha256 with the manifest (about a second per gigabyte).

        Raises:
            DataError: a file's content is another than at its preparation.
        """
        verify_files(self.path, self.manifest)


def part_rows(split: SplitName, records: Sequence[PartRecord]) -> Mapping[str, npt.NDArray[Any]]:
    """Return what records (at least one) add to the arrays of their split, by the array's path below the store."""
    return {
        f"{split}/images.npy": np.stack([record.image_SS3 for record in records]),
        f"{split}/parts.npy": np.stack([record.parts_SS for record in records]),
        f"{split}/foreground.npy": np.stack([record.foreground_SS for record in records]),
        f"{split}/keypoints.npy": np.stack([record.keypoints_Q2 for record in records]),
        f"{split}/visible.npy": np.stack([record.visible_Q for record in records]),
        f"{split}/scale.npy": np.stack([record.scale_2 for record in records]),
    }
