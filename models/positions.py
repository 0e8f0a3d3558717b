"""Owns position embeddings.

Legend: H x W grid, C channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights


def position_grid(height: int, width: int) -> Float[Tensor, "{height} {width} 4"]:
    """Channels (row, col, 1 - row, 1 - col), each from 0 to 1 inclusive along its axis."""
    rows_HW, columns_HW = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack((rows_HW, columns_HW, 1 - rows_HW, 1 - columns_HW), dim=-1)


class SoftPositions(nn.Module):
    """Soft position embedding: one dense layer on the four-channel grid (Locatello et al. 2020, appendix E.2)."""

    grid_HW4: Tensor

    def __init__(self, *, resolution: int, channels: int, weights: Weights) -> None:
        super().__init__()
        self.register_buffer("grid_HW4", position_grid(resolution, resolution), persistent=False)
        self.project = weights.linear(4, channels)

    def forward(self) -> Float[Tensor, "H W C"]:
        """The map that is added to features; the same for every image."""
        embedded_HWC: Tensor = self.project(self.grid_HW4)
        return embedded_HWC
