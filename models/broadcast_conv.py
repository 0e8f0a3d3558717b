"""Owns the first layer of spatial broadcast decoders: a convolution of (slot vector everywhere + shared position map).

By linearity it is conv(positions), computed once for all slots, plus conv(constant vector). With zero padding the
latter takes only one value per set of kernel taps that fall inside the image: 5 x 5 = 25 border cases for a 5 x 5
kernel. So a slot costs 25 matrix-vector products instead of one per pixel, exactly, and its full-size input is
never built.

Legend: M = B * K slots, D slot size, O output channels, H x W pixels, R row cases, Q column cases, I x J kernel taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights


def border_cases(size: int, kernel_size: int) -> Float[Tensor, "R {kernel_size}"]:
    """Which taps of a size-keeping kernel fall inside an axis of `size` pixels, one row per distinct case, in order.

    With `size` > `kernel_size` the middle row, at index (kernel_size - 1) // 2, stands for all interior pixels.
    """
    before = (kernel_size - 1) // 2
    tap = torch.arange(size)[:, None] + torch.arange(kernel_size) - before
    inside_HI = ((tap >= 0) & (tap < size)).float()
    if size <= kernel_size:
        return inside_HI
    return torch.cat((inside_HI[: before + 1], inside_HI[size - kernel_size // 2 :]))


def _stretch(cases: Tensor, dim: int, size: int) -> Tensor:
    """Repeat the interior case until the axis has `size` entries. (Its gradient is a plain sum: deterministic.)"""
    count = cases.shape[dim]
    if count == size:
        return cases
    middle = (count - 1) // 2
    interior_shape = list(cases.shape)
    interior_shape[dim] = size - count + 1
    before, after = cases.narrow(dim, 0, middle), cases.narrow(dim, middle + 1, count - middle - 1)
    return torch.cat((before, cases.narrow(dim, middle, 1).expand(interior_shape), after), dim)


class BroadcastConv(nn.Module):
    """`conv(slot + positions)` for every slot, without broadcasting the slots first."""

    cases_RI: Tensor

    def __init__(self, *, resolution: int, slot_size: int, channels: int, kernel_size: int, weights: Weights) -> None:
        super().__init__()
        self.resolution = resolution
        self.conv = weights.mirrored_conv(slot_size, channels, kernel_size)
        self.register_buffer("cases_RI", border_cases(resolution, kernel_size), persistent=False)

    def forward(self, slots_MD: Float[Tensor, "M D"], positions_HWD: Float[Tensor, "H W D"]) -> Float[Tensor, "M H W O"]:
        """Values before the activation, channels last; in autocast's type where autocast is on."""
        device = slots_MD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else slots_MD.dtype
        with torch.autocast(device, enabled=False):
            rows_ODRJ = torch.einsum("ri,odij->odrj", self.cases_RI, self.conv.weight)
            kernel_DRQO = torch.einsum("qj,odrj->drqo", self.cases_RI, rows_ODRJ)
            cases_MRQO = torch.tensordot(slots_MD, kernel_DRQO, dims=1).to(dtype)
        positions_DHW = positions_HWD.permute(2, 0, 1)
        shared_HWO = F.conv2d(positions_DHW[None], self.conv.weight, self.conv.bias, padding="same")[0].permute(1, 2, 0)
        columns_MRWO = _stretch(cases_MRQO, 2, self.resolution)
        return _stretch(columns_MRWO, 1, self.resolution) + shared_HWO
