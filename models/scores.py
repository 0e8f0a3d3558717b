"""Owns the segmentation scores: every one a pure function of one contingency table (metrics.md 0-2), per image.

Row 0 of a table is the background. A score that an image does not define (no object, no valid pixel) is NaN: average
with `nanmean` and say how many were left out.

Legend: B images, H x W pixels, C labels (0 = background), K predicted segments.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Integer
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # scipy ships no annotations
from torch import Tensor

OVERLAP_THRESHOLD = 0.5
"""An object counts as found when its best IoU is strictly above this."""
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
"""Narrowest first."""
NO_VARIANCE = 1e-12
"""Summed mask variance below which masks count as constant."""


def contingency(
    labels_BHW: Integer[Tensor, "B H W"],
    predictions_BHW: Integer[Tensor, "B H W"],
    *,
    num_labels: int,
    num_predictions: int,
    valid: Bool[Tensor, "B H W"] | None = None,
) -> Int[Tensor, "B C K"]:
    """Exact int64 counts of pixels by (label, prediction); pixels that are not `valid` are counted nowhere.

    Raises ValueError for an id outside 0 .. number - 1 (also on a void pixel of the predictions or labels).
    """
    for name, ids, number in (("label", labels_BHW, num_labels), ("prediction", predictions_BHW, num_predictions)):
        if ids.numel():
            least, largest = (int(one) for one in torch.aminmax(ids))
            if not 0 <= least <= largest < number:
                raise ValueError(f"{name} ids run from {least} to {largest}, allowed are 0 to {number - 1}")
    cells = num_labels * num_predictions
    narrow = next(dtype for dtype in INTEGERS if torch.iinfo(dtype).max >= cells)
    cell_BHW = labels_BHW.to(narrow) * num_predictions + predictions_BHW.to(narrow)
    if valid is not None:
        cell_BHW = torch.where(valid, cell_BHW, cells)  # one bin more for void pixels: no data-dependent shape
    count = _count_at_once if labels_BHW.is_cuda else _count_by_image
    counts_BM = count(cell_BHW.flatten(1), bins=cells + 1)
    return counts_BM[:, :cells].reshape(-1, num_labels, num_predictions)


def _count_by_image(cells_BP: Integer[Tensor, "B P"], *, bins: int) -> Int[Tensor, "B M"]:
    """Counts of the values 0 .. bins - 1 in each row: narrow integers and few bins are what a CPU counts fastest."""
    if not len(cells_BP):
        return torch.zeros(0, bins, dtype=torch.int64)
    return torch.stack([torch.bincount(cells_P, minlength=bins) for cells_P in cells_BP])


def _count_at_once(cells_BP: Integer[Tensor, "B P"], *, bins: int) -> Int[Tensor, "B M"]:
    """The same in one call for all rows, as a GPU wants it."""
    rows_B1 = torch.arange(len(cells_BP), device=cells_BP.device)[:, None] * bins
    return torch.bincount((cells_BP + rows_B1).flatten(), minlength=len(cells_BP) * bins).view(-1, bins)


def ari(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """Adjusted Rand index (Hubert and Arabie 1985) over all labels, background included; NaN without pixels.

    Where the index is 0 / 0 (one cluster on both sides, or singletons on both) it is 1.
    """
    pairs_B = pairs(counts_BCK).sum(dim=(1, 2))
    label_pairs_B = pairs(counts_BCK.sum(dim=2)).sum(dim=1)
    predicted_pairs_B = pairs(counts_BCK.sum(dim=1)).sum(dim=1)
    total_B = counts_BCK.sum(dim=(1, 2))
    all_pairs_B = pairs(total_B)
    alike_B = (label_pairs_B == predicted_pairs_B) & ((label_pairs_B == 0) | (label_pairs_B == all_pairs_B))
    expected_B = label_pairs_B.double() * (predicted_pairs_B.double() / all_pairs_B.clamp(min=1).double())
    largest_B = (label_pairs_B.double() + predicted_pairs_B.double()) / 2
    index_B = torch.where(alike_B, 1.0, (pairs_B.double() - expected_B) / (largest_B - expected_B))
    return torch.where(total_B == 0, torch.nan, index_B)


def fg_ari(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """ARI over the pixels of objects; NaN for an image without objects. With one object it can only be 0 or 1."""
    return ari(counts_BCK[:, 1:])


def object_counts(counts_BCK: Int[Tensor, "B C K"]) -> Int[Tensor, " B"]:
    """How many objects an image shows: labels other than background with at least one valid pixel."""
    return _present(counts_BCK).sum(dim=1)


def best_overlap(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """mBO of an image: best IoU of each object with any segment, not exclusive, averaged over objects."""
    return _mean_over_objects(object_iou(counts_BCK).amax(dim=2), counts_BCK)


def hungarian_miou(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """IoU under the one-to-one matching of objects and segments that maximises it; an unmatched object counts 0."""
    objects_B = object_counts(counts_BCK)
    return torch.where(objects_B > 0, _matched_iou(counts_BCK) / objects_B, torch.nan)


def miou_gd(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """mIoU as the gorkaydemir code counts it (metrics.md 2): for comparison with its numbers only.

    Its matching holds the background, if there is any, as one object more that has IoU 0 with everything, and its mean runs
    over the matched pairs: min(segments with a pixel, objects and background). NaN for an image without objects.
    """
    objects_B = object_counts(counts_BCK)
    truths_B = (counts_BCK.sum(dim=2) > 0).sum(dim=1)
    segments_B = (counts_BCK.sum(dim=1) > 0).sum(dim=1)
    pairs_B = torch.minimum(truths_B, segments_B)
    return torch.where(objects_B > 0, _matched_iou(counts_BCK) / pairs_B, torch.nan)


def corloc(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """1 if some object has an IoU above one half with some segment, else 0 (the mask form of CorLoc)."""
    found_B = ((object_iou(counts_BCK) > OVERLAP_THRESHOLD) & _present(counts_BCK)[:, :, None]).flatten(1).any(dim=1)
    return torch.where(object_counts(counts_BCK) > 0, found_B.double(), torch.nan)


def recovery(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """Share of an image's objects with an IoU above one half with some segment."""
    return _mean_over_objects((object_iou(counts_BCK).amax(dim=2) > OVERLAP_THRESHOLD).double(), counts_BCK)


def object_iou(counts_BCK: Int[Tensor, "B C K"]) -> Float[Tensor, "B C-1 K"]:
    """IoU of each object with each segment; background pixels count in a segment's area. Absent objects have 0."""
    labels_BC1 = counts_BCK.sum(dim=2, keepdim=True)[:, 1:]
    segments_B1K = counts_BCK.sum(dim=1, keepdim=True)
    both_BCK = counts_BCK[:, 1:]
    return both_BCK.double() / (labels_BC1 + segments_B1K - both_BCK).clamp(min=1)


def stripe(masks_BKHW: Float[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
    """How striped an image's masks are: the share of their variance that row means or column means explain.

    For slot k let v_k be the variance of its mask over all pixels, r_k the variance of its H row means and c_k that of
    its W column means. The score is sum_k max(r_k, c_k) / sum_k v_k, so a slot weighs by its variance: 1 when every
    mask depends on the row alone or on the column alone (each slot may choose its own), about 1 / H for noise, small
    for blobs (a centred square with side f of the image: f / (1 + f)). NaN when no mask varies.
    """
    masks = masks_BKHW.double()
    variance_B = masks.var(dim=(2, 3), correction=0).sum(dim=1)
    rows_BK = masks.mean(dim=3).var(dim=2, correction=0)
    columns_BK = masks.mean(dim=2).var(dim=2, correction=0)
    return torch.where(variance_B > NO_VARIANCE, torch.maximum(rows_BK, columns_BK).sum(dim=1) / variance_B, torch.nan)


def matched_total(weights_BCK: Float[Tensor, "B C K"]) -> Float[Tensor, " B"]:
    """Largest total of non-negative weights over one-to-one matchings of rows and columns (Hungarian method)."""
    matched = [
        float(weights_CK[linear_sum_assignment(weights_CK, maximize=True)].sum()) for weights_CK in weights_BCK.cpu().numpy()
    ]
    return torch.tensor(matched, dtype=torch.float64, device=weights_BCK.device)


def _matched_iou(counts_BCK: Tensor) -> Tensor:
    return matched_total(object_iou(counts_BCK))


def pairs(counts: Tensor) -> Tensor:
    """Ordered pairs of different pixels, n (n - 1)."""
    return counts * (counts - 1)


def _present(counts_BCK: Tensor) -> Tensor:
    return counts_BCK[:, 1:].sum(dim=2) > 0


def _mean_over_objects(score_BC: Tensor, counts_BCK: Tensor) -> Tensor:
    """Mean over the objects that are there; 0 / 0 is NaN."""
    present_BC = _present(counts_BCK)
    return (score_BC * present_BC).sum(dim=1) / present_BC.sum(dim=1)
