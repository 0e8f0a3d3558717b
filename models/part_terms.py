"""Owns the formulas of the losses that make slots parts, per image where a term is one (scops_slots.md 3).

Of SCOPS (Hung et al. 2019, arXiv 1905.01298) and of Choudhury et al. (2021, arXiv 2111.06349).

Legend: B images, K slots, P parts (slots without the background), R rows of the basis, H x W pixels (H = W), C channels of a
feature layer, f x f its grid, r x r the grid on which features are compared, h x w the grid of the mask logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.objectives import unit_length
from models.warps import warped

MASK_FLOOR = 1e-3
"""Added to a mask before its centre is taken, so that an empty part has one: the image's (SCOPS)."""
MASS_EPS = 1e-6
"""Added to what a part covers, in places, before it divides."""
MASK_EPS = 1e-6
"""How near to 0 and 1 the background's mask counts."""


class Explained(NamedTuple):
    """How far masks and basis are from the features; float32."""

    error_B: Float[Tensor, " B"]
    energy_B: Float[Tensor, " B"]
    """What the error is of masks that explain nothing."""


def semantic_error(
    masks_BRHW: Float[Tensor, "B R H W"],
    basis_RC: Float[Tensor, "R C"],
    features_BCff: Float[Tensor, "B C f f"],
    foreground_BHW: Float[Tensor, "B H W"] | None,
    *,
    resolution: int,
) -> Explained:
    """Mean over channels and places of (sum over rows of mask * basis - features * foreground)^2 on a grid of side `resolution`.

    Masks and foreground (1 without) are averaged over the grid's areas, features resized (bilinear, align_corners=True). Neither
    the resized features up(V) nor the prediction W'A [B,C,r,r] exists, since with masks A, basis W and foreground S
    |W'A - S up(V)|^2 = <AA', WW'> - 2 <W, up'(S A) V'> + |S up(V)|^2, where up' is the transposed resize. In float64, because
    these terms cancel. There is no gradient to the features.
    """
    area_BRrr = _by_area(masks_BRHW, resolution).double()
    basis64_RC, features64_BCff = basis_RC.double(), features_BCff.detach().double()
    resize_rf = _resize_matrix(features_BCff.shape[-1], resolution).to(features_BCff.device)
    seen_BRrr, foreground_B1rr = area_BRrr, None
    if foreground_BHW is not None:
        foreground_B1rr = _by_area(foreground_BHW[:, None], resolution).double()
        seen_BRrr = area_BRrr * foreground_B1rr
    flat_BRn = area_BRrr.flatten(2)
    predicted_B = ((flat_BRn @ flat_BRn.transpose(1, 2)) * (basis64_RC @ basis64_RC.T)).sum(dim=(1, 2))
    pulled_BRff = resize_rf.T @ seen_BRrr @ resize_rf
    crossed_B = ((pulled_BRff.flatten(2) @ features64_BCff.flatten(2).transpose(1, 2)) * basis64_RC).sum(dim=(1, 2))
    energy_B = _resized_energy(features64_BCff, resize_rf, foreground_B1rr)
    terms = basis_RC.shape[1] * resolution**2
    return Explained(((predicted_B - 2 * crossed_B + energy_B) / terms).float(), (energy_B / terms).float())


def orthonormality(basis_RC: Float[Tensor, "R C"]) -> Float[Tensor, ""]:
    """Squared Frobenius distance between the Gram matrix of the rows, brought to unit length, and the identity."""
    unit_RC = unit_length(basis_RC)
    identity_RR = torch.eye(len(basis_RC), device=basis_RC.device)
    return (unit_RC @ unit_RC.T - identity_RR).square().sum()


def part_centres(masks_BPHW: Float[Tensor, "B P H W"]) -> Float[Tensor, "B P 2"]:
    """Mean (x, y) of each mask with its floor, in coordinates from -1 at the first pixel to just below 1 at the last."""
    return torch.stack([(share_BPn * _coordinates(share_BPn)).sum(dim=-1) for share_BPn in _marginals(masks_BPHW)], dim=-1)


def concentration(masks_BPHW: Float[Tensor, "B P H W"]) -> Float[Tensor, " B"]:
    """Sum over parts of the variance of a place drawn from the part's mask with its floor, in coordinates of `part_centres`."""
    total_BP = masks_BPHW.new_zeros(masks_BPHW.shape[:2])
    for share_BPn in _marginals(masks_BPHW):
        along_n = _coordinates(share_BPn)
        centre_BP1 = (share_BPn * along_n).sum(dim=-1, keepdim=True)
        total_BP = total_BP + (share_BPn * (along_n - centre_BP1).square()).sum(dim=-1)
    return total_BP.sum(dim=1)


@torch.no_grad()
def warped_masks(logits_BKhw: Float[Tensor, "B K h w"], grid_BHW2: Float[Tensor, "B H W 2"]) -> Float[Tensor, "B K H W"]:
    """What the masks of a warped image should be: softmax of the warped logits; uniform 1 / K outside the frame. A target."""
    return torch.softmax(warped(_to_pixels(logits_BKhw, grid_BHW2.shape[1]), grid_BHW2), dim=1)


def equivariance(warped_logits_BKhw: Float[Tensor, "B K h w"], target_BKHW: Float[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
    """KL divergence of the warped image's masks from their target, mean over slots and pixels."""
    log_masks_BKHW = torch.log_softmax(_to_pixels(warped_logits_BKhw, target_BKHW.shape[-1]), dim=1)
    return F.kl_div(log_masks_BKHW, target_BKHW, reduction="none").mean(dim=(1, 2, 3))


def landmark_error(warped_logits_BKhw: Float[Tensor, "B K h w"], target_BKHW: Float[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
    """Squared distance between the parts' centres in the warped image's masks and in their target, mean over coordinates."""
    masks_BKHW = torch.softmax(_to_pixels(warped_logits_BKhw, target_BKHW.shape[-1]), dim=1)
    return (part_centres(masks_BKHW[:, 1:]) - part_centres(target_BKHW[:, 1:])).square().mean(dim=(1, 2))


def within_part_variance(masks_BPHW: Float[Tensor, "B P H W"], features_BCff: Float[Tensor, "B C f f"]) -> Float[Tensor, " B"]:
    """Squared distance of a feature to its part's mean, averaged over parts by what they cover.

    Masks (times the foreground, where only that counts) are averaged over the areas of the features' grid. An image whose parts
    cover nothing has 0.
    """
    weight_BPn = _by_area(masks_BPHW, features_BCff.shape[-1]).flatten(2)
    flat_BCn = features_BCff.flatten(2)
    centred_BCn = flat_BCn - flat_BCn.mean(dim=2, keepdim=True)  # changes nothing but the rounding of the difference below
    mass_BP = weight_BPn.sum(dim=2)
    sums_BPC = weight_BPn @ centred_BCn.transpose(1, 2)
    second_B = (weight_BPn.sum(dim=1) * centred_BCn.square().sum(dim=1)).sum(dim=1)
    between_B = (sums_BPC.square().sum(dim=2) / (mass_BP + MASS_EPS)).sum(dim=1)
    return (second_B - between_B) / (mass_BP.sum(dim=1) + MASS_EPS)


def background_error(masks_BHW: Float[Tensor, "B H W"], foreground_BHW: Float[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    """Cross-entropy in nats of the background's mask and what is not foreground, mean over pixels."""
    safe_BHW = masks_BHW.clamp(MASK_EPS, 1 - MASK_EPS)
    ground_BHW = 1 - foreground_BHW
    return -(ground_BHW * safe_BHW.log() + foreground_BHW * (1 - safe_BHW).log()).mean(dim=(1, 2))


def part_descriptors(masks_BPHW: Float[Tensor, "B P H W"], features_BCff: Float[Tensor, "B C f f"]) -> Float[Tensor, "B P C"]:
    """Each part's mean feature, brought to unit length; masks are averaged over the areas of the features' grid."""
    weight_BPn = _by_area(masks_BPHW, features_BCff.shape[-1]).flatten(2)
    share_BPn = weight_BPn / (weight_BPn.sum(dim=2, keepdim=True) + MASS_EPS)
    return unit_length(share_BPn @ features_BCff.flatten(2).transpose(1, 2))


def part_contrast(descriptors_BPC: Float[Tensor, "B P C"], *, temperature: float) -> Float[Tensor, ""]:
    """InfoNCE of each part with itself in every other image, against all other parts of all images (its own included).

    Mean over parts and ordered pairs of images of -log(e^(s+ / t) / (e^(s+ / t) + sum over negatives of e^(s- / t))), with s the
    dot products of unit descriptors and t the temperature; 0 for a single image. Not decomposable over the batch.
    """
    images, parts = descriptors_BPC.shape[:2]
    flat_nC = descriptors_BPC.flatten(0, 1)
    similar_BPBP = (flat_nC @ flat_nC.T / temperature).view(images, parts, images, parts)
    same_PP = torch.eye(parts, dtype=torch.bool, device=flat_nC.device)[:, None]
    others_BP = similar_BPBP.masked_fill(same_PP, -torch.inf).logsumexp(dim=(2, 3))
    itself_BPB = similar_BPBP.diagonal(dim1=1, dim2=3).transpose(1, 2)
    pairs_BPB = F.softplus(others_BP[:, :, None] - itself_BPB)
    own_B1B = torch.eye(images, dtype=torch.bool, device=flat_nC.device)[:, None]
    return pairs_BPB.masked_fill(own_B1B, 0).sum() / max(1, parts * images * (images - 1))


def _by_area(maps_BRHW: Tensor, side: int) -> Tensor:
    """Means over the areas of a grid of `side` x `side`; maps of that side already as they are."""
    return maps_BRHW if maps_BRHW.shape[-1] == side else F.adaptive_avg_pool2d(maps_BRHW, side)


def _to_pixels(logits_BKhw: Tensor, side: int) -> Tensor:
    """As the model brings its logits to the images' size."""
    return F.interpolate(logits_BKhw, size=(side, side), mode="bilinear", align_corners=True)


def _resize_matrix(side: int, to: int) -> Float[Tensor, "r f"]:
    """Bilinear resizing along one axis (align_corners=True), in float64; along both it is this one after the other."""
    identity_1f1f = torch.eye(side, dtype=torch.float64)[None, :, None]
    return F.interpolate(identity_1f1f, size=(1, to), mode="bilinear", align_corners=True)[0, :, 0].T


@torch.no_grad()
def _resized_energy(features_BCff: Tensor, resize_rf: Tensor, foreground_B1rr: Tensor | None) -> Float[Tensor, " B"]:
    """Sum of squares of the resized features times the foreground.

    With u_p the weight of place p in a resized feature, |sum_p u_p V_p|^2 = sum_pq u_p u_q (V_p . V_q): the products of features
    between places meet the foreground's square summed over u_p u_q, which is one small product along each axis.
    """
    to, side = resize_rf.shape
    if to <= side:  # the resized features are smaller than those given
        resized_BCrr = resize_rf @ features_BCff @ resize_rf.T
        return (resized_BCrr if foreground_B1rr is None else resized_BCrr * foreground_B1rr).square().sum(dim=(1, 2, 3))
    flat_BCp = features_BCff.flatten(2)
    products_Bffff = (flat_BCp.transpose(1, 2) @ flat_BCp).view(-1, side, side, side, side)
    pairs_rg = (resize_rf[:, :, None] * resize_rf[:, None]).flatten(1)
    weight_brr = resize_rf.new_ones(1, to, to) if foreground_B1rr is None else foreground_B1rr[:, 0].square()
    weights_bffff = (pairs_rg.T @ weight_brr @ pairs_rg).view(-1, side, side, side, side).transpose(2, 3)
    return (products_Bffff * weights_bffff).sum(dim=(1, 2, 3, 4))


def _marginals(masks_BPHW: Tensor) -> tuple[Tensor, Tensor]:
    """Of the masks with their floor, brought to a sum of 1: along x [B,P,W] and along y [B,P,H]."""
    floored_BPHW = masks_BPHW + MASK_FLOOR
    total_BP1 = floored_BPHW.sum(dim=(2, 3))[:, :, None]
    return floored_BPHW.sum(dim=2) / total_BP1, floored_BPHW.sum(dim=3) / total_BP1


def _coordinates(share_BPn: Tensor) -> Tensor:
    count = share_BPn.shape[-1]
    return torch.arange(count, device=share_BPn.device, dtype=share_BPn.dtype) * (2 / count) - 1
