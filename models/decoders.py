"""Owns the spatial broadcast decoders (Watters et al. 2019): a slot vector in, an RGB image and an alpha logit map out.

Legend: M = B * K slots, D slot size, S = initial resolution, H x W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.broadcast_conv import BroadcastConv
from models.initialisation import Weights
from models.positions import SoftPositions

OUTPUT_CHANNELS = 4
"""Three colours and one alpha logit, none of them activated."""
OUTPUT_KERNEL = 3
COCO_KERNEL = 5


class FullResolution(nn.Module):
    """Broadcast to the full grid, add positions, `layers` stride-1 layers with ReLU, then 3 x 3 to RGB and alpha."""

    def __init__(
        self, *, resolution: int, slot_size: int, channels: int, layers: int, kernel_size: int, weights: Weights
    ) -> None:
        super().__init__()
        self.positions = SoftPositions(resolution=resolution, channels=slot_size, weights=weights)
        self.first = BroadcastConv(
            resolution=resolution, slot_size=slot_size, channels=channels, kernel_size=kernel_size, weights=weights
        )
        self.middle = nn.ModuleList(weights.mirrored_conv(channels, channels, kernel_size) for _ in range(layers - 1))
        self.last = weights.mirrored_conv(channels, OUTPUT_CHANNELS, OUTPUT_KERNEL)

    def forward(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M 4 H W"]:
        """RGB (no activation) and alpha logit of every slot."""
        hidden = F.relu_(self.first(slots_MD, self.positions())).permute(0, 3, 1, 2)
        for layer in self.middle:
            hidden = F.relu_(layer(hidden))
        decoded: Tensor = self.last(hidden)
        return decoded


class Upsampling(nn.Module):
    """Broadcast to a small grid, add positions, stride-2 layers up to the resolution, one stride-1 layer, then 3 x 3."""

    def __init__(
        self, *, resolution: int, initial_resolution: int, slot_size: int, channels: int, kernel_size: int, weights: Weights
    ) -> None:
        super().__init__()
        doublings = (resolution // initial_resolution).bit_length() - 1
        self.positions = SoftPositions(resolution=initial_resolution, channels=slot_size, weights=weights)
        widths = [slot_size] + [channels] * doublings
        self.doubling = nn.ModuleList(weights.doubling_conv(inputs, outputs, kernel_size) for inputs, outputs in pairwise(widths))
        self.smooth = weights.mirrored_conv(channels, channels, kernel_size)
        self.last = weights.mirrored_conv(channels, OUTPUT_CHANNELS, OUTPUT_KERNEL)

    def forward(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M 4 H W"]:
        """RGB (no activation) and alpha logit of every slot."""
        placed_MSSD = slots_MD[:, None, None, :] + self.positions()
        return _upsampled(placed_MSSD, self.doubling, self.smooth, self.last)


class CocoAdaptive(nn.Module):
    """As `Upsampling`, with a three-layer MLP per position before the stride-2 layers (CovLoss on COCO)."""

    def __init__(self, *, initial_resolution: int, doublings: int, slot_size: int, channels: int, weights: Weights) -> None:
        super().__init__()
        self.positions = SoftPositions(resolution=initial_resolution, channels=slot_size, weights=weights)
        self.mlp = nn.Sequential(
            weights.linear(slot_size, channels),
            nn.ReLU(inplace=True),
            weights.linear(channels, channels),
            nn.ReLU(inplace=True),
            weights.linear(channels, channels),
        )
        self.doubling = nn.ModuleList(weights.doubling_conv(channels, channels, COCO_KERNEL) for _ in range(doublings))
        self.smooth = weights.mirrored_conv(channels, channels, COCO_KERNEL)
        self.last = weights.mirrored_conv(channels, OUTPUT_CHANNELS, OUTPUT_KERNEL)

    def forward(self, slots_MD: Float[Tensor, "M D"]) -> Float[Tensor, "M 4 H W"]:
        """RGB (no activation) and alpha logit of every slot."""
        hidden_MSSC = self.mlp(slots_MD[:, None, None, :] + self.positions())
        return _upsampled(hidden_MSSC, self.doubling, self.smooth, self.last)


def _upsampled(maps_MSSC: Tensor, doubling: nn.ModuleList, smooth: nn.Module, last: nn.Module) -> Tensor:
    hidden = maps_MSSC.permute(0, 3, 1, 2)
    for layer in doubling:
        hidden = F.relu_(layer(hidden))
    decoded: Tensor = last(F.relu_(smooth(hidden)))
    return decoded


def mix(decoded_BK4HW: Float[Tensor, "B K 4 H W"]) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K H W"]]:
    """Softmax alpha over slots per pixel and blend the colours, in float32: (reconstruction, masks)."""
    with torch.autocast(decoded_BK4HW.device.type, enabled=False):
        values_BK4HW = decoded_BK4HW.float()
        masks_BK1HW = values_BK4HW[:, :, 3:].softmax(dim=1)
        return (values_BK4HW[:, :, :3] * masks_BK1HW).sum(dim=1), masks_BK1HW.squeeze(2)
