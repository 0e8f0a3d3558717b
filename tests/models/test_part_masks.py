"""The ways to masks: how many different masks a head can make, what cancels, what a head is equal to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.initialisation import Weights
from models.part_masks import (
    DILATIONS,
    AttentionLogits,
    ConvMasks,
    DilatedConvs,
    LinearMasks,
    MlpMasks,
    ProductMasks,
    SlotMasks,
)

SLOTS, SIZE, GRID, CHANNELS = 6, 64, 17, 32
TOLERANCE = 1e-5


def weights(seed: int = 0) -> Weights:
    return Weights(scheme="covloss", generator=torch.Generator().manual_seed(seed))


def heads() -> dict[str, SlotMasks]:
    return {
        "linear": LinearMasks(grid=8, slot_size=SIZE, weights=weights()),
        "conv": ConvMasks(grid=8, slot_size=SIZE, channels=64, layers=4, weights=weights()),
        "mlp": MlpMasks(grid=GRID, slot_size=SIZE, hidden=64, layers=4, weights=weights()),
        "attention": AttentionLogits(),
        "product": ProductMasks(channels=CHANNELS, slot_size=SIZE, weights=weights()),
    }


def seen(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Features, slots and attention."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, CHANNELS, GRID, GRID, generator=generator)
    attention = torch.randn(count, SLOTS, GRID * GRID, generator=generator).softmax(dim=1)
    return features, torch.randn(count, SLOTS, SIZE, generator=generator), attention


def different(logits_Khw: Tensor) -> int:
    """How many mask vectors differ by more than the tolerance, on the logits' own grid."""
    vectors_NK = logits_Khw.softmax(dim=0).flatten(1).T
    same_NN = torch.cdist(vectors_NK, vectors_NK, p=torch.inf) <= TOLERANCE
    found: list[int] = []
    for place, row in enumerate(same_NN.tolist()):
        if not any(row[other] for other in found):
            found.append(place)
    return len(found)


def test_that_the_linear_head_has_nine_masks_and_the_repaired_ones_more() -> None:
    with torch.no_grad():
        counts = {name: [different(logits) for logits in head(*seen())] for name, head in heads().items()}
    assert counts.pop("linear") == [9, 9]
    assert len(counts) == 4
    assert all(count > 9 for of_images in counts.values() for count in of_images), counts


def test_that_the_linear_heads_nine_masks_are_a_border_of_three_by_three() -> None:
    """Dilation 6 sees beyond its centre from the two outer rows and columns on each side."""
    with torch.no_grad():
        masks = heads()["linear"](*seen(1))[0].softmax(dim=0)
    middle = masks[:, 2:6, 2:6]
    assert float((middle - middle[:, :1, :1]).abs().max()) < TOLERANCE
    for corner in (masks[:, :2, :2], masks[:, :2, 6:], masks[:, 6:, :2], masks[:, 6:, 6:]):
        assert float((corner - corner[:, :1, :1]).abs().max()) < TOLERANCE
        assert float((corner - middle[:, :2, :2]).abs().max()) > 10 * TOLERANCE


def test_that_the_linear_heads_position_code_cancels() -> None:
    head = heads()["linear"]
    assert isinstance(head, LinearMasks)
    with torch.no_grad():
        before = head(*seen())
        for parameter in head.positions.parameters():
            parameter.mul_(-5)
        after = head(*seen())
    assert not torch.allclose(before, after, atol=1e-2)
    torch.testing.assert_close(after.softmax(dim=1), before.softmax(dim=1), atol=TOLERANCE, rtol=0)


def test_that_a_position_code_does_not_cancel_in_repaired_decoders() -> None:
    for name in ("conv", "mlp"):
        head = heads()[name]
        with torch.no_grad():
            before = head(*seen()).softmax(dim=1)
            for parameter in head.get_submodule("positions").parameters():
                parameter.mul_(-5)
            after = head(*seen()).softmax(dim=1)
        assert float((before - after).abs().max()) > 10 * TOLERANCE


@pytest.mark.parametrize("outputs", [1, SLOTS])
def test_that_dilated_convolutions_are_torchs_summed(outputs: int) -> None:
    convs = DilatedConvs(5, outputs, bias=True, weights=weights())
    with torch.no_grad():
        assert convs.bias is not None
        convs.bias.copy_(torch.arange(outputs) + 0.5)
    maps = torch.randn(2, 5, 30, 30, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(2, outputs, 30, 30)
    for kernel, dilation in zip(convs.kernels, (6, 12, 18, 24), strict=True):
        layer = nn.Conv2d(5, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        layer.weight = nn.Parameter(kernel.detach())
        expected = expected + layer(maps)
    assert DILATIONS == (6, 12, 18, 24)
    torch.testing.assert_close(convs(maps), expected + torch.arange(outputs)[:, None, None] + 0.5, atol=1e-6, rtol=1e-5)


def test_that_scops_head_starts_from_a_hundredth() -> None:
    convs = DilatedConvs(256, SLOTS, bias=True, weights=weights())
    drawn = torch.stack(list(convs.kernels))
    assert drawn.shape == (4, SLOTS, 256, 3, 3)
    assert abs(float(drawn.detach().std()) - 0.01) < 1e-4
    assert abs(float(drawn.detach().mean())) < 1e-3
    assert convs.bias is not None
    assert not bool(convs.bias.any())
    assert DilatedConvs(3, 1, bias=False, weights=weights()).bias is None


def test_that_broadcast_heads_have_no_bias_that_would_cancel() -> None:
    for name in ("conv", "mlp"):
        assert heads()[name].get_submodule("last").bias is None
    assert "bias" not in dict(heads()["linear"].get_submodule("convs").named_parameters())


def test_that_the_attentions_softmax_is_the_attention_even_where_it_is_nothing() -> None:
    features, slots, attention = seen()
    attention[:, 0, :5], attention[:, 1, :5] = 0.0, attention[:, :2, :5].sum(dim=1)
    attention[:, 2, 7], attention[:, 3, 7] = 1e-40, attention[:, 2, 7] + attention[:, 3, 7]
    attention.requires_grad_(True)
    logits = AttentionLogits()(features, slots, attention)
    masks = logits.softmax(dim=1)
    torch.testing.assert_close(masks.flatten(2), attention.detach(), atol=1e-6, rtol=1e-5)
    assert bool(logits.isfinite().all())
    masks.square().sum().backward()
    assert attention.grad is not None
    assert bool(attention.grad.isfinite().all())


def test_that_a_head_of_two_layers_has_none_between() -> None:
    features, slots, attention = seen()
    small: list[SlotMasks] = [
        MlpMasks(grid=GRID, slot_size=SIZE, hidden=5, layers=2, weights=weights()),
        ConvMasks(grid=3, slot_size=SIZE, channels=5, layers=2, weights=weights()),
    ]
    assert [head(features, slots, attention).shape for head in small] == [(2, SLOTS, GRID, GRID), (2, SLOTS, 3, 3)]
    assert not any(len(head.get_submodule("middle")._modules) for head in small)
