"""Evaluation protocols: whose masks and rules a score follows (metrics.md 1-2, dinosaur.md 2 and 4, covloss.md 5). Pure.

| protocol | masks to label size by | image without an object |
|---|---|---|
| own | bilinear | defines no score of objects; counted |
| official, adaslot | bilinear | FG-ARI 1, else as own |
| gd | bilinear | FG-ARI 1, mBO and miou_gd 0, else as own |
| covloss | nearest | not scored without annotation; FG-ARI 1 when its mask vanished, else as own |

covloss's code loses such a 1 when another image of the same batch divides by zero; that depends on the batch and is left out.
Legend: N images of a split, B of a batch, K slots, h x w decoder masks, H x W label maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from jobs.data.coco_store import CocoStore
from jobs.data.store import ImageStore

ProtocolName = Literal["own", "official", "adaslot", "gd", "covloss"]

VOID = 255
"""Label of a pixel that is counted nowhere."""
WITHOUT_OBJECTS: Mapping[ProtocolName, Mapping[str, float]] = {
    "own": {},
    "official": {"fg_ari": 1.0},
    "adaslot": {"fg_ari": 1.0},
    "gd": {"fg_ari": 1.0, "mbo": 0.0, "miou_gd": 0.0},
    "covloss": {"fg_ari": 1.0},
}
"""What an image without an object scores; a score that is not named is undefined there."""
MOST_SLOTS = 256
MASKS_AT_ONCE = 1 << 24
"""Values of enlarged soft masks held at a time: 64 MiB."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """True masks of a split, uint8: 0 = no object, 255 = void."""

    instances_NHW: np.ndarray
    classes_NHW: np.ndarray | None = None
    """Category ids; None when the data knows no classes."""
    protocol: ProtocolName = "own"
    annotated_N: np.ndarray | None = None
    """Whether an image has an annotation (that is no crowd), bool; None: unknown, then those with a labelled pixel."""

    def scored(self) -> np.ndarray:
        """Numbers of the images that the protocol scores, ascending."""
        if self.protocol != "covloss":
            return np.arange(len(self.instances_NHW))
        if self.annotated_N is not None:
            return np.flatnonzero(self.annotated_N)
        return np.flatnonzero([bool(labels_HW.any()) for labels_HW in self.instances_NHW])


def label_set(store: ImageStore | CocoStore, protocol: ProtocolName) -> LabelSet:
    """The test split's labels; `own` means the first masks that are stored. Raises DataError when they are not stored."""
    if isinstance(store, ImageStore):
        return LabelSet(instances_NHW=store.split("test").labels, protocol=protocol)
    instances_NHW, classes_NHW = store.masks(next(iter(store.manifest.protocols)) if protocol == "own" else protocol)
    return LabelSet(instances_NHW=instances_NHW, classes_NHW=classes_NHW, protocol=protocol, annotated_N=store.annotated())


def predicted_ids(masks_BKhw: torch.Tensor, size: tuple[int, int], protocol: ProtocolName) -> torch.Tensor:
    """The slot of each pixel, uint8 [B,H,W]: soft masks are enlarged first, then the largest wins (the first of equals).

    Raises ValueError for more than 256 slots.
    """
    slots = masks_BKhw.shape[1]
    if slots > MOST_SLOTS:
        raise ValueError(f"{slots} slots; pixels are counted for at most {MOST_SLOTS}")
    parts = torch.split(masks_BKhw, max(1, MASKS_AT_ONCE // (slots * size[0] * size[1])))
    return torch.cat([_largest(_enlarged(part_BKhw, size, protocol)) for part_BKhw in parts])


def _largest(masks_BKHW: torch.Tensor) -> torch.Tensor:
    return masks_BKHW.max(dim=1).indices.to(torch.uint8)  # on the CPU ten times as fast as argmax


def _enlarged(masks_BKhw: torch.Tensor, size: tuple[int, int], protocol: ProtocolName) -> torch.Tensor:
    if masks_BKhw.shape[2:] == size:
        return masks_BKhw
    if protocol == "covloss":
        return interpolate(masks_BKhw, size=size, mode="nearest")
    return interpolate(masks_BKhw, size=size, mode="bilinear", align_corners=False)


def by_protocol(scores_B: Mapping[str, torch.Tensor], objects_B: torch.Tensor, protocol: ProtocolName) -> dict[str, torch.Tensor]:
    """The same scores with the protocol's value for images without an object."""
    fixed = WITHOUT_OBJECTS[protocol]
    return {
        name: torch.where(objects_B == 0, fixed[name], values_B) if name in fixed else values_B
        for name, values_B in scores_B.items()
    }
