"""Owns the ways to turn slots, or the trunk's features alone, into mask logits (scops_slots.md 1, rows 13 to 18, and 2).

Legend: B images, K slots, M = B * K, D slot size, C trunk channels, g x g the trunk's grid, N = g * g, h x w that of the logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.broadcast_conv import BroadcastConv
from models.initialisation import Weights
from models.positions import SoftPositions

DILATIONS = (6, 12, 18, 24)
DEVIATION = 0.01
"""Of the initial weights of SCOPS' head."""
CONV_KERNEL = 5


class DilatedConvs(nn.Module):
    """Parallel 3 x 3 convolutions of four dilations, summed: DeepLab's and SCOPS' head, with one bias for all or none."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, weights: Weights) -> None:
        super().__init__()
        kernels = torch.empty(len(DILATIONS), outputs, inputs, 3, 3).normal_(0, DEVIATION, generator=weights.generator)
        self.kernels = nn.ParameterList(kernels.unbind())
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, maps_BChw: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B _ h w"]:
        """Maps of the same size."""
        first, *others = zip(self.kernels, DILATIONS, strict=True)
        summed = F.conv2d(maps_BChw, first[0], self.bias, padding=first[1], dilation=first[1])
        for kernel, dilation in others:
            summed = summed + F.conv2d(maps_BChw, kernel, padding=dilation, dilation=dilation)
        return summed


class SlotMasks(nn.Module, ABC):
    """Mask logits of slots, whose softmax over slots are the masks; each kind uses what it needs."""

    @abstractmethod
    def forward(
        self,
        features_BCgg: Float[Tensor, "B C g g"],
        slots_BKD: Float[Tensor, "B K D"],
        attention_BKN: Float[Tensor, "B K N"],
    ) -> Float[Tensor, "B K h w"]:
        """Of the trunk's features, the final slots, and their last iteration's softmax over slots."""


class BroadcastMasks(SlotMasks):
    """Each slot on its own, broadcast to a grid with a position code. The logits have no bias: it would cancel in the softmax."""

    def __init__(self, *, grid: int, slot_size: int, weights: Weights) -> None:
        super().__init__()
        self.positions = SoftPositions(resolution=grid, channels=slot_size, weights=weights)

    def forward(
        self,
        features_BCgg: Float[Tensor, "B C g g"],
        slots_BKD: Float[Tensor, "B K D"],
        attention_BKN: Float[Tensor, "B K N"],
    ) -> Float[Tensor, "B K h w"]:
        """On the grid of the position code."""
        logits_Mhw = self.decoded(slots_BKD.flatten(0, 1))
        return logits_Mhw.view(*slots_BKD.shape[:2], *logits_Mhw.shape[1:])

    @abstractmethod
    def decoded(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M h w"]:
        """One map per slot."""


class LinearMasks(BroadcastMasks):
    """The dilated convolutions, without an activation: the seed's.

    The position code is then a term that all slots have alike, and cancels in the softmax. Only the zeros around the grid make
    masks differ between places: on 8 x 8 there are 9 different ones, for dilations from 12 on see their centre alone.
    """

    def __init__(self, *, grid: int, slot_size: int, weights: Weights) -> None:
        super().__init__(grid=grid, slot_size=slot_size, weights=weights)
        self.convs = DilatedConvs(slot_size, 1, bias=False, weights=weights)

    def decoded(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M h w"]:
        """Rows 14 to 17 of the sheet's table."""
        placed_MhwD = slots_MD[:, None, None, :] + self.positions()
        logits_M1hw: Tensor = self.convs(placed_MhwD.permute(0, 3, 1, 2))
        return logits_M1hw.squeeze(1)


class ConvMasks(BroadcastMasks):
    """5 x 5 convolutions with ReLU between them."""

    def __init__(self, *, grid: int, slot_size: int, channels: int, layers: int, weights: Weights) -> None:
        super().__init__(grid=grid, slot_size=slot_size, weights=weights)
        self.first = BroadcastConv(
            resolution=grid, slot_size=slot_size, channels=channels, kernel_size=CONV_KERNEL, weights=weights
        )
        self.middle = nn.ModuleList(weights.conv(channels, channels, CONV_KERNEL) for _ in range(layers - 2))
        self.last = weights.conv(channels, 1, CONV_KERNEL)
        self.last.register_parameter("bias", None)

    def decoded(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M h w"]:
        """One map per slot."""
        hidden = F.relu_(self.first(slots_MD, self.positions())).permute(0, 3, 1, 2)
        for layer in self.middle:
            hidden = F.relu_(layer(hidden))
        logits_M1hw: Tensor = self.last(hidden)
        return logits_M1hw.squeeze(1)


class MlpMasks(BroadcastMasks):
    """An MLP with ReLU per place. Its first layer is W slot + (W code + b), which costs nothing per slot and place."""

    def __init__(self, *, grid: int, slot_size: int, hidden: int, layers: int, weights: Weights) -> None:
        super().__init__(grid=grid, slot_size=slot_size, weights=weights)
        self.first = weights.linear(slot_size, hidden)
        self.middle = nn.ModuleList(weights.linear(hidden, hidden) for _ in range(layers - 2))
        self.last = weights.linear(hidden, 1, bias=False)

    def decoded(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M h w"]:
        """One map per slot."""
        of_slots_M11H = F.linear(slots_MD, self.first.weight)[:, None, None, :]
        hidden = F.relu_(of_slots_M11H + self.first(self.positions()))
        for layer in self.middle:
            hidden = F.relu_(layer(hidden))
        logits_Mhw1: Tensor = self.last(hidden)
        return logits_Mhw1.squeeze(3)


class AttentionLogits(SlotMasks):
    """The logarithm of the attention, so that its softmax over slots is the attention itself; nothing to train."""

    def forward(
        self,
        features_BCgg: Float[Tensor, "B C g g"],
        slots_BKD: Float[Tensor, "B K D"],
        attention_BKN: Float[Tensor, "B K N"],
    ) -> Float[Tensor, "B K h w"]:
        """On the trunk's grid."""
        smallest = torch.finfo(attention_BKN.dtype).tiny  # below it the gradient of the logarithm overflows
        return attention_BKN.clamp_min(smallest).log().view(*attention_BKN.shape[:2], *features_BCgg.shape[2:])


class ProductMasks(SlotMasks):
    """Dot products of slots with projected features, over the square root of the slot size."""

    def __init__(self, *, channels: int, slot_size: int, weights: Weights) -> None:
        super().__init__()
        self.project = weights.linear(channels, slot_size)

    def forward(
        self,
        features_BCgg: Float[Tensor, "B C g g"],
        slots_BKD: Float[Tensor, "B K D"],
        attention_BKN: Float[Tensor, "B K N"],
    ) -> Float[Tensor, "B K h w"]:
        """On the trunk's grid."""
        pixels_BND: Tensor = self.project(features_BCgg.flatten(2).transpose(1, 2))
        with torch.autocast(slots_BKD.device.type, enabled=False):
            logits_BKN: Tensor = slots_BKD @ pixels_BND.float().transpose(1, 2) * slots_BKD.shape[2] ** -0.5
        return logits_BKN.view(*slots_BKD.shape[:2], *features_BCgg.shape[2:])
