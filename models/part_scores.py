"""Owns the scores of parts (scops_slots.md 5): maps of slots from soft masks, scores of a whole test set, keypoints from centres.

A slot must mean the same part in every image: tables are summed over images before a score is taken from them, but where it says
`by image`. Row 0 of a table is the background. A score that the data do not define is NaN.

Legend: N images, B of a batch, K slots (number 0 is the background), P = K - 1 parts, C true labels (0 = background),
H x W pixels, h x w the grid of the logits, Q keypoints, F = 2 P numbers of an image's part centres, R images of a fit, M of a
test.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # scipy ships no annotations
from torch import Tensor
from torch.nn.functional import pad

from models import clustering, scores

HARD_BACKGROUND = 0.1
"""What the background has everywhere under SCOPS' rule; a part has 1 where it is strongest."""
TOLERANCE = 1e-5
"""Mask vectors nearer than this in every slot are the same."""
USED_SHARE = 0.01
"""A part is used in an image when it owns at least this share of the pixels."""
LEAST_MASS = 1e-12
"""Added to each row and column of pixels before a centre is taken: a part without mass lies in the middle."""
STILL = 1e-4
"""Standard deviation in pixels below which a centre or a landmark is at one place in all images."""


def largest(masks_BKHW: Float[Tensor, "B K H W"]) -> Int[Tensor, "B H W"]:
    """The slot that has most of each pixel, the first of equals."""
    return masks_BKHW.max(dim=1).indices  # on the CPU ten times as fast as argmax


def above_background(masks_BKHW: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
    """Masks as SCOPS' rule compares them: each divided by its largest value in the image, the background HARD_BACKGROUND."""
    peaks_BK11 = masks_BKHW.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(masks_BKHW.dtype).tiny)
    relative_BKHW = masks_BKHW / peaks_BK11
    relative_BKHW[:, 0] = HARD_BACKGROUND
    return relative_BKHW


def pooled_nmi(counts_CK: Int[Tensor, "C K"]) -> float:
    """Normalised mutual information (arithmetic mean of the entropies) of all rows; 1 for one cluster on both sides."""
    return float(clustering.nmi(pad(counts_CK, (0, 0, 1, 0))[None]))  # which leaves out a background


def pooled_ari(counts_CK: Int[Tensor, "C K"]) -> float:
    """Adjusted Rand index of all rows, as `scores.ari`; in whole numbers of any size, for test sets of billions of pixels."""
    cells: list[list[int]] = counts_CK.tolist()
    rows, columns = [sum(row) for row in cells], [sum(column) for column in zip(*cells, strict=True)]
    pixels = sum(rows)
    if pixels == 0:
        return math.nan
    both = sum(n * (n - 1) for row in cells for n in row)
    true, found, every = (sum(n * (n - 1) for n in sizes) for sizes in (rows, columns, [pixels]))
    if true == found and true in (0, every):
        return 1.0
    return 2 * (both * every - true * found) / ((true + found) * every - 2 * true * found)


def miou_matched_once(counts_NCK: Int[Tensor, "N C K"]) -> Float[Tensor, " N"]:
    """Mean IoU of each image's true parts under one matching of parts and slots for all images.

    The matching is one-to-one, over all slots, and has the largest total IoU in the summed table; an unmatched part counts 0.
    `scores.hungarian_miou` matches by image and is never below it: the difference is what unstable identities cost.
    """
    iou_OK = scores.object_iou(counts_NCK.sum(dim=0, keepdim=True))[0]
    parts, slots = linear_sum_assignment(iou_OK.cpu().numpy(), maximize=True)
    matched_N = scores.object_iou(counts_NCK)[:, parts, slots].sum(dim=1)  # an absent part has 0
    objects_N = scores.object_counts(counts_NCK)
    return torch.where(objects_N > 0, matched_N / objects_N, torch.nan)


def foreground_iou(ids_BHW: Integer[Tensor, "B H W"], foreground_BHW: Bool[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    """IoU of all parts together and the object; NaN for an image without it."""
    parts_BHW = ids_BHW > 0
    both_B = (parts_BHW & foreground_BHW).sum(dim=(1, 2))
    either_B = (parts_BHW | foreground_BHW).sum(dim=(1, 2))
    return torch.where(foreground_BHW.any(dim=2).any(dim=1), both_B.double() / either_B.clamp(min=1), torch.nan)


def parts_used(ids_BHW: Integer[Tensor, "B H W"], *, num_slots: int) -> Float[Tensor, " B"]:
    """How many parts, the background left out, own at least USED_SHARE of an image's pixels."""
    anything_BHW = torch.zeros_like(ids_BHW)
    counts_BK = scores.contingency(anything_BHW, ids_BHW, num_labels=1, num_predictions=num_slots)[:, 0]
    return (counts_BK[:, 1:] >= USED_SHARE * ids_BHW.shape[1] * ids_BHW.shape[2]).sum(dim=1).double()


def point_tables(
    ids_BHW: Integer[Tensor, "B H W"],
    keypoints_BQ2: Float[Tensor, "B Q 2"],
    visible_BQ: Bool[Tensor, "B Q"],
    *,
    num_slots: int,
) -> Int[Tensor, "B Q+1 K"]:
    """Counts of visible keypoints (x, y) by (1 + number of the keypoint, slot of the nearest pixel); row 0 is empty."""
    height, width = ids_BHW.shape[1:]
    nearest_BQ2 = (keypoints_BQ2.nan_to_num() + 0.5).floor().long()
    x_BQ, y_BQ = nearest_BQ2[..., 0].clamp(0, width - 1), nearest_BQ2[..., 1].clamp(0, height - 1)
    found_BQ = ids_BHW[torch.arange(len(ids_BHW), device=ids_BHW.device)[:, None], y_BQ, x_BQ]
    labels_BQ = torch.arange(1, keypoints_BQ2.shape[1] + 1, device=ids_BHW.device).expand_as(found_BQ)
    return scores.contingency(
        labels_BQ[:, None],
        found_BQ[:, None],
        num_labels=keypoints_BQ2.shape[1] + 1,
        num_predictions=num_slots,
        valid=visible_BQ[:, None],
    )


def distinct_vectors(logits_BKhw: Float[Tensor, "B K h w"]) -> Float[Tensor, " B"]:
    """How many mask vectors an image has on the model's own grid that differ by more than TOLERANCE in some slot.

    In the order of their background each vector joins the first one that it does not differ from. A linear decoder of broadcast
    slots has 9 at most (scops_slots.md 2).
    """
    masks_BNK = logits_BKhw.double().softmax(dim=1).flatten(2).transpose(1, 2).cpu().numpy()
    found = [float(_distinct(masks_NK)) for masks_NK in masks_BNK]
    return torch.tensor(found, dtype=torch.float64, device=logits_BKhw.device)


def _distinct(vectors_NK: np.ndarray) -> int:
    ordered_NK = vectors_NK[np.argsort(vectors_NK[:, 0], kind="stable")]
    reach_N = np.searchsorted(ordered_NK[:, 0], ordered_NK[:, 0] + TOLERANCE, side="right")
    left_N, count = np.ones(len(ordered_NK), dtype=np.bool_), 0
    for first, reach in enumerate(reach_N.tolist()):
        if left_N[first]:
            near_NK = ordered_NK[first:reach]
            left_N[first:reach] &= np.abs(near_NK - near_NK[0]).max(axis=1) > TOLERANCE
            count += 1
    return count


def part_centres(masks_BKHW: Float[Tensor, "B K H W"]) -> Float[Tensor, "B P 2"]:
    """(x, y) of each part's soft mask in pixels, pixel centres at integers; float64."""
    parts_BPHW = masks_BKHW[:, 1:]
    across_BPW, down_BPH = (parts_BPHW.sum(dim=over, dtype=torch.float64) + LEAST_MASS for over in (2, 3))
    return torch.stack([_mean_place(across_BPW), _mean_place(down_BPH)], dim=2)


def _mean_place(mass_BPS: Tensor) -> Tensor:
    place_S = torch.arange(mass_BPS.shape[2], dtype=mass_BPS.dtype, device=mass_BPS.device)
    return (mass_BPS * place_S).sum(dim=2) / mass_BPS.sum(dim=2)


class Places(NamedTuple):
    """Part centres and true keypoints of some images, in pixels."""

    centres_NP2: Float[np.ndarray, "N P 2"]
    keypoints_NQ2: Float[np.ndarray, "N Q 2"]
    visible_NQ: Bool[np.ndarray, "N Q"]
    """The others mean nothing."""
    scale_N2: Float[np.ndarray, "N 2"]
    """What errors along x and y are divided by."""


def keypoint_error(fit: Places, test: Places) -> float:
    """Mean distance in percent of `scale` of visible keypoints from what a linear map of the part centres says.

    As for CUB (Choudhury et al. 2021): everything is divided by `scale` first, and there is no intercept. A keypoint is fitted
    on the images of `fit` that show it; one that none shows is left out. NaN when nothing can be compared.
    """
    scaled = [
        places._replace(
            centres_NP2=places.centres_NP2 / places.scale_N2[:, None],
            keypoints_NQ2=places.keypoints_NQ2 / places.scale_N2[:, None],
            scale_N2=np.ones_like(places.scale_N2),
        )
        for places in (fit, test)
    ]
    return _mean_distance(*scaled, standardise=False)


def landmark_error(fit: Places, test: Places) -> float:
    """The same for landmarks whose `scale` only the truth tells, the distance of the eyes: it divides the distances alone.

    As SCOPS: centres and landmarks are standardised by their means and standard deviations over `fit`, then mapped without an
    intercept. (Of the landmarks the source does not say it; without it their means would be lost.)
    """
    return _mean_distance(fit, test, standardise=True)


def _mean_distance(fit: Places, test: Places, *, standardise: bool) -> float:
    fit_RF, test_MF = (places.centres_NP2.reshape(len(places.centres_NP2), -1).astype(np.float64) for places in (fit, test))
    distances: list[np.ndarray] = []
    for q in range(fit.keypoints_NQ2.shape[1]):
        fitted_R, asked_M = fit.visible_NQ[:, q], test.visible_NQ[:, q]
        if not fitted_R.any():
            continue
        truth_R2 = fit.keypoints_NQ2[fitted_R, q].astype(np.float64)
        found_M2 = _mapped(fit_RF[fitted_R], truth_R2, test_MF[asked_M], standardise=standardise)
        distances.append(np.linalg.norm((found_M2 - test.keypoints_NQ2[asked_M, q]) / test.scale_N2[asked_M], axis=1))
    every = np.concatenate([np.zeros(0), *distances])
    return 100 * float(every.mean()) if len(every) else math.nan


def _mapped(fit_RF: np.ndarray, truth_R2: np.ndarray, test_MF: np.ndarray, *, standardise: bool) -> np.ndarray:
    """Keypoints [M,2] by least squares, of the smallest norm where the centres do not decide."""
    mean_F, sd_F, mean_2, sd_2 = np.zeros(fit_RF.shape[1]), np.ones(fit_RF.shape[1]), np.zeros(2), np.ones(2)
    if standardise:
        (mean_F, sd_F), (mean_2, sd_2) = _moments(fit_RF), _moments(truth_R2)
    map_F2, *_ = np.linalg.lstsq((fit_RF - mean_F) / sd_F, (truth_R2 - mean_2) / sd_2, rcond=None)
    found_M2: np.ndarray = (test_MF - mean_F) / sd_F @ map_F2 * sd_2 + mean_2
    return found_M2


def _moments(values_RF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, in pixels; 1 for one that is STILL."""
    sd_F = values_RF.std(axis=0)
    return values_RF.mean(axis=0), np.where(sd_F > STILL, sd_F, 1.0)
