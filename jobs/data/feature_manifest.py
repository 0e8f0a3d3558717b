"""The feature store's layout and manifest: which images lie in which shard, and what the tokens were made with. Torch-free.

    STORE/train/00000.npy            [n, N, C]: tokens of the first shard_images training images
    STORE/train_mirrored/00000.npy   the same of the mirrored images, with flips only
    STORE/test/00000.npy             of the test images
    STORE/manifest.json              written last: backbone, counts, error floors, bytes and sha256 of every shard

bf16 lies in .npy files as its bit patterns (uint16). Legend: N tokens, C features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.data.errors import DataError, Place
from jobs.data.store import MANIFEST, Counts, FileFacts, SplitName
from models.spec import AnyBackbone, BackboneSpec

REBUILD_HINT = "remove the run's output and run `embed` again"

PartName = Literal["train", "train_mirrored", "test"]
DTypeName = Literal["bf16", "fp16", "fp32"]
STORED: Mapping[DTypeName, np.dtype[Any]] = {
    "bf16": np.dtype("<u2"),
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
}
"""What a dtype's values are in a .npy file."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Consecutive images of one part, in one file."""

    part: PartName
    number: int
    """Within its part."""
    first: int
    """The first image, within its split."""
    count: int

    @property
    def name(self) -> str:
        """Path below the store."""
        return f"{self.part}/{self.number:05d}.npy"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How images are cut into shards and what a shard measures."""

    counts: Mapping[SplitName, int]
    flips: bool
    shard_images: int
    tokens: int
    feature_size: int
    dtype: DTypeName

    @property
    def parts(self) -> Mapping[PartName, int]:
        """Images of every part."""
        train, test = self.counts["train"], self.counts["test"]
        mirrored: Mapping[PartName, int] = {"train_mirrored": train} if self.flips else {}
        return {"train": train, **mirrored, "test": test}

    @property
    def images(self) -> int:
        """Images to embed; a mirrored copy counts as one."""
        return sum(self.parts.values())

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's tokens."""
        return self.tokens * self.feature_size * STORED[self.dtype].itemsize

    def shape(self, shard: Shard) -> tuple[int, int, int]:
        """The shape of a shard's array."""
        return shard.count, self.tokens, self.feature_size

    def shards(self) -> Iterator[Shard]:
        """All shards, in the order in which they are handed out to ranks."""
        for part, count in self.parts.items():
            for number, first in enumerate(range(0, count, self.shard_images)):
                yield Shard(part=part, number=number, first=first, count=min(self.shard_images, count - first))


class FeatureManifest(BaseModel):
    """The content of a feature store's `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Literal["features-1"] = "features-1"
    """Layout of the store and its version."""
    prepare: str
    """Id of the `prepare` run whose images these are."""
    backbone: Mapping[str, Any]
    """The backbone's configuration without places on the disk that made it."""
    weights: str
    """sha256 over the parameters that were used (jobs.weights.weights_digest)."""
    resolution: int
    """Side of the images, in pixels."""
    dtype: DTypeName
    tokens: int
    feature_size: int
    counts: Counts
    flips: bool
    shard_images: int
    error_floor: Mapping[str, float] = {}
    """Part -> mean squared difference between the fp32 tokens and the stored ones."""
    files: Mapping[str, FileFacts] = {}
    """Path below the store -> facts."""

    @property
    def layout(self) -> Layout:
        """How the images are cut into shards."""
        return Layout(
            counts=self.counts,
            flips=self.flips,
            shard_images=self.shard_images,
            tokens=self.tokens,
            feature_size=self.feature_size,
            dtype=self.dtype,
        )


def backbone_facts(spec: AnyBackbone) -> dict[str, Any]:
    """What a manifest says of a backbone: its configuration, not where its weights lay.

    Of timm's it says no kind, as before there were others: stores from then stay valid.
    """
    return spec.model_dump(mode="json", exclude={"path", "kind"} if isinstance(spec, BackboneSpec) else {"path"})


def backbone_differences(manifest: FeatureManifest, spec: AnyBackbone, *, resolution: int | None = None) -> list[str]:
    """How a store's tokens differ from what a configuration asks for, one sentence per difference; none if they are the same.

    Args:
        manifest: the store's.
        spec: the backbone that a run is configured with.
        resolution: side of that run's images, when it is known.
    """
    asked = backbone_facts(spec)
    found = dict(manifest.backbone)
    differences = [
        f"backbone.{name} is {asked.get(name)!r}, the store's tokens were made with {found.get(name)!r}"
        for name in sorted(asked.keys() | found.keys())
        if asked.get(name) != found.get(name)
    ]
    if resolution is not None and resolution != manifest.resolution:
        differences.append(f"images have {resolution} pixels, the store's tokens were made from {manifest.resolution}")
    return differences


def read_manifest(path: Path) -> FeatureManifest:
    """Read and check a manifest.

    Raises:
        DataError: none there, damaged, of another layout, or it lists other files than its own counts ask for.
    """
    place = Place(file=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"no feature store here ({error.strerror})",
            place=place,
            expected="the output of a finished `embed` run",
            hint="`orch status` shows whether it has finished; until then its shards lie in work/",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError("not a text file", place=place, hint=REBUILD_HINT) from error
    try:
        manifest = FeatureManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"not a manifest of a feature store: {key} {first['msg']}", place=place, hint=REBUILD_HINT) from error
    expected = {shard.name for shard in manifest.layout.shards()}
    if wrong := sorted(expected ^ set(manifest.files)):
        raise DataError(
            f"lists {len(manifest.files)} shards; wrong or missing: {', '.join(wrong[:5])}",
            place=place,
            expected=f"{len(expected)} shards of {manifest.shard_images} images",
            hint=REBUILD_HINT,
        )
    return manifest


def manifest_path(store: Path) -> Path:
    """Where a store's manifest lies."""
    return store / MANIFEST
