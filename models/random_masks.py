"""Owns the floor that scores are read against: masks that are noise, without parameters.

Legend: B images, K slots, H x W pixels of the masks, P = H * W.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.slot_model import SlotModel, SlotOutput


class RandomMasks(SlotModel):
    """Every pixel's mask is the softmax over slots of its own noise; reconstruction and slots are zeros."""

    def __init__(self, *, resolution: int, num_slots: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.noise_shape = (num_slots, resolution * resolution)

    def forward(self, inputs: Float[Tensor, "B ..."], noise_BKP: Float[Tensor, "B K P"]) -> SlotOutput:
        """`inputs` are images or tokens; `noise_BKP` holds one standard-normal draw per slot and pixel of the masks."""
        masks_BKP = noise_BKP.float().softmax(dim=1)
        return SlotOutput(
            reconstruction=torch.zeros_like(inputs),
            masks_BKHW=masks_BKP.view(*masks_BKP.shape[:2], self.resolution, self.resolution),
            slots_BKD=masks_BKP.new_zeros(*masks_BKP.shape[:2], 1),
            attention_BKN=masks_BKP,
        )
