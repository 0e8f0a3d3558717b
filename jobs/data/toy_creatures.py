"""Owns the toy creatures as a source of parts: image i of a split is drawn from (seed, split, i) when asked for; no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.data.part_store import PartManifest, PartRecord
from jobs.data.store import SplitName
from jobs.data.toy_creatures_draw import draw_creature
from jobs.data.toy_creatures_scene import KEYPOINTS, PARTS, draw_scene
from jobs.data_spec_parts import ToyCreaturesSpec


@dataclass(frozen=True, kw_only=True)
class ToyCreatures:
    """See jobs.data.part_store.PartSource."""

    spec: ToyCreaturesSpec
    manifest: PartManifest

    def read(self, split: SplitName, at: int, count: int) -> Sequence[PartRecord]:
        """Draw images; the cost of each is about the same. Raises IndexError for numbers beyond the split's."""
        if at < 0 or at + count > self.manifest.counts[split]:
            raise IndexError(f"images {at} .. {at + count - 1} do not exist: {split} has {self.manifest.counts[split]}")
        resolution = self.spec.resolution
        return [draw_creature(draw_scene(self.spec.seed, split, index), resolution=resolution) for index in range(at, at + count)]


def open_toy_creatures(spec: ToyCreaturesSpec) -> ToyCreatures:
    """Both splits; costs nothing."""
    manifest = PartManifest(
        counts={"train": spec.train_images, "test": spec.test_images},
        resolution=spec.resolution,
        part_names=PARTS,
        keypoint_names=tuple(KEYPOINTS),
        has_parts=True,
        has_foreground=True,
        source=spec.model_dump(mode="json"),
    )
    return ToyCreatures(spec=spec, manifest=manifest)
