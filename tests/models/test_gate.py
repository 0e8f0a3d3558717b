"""AdaSlot's gate: its noise, its straight-through gradient, and what dropped slots leave of the reconstruction."""

from __future__ import annotations

import math

import pytest
import torch
from plain_dinosaur import plain_gate
from torch import Tensor

from models.build import build_model
from models.dinosaur import Dinosaur
from models.gate import Gate, gumbel, kept_masks, kept_masks_backward
from models.initialisation import Weights
from models.spec import DinosaurSpec, GateSpec, PatchMlpDecoder

SPEC = DinosaurSpec(
    tokens=4, feature_size=7, num_slots=8, num_iterations=2, slot_size=6, decoder=PatchMlpDecoder(hidden=10), gate=GateSpec()
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gate_of(temperature: float = 1.0) -> Gate:
    return Gate(slot_size=6, temperature=temperature, weights=Weights(scheme="dinosaur", generator=seeded(0)))


def model_of() -> tuple[Dinosaur, Gate]:
    model = build_model(SPEC, generator=seeded(0))
    assert isinstance(model, Dinosaur)
    assert model.gate is not None
    return model, model.gate


def inputs(images: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 4, 7, generator=seeded(1)), torch.randn(images, 8, 8, generator=seeded(2))


def bias(gate: Gate, *, drop: float, keep: float) -> None:
    """Make the logits constant."""
    with torch.no_grad():
        gate.layers[3].weight.zero_()
        gate.layers[3].bias.copy_(torch.tensor([drop, keep]))


def test_that_the_noise_has_two_columns_more_than_a_slot() -> None:
    assert model_of()[0].noise_shape == (8, 8)


def test_that_normal_noise_becomes_standard_gumbel_noise() -> None:
    z = torch.randn(200_000, generator=seeded(0), dtype=torch.float64)
    g = gumbel(z)
    assert float(g.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(g.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    torch.testing.assert_close(g, -torch.log(-torch.log(torch.special.ndtr(z))), atol=1e-8, rtol=0)


def test_that_gumbel_noise_stays_exact_in_both_tails_of_float32() -> None:
    z = torch.tensor([-12.0, -8.0, -5.5, 5.5, 8.0, 12.0])
    g = gumbel(z)
    expected = [-math.log(-math.log(0.5 * math.erfc(-x / math.sqrt(2)))) for x in z.tolist()[:3]]
    expected += [-math.log(-math.log1p(-0.5 * math.erfc(x / math.sqrt(2)))) for x in z.tolist()[3:]]
    torch.testing.assert_close(g, torch.tensor(expected), atol=1e-4, rtol=1e-5)
    assert bool((g.diff() > 0).all())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_that_choice_and_gradient_are_those_of_straight_through_gumbel_softmax(temperature: float) -> None:
    gate = gate_of(temperature)
    slots = torch.randn(5, 8, 6, generator=seeded(1), requires_grad=True)
    noise, weigh = torch.randn(5, 8, 2, generator=seeded(2)), torch.randn(5, 8, generator=seeded(3))
    keep, probability = gate(slots, noise)
    logits = gate.layers(slots)
    expected = plain_gate(logits, noise, temperature)
    torch.testing.assert_close(keep, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(probability, logits.softmax(dim=-1)[..., 1])
    leaves = [slots, *gate.parameters()]
    mine = torch.autograd.grad((keep * weigh).sum(), leaves, retain_graph=True)
    theirs = torch.autograd.grad((expected * weigh).sum(), leaves)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_that_the_choice_is_exactly_zero_or_one() -> None:
    keep, _ = gate_of(0.7)(torch.randn(40, 30, 6, generator=seeded(1)), torch.randn(40, 30, 2, generator=seeded(2)))
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert keep.requires_grad


@pytest.mark.parametrize("margin", [-1.0, 0.0, 2.0])
def test_that_noise_keeps_a_slot_with_its_probability(margin: float) -> None:
    gate = gate_of()
    bias(gate, drop=0.0, keep=margin)
    keep, probability = gate(torch.zeros(100, 200, 6), torch.randn(100, 200, 2, generator=seeded(1)))
    expected = 1 / (1 + math.exp(-margin))
    assert float(probability[0, 0].detach()) == pytest.approx(expected, abs=1e-6)
    assert float(keep.detach().mean()) == pytest.approx(expected, abs=0.02)


def test_that_the_second_logit_is_keep_and_the_second_noise_column_its_own() -> None:
    gate = gate_of()
    bias(gate, drop=0.0, keep=0.1)
    slots = torch.zeros(1, 1, 6)
    assert [float(gate(slots, torch.tensor([[noise]]))[0].detach()) for noise in ([0.0, 0.0], [3.0, 0.0], [0.0, 3.0])] == [
        1,
        0,
        1,
    ]


def test_that_equal_noise_chooses_the_larger_logit_and_a_tie_drops() -> None:
    gate = gate_of()
    with torch.no_grad():
        gate.layers[3].weight.normal_(generator=seeded(4))
    slots = torch.randn(4, 8, 6, generator=seeded(1))
    zeros = gate(slots, torch.zeros(4, 8, 2))
    assert torch.equal(zeros[0], (zeros[1] > 0.5).float())
    assert 0 < float(zeros[0].detach().mean()) < 1
    assert torch.equal(gate(slots, torch.full((4, 8, 2), 1.7))[0], zeros[0])
    bias(gate, drop=0.3, keep=0.3)
    assert float(gate(slots, torch.zeros(4, 8, 2))[0].detach().sum()) == 0


def test_that_the_gates_noise_does_not_move_the_slots() -> None:
    model, _ = model_of()
    tokens, noise = inputs()
    other = torch.cat((noise[..., :6], -noise[..., 6:]), dim=2)
    first, second = model(tokens, noise), model(tokens, other)
    assert torch.equal(first.slots_BKD, second.slots_BKD)
    assert torch.equal(first.keep_probability_BK, second.keep_probability_BK)
    assert not torch.equal(first.keep_BK, second.keep_BK)


def test_that_masks_of_kept_slots_sum_to_just_below_one_and_dropped_slots_have_none() -> None:
    model, _ = model_of()
    output = model(*inputs())
    keep, masks = output.keep_BK, output.masks_BKHW
    assert 0 < float(keep.detach().mean()) < 1
    assert float(masks[keep == 0].abs().max()) == 0
    assert bool((keep.sum(dim=1) > 0).all())
    total = masks.sum(dim=1)
    assert bool((total < 1).all())
    assert float(total.min()) > 0.999


def test_that_without_a_kept_slot_masks_and_reconstruction_are_zero_bias_included() -> None:
    model, gate = model_of()
    bias(gate, drop=50.0, keep=0.0)
    with torch.no_grad():
        model.decoder.to_features.bias.fill_(3.0)
    output = model(*inputs())
    for part in (output.keep_BK, output.masks_BKHW, output.reconstruction):
        assert float(part.abs().max()) == 0
    output.reconstruction.square().mean().backward()
    assert all(bool(one.grad.isfinite().all()) for one in model.parameters() if one.grad is not None)


def test_that_a_gate_that_keeps_all_changes_the_masks_by_the_epsilon_alone() -> None:
    model, gate = model_of()
    bias(gate, drop=-50.0, keep=0.0)
    tokens, noise = inputs()
    gated = model(tokens, noise)
    model.gate = None
    free = model(tokens, noise[..., :6])
    assert free.keep_BK is None
    assert free.keep_probability_BK is None
    torch.testing.assert_close(gated.masks_BKHW, free.masks_BKHW / (1 + 1e-5), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(gated.reconstruction, free.reconstruction / (1 + 1e-5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", ["reconstruction", "keep"])
def test_that_a_gradient_reaches_the_gate_by(path: str) -> None:
    model, gate = model_of()
    output = model(*inputs())
    loss = (output.reconstruction - 1).square().mean() if path == "reconstruction" else output.keep_BK.mean()
    loss.backward()
    for parameter in gate.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0


def test_that_the_gate_computes_in_float32_under_autocast() -> None:
    gate, slots, noise = gate_of(), torch.randn(3, 8, 6, generator=seeded(1)), torch.randn(3, 8, 2, generator=seeded(2))
    outside = gate(slots, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gate(slots, noise)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_that_the_hand_written_gradient_of_kept_masks_is_autograds() -> None:
    masks = torch.randn(3, 5, 4, generator=seeded(1), dtype=torch.float64).softmax(dim=2).requires_grad_()
    keep = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0.7, 0], [0, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    weigh = torch.randn(3, 5, 4, generator=seeded(2), dtype=torch.float64)
    expected = torch.autograd.grad((kept_masks(masks, keep) * weigh).sum(), (masks, keep))
    for mine, theirs in zip(kept_masks_backward(weigh, masks.detach(), keep.detach()), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-12)
