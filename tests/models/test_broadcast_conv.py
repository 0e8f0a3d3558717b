"""The border-case form of a broadcast decoder's first layer against broadcasting and convolving."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.broadcast_conv import BroadcastConv, border_cases
from models.initialisation import Weights

SIZES_AND_KERNELS = [
    (64, 5),
    (9, 5),
    (6, 5),
    (5, 5),
    (4, 5),
    (2, 5),
    (1, 5),
    (8, 3),
    (8, 1),
    (11, 7),
    (8, 4),
    (8, 2),
    (4, 4),
    (3, 4),
]


def layer_of(resolution: int, kernel_size: int) -> BroadcastConv:
    weights = Weights(scheme="covloss", generator=torch.Generator().manual_seed(0))
    return BroadcastConv(resolution=resolution, slot_size=6, channels=4, kernel_size=kernel_size, weights=weights).double()


def inputs_of(resolution: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    slots = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    return slots, torch.randn(resolution, resolution, 6, generator=generator, dtype=torch.float64, requires_grad=True)


def plainly(layer: BroadcastConv, slots: Tensor, positions: Tensor) -> Tensor:
    """Broadcast to the grid, add positions, convolve: the layer as it is written down."""
    placed = (slots[:, None, None, :] + positions).permute(0, 3, 1, 2)
    return F.conv2d(placed, layer.conv.weight, layer.conv.bias, padding="same").permute(0, 2, 3, 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("resolution", "kernel_size"), SIZES_AND_KERNELS)
def test_that_border_cases_equal_the_convolution_with_gradients(resolution: int, kernel_size: int) -> None:
    layer, (slots, positions) = layer_of(resolution, kernel_size), inputs_of(resolution)
    leaves = [slots, positions, *layer.parameters()]
    found, expected = layer(slots, positions), plainly(layer, slots, positions)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weigh = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = zip(
        torch.autograd.grad((found * weigh).sum(), leaves), torch.autograd.grad((expected * weigh).sum(), leaves), strict=True
    )
    for mine, theirs in gradients:
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_that_the_layer_equals_torchs_transposed_convolution_with_the_flipped_kernel() -> None:
    layer, (slots, positions) = layer_of(8, 5), inputs_of(8)
    placed = (slots[:, None, None, :] + positions).permute(0, 3, 1, 2)
    kernel = layer.conv.weight.flip(2, 3).transpose(0, 1)
    expected = F.conv_transpose2d(placed, kernel, layer.conv.bias, padding=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(slots, positions), expected, atol=1e-12, rtol=0)


def test_that_a_five_tap_kernel_has_five_cases_per_axis() -> None:
    expected = [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert border_cases(64, 5).tolist() == expected
    assert border_cases(5, 5).tolist() == expected


def test_that_the_result_is_channels_last_and_follows_autocast() -> None:
    layer, (slots, positions) = layer_of(8, 5).float(), inputs_of(8)
    full = layer(slots.float(), positions.float())
    assert full.is_contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(slots.float(), positions.float())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), full, atol=0.05, rtol=0.02)
