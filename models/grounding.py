"""Owns the scores of a model that is told about its image in words: do slots find what the sentence names, do words matter.

Pure functions of the contingency table of models/scores.py and of masks (language_slots.md 10), per image; NaN where an image
does not define a score.
Legend: B images, C labels (0 = background), O = C - 1 objects, K slots, N tokens on a G x G grid, H x W pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.scores import object_iou

FOUND = 0.5
"""A named or unnamed object counts as found when its best IoU is at least this."""


class Grounding(NamedTuple):
    """Scores of the visible objects, by whether the sentence names them; objects that are wholly hidden count nowhere."""

    named_iou_B: Float[Tensor, " B"]
    """Best slot's IoU, mean over the named objects; NaN when none is visible, as all below."""
    named_recall_B: Float[Tensor, " B"]
    """Share of the named objects whose best slot's IoU is at least FOUND."""
    unnamed_iou_B: Float[Tensor, " B"]
    unnamed_recall_B: Float[Tensor, " B"]
    src_slot_B: Float[Tensor, " B"]
    """Number of the slot with the best IoU for the source (the first of equals)."""


def grounding(counts_BCK: Int[Tensor, "B C K"], named_B2: Int[Tensor, "B 2"]) -> Grounding:
    """`named_B2` holds the labels of source and destination; an object that is not named has a number that no label has (-1).

    Labels beyond the table's rows are objects that no image of the batch shows. An object that is both counts once.
    """
    iou_BOK = object_iou(counts_BCK)
    best_BO = iou_BOK.amax(dim=2)
    found_BO = (best_BO >= FOUND).double()
    visible_BO = counts_BCK[:, 1:].sum(dim=2) > 0
    labels_O = torch.arange(1, counts_BCK.shape[1], device=counts_BCK.device)
    bears_B2O = named_B2[:, :, None] == labels_O
    named_BO = bears_B2O.any(dim=1)
    source_BO = bears_B2O[:, 0] & visible_BO
    source_iou_BK = (iou_BOK * source_BO[:, :, None]).sum(dim=1)
    return Grounding(
        named_iou_B=_mean(best_BO, visible_BO & named_BO),
        named_recall_B=_mean(found_BO, visible_BO & named_BO),
        unnamed_iou_B=_mean(best_BO, visible_BO & ~named_BO),
        unnamed_recall_B=_mean(found_BO, visible_BO & ~named_BO),
        src_slot_B=torch.where(source_BO.any(dim=1), source_iou_BK.argmax(dim=1).double(), torch.nan),
    )


def _mean(values_BO: Float[Tensor, "B O"], among_BO: Bool[Tensor, "B O"]) -> Float[Tensor, " B"]:
    """0 / 0 is NaN."""
    return (values_BO * among_BO).sum(dim=1) / among_BO.sum(dim=1)


def attention_grid(attention_BKN: Float[Tensor, "B K N"]) -> Float[Tensor, "B K G G"] | None:
    """Attention as masks on the grid of tokens, row by row; None for a single token, which divides no image.

    Raises ValueError when the tokens form no square.
    """
    tokens = attention_BKN.shape[2]
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise ValueError(f"{tokens} tokens form no square grid")
    return None if tokens == 1 else attention_BKN.reshape(*attention_BKN.shape[:2], grid, grid)


def mask_distance(masks_BKHW: Float[Tensor, "B K H W"], others_BKHW: Float[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
    """Half the L1 distance of two divisions among slots, mean over pixels: 0 for the same, 1 for disjoint ones."""
    distance_BHW = (masks_BKHW - others_BKHW).abs().sum(dim=1) / 2
    return distance_BHW.double().mean(dim=(1, 2))
