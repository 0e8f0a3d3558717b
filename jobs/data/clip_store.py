"""Owns what a `prepare` run leaves of clips: a manifest alone (jobs.data.manifest_store). Frames are drawn or decoded on demand.

Legend: B frames, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from pydantic import BaseModel, ConfigDict

from jobs.data.clips import open_clips
from jobs.data.clips_files import clips_content_hash
from jobs.data.clips_frames import ClipData, Frames, UInt8
from jobs.data.clips_texts import TextTable
from jobs.data.manifest_store import check_planned, check_unchanged, commit
from jobs.data.store import Counts, FileFacts, SplitName
from jobs.data.toy_clevr import open_toy_clevr
from jobs.data_spec import ClipsSpec, ToyClevrSpec

ClipSource = ToyClevrSpec | ClipsSpec


class ClipManifest(BaseModel):
    """The content of a clip store's `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["clips-1"] = "clips-1"
    """Layout of the store and its version."""
    counts: Counts
    """Frames of each split."""
    resolution: int
    texts: str
    """Digest of the sentences (TextTable.digest)."""
    sentences: int
    has_labels: bool
    source: Mapping[str, Any]
    """The configuration, without the place on this disk."""
    files: Mapping[str, FileFacts] = {}
    """None: the manifest is all there is."""


@dataclass(frozen=True, kw_only=True)
class FrameImages:
    """Pixels of a split's frames as if they lay in one array, uint8 [N,S,S,3]."""

    frames: Frames

    def __len__(self) -> int:
        return self.frames.count

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N,S,S,3]"""
        return (self.frames.count, self.frames.resolution, self.frames.resolution, 3)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8"""
        return np.dtype(np.uint8)

    def __getitem__(self, chosen: np.ndarray | slice) -> UInt8:
        """Frames by number, or a range of them; raises IndexError and DataError as `Frames.read` does."""
        indices_B = np.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else np.asarray(chosen)
        return self.frames.read(indices_B).images_BSS3


@dataclass(frozen=True, kw_only=True)
class ClipStore:
    """Prepared clips, opened."""

    path: Path
    manifest: ClipManifest
    data: ClipData

    @classmethod
    def open(cls, path: Path, source: ClipSource) -> ClipStore:
        """Open the clips of a configuration that a `prepare` run has looked at.

        Raises:
            DataError: no manifest; or the clips are not what they were then; or as `open_clips`.
        """
        data = open_source(source)
        manifest = check_unchanged(path, clip_manifest(source, data), told=_told, what="clips")
        return cls(path=path, manifest=manifest, data=data)

    @property
    def texts(self) -> TextTable:
        """The sentences of both splits."""
        return self.data.texts

    def frames(self, split: SplitName) -> Frames:
        """The frames of a split."""
        return self.data.train if split == "train" else self.data.test

    def images(self, split: SplitName) -> FrameImages:
        """The pixels of a split."""
        return FrameImages(frames=self.frames(split))


def open_source(source: ClipSource) -> ClipData:
    """The clips of a configuration; raises DataError as `open_clips` does."""
    match source:
        case ToyClevrSpec():
            return open_toy_clevr(source)
        case ClipsSpec():
            return open_clips(source)
        case _:
            assert_never(source)


def clip_manifest(source: ClipSource, data: ClipData) -> ClipManifest:
    """What a `prepare` run writes down."""
    return ClipManifest(
        counts={"train": data.train.count, "test": data.test.count},
        resolution=data.train.resolution,
        texts=data.texts.digest(),
        sentences=len(data.texts),
        has_labels=data.test.has_labels,
        source=source.model_dump(mode="json", exclude={"path"}),
    )


def prepare_clips(source: ClipSource, output: Path, *, may_commit: Callable[[], bool]) -> ClipManifest | None:
    """Look at the clips and write the manifest below `output`; None, and nothing written, when told not to commit.

    Raises:
        DataError: as `open_clips`; files that are not those that the run was planned with; or another store is there.
    """
    if isinstance(source, ClipsSpec) and source.content is not None:
        folder = Path(source.path).expanduser()
        check_planned(folder, source.content, found=clips_content_hash(folder), what="clips")
    return commit(clip_manifest(source, open_source(source)), output, may_commit=may_commit)


def _told(manifest: ClipManifest) -> str:
    return f"{manifest.counts['train']} + {manifest.counts['test']} frames, {manifest.sentences} sentences"
