"""Owns DINOSAUR's MLP patch decoder (Seitzer et al. 2023, arXiv 2209.14860), in a form that saves work and memory exactly.

Written down plainly, every slot is added to every position and goes through an MLP to C features and an alpha logit; the
features are then averaged over slots with the alphas' softmax. By linearity (tests hold both forms against each other):
- the first layer is W(s + p) + b = Ws + (Wp + b): K * B + N products instead of B * K * N;
- sum_k a_k (W h_k + b) = W (sum_k a_k h_k) + b sum_k a_k: the hidden states are mixed before the feature layer, so that
  [B,N,K,C] never exists. With a gate the masks' sum is not 1, and the bias term follows it.

Two hand-written backward passes save memory: the first hidden state is recomputed from its two summands, and the last
one's gradient, of rank two for every token, is made in one product.

Legend: B images, N tokens, K slots, M = B * N * K, D slot size, H and O hidden widths, C features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.gate import kept_masks, kept_masks_backward
from models.initialisation import Weights


class PatchMlp(nn.Module):
    """Slots to tokens and masks. `layers` counts the linear layers, the one to features and alpha included."""

    def __init__(
        self, *, slot_size: int, hidden: int, layers: int, feature_size: int, positions: nn.Parameter, weights: Weights
    ) -> None:
        super().__init__()
        self.positions_ND = positions
        self.first = weights.linear(slot_size, hidden)
        self.middle = nn.ModuleList(weights.linear(hidden, hidden) for _ in range(layers - 2))
        self.to_features = weights.linear(hidden, feature_size)
        self.to_alpha = weights.linear(hidden, 1)

    def forward(
        self, slots_BKD: Float[Tensor, "B K D"], keep_BK: Float[Tensor, "B K"] | None
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N K"]]:
        """(tokens, masks), in float32; under autocast the layers and the mixing of hidden states are in its type."""
        hidden_BNKH = self._hidden(slots_BKD)
        weight_H, bias = self.to_alpha.weight[0].to(hidden_BNKH.dtype), self.to_alpha.bias
        mixed_BNH, masks_BNK = _Mixed.apply(hidden_BNKH, weight_H, bias, keep_BK)  # type: ignore[no-untyped-call]
        unbiased_BNC = F.linear(mixed_BNH, self.to_features.weight)
        return unbiased_BNC + masks_BNK.sum(dim=2, keepdim=True) * self.to_features.bias, masks_BNK

    def _hidden(self, slots_BKD: Tensor) -> Tensor:
        """[B,N,K,H], the last hidden state."""
        of_slots_BKH = F.linear(slots_BKD, self.first.weight)
        of_places_NH = self.first(self.positions_ND)
        if not self.middle:
            return _first_hidden(of_slots_BKH, of_places_NH)
        second, *rest = self.middle
        dtype = of_slots_BKH.dtype
        weight_OH, bias_O = second.weight.to(dtype), second.bias.to(dtype)
        hidden_MH: Tensor = F.relu_(_ReluLinear.apply(of_slots_BKH, of_places_NH, weight_OH, bias_O))  # type: ignore[no-untyped-call]
        for layer in rest:
            hidden_MH = F.relu_(layer(hidden_MH))
        return hidden_MH.view(len(slots_BKD), len(of_places_NH), slots_BKD.shape[1], -1)


class _ReluLinear(torch.autograd.Function):
    """relu(of_slots + of_places) W' + b [M,O], keeping for the backward pass the summands and not their large sum."""

    @staticmethod
    def forward(ctx: Any, of_slots_BKH: Tensor, of_places_NH: Tensor, weight_OH: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(of_slots_BKH, of_places_NH, weight_OH)
        return torch.addmm(bias_O, _first_hidden(of_slots_BKH, of_places_NH).flatten(0, 2), weight_OH.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (gradient_MO,) = gradients
        of_slots_BKH, of_places_NH, weight_OH = ctx.saved_tensors
        hidden_BNKH = _first_hidden(of_slots_BKH, of_places_NH)
        of_weight_OH = gradient_MO.T @ hidden_BNKH.flatten(0, 2)
        of_hidden_BNKH = (gradient_MO @ weight_OH).view_as(hidden_BNKH).mul_(hidden_BNKH.sign_())
        return of_hidden_BNKH.sum(dim=1), of_hidden_BNKH.sum(dim=(0, 2)), of_weight_OH, gradient_MO.sum(dim=0)


class _Mixed(torch.autograd.Function):
    """Alpha logits h w + b, masks m from them (and the gate), and hidden states mixed by the masks: (mixed, masks).

    The hidden state's gradient is m (x) g + l (x) w, with g and l the gradients of the mixture and the logits.
    """

    @staticmethod
    def forward(ctx: Any, hidden_BNKH: Tensor, weight_H: Tensor, bias_1: Tensor, keep_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        soft_BNK = ((hidden_BNKH @ weight_H).to(bias_1.dtype) + bias_1).softmax(dim=2)
        masks_BNK = soft_BNK if keep_BK is None else kept_masks(soft_BNK, keep_BK)
        ctx.save_for_backward(hidden_BNKH, weight_H, soft_BNK, masks_BNK, keep_BK)
        return (masks_BNK.to(hidden_BNKH.dtype)[:, :, None] @ hidden_BNKH).squeeze(2), masks_BNK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        of_mixed_BNH, of_masks_BNK = gradients
        hidden_BNKH, weight_H, soft_BNK, masks_BNK, keep_BK = ctx.saved_tensors
        of_soft_BNK, of_keep_BK = of_masks_BNK + (hidden_BNKH @ of_mixed_BNH[..., None]).squeeze(3), None
        if keep_BK is not None:
            of_soft_BNK, of_keep_BK = kept_masks_backward(of_soft_BNK, soft_BNK, keep_BK)
        of_logits_BNK = soft_BNK * (of_soft_BNK - (of_soft_BNK * soft_BNK).sum(dim=2, keepdim=True))
        factors_BNK2 = torch.stack((masks_BNK, of_logits_BNK), dim=3).to(hidden_BNKH.dtype)
        rows_BN2H = torch.stack((of_mixed_BNH, weight_H.expand_as(of_mixed_BNH)), dim=2)
        of_weight_H = factors_BNK2[..., 1].flatten() @ hidden_BNKH.flatten(0, 2)
        return factors_BNK2 @ rows_BN2H, of_weight_H, of_logits_BNK.sum().view(1), of_keep_BK


def _first_hidden(of_slots_BKH: Tensor, of_places_NH: Tensor) -> Tensor:
    """[B,N,K,H]"""
    return F.relu_(of_slots_BKH[:, None] + of_places_NH[:, None])
