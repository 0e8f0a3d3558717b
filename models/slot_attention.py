"""Owns the slot attention cell (Locatello et al. 2020, algorithm 1), as the official code computes it.

Computes in float32 also under autocast: the epsilon of 1e-8 is lost in half precision, and the cell costs little.

Legend: B images, N inputs, C input channels, K slots, D slot size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights

TORCH_NORM_EPS = 1e-5
NORM_EPS = 1e-3
"""Keras' default, which the official code and its CovLoss port use; DINOSAUR's is torch's, 1e-5."""
ATTENTION_EPS = 1e-8


class SlotAttention(nn.Module):
    """Competition of K slots for N inputs, iterated with shared weights; gradients flow through every iteration."""

    def __init__(
        self,
        *,
        input_size: int,
        slot_size: int,
        mlp_size: int,
        iterations: int,
        weights: Weights,
        norm_eps: float = NORM_EPS,
        prior: bool = True,
    ) -> None:
        """`prior=False`: without mu and log_sigma; initial slots come from elsewhere, and `refine` is what there is to call."""
        super().__init__()
        self.iterations = iterations
        self.scale = slot_size**-0.5
        if prior:
            self.mu, self.log_sigma = weights.slot_prior(slot_size)
        self.norm_inputs = nn.LayerNorm(input_size, eps=norm_eps)
        self.norm_slots = nn.LayerNorm(slot_size, eps=norm_eps)
        self.norm_mlp = nn.LayerNorm(slot_size, eps=norm_eps)
        self.query = weights.linear(slot_size, slot_size, bias=False)
        self.key = weights.linear(input_size, slot_size, bias=False)
        self.value = weights.linear(input_size, slot_size, bias=False)
        self.gru = weights.gru_cell(slot_size, slot_size)
        self.mlp = nn.Sequential(weights.linear(slot_size, mlp_size), nn.ReLU(), weights.linear(mlp_size, slot_size))

    def forward(
        self, inputs_BNC: Float[Tensor, "B N C"], noise_BKD: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K N"]]:
        """Final slots, and the last iteration's softmax over slots before its renormalisation over inputs."""
        return self.refine(inputs_BNC, self.mu + self.log_sigma.exp() * noise_BKD.float())

    def refine(
        self, inputs_BNC: Float[Tensor, "B N C"], initial_BKD: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K N"]]:
        """The same from given initial slots."""
        with torch.autocast(inputs_BNC.device.type, enabled=False):
            normed_BNC = self.norm_inputs(inputs_BNC.float())
            key_BND, value_BND = self.key(normed_BNC), self.value(normed_BNC)
            slots_BKD = initial_BKD.float()
            attention_BKN = slots_BKD.new_zeros(0)
            for _ in range(self.iterations):
                slots_BKD, attention_BKN = self._iterate(slots_BKD, key_BND, value_BND)
        return slots_BKD, attention_BKN

    def _iterate(self, previous_BKD: Tensor, key_BND: Tensor, value_BND: Tensor) -> tuple[Tensor, Tensor]:
        query_BKD = self.query(self.norm_slots(previous_BKD)) * self.scale
        attention_BKN = (query_BKD @ key_BND.transpose(1, 2)).softmax(dim=1)
        raised_BKN = attention_BKN + ATTENTION_EPS
        updates_BKD = (raised_BKN / raised_BKN.sum(dim=2, keepdim=True)) @ value_BND
        gated_BKD = self.gru(updates_BKD.flatten(0, 1), previous_BKD.flatten(0, 1)).view_as(previous_BKD)
        return gated_BKD + self.mlp(self.norm_mlp(gated_BKD)), attention_BKN
