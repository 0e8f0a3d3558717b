"""Owns AdaSlot's gate: which slots an image keeps (Fan et al. 2024, arXiv 2406.09196), and the masks of the kept ones.

Computes in float32 also under autocast. All noise comes in as an argument.

Legend: B images, K slots, D slot size, N tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights

NOISE_COLUMNS = 2
"""Noise values per slot: one for "drop", one for "keep"."""
MASK_EPS = 1e-5
"""Added to the kept slots' summed alpha before dividing by it: where none is kept, the masks are zeros."""


class Gate(nn.Module):
    """LN, Linear D-4D, ReLU, Linear 4D-2 (drop, keep) for every slot alone, then a hard Gumbel-softmax sample."""

    def __init__(self, *, slot_size: int, temperature: float, weights: Weights) -> None:
        super().__init__()
        self.temperature = temperature
        self.layers = nn.Sequential(
            nn.LayerNorm(slot_size),
            weights.linear(slot_size, 4 * slot_size),
            nn.ReLU(inplace=True),
            weights.linear(4 * slot_size, 2),
        )

    def forward(
        self, slots_BKD: Float[Tensor, "B K D"], noise_BK2: Float[Tensor, "B K 2"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """(keep, keep probability): exactly 0 or 1 with the straight-through gradient, and the probability before noise.

        A softmax over two is the sigmoid of their difference. A slot is kept where that difference is positive, so
        equal logits with equal noise drop it, as the first of two maxima does. `noise_BK2` is standard normal; zeros
        (any equal pair) make the choice deterministic.
        """
        with torch.autocast(slots_BKD.device.type, enabled=False):
            logits_BK2 = self.layers(slots_BKD.float())
            margin_BK = logits_BK2[..., 1] - logits_BK2[..., 0]
            gumbel_BK2 = gumbel(noise_BK2.float())
            noisy_BK = (margin_BK + gumbel_BK2[..., 1] - gumbel_BK2[..., 0]) / self.temperature
            soft_BK = noisy_BK.sigmoid()
            hard_BK = (noisy_BK > 0).to(soft_BK.dtype)
            return hard_BK + (soft_BK - soft_BK.detach()), margin_BK.sigmoid()


def gumbel(normal: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Standard normal z to standard Gumbel -log(-log(Phi(z))), exact in both tails of float32 (|z| < 13)."""
    return -torch.log(-torch.special.log_ndtr(normal))


def kept_masks(masks_BNK: Float[Tensor, "B N K"], keep_BK: Float[Tensor, "B K"]) -> Float[Tensor, "B N K"]:
    """Masks (a softmax over all slots) of the kept slots, renormalised; their sum is slightly below 1, or 0."""
    kept_BNK = masks_BNK * keep_BK[:, None]
    return kept_BNK / (kept_BNK.sum(dim=2, keepdim=True) + MASK_EPS)


def kept_masks_backward(
    gradient_BNK: Float[Tensor, "B N K"], masks_BNK: Float[Tensor, "B N K"], keep_BK: Float[Tensor, "B K"]
) -> tuple[Float[Tensor, "B N K"], Float[Tensor, "B K"]]:
    """Gradients of `kept_masks` in its two arguments."""
    kept_BNK = masks_BNK * keep_BK[:, None]
    total_BN1 = kept_BNK.sum(dim=2, keepdim=True) + MASK_EPS
    along_BN1 = (gradient_BNK * kept_BNK).sum(dim=2, keepdim=True) / total_BN1
    of_kept_BNK = (gradient_BNK - along_BN1) / total_BN1
    return of_kept_BNK * keep_BK[:, None], (of_kept_BNK * masks_BNK).sum(dim=1)
