"""The semantic term as it is written down: resized features and prediction in full. The oracle, and the benchmark's rival."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def area_means(maps: Tensor, side: int) -> Tensor:
    """Means over the areas of a grid: from the pixel in which an area begins to the one in which it ends."""
    if maps.shape[-1] == side:
        return maps
    edges = [(index * maps.shape[-1] // side, -(-(index + 1) * maps.shape[-1] // side)) for index in range(side)]
    rows = [torch.stack([maps[..., a:b, c:d].mean(dim=(-2, -1)) for c, d in edges], dim=-1) for a, b in edges]
    return torch.stack(rows, dim=-2)


def plain_semantic(
    masks: Tensor,
    basis: Tensor,
    features: Tensor,
    foreground: Tensor | None,
    resolution: int,
    *,
    pool: Callable[[Tensor, int], Tensor] = F.adaptive_avg_pool2d,
) -> Tensor:
    """Mean squared error of every image [B]; `pool`: torch's way to `area_means`, or that itself."""
    target = F.interpolate(features, size=(resolution, resolution), mode="bilinear", align_corners=True)
    if foreground is not None:
        target = target * pool(foreground, resolution)[:, None]
    prediction = torch.einsum("brhw,rc->bchw", pool(masks, resolution), basis)
    return (prediction - target).square().mean(dim=(1, 2, 3))
