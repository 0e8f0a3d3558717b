"""Scores of a model that is told about its image in words (language_slots.md 10), by name; the maths is models/grounding.py's.

Legend: B images, N of a whole evaluation, K slots, H x W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from jobs.data.clips_actions import FRAMES
from jobs.protocols import ProtocolName, Truth, label_table, predicted_ids
from models import scores
from models.grounding import attention_grid, grounding, mask_distance
from models.slot_model import ConditionedInputs, SlotOutput

SRC_SLOT = "src_slot"
"""Per image the number of the slot that is the source's; no score: its mean says nothing, see `binding`."""


def named_scores(counts_BCK: torch.Tensor, named_B2: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores [B] of named and of other objects, and the source's slot."""
    found = grounding(counts_BCK, named_B2)
    return {
        "named_iou": found.named_iou_B,
        "named_recall": found.named_recall_B,
        "unnamed_iou": found.unnamed_iou_B,
        "unnamed_recall": found.unnamed_recall_B,
        SRC_SLOT: found.src_slot_B,
        "binding_chance": torch.full_like(found.src_slot_B, 1 / counts_BCK.shape[2]),
    }


def binding(src_slot_N: np.ndarray) -> float:
    """Share of the images with a visible source whose slot has the majority's number; NaN when there are none.

    1 when one slot always has the source. A function of the whole set of images: the mean over parts of it is another number.
    """
    slots = src_slot_N[np.isfinite(src_slot_N)].astype(np.int64)
    return float(np.bincount(slots).max() / len(slots)) if len(slots) else float("nan")


def attention_scores(attention_BKN: torch.Tensor, instances_BHW: torch.Tensor, protocol: ProtocolName) -> dict[str, torch.Tensor]:
    """Scores [B] of the masks that attention to a grid of tokens makes; none for a single token."""
    masks_BKGG = attention_grid(attention_BKN)
    if masks_BKGG is None:
        return {}
    ids_BHW = predicted_ids(masks_BKGG, (instances_BHW.shape[1], instances_BHW.shape[2]), protocol)
    counts_BCK = label_table(instances_BHW, ids_BHW, masks_BKGG.shape[1])
    return {
        "fg_ari_attention": scores.fg_ari(counts_BCK),
        "mbo_attention": scores.best_overlap(counts_BCK),
        "miou_attention": scores.hungarian_miou(counts_BCK),
    }


def other_scene(images: np.ndarray, count: int) -> np.ndarray | None:
    """For each frame number [B] the same frame of the next clip, of `count` frames in all; None when there is one clip."""
    return None if count <= FRAMES else (images + FRAMES) % count


class Told(NamedTuple):
    """A model's answer, with what it was told."""

    inputs: ConditionedInputs
    output: SlotOutput


def swap_scores(own: Told, other: Told, targets: torch.Tensor, truth: Truth, protocol: ProtocolName) -> dict[str, torch.Tensor]:
    """What a model [B] makes of the same image and noise when it is told another scene's sentence; of inputs that have text.

    NaN where that sentence is the same as its own. Objects are those that the own sentence names.
    """
    assert own.inputs.text is not None
    assert other.inputs.text is not None
    differs_B = (own.inputs.text != other.inputs.text).flatten(1).any(dim=1)
    found = {
        "swap_masks": mask_distance(own.output.masks_BKHW, other.output.masks_BKHW),
        "swap_mse": squared_error(other.output, targets) - squared_error(own.output, targets),
    }
    if truth.instances_BHW is not None and truth.named_B2 is not None:
        masks_BKHW, size = other.output.masks_BKHW, (truth.instances_BHW.shape[1], truth.instances_BHW.shape[2])
        counts_BCK = label_table(truth.instances_BHW, predicted_ids(masks_BKHW, size, protocol), masks_BKHW.shape[1])
        found["swap_named_iou"] = grounding(counts_BCK, truth.named_B2).named_iou_B
    return {name: torch.where(differs_B, values_B, torch.nan) for name, values_B in found.items()}


def squared_error(output: SlotOutput, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared reconstruction error [B]."""
    errors = (output.reconstruction - targets).square()
    return errors.mean(dim=tuple(range(1, errors.ndim)))
