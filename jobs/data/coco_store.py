"""Owns the COCO store: a directory of plain .npy files that a manifest makes valid, opened as memory maps.

    STORE/train/images.npy             uint8 [N, S, S, 3]: neither normalised nor mirrored
    STORE/train/targets.npy            uint8 [N, T, T, 3]: the same images at another side, if asked for
    STORE/train/image_ids.npy          int64 [N]: COCO's
    STORE/test/...                     the same of val2017
    STORE/test/annotated.npy           bool [N]: at least one annotation that is no crowd
    STORE/test/PROTOCOL/instances.npy  uint8 [N, P, P]: 0 no object, 1.. instance, 255 void (pixels to ignore)
    STORE/test/PROTOCOL/classes.npy    uint8 [N, P, P]: 0 no object, else the category id, 255 void
    STORE/manifest.json                written last: counts, sizes, protocols, source, bytes and sha256 of every file

What the protocols' masks are is said in jobs.data.coco_masks. Legend: N images of a split, S x S stored pixels, T x T
target pixels, P x P pixels of a protocol's masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from jobs.data.errors import DataError, Place
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

Protocol = Literal["official", "adaslot", "gd", "covloss"]
MASK_SIDES: Mapping[Protocol, int] = {"official": 320, "adaslot": 224, "gd": 224, "covloss": 128}
"""Pixels of a protocol's masks."""
VOID = 255
"""Label of a pixel that is to be ignored."""
MASK_KINDS = ("instances", "classes")


class CocoManifest(BaseModel):
    """The content of a COCO store's `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["coco-2"] = "coco-2"
    """Layout of the store and its version."""
    kind: Literal["coco"] = "coco"
    counts: Counts
    """Images of each split."""
    resolution: int
    target_resolution: int | None
    preprocessing: Literal["covloss", "official"]
    protocols: Mapping[Protocol, int]
    """Evaluation masks -> their side in pixels, in the configuration's order."""
    source: Mapping[str, Any]
    """Where the images come from: the configuration, without the place on this disk."""
    files: Mapping[str, FileFacts] = {}
    """Path below the store -> facts."""

    def with_files(self, files: Mapping[str, FileFacts]) -> CocoManifest:
        """Return the same manifest with the facts of its files."""
        return self.model_copy(update={"files": files})

    def arrays(self) -> ArrayLayout:
        """Return dtype and shape of every array, by path below the store."""
        pixels = np.dtype(np.uint8)
        layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for split in SPLITS:
            count = self.counts[split]
            layout[f"{split}/images.npy"] = pixels, (count, self.resolution, self.resolution, 3)
            if self.target_resolution is not None:
                layout[f"{split}/targets.npy"] = pixels, (count, self.target_resolution, self.target_resolution, 3)
            layout[f"{split}/image_ids.npy"] = np.dtype(np.int64), (count,)
        layout["test/annotated.npy"] = np.dtype(np.bool_), (self.counts["test"],)
        for protocol, side in self.protocols.items():
            for kind in MASK_KINDS:
                layout[f"test/{protocol}/{kind}.npy"] = pixels, (self.counts["test"], side, side)
        return layout


@dataclass(frozen=True, kw_only=True)
class CocoStore:
    """A whole store on disk; its arrays are read-only memory maps."""

    path: Path
    manifest: CocoManifest

    @classmethod
    def open(cls, path: Path) -> CocoStore:
        """Open a store after comparing its files' sizes with the manifest (milliseconds; `verify` reads everything).

        Raises:
            DataError: no manifest, one of another layout, or files that are missing or of another size.
        """
        manifest = read_manifest(path / MANIFEST, CocoManifest)
        check_files(path, manifest)
        return cls(path=path, manifest=manifest)

    def count(self, split: SplitName) -> int:
        """Images of a split."""
        return self.manifest.counts[split]

    def images(self, split: SplitName) -> npt.NDArray[np.uint8]:
        """uint8 [N, S, S, 3]; raises DataError when the array is not what the manifest says, as all below."""
        return map_array(self.path, self.manifest, f"{split}/images.npy")

    def targets(self, split: SplitName) -> npt.NDArray[np.uint8] | None:
        """uint8 [N, T, T, 3], or None when the store holds no second copy."""
        if self.manifest.target_resolution is None:
            return None
        return map_array(self.path, self.manifest, f"{split}/targets.npy")

    def image_ids(self, split: SplitName) -> npt.NDArray[np.int64]:
        """COCO's image ids, int64 [N], ascending."""
        return map_array(self.path, self.manifest, f"{split}/image_ids.npy")

    def annotated(self) -> npt.NDArray[np.bool_]:
        """Whether a test image has an annotation that is no crowd, bool [N]; its mask may still be empty at a protocol's side."""
        return map_array(self.path, self.manifest, "test/annotated.npy")

    def masks(self, protocol: Protocol) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """(instances, classes) of the test images, each uint8 [N, P, P].

        Raises:
            DataError: masks of another protocol are stored, or an array is not what the manifest says.
        """
        if protocol not in self.manifest.protocols:
            raise DataError(
                f"holds no masks of protocol {protocol}",
                place=Place(file=str(self.path)),
                expected=f"one of {', '.join(self.manifest.protocols)}",
                hint="name it in `data.protocols` of the `prepare` step",
            )
        instances, classes = (map_array(self.path, self.manifest, f"test/{protocol}/{kind}.npy") for kind in MASK_KINDS)
        return instances, classes

    def verify(self) -> None:
        """Read every file and compare its sha256 with the manifest (about a second per gigabyte).

        Raises:
            DataError: a file's content is another than at its preparation.
        """
        verify_files(self.path, self.manifest)
