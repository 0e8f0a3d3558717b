"""Owns the spatial broadcast decoder to whole images, whose full-resolution end runs in chunks of slots.

At 224 x 224 pixels nearly all memory is in two feature maps [M,C,H,W] behind the last doubling layer and the tail
layer. They exist for a chunk of slots at a time, and the backward pass makes as many of them again as it is told to;
smaller maps are kept. Maps are channels last in memory.

Legend: M = B * K slots, D slot size, C channels, S = initial resolution, H x W pixels, h x w = H/2 x W/2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.decoders import OUTPUT_CHANNELS, OUTPUT_KERNEL
from models.initialisation import Weights
from models.positions import SoftPositions

CHUNK = {"cpu": 2, "other": 32}
"""Slots at a time: few on a CPU, for its caches; enough to fill an accelerator."""


class ResizeConv(nn.Module):
    """Nearest-neighbour doubling, then a convolution that keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, weights: Weights) -> None:
        super().__init__()
        self.conv = weights.conv(inputs, outputs, kernel_size)

    def forward(self, maps_MChw: Float[Tensor, "M C h w"]) -> Float[Tensor, "M ..."]:
        """[M,C',2h,2w]"""
        resized: Tensor = self.conv(F.interpolate(maps_MChw, scale_factor=2, mode="nearest"))
        return resized


class ImageDecoder(nn.Module):
    """Slots plus positions on a small grid, doubling layers with ReLU, a tail layer with ReLU or none, 3 x 3 to RGB and alpha."""

    def __init__(
        self,
        *,
        initial_resolution: int,
        slot_size: int,
        channels: tuple[int, ...],
        kernel_size: int,
        upsample: Literal["deconv", "resize_conv"],
        tail_conv: bool,
        recomputed_maps: int,
        weights: Weights,
    ) -> None:
        super().__init__()
        self.recomputed_maps = recomputed_maps
        self.positions = SoftPositions(resolution=initial_resolution, channels=slot_size, weights=weights)
        doubling: list[nn.Module] = [
            weights.doubling_conv(inputs, outputs, kernel_size)
            if upsample == "deconv"
            else ResizeConv(inputs, outputs, kernel_size, weights=weights)
            for inputs, outputs in pairwise((slot_size, *channels))
        ]
        self.doubling = nn.ModuleList(doubling)
        self.tail = weights.mirrored_conv(channels[-1], channels[-1], kernel_size) if tail_conv else None
        self.last = weights.mirrored_conv(channels[-1], OUTPUT_CHANNELS, OUTPUT_KERNEL)

    def forward(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M 4 H W"]:
        """RGB (no activation) and alpha logit of every slot."""
        placed_MSSD = slots_MD[:, None, None, :] + self.positions()
        maps_MChw = placed_MSSD.permute(0, 3, 1, 2)
        for layer in self.doubling[:-1]:
            maps_MChw = F.relu_(layer(maps_MChw))
        size = CHUNK["cpu" if slots_MD.device.type == "cpu" else "other"]
        return torch.cat([self._finish(chunk) for chunk in maps_MChw.split(size)])

    def _finish(self, maps_MChw: Tensor) -> Tensor:
        """The full-resolution end of one chunk."""
        recomputed = self.recomputed_maps if torch.is_grad_enabled() else 0
        if recomputed == 0:
            return self._colour(self._to_full(maps_MChw))
        if recomputed == 1 and self.tail is not None:
            return self._colour(_again(self._to_full, maps_MChw))
        return _again(lambda maps: self._colour(self._to_full(maps)), maps_MChw)

    def _to_full(self, maps_MChw: Tensor) -> Tensor:
        """[M,C,H,W] before the last ReLU: of the maps in here, autograd would keep the one behind the last doubling layer."""
        doubled: Tensor = self.doubling[-1](maps_MChw)
        return doubled if self.tail is None else self.tail(F.relu_(doubled))

    def _colour(self, maps_MCHW: Tensor) -> Tensor:
        decoded: Tensor = self.last(F.relu_(maps_MCHW))
        return decoded


def _again(function: Callable[[Tensor], Tensor], maps_MChw: Tensor) -> Tensor:
    """The function's value; what it would keep for the backward pass is computed again there, in the same way."""
    value: Tensor = checkpoint(function, maps_MChw, use_reentrant=False, preserve_rng_state=False)
    return value
