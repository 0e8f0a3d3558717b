"""Evaluation protocols: whose masks and rules a score follows (metrics.md 1-2, dinosaur.md 2 and 4, covloss.md 5). Pure.

| protocol | masks to label size by | image without an object |
|---|---|---|
| own | bilinear | defines no score of objects; counted |
| official, adaslot | bilinear | FG-ARI 1, else as own |
| gd | bilinear | FG-ARI 1, mBO and miou_gd 0, else as own |
| covloss | nearest | not scored without annotation; FG-ARI 1 when its mask vanished, else as own |

covloss's code loses such a 1 when another image of the same batch divides by zero; that depends on the batch and is left out.
Clips have the protocol `own` alone; clips on disk without masks define no score of masks.
Legend: N images of a split, B of a batch, K slots, h x w decoder masks, H x W label maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from jobs.data.clip_store import ClipStore
from jobs.data.coco_store import CocoStore
from jobs.data.errors import DataError, Place
from jobs.data.store import ImageStore
from jobs.frame_labels import FrameLabels
from models import scores

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


class Truth(NamedTuple):
    """What is known of a batch."""

    instances_BHW: torch.Tensor | None
    """uint8; None when the data has no masks."""
    classes_BHW: torch.Tensor | None
    named_B2: torch.Tensor | None
    """int64; None when nothing says what a sentence names."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """True masks of a split, uint8: 0 = no object, 255 = void."""

    instances_NHW: np.ndarray | FrameLabels
    classes_NHW: np.ndarray | None = None
    """Category ids; None when the data knows no classes."""
    protocol: ProtocolName = "own"
    annotated_N: np.ndarray | None = None
    """Whether an image has an annotation (that is no crowd), bool; None: unknown, then those with a labelled pixel."""
    every: int = 1
    """Only images whose number is a multiple of this are scored."""

    @property
    def has_masks(self) -> bool:
        """Whether there is anything to hold predicted masks against."""
        return not isinstance(self.instances_NHW, FrameLabels) or self.instances_NHW.frames.has_labels

    def scored(self) -> np.ndarray:
        """Numbers of the images that the protocol scores, ascending."""
        if self.protocol != "covloss":
            return np.arange(0, len(self.instances_NHW), self.every)
        shown_N = self.annotated_N
        if shown_N is None:
            assert isinstance(self.instances_NHW, np.ndarray), "clips have no protocol but their own"
            shown_N = np.array([bool(labels_HW.any()) for labels_HW in self.instances_NHW])
        images = np.flatnonzero(shown_N)
        kept: np.ndarray = images[images % self.every == 0]
        return kept

    def named(self, images: np.ndarray) -> np.ndarray | None:
        """Labels of the source and the destination of each image's sentence, int64 [B,2]; -1: not named; None: no sentences."""
        return self.instances_NHW.named(images) if isinstance(self.instances_NHW, FrameLabels) else None

    def sentences(self, images: np.ndarray) -> list[str] | None:
        """What is said with each image; None when the data says nothing."""
        return self.instances_NHW.sentences(images) if isinstance(self.instances_NHW, FrameLabels) else None

    def truth(self, images: np.ndarray, device: torch.device) -> Truth:
        """What is known of the images with the numbers `images` [B]."""
        if not self.has_masks:
            return Truth(None, None, None)

        def there(values: np.ndarray | None) -> torch.Tensor | None:
            return None if values is None else torch.from_numpy(np.array(values)).to(device)

        classes_BHW = None if self.classes_NHW is None else self.classes_NHW[images]
        return Truth(there(self.instances_NHW[images]), there(classes_BHW), there(self.named(images)))


def label_set(store: ImageStore | CocoStore | ClipStore, protocol: ProtocolName, *, every: int = 1) -> LabelSet:
    """The test split's labels; `own` means the first masks that are stored, and the only ones of clips.

    Raises DataError when they are not stored.
    """
    if isinstance(store, ImageStore):
        return LabelSet(instances_NHW=store.split("test").labels, protocol=protocol, every=every)
    if isinstance(store, ClipStore):
        if protocol != "own":
            raise DataError(
                f"clips have no masks of protocol {protocol}",
                place=Place(file=str(store.path)),
                expected="protocol own",
                hint="official, adaslot, gd and covloss are rules for COCO: leave `protocol` out of the `evaluate` step",
            )
        return LabelSet(instances_NHW=FrameLabels(frames=store.frames("test"), texts=store.texts), every=every)
    instances_NHW, classes_NHW = store.masks(next(iter(store.manifest.protocols)) if protocol == "own" else protocol)
    return LabelSet(
        instances_NHW=instances_NHW, classes_NHW=classes_NHW, protocol=protocol, annotated_N=store.annotated(), every=every
    )


def label_table(labels_BHW: torch.Tensor, ids_BHW: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Counts [B,C,K] of pixels by label and slot, without void pixels.

    Of uint8 labels, since 255 + 1 is 0 there: one row more, which is dropped.
    """
    assert labels_BHW.dtype == torch.uint8
    shifted_BHW = labels_BHW + 1
    num_labels = max(2, int(shifted_BHW.max()) + 1)
    return scores.contingency(shifted_BHW, ids_BHW, num_labels=num_labels, num_predictions=num_slots)[:, 1:]


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
