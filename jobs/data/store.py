"""The image store: a directory of plain .npy files that a manifest makes valid, opened as memory maps.

    STORE/train/images.npy    uint8 [N, H, W, 3]
    STORE/train/labels.npy    uint8 [N, H, W]: 0 is the background, k is entity k
    STORE/train/factors.npy   float32 [N, E, 9]: what the scenes were made from, columns named in the manifest
    STORE/test/...            the same
    STORE/manifest.json       written last: shapes, counts, source, bytes and sha256 of every file

Legend: N records of a split, H = W = resolution, E entities (background first).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, ValidationError

from jobs.contract import write_atomically
from jobs.data.errors import DataError, Place
from jobs.data.multi_dsprites import FACTORS

MANIFEST = "manifest.json"
HASH_BYTES = 1 << 22
REBUILD_HINT = "remove the run's output and run `prepare` again"

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")


def _of_every_split(counts: Mapping[SplitName, int]) -> Mapping[SplitName, int]:
    if missing := [split for split in SPLITS if split not in counts]:
        raise ValueError(f"no count of {' and '.join(missing)}")
    return counts


Counts = Annotated[Mapping[SplitName, NonNegativeInt], AfterValidator(_of_every_split)]
"""What a store has of each split."""


class FileFacts(BaseModel):
    """What the manifest promises about one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


ArrayLayout = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Path below a store -> dtype and shape."""


class StoreManifest(Protocol):
    """What the manifests of all kinds of store have in common. They are frozen pydantic models."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the records come from."""
        ...

    @property
    def files(self) -> Mapping[str, FileFacts]:
        """Path below the store -> facts."""
        ...

    def arrays(self) -> ArrayLayout:
        """Return dtype and shape of every array, by path below the store."""
        ...

    def with_files(self, files: Mapping[str, FileFacts]) -> Self:
        """Return the same manifest with the facts of its files."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the manifest's content."""
        ...


AnyModel = TypeVar("AnyModel", bound=BaseModel)


class Manifest(BaseModel):
    """The content of `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["images-1"] = "images-1"
    """Layout of the store and its version."""
    resolution: int
    entities: int
    """Background included."""
    factors: tuple[str, ...] = FACTORS
    counts: Counts
    """Records of each split."""
    source: Mapping[str, Any]
    """Where the records come from: the generator's settings, or the sha256 of the original file, and the ranges."""
    files: Mapping[str, FileFacts] = {}
    """Path below the store -> facts."""

    def with_files(self, files: Mapping[str, FileFacts]) -> Manifest:
        """Return the same manifest with the facts of its files."""
        return self.model_copy(update={"files": files})

    def arrays(self) -> ArrayLayout:
        """Return dtype and shape of every array, by path below the store."""
        side = self.resolution
        layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for split in SPLITS:
            count = self.counts[split]
            layout[f"{split}/images.npy"] = np.dtype(np.uint8), (count, side, side, 3)
            layout[f"{split}/labels.npy"] = np.dtype(np.uint8), (count, side, side)
            layout[f"{split}/factors.npy"] = np.dtype(np.float32), (count, self.entities, len(self.factors))
        return layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The arrays of one split, read-only and memory-mapped: a page is read when it is touched."""

    images: npt.NDArray[np.uint8]
    """[N, H, W, 3]"""
    labels: npt.NDArray[np.uint8]
    """[N, H, W]"""
    factors: npt.NDArray[np.float32]
    """[N, E, 9]"""


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """A whole store on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> ImageStore:
        """Open a store after comparing its files' sizes with the manifest (milliseconds; `verify` reads everything).

        Raises:
            DataError: no manifest, one of another layout, or files that are missing or of another size.
        """
        manifest = read_manifest(path / MANIFEST, Manifest)
        check_files(path, manifest)
        return cls(path=path, manifest=manifest)

    def split(self, name: SplitName) -> Split:
        """Map the arrays of one split.

        Raises:
            DataError: an array is not what the manifest says.
        """
        return Split(
            **{kind: map_array(self.path, self.manifest, f"{name}/{kind}.npy") for kind in ("images", "labels", "factors")}
        )

    def verify(self) -> None:
        """Read every file and compare its sha256 with the manifest (about a second per gigabyte).

        Raises:
            DataError: a file's content is another than at its preparation.
        """
        verify_files(self.path, self.manifest)


def check_files(path: Path, manifest: StoreManifest) -> None:
    """Raise DataError unless the manifest lists its arrays and all files have the sizes that it says."""
    if set(manifest.files) != set(manifest.arrays()):
        raise DataError(
            f"lists the files {sorted(manifest.files)}",
            place=Place(file=str(path / MANIFEST)),
            expected=f"{sorted(manifest.arrays())}",
            hint=REBUILD_HINT,
        )
    for name, facts in manifest.files.items():
        file = path / name
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", place=Place(file=str(file)), hint=REBUILD_HINT) from error
        if size != facts.bytes:
            raise DataError(f"{size} bytes long", place=Place(file=str(file)), expected=f"{facts.bytes} bytes", hint=REBUILD_HINT)


def verify_files(path: Path, manifest: StoreManifest) -> None:
    """Read every file and raise DataError when its sha256 is another than the manifest's."""
    for name, facts in manifest.files.items():
        if (found := file_sha256(path / name)) != facts.sha256:
            raise DataError(f"sha256 is {found}", place=Place(file=str(path / name)), expected=facts.sha256, hint=REBUILD_HINT)


def map_array(path: Path, manifest: StoreManifest, name: str) -> npt.NDArray[Any]:
    """Map one array of a store, read-only; raises DataError when it is not what the manifest says."""
    dtype, shape = manifest.arrays()[name]
    place = Place(file=str(path / name))
    try:
        array: npt.NDArray[Any] = np.load(path / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"not a .npy array ({error})", place=place, hint=REBUILD_HINT) from error
    if array.dtype != dtype or array.shape != shape:
        raise DataError(
            f"holds {array.dtype} {list(array.shape)}", place=place, expected=f"{dtype} {list(shape)}", hint=REBUILD_HINT
        )
    return array


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hex, reading it in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_manifest(path: Path, manifest: StoreManifest) -> None:
    """Write `path`/manifest.json atomically and durably, with the bytes and sha256 of the arrays that lie there."""
    facts = {name: FileFacts(bytes=(path / name).stat().st_size, sha256=file_sha256(path / name)) for name in manifest.arrays()}
    content = manifest.with_files(facts).model_dump(mode="json")
    write_atomically(path / MANIFEST, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_manifest(path: Path, kind: type[AnyModel]) -> AnyModel:
    """Read a manifest of one kind of store.

    Raises:
        DataError: there is none, or it is one of another layout.
    """
    place = Place(file=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"no image store here ({error.strerror})",
            place=place,
            expected="the output of a finished `prepare` run",
            hint="`orch status` shows whether it has finished",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError("not a text file", place=place, hint=REBUILD_HINT) from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"not a manifest of an image store: {key} {first['msg']}", place=place, hint=REBUILD_HINT) from error
