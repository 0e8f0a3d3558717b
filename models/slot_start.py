"""Owns what slots are before the first iteration, where models choose between a shared distribution and a start per slot.

Legend: *B any leading axes, K slots, D slot size.
"""

from __future__ import annotations

from typing import Literal, assert_never

from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights


class FrameStart(nn.Module):
    """Initial slots, from noise or from none: mu + exp(log_sigma) * noise, or a learned vector per slot."""

    mu: Tensor
    log_sigma: Tensor | None

    def __init__(
        self,
        kind: Literal["gaussian", "gaussian_per_slot", "learned"],
        *,
        num_slots: int,
        slot_size: int,
        trainable: bool,
        weights: Weights,
    ) -> None:
        """`trainable=False`: buffers of the state dict instead of parameters."""
        super().__init__()
        log_sigma: nn.Parameter | None = None
        match kind:
            case "gaussian":
                mu, log_sigma = weights.slot_prior(slot_size)
            case "gaussian_per_slot":
                mu, log_sigma = weights.learned_rows(num_slots, slot_size), weights.learned_rows(num_slots, slot_size)
            case "learned":
                mu = weights.learned_rows(num_slots, slot_size)
            case _:
                assert_never(kind)
        for name, value in (("mu", mu), ("log_sigma", log_sigma)):
            if trainable or value is None:
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value.detach())

    def forward(self, noise: Float[Tensor, "*B K D"]) -> Float[Tensor, "*B K D"]:
        """In float32, also under autocast."""
        if self.log_sigma is None:
            return self.mu.expand(noise.shape)
        return self.mu + self.log_sigma.exp() * noise.float()
