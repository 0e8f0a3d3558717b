"""Owns the slot attention autoencoder for square images (Locatello et al. 2020, section 4 and appendix E).

Legend: B images, H x W pixels, N = H * W, C encoder channels, K slots, D slot size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.decoders import mix
from models.initialisation import Weights
from models.positions import SoftPositions
from models.slot_attention import NORM_EPS, SlotAttention
from models.slot_model import SlotModel, SlotOutput

ENCODER_KERNEL = 5


class ConvEncoder(nn.Module):
    """Stride-1 convolutions with ReLU after each, positions added, then LayerNorm and a two-layer MLP per pixel."""

    def __init__(self, *, resolution: int, channels: int, layers: int, weights: Weights) -> None:
        super().__init__()
        widths = [3] + [channels] * layers
        self.convs = nn.ModuleList(weights.conv(inputs, outputs, ENCODER_KERNEL) for inputs, outputs in pairwise(widths))
        self.positions = SoftPositions(resolution=resolution, channels=channels, weights=weights)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = nn.Sequential(weights.linear(channels, channels), nn.ReLU(), weights.linear(channels, channels))

    def forward(self, images_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """One token per pixel, row by row."""
        hidden = images_BCHW.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            hidden = F.relu_(conv(hidden))
        return self.tokens(hidden)

    def tokens(self, features_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C"]:
        """Those of feature maps."""
        placed_BHWC = features_BCHW.permute(0, 2, 3, 1) + self.positions()
        tokens_BNC: Tensor = self.mlp(self.norm(placed_BHWC.flatten(1, 2)))
        return tokens_BNC


class SlotAutoencoder(SlotModel):
    """Encoder, slot attention, a decoder per slot, alpha-blended into one image."""

    def __init__(
        self, *, num_slots: int, slot_size: int, encoder: nn.Module, attention: SlotAttention, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.noise_shape = (num_slots, slot_size)
        self.encoder = encoder
        self.attention = attention
        self.decoder = decoder

    def forward(self, images_BCHW: Float[Tensor, "B 3 H W"], noise_BKD: Float[Tensor, "B K D"]) -> SlotOutput:
        """`images_BCHW` in [0, 1]; `noise_BKD` standard normal."""
        slots_BKD, attention_BKN = self.attention(self.encoder(images_BCHW), noise_BKD)
        decoded_M4HW = self.decoder(slots_BKD.flatten(0, 1))
        reconstruction_BCHW, masks_BKHW = mix(decoded_M4HW.reshape(*slots_BKD.shape[:2], *decoded_M4HW.shape[1:]))
        return SlotOutput(
            reconstruction=reconstruction_BCHW, masks_BKHW=masks_BKHW, slots_BKD=slots_BKD, attention_BKN=attention_BKN
        )
