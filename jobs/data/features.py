"""The feature store: tokens of a frozen backbone, in sharded memory maps with a manifest."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from jobs.data.errors import DataError, Place
from jobs.data.feature_manifest import (
    REBUILD_HINT,
    STORED,
    FeatureManifest,
    Layout,
    PartName,
    Shard,
    backbone_differences,
    manifest_path,
    read_manifest,
)
from jobs.data.store import SplitName, file_sha256
from models.spec import AnyBackbone

SPARE_FILES = 256
"""File handles left to everything else when a split's shards are all mapped."""


class Features(Protocol):
    """Tokens of one split, read-only."""

    @property
    def count(self) -> int:
        """Images."""
        ...

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> torch.Tensor:
        """Tokens [B,N,C] of images `indices` [B] in the stored dtype, those of the mirrored image where `mirrored` [B]."""
        ...


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """A whole store on disk."""

    path: Path
    manifest: FeatureManifest

    @classmethod
    def open(cls, path: Path) -> FeatureStore:
        """Open a store after comparing its files' sizes with the manifest (milliseconds; `verify` reads everything).

        Raises:
            DataError: no manifest, one of another layout, or shards that are missing or of another size.
        """
        manifest = read_manifest(manifest_path(path))
        for name, facts in manifest.files.items():
            file = path / name
            try:
                size = file.stat().st_size
            except OSError as error:
                raise DataError(f"cannot be read ({error.strerror})", place=Place(file=str(file)), hint=REBUILD_HINT) from error
            if size != facts.bytes:
                raise DataError(
                    f"{size} bytes long", place=Place(file=str(file)), expected=f"{facts.bytes} bytes", hint=REBUILD_HINT
                )
        return cls(path=path, manifest=manifest)

    def split(self, name: SplitName) -> StoredFeatures:
        """The tokens of one split. Nothing is mapped before it is read, and a fork may read on its own."""
        return StoredFeatures(path=self.path, layout=self.manifest.layout, split=name)

    def verify(self) -> None:
        """Read every shard and compare its sha256 with the manifest (about a second per gigabyte).

        Raises:
            DataError: a shard's content is another than when it was written.
        """
        for name, facts in self.manifest.files.items():
            if (found := file_sha256(self.path / name)) != facts.sha256:
                raise DataError(
                    f"sha256 is {found}", place=Place(file=str(self.path / name)), expected=facts.sha256, hint=REBUILD_HINT
                )

    def check_backbone(self, spec: AnyBackbone, *, resolution: int | None = None) -> None:
        """Refuse tokens of another backbone than the configuration says.

        Raises:
            DataError: every difference in model, weights, block, normalisation, or the images' resolution.
        """
        if differences := backbone_differences(self.manifest, spec, resolution=resolution):
            raise DataError(
                "; ".join(differences),
                place=Place(file=str(manifest_path(self.path))),
                hint="name the `embed` step of this configuration among the needs, or give the configuration its backbone",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedShard:
    """One shard's array over a memory map."""

    rows: np.ndarray
    """[n, N, C] in the stored dtype"""
    map: mmap.mmap
    offset: int
    """Where the first row begins in the file."""

    def will_need(self, rows: np.ndarray) -> None:
        """Tell the kernel which rows are about to be read, so that it fetches them side by side."""
        size = self.rows.itemsize * int(np.prod(self.rows.shape[1:]))
        for row in rows:
            begin = self.offset + int(row) * size
            page = begin - begin % mmap.PAGESIZE
            self.map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)


def map_shard(file: Path, *, dtype: np.dtype[Any], shape: tuple[int, ...]) -> MappedShard:
    """Map one shard.

    Raises:
        DataError: not a .npy array, or of another dtype or shape.
    """
    place = Place(file=str(file))
    try:
        with open(file, "rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                raise ValueError(f"version {version} of the format")
            found_shape, fortran_order, found_dtype = np.lib.format.read_array_header_1_0(stream)
            offset = stream.tell()
    except (OSError, ValueError) as error:
        raise DataError(f"not a .npy array ({error})", place=place, hint=REBUILD_HINT) from error
    size = int(np.prod(shape)) * dtype.itemsize
    if found_dtype != dtype or found_shape != shape or fortran_order or len(mapped) != offset + size:
        raise DataError(
            f"holds {found_dtype} {list(found_shape)} in {len(mapped)} bytes",
            place=place,
            expected=f"{dtype} {list(shape)} in {offset + size} bytes",
            hint=REBUILD_HINT,
        )
    rows = np.frombuffer(mapped, dtype=dtype, offset=offset).reshape(shape)
    return MappedShard(rows=rows, map=mapped, offset=offset)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredFeatures:
    """Tokens of one split; satisfies `Features`."""

    path: Path
    layout: Layout
    split: SplitName
    _shards: dict[tuple[PartName, int], Shard] = field(init=False)
    _mapped: dict[tuple[PartName, int], MappedShard] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        parts = (self.split, f"{self.split}_mirrored")
        shards = {(shard.part, shard.number): shard for shard in self.layout.shards() if shard.part in parts}
        object.__setattr__(self, "_shards", shards)  # the dataclass is frozen
        _allow_files(len(shards))

    @property
    def count(self) -> int:
        """Images."""
        return self.layout.counts[self.split]

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> torch.Tensor:
        """Tokens [B,N,C] of images `indices` [B] in the stored dtype, those of the mirrored image where `mirrored` [B].

        Raises:
            DataError: mirrored tokens that are not stored, or a damaged shard.
            IndexError: an index outside the split.
        """
        flags = np.asarray(mirrored, dtype=np.bool_)
        if flags.any() and (self.split != "train" or not self.layout.flips):
            raise DataError(
                f"holds no tokens of mirrored {self.split} images",
                place=Place(file=str(manifest_path(self.path))),
                expected="an `embed` run with flips=true, which mirrors the training images",
                hint="set flips=true on the embed step, or flip=false on the training step",
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.count:
            raise IndexError(f"image {int(indices.min())} .. {int(indices.max())} of {self.count}")
        rows = np.empty((len(indices), self.layout.tokens, self.layout.feature_size), dtype=STORED[self.layout.dtype])
        groups = list(self._groups(indices, flags))
        for mapped, wanted, _ in groups:
            mapped.will_need(wanted)
        for mapped, wanted, places in groups:
            for row, place in zip(wanted, places, strict=True):
                rows[place] = mapped.rows[row]
        tokens = torch.from_numpy(rows)
        return tokens.view(torch.bfloat16) if self.layout.dtype == "bf16" else tokens

    def _groups(self, indices: np.ndarray, flags: np.ndarray) -> Iterator[tuple[MappedShard, np.ndarray, np.ndarray]]:
        """(shard, rows within it, their places in the batch), front to back."""
        numbers = indices // self.layout.shard_images
        order = np.lexsort((indices, flags))
        bounds = np.flatnonzero(np.diff(numbers[order]) | (np.diff(flags[order].astype(np.int8)) != 0)) + 1
        for places in np.split(order, bounds) if len(order) else ():
            part: PartName = "train_mirrored" if flags[places[0]] else self.split
            number = int(numbers[places[0]])
            yield self._map(part, number), indices[places] - number * self.layout.shard_images, places

    def _map(self, part: PartName, number: int) -> MappedShard:
        mapped = self._mapped.get((part, number))
        if mapped is None:
            shard = self._shards[part, number]
            mapped = map_shard(self.path / shard.name, dtype=STORED[self.layout.dtype], shape=self.layout.shape(shard))
            self._mapped[part, number] = mapped
        return mapped


def _allow_files(shards: int) -> None:
    """A map holds its file open, and the soft limit is often 1024: raise it as far as the hard one when that is too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(hard, needed), hard))
