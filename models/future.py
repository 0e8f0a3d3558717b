"""Owns future prediction: what a slot shows in the next frame, predicted from what it shows in this one by a convolutional
autoencoder (video_slots.md 4, V4 and V5; no paper).

Legend: B clips, T frames, K slots, I image channels (1 of a mask, 3 of a slot's reconstruction), H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights

KERNEL = 5
LAYERS = 3
"""Of the halving and of the doubling half each."""
OUTPUT_KERNEL = 3


class FuturePrediction(nn.Module):
    """Three halving convolutions, three doubling ones, ReLU after each, a 3 x 3 convolution; one network for all slots."""

    def __init__(self, *, image_channels: int, channels: int, detach_target: bool, weights: Weights) -> None:
        """`detach_target`: no gradient to what is predicted; else both sides are drawn to each other."""
        super().__init__()
        self._detach_target = detach_target
        self.halving = nn.ModuleList(
            weights.halving_conv(channels if layer else image_channels, channels, KERNEL) for layer in range(LAYERS)
        )
        self.doubling = nn.ModuleList(weights.doubling_conv(channels, channels, KERNEL) for _ in range(LAYERS))
        self.last = weights.conv(channels, image_channels, OUTPUT_KERNEL)

    def forward(self, images_BTKIHW: Float[Tensor, "B T K I H W"]) -> Float[Tensor, "B T-1 K I H W"]:
        """Predictions of frames 1, 2, ..., in float32. H and W must be multiples of 8. Masks (I = 1) sum to 1 over slots."""
        past_BTKIHW = images_BTKIHW[:, :-1]
        hidden = past_BTKIHW.flatten(0, 2).contiguous(memory_format=torch.channels_last)
        for layer in (*self.halving, *self.doubling):
            hidden = F.relu_(layer(hidden))
        predicted_BTKIHW: Tensor = self.last(hidden).float().unflatten(0, past_BTKIHW.shape[:3])
        return predicted_BTKIHW.softmax(dim=2) if past_BTKIHW.shape[3] == 1 else predicted_BTKIHW

    def errors(self, images_BTKIHW: Float[Tensor, "B T K I H W"]) -> Float[Tensor, " B"]:
        """Mean squared error of the predictions of each clip. Raises ValueError for clips of a single frame."""
        if images_BTKIHW.shape[1] < 2:
            raise ValueError("future prediction needs clips of two frames or more")
        target_BTKIHW = images_BTKIHW[:, 1:]
        drawn_BTKIHW = target_BTKIHW.detach() if self._detach_target else target_BTKIHW
        squares: Tensor = (self(images_BTKIHW) - drawn_BTKIHW).square()
        return squares.flatten(1).mean(dim=1)
