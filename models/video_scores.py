"""Owns the scores of slots over time: pure functions of one contingency table per frame (metrics.md 1-3), per video.

Tables of frames add up to the table of the video, so one pass over the pixels gives everything here but the entropy. Row 0 of
a table is the background. Ids of objects and of slots must mean the same in all frames of a video. A score that a video does
not define is NaN: average with `nanmean` and say how many were left out.

Legend: B videos, T frames, H x W pixels, C labels (0 = background), K slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Integer
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # scipy ships no annotations
from torch import Tensor

from models.scores import best_overlap, contingency, fg_ari, hungarian_miou, matched_total, object_iou

BACKGROUND_OVERLAP = 0.2
"""A slot whose IoU with the true background is above this is no hypothesis of an object."""
LEAST_PIXELS = 5
"""Nor is one that owns this many pixels of a frame or fewer."""
USED_SHARE = 0.01
"""A slot is used in a frame when it owns at least this share of the pixels."""

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


def frame_tables(
    labels_BTHW: Integer[Tensor, "B T H W"],
    predictions_BTHW: Integer[Tensor, "B T H W"],
    *,
    num_labels: int,
    num_predictions: int,
) -> Int[Tensor, "B T C K"]:
    """Exact int64 counts of pixels by (label, slot) for every frame. Raises ValueError as `scores.contingency`."""
    videos, frames = labels_BTHW.shape[:2]
    counts_NCK = contingency(
        labels_BTHW.flatten(0, 1), predictions_BTHW.flatten(0, 1), num_labels=num_labels, num_predictions=num_predictions
    )
    return counts_NCK.view(videos, frames, num_labels, num_predictions)


def frame_fg_ari(counts_BTCK: Int[Tensor, "B T C K"]) -> Float[Tensor, " B"]:
    """FG-ARI of each frame by itself, averaged over the frames that show an object: blind to slots that trade places."""
    videos, frames = counts_BTCK.shape[:2]
    return fg_ari(counts_BTCK.flatten(0, 1)).view(videos, frames).nanmean(dim=1)


def video_fg_ari(counts_BTCK: Int[Tensor, "B T C K"]) -> Float[Tensor, " B"]:
    """FG-ARI over the pixels of all frames at once (SAVi: Kipf et al. 2022)."""
    return fg_ari(counts_BTCK.sum(dim=1))


def fg_ari_gap(counts_BTCK: Int[Tensor, "B T C K"]) -> Float[Tensor, " B"]:
    """What inconsistency over time costs: per-frame minus video FG-ARI."""
    return frame_fg_ari(counts_BTCK) - video_fg_ari(counts_BTCK)


def tube_miou(counts_BTCK: Int[Tensor, "B T C K"]) -> Float[Tensor, " B"]:
    """IoU of whole-video masks under the one-to-one matching that maximises it; an unmatched object counts 0."""
    return hungarian_miou(counts_BTCK.sum(dim=1))


def tube_mbo(counts_BTCK: Int[Tensor, "B T C K"]) -> Float[Tensor, " B"]:
    """Best IoU of each object's whole-video mask with any slot's, averaged over objects."""
    return best_overlap(counts_BTCK.sum(dim=1))


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Counts over the frames of each video, int64 [B] unless said otherwise; sum over videos to pool them."""

    objects: Int[Tensor, " B"]
    """(object, frame) pairs in which the object is visible."""
    hypotheses: Int[Tensor, " B"]
    """(slot, frame) pairs in which a slot stands for an object."""
    matches: Int[Tensor, " B"]
    """Pairs of both that were matched, switches included."""
    switches: Int[Tensor, " B"]
    """Matches with another slot than the object's last one, also after a gap."""
    iou_sum: Float[Tensor, " B"]
    """Over matches."""
    identity_matches: Int[Tensor, " B"]
    """IDTP: frames with IoU >= 1/2 under the best one-to-one matching of objects and slots for the whole video."""

    @property
    def misses(self) -> Int[Tensor, " B"]:
        """Visible objects without a slot."""
        return self.objects - self.matches

    @property
    def false_positives(self) -> Int[Tensor, " B"]:
        """Slots without an object."""
        return self.hypotheses - self.matches

    def mota(self) -> Float[Tensor, " B"]:
        """1 - (misses + false positives + switches) / objects (Bernardin and Stiefelhagen 2008); may be negative."""
        return 1 - (self.misses + self.false_positives + self.switches) / _or_nan(self.objects)

    def motp(self) -> Float[Tensor, " B"]:
        """Mean IoU of matches."""
        return self.iou_sum / _or_nan(self.matches)

    def idf1(self) -> Float[Tensor, " B"]:
        """2 IDTP / (objects + hypotheses) (Ristani et al. 2016); NaN without any object."""
        either = (self.objects + self.hypotheses).clamp(min=1)
        return torch.where(self.objects > 0, 2 * self.identity_matches.double() / either, torch.nan)

    def switch_rate(self) -> Float[Tensor, " B"]:
        """Identity switches per 100 (object, frame) pairs."""
        return 100 * self.switches / _or_nan(self.objects)


def tracks(counts_BTCK: Int[Tensor, "B T C K"]) -> Tracks:
    """Match objects and slots frame by frame as CLEAR-MOT does.

    An object keeps its last slot while their IoU is at least 1/2; the others are matched so that the sum of IoUs of at least
    1/2 is largest. Slots that show background, or next to nothing, take no part.
    """
    videos, frames, labels, slots = counts_BTCK.shape
    flat_NCK = counts_BTCK.cpu().flatten(0, 1)
    iou_NOK = object_iou(flat_NCK)
    both_NOK = flat_NCK[:, 1:]
    either_NOK = flat_NCK.sum(dim=2)[:, 1:, None] + flat_NCK.sum(dim=1)[:, None] - both_NOK
    shape = (videos, frames, labels - 1, slots)
    slot_BTK = _stand_for_objects(flat_NCK).view(videos, frames, slots)
    alike_BTOK = ((2 * both_NOK >= either_NOK) & (both_NOK > 0)).view(shape) & slot_BTK[:, :, None]  # in integers: exactly 1/2
    object_BTO = (flat_NCK[:, 1:].sum(dim=2) > 0).view(shape[:3])
    walks = [
        _walk(iou_TOK, alike_TOK) for iou_TOK, alike_TOK in zip(iou_NOK.view(shape).numpy(), alike_BTOK.numpy(), strict=True)
    ]
    device = counts_BTCK.device
    return Tracks(
        objects=object_BTO.sum(dim=(1, 2)).to(device),
        hypotheses=slot_BTK.sum(dim=(1, 2)).to(device),
        matches=torch.tensor([walk[0] for walk in walks], dtype=torch.int64, device=device),
        switches=torch.tensor([walk[1] for walk in walks], dtype=torch.int64, device=device),
        iou_sum=torch.tensor([walk[2] for walk in walks], dtype=torch.float64, device=device),
        identity_matches=matched_total(alike_BTOK.sum(dim=1).double()).round().long().to(device),
    )


def _stand_for_objects(counts_NCK: Tensor) -> Tensor:
    """Which slots [N, K] of a frame are hypotheses: enough pixels, and not the background."""
    owned_NK = counts_NCK.sum(dim=1)
    ground_NK = counts_NCK[:, 0]
    either_NK = counts_NCK[:, 0].sum(dim=1, keepdim=True) + owned_NK - ground_NK
    overlap_NK = ground_NK.double() / either_NK.clamp(min=1)
    stand_NK: Tensor = (owned_NK > LEAST_PIXELS) & (overlap_NK <= BACKGROUND_OVERLAP)
    return stand_NK


def _walk(iou_TOK: Float64, alike_TOK: Bool) -> tuple[int, int, float]:
    """Matches, switches and the sum of matched IoUs of one video."""
    last: dict[int, int] = {}
    matches, switches, total = 0, 0, 0.0
    for iou_OK, alike_OK in zip(iou_TOK, alike_TOK, strict=True):
        matched = _kept(last, alike_OK)
        free_OK = alike_OK.copy()
        free_OK[list(matched)] = False
        free_OK[:, list(matched.values())] = False
        if free_OK.any():
            rows, columns = linear_sum_assignment(np.where(free_OK, iou_OK, 0.0), maximize=True)
            new = {int(one): int(slot) for one, slot in zip(rows, columns, strict=True) if free_OK[one, slot]}
            switches += sum(last.get(one, slot) != slot for one, slot in new.items())
            matched.update(new)
        matches += len(matched)
        total += float(sum(iou_OK[one, slot] for one, slot in matched.items()))
        last.update(matched)
    return matches, switches, total


def _kept(last: dict[int, int], alike_OK: Bool) -> dict[int, int]:
    """Objects whose last slot still fits; a slot is given once, to the object with the lowest number."""
    kept: dict[int, int] = {}
    for one, slot in sorted(last.items()):
        if alike_OK[one, slot] and slot not in kept.values():
            kept[one] = slot
    return kept


def slots_used(counts_BTCK: Int[Tensor, "B T C K"]) -> Float[Tensor, " B"]:
    """How many slots own at least 1 % of a frame's pixels, averaged over frames."""
    return (_shares(counts_BTCK) >= USED_SHARE).sum(dim=2).double().mean(dim=1)


def largest_share(counts_BTCK: Int[Tensor, "B T C K"]) -> Float[Tensor, " B"]:
    """Share of a frame's pixels that its largest slot owns, averaged over frames: 1 where one slot explains everything."""
    return _shares(counts_BTCK).amax(dim=2).mean(dim=1)


def mask_entropy(masks_BTKHW: Float[Tensor, "B T K H W"]) -> Float[Tensor, " B"]:
    """Entropy of the slots' weights at a pixel over log K, averaged over pixels: 0 for hard masks, 1 where all slots share alike.

    The weights of a pixel sum to 1 over K; with one slot it is 0.
    """
    entropy_BTHW = -torch.xlogy(masks_BTKHW, masks_BTKHW).double().sum(dim=2)
    return entropy_BTHW.flatten(1).mean(dim=1) / math.log(max(masks_BTKHW.shape[2], 2))


def _shares(counts_BTCK: Tensor) -> Tensor:
    owned_BTK = counts_BTCK.sum(dim=2).double()
    return owned_BTK / owned_BTK.sum(dim=2, keepdim=True)


def _or_nan(count: Tensor) -> Tensor:
    """A denominator."""
    return torch.where(count > 0, count.double(), torch.nan)
