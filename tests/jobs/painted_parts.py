"""Small stores of images that say the slot of each pixel by their red, and a model that reads it: an oracle with noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import one_hot

from jobs.data.part_store import PartManifest, PartRecord, PartStore, part_rows
from jobs.data.store import SplitName, write_manifest
from jobs.data.writer import StoreWriter
from models.part_types import PartInputs, PartOutput
from models.slot_model import SlotModel

SIDE, SLOTS, KEYPOINTS = 16, 3, 2


class Painted(SlotModel):
    """Gives each pixel to the slot that its red says, but for a little noise."""

    noise_shape = (SLOTS, 1)

    def __init__(self, noise: float = 0.3) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, inputs: Any, noise: torch.Tensor) -> PartOutput:
        assert isinstance(inputs, PartInputs)
        slots = (inputs.images_B3HW[:, 0] * 255).round().long()
        logits = 6 * one_hot(slots, SLOTS).movedim(-1, 1).float() + self.noise * noise[..., None]
        return PartOutput(logits_BKhw=logits, masks_BKHW=logits.softmax(dim=1), slots_BKD=noise)


def record(slots_SS: np.ndarray, seed: int, parts_SS: np.ndarray | None = None, **changes: Any) -> PartRecord:
    """An image painted with slots, which are its true parts unless others are given."""
    rng = np.random.default_rng(seed)
    image = np.stack([slots_SS, 100 + slots_SS, rng.integers(0, 256, slots_SS.shape)], axis=2).astype(np.uint8)
    parts = (slots_SS if parts_SS is None else parts_SS).astype(np.uint8)
    fields = {
        "image_SS3": image,
        "parts_SS": parts,
        "foreground_SS": (parts > 0).astype(np.uint8),
        "keypoints_Q2": rng.uniform(0, SIDE - 1, (KEYPOINTS, 2)).astype(np.float32),
        "visible_Q": np.array([1, seed % 2], np.uint8),
        "scale_2": np.full(2, SIDE, np.float32),
    }
    return PartRecord(**fields | changes)


def blocks(seed: int) -> np.ndarray:
    """A map [S,S] of slots in random blocks, each slot with some."""
    ids = np.random.default_rng(seed).integers(0, SLOTS, (4, 4))
    ids[0, :SLOTS] = np.arange(SLOTS)
    return np.kron(ids, np.ones((SIDE // 4, SIDE // 4), int))


def mistaken(count: int, first: int = 0) -> list[PartRecord]:
    """Images whose slots are their parts for the most."""
    return [record(np.where(blocks(n + 1000) == 1, 2, blocks(n)), n, blocks(n)) for n in range(first, first + count)]


def write_store(path: Path, test: Sequence[PartRecord], train: Sequence[PartRecord] = (), **changes: Any) -> PartStore:
    """A store with these images; `changes` of the manifest."""
    keypoints = len(test[0].visible_Q)
    fields: dict[str, Any] = {
        "counts": {"train": len(train), "test": len(test)},
        "resolution": SIDE,
        "part_names": ("one", "two"),
        "keypoint_names": tuple("ab")[:keypoints],
        "has_parts": True,
        "has_foreground": True,
        "source": {"kind": "painted"},
    }
    manifest = PartManifest(**fields | changes)
    splits: dict[SplitName, Sequence[PartRecord]] = {"train": train, "test": test}
    with StoreWriter(path, manifest, may_create=True) as writer:
        for split, records in splits.items():
            if records:
                writer.put(part_rows(split, records), at=0)
    write_manifest(path, manifest)
    return PartStore.open(path)
