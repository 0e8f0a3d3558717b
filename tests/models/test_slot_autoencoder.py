"""The slot autoencoder: sizes, seeds, initial distributions, and equality with the plain formulation."""

from __future__ import annotations

import math

import pytest
import torch
from plain import PlainAutoencoder, as_plain, pairs, twins
from torch import Tensor, nn

from models.build import build_model
from models.slot_attention import SlotAttention
from models.slot_autoencoder import SlotAutoencoder
from models.slot_model import SlotModel, SlotOutput
from models.spec import SlotAutoencoderSpec, UntrainedScoreSpec
from models.spec_base import FullResolutionDecoder, UpsamplingDecoder

SMALL = SlotAutoencoderSpec(
    resolution=12,
    num_slots=3,
    slot_size=10,
    encoder_channels=8,
    encoder_layers=2,
    slot_mlp_size=14,
    decoder=FullResolutionDecoder(channels=8, layers=2),
)
SMALL_UPSAMPLING = SMALL.model_copy(update={"resolution": 16, "decoder": UpsamplingDecoder(channels=8, initial_resolution=4)})
SPECS = {
    "full resolution": SMALL,
    "one decoder layer": SMALL.model_copy(update={"decoder": FullResolutionDecoder(channels=8, layers=1, kernel_size=3)}),
    "wide kernel": SMALL.model_copy(update={"decoder": FullResolutionDecoder(channels=6, layers=2, kernel_size=7)}),
    "upsampling": SMALL_UPSAMPLING,
    "reference init": SMALL.model_copy(update={"init": "reference"}),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(spec: SlotAutoencoderSpec, seed: int = 0) -> SlotAutoencoder:
    model = build_model(spec, generator=seeded(seed))
    assert isinstance(model, SlotAutoencoder)
    return model


def batch(spec: SlotAutoencoderSpec, size: int = 2) -> tuple[Tensor, Tensor]:
    images = torch.rand(size, 3, spec.resolution, spec.resolution, generator=seeded(1))
    return images, torch.randn(size, spec.num_slots, spec.slot_size, generator=seeded(2))


def parts(output: SlotOutput) -> tuple[Tensor, ...]:
    """What a model without a gate says."""
    assert output.keep_BK is None
    assert output.keep_probability_BK is None
    return output[:4]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_that_the_default_model_has_the_sheets_parameter_counts() -> None:
    model = built(SlotAutoencoderSpec())
    encoder = model.encoder
    assert parameters(encoder.convs) + parameters(encoder.positions) == 312_576
    assert parameters(encoder.norm) + parameters(encoder.mlp) == 8_448
    assert parameters(model.attention) == 54_336
    assert parameters(model.decoder) == 310_020
    assert parameters(model) == 685_380


def test_that_the_clevr_decoder_has_four_doubling_layers_and_one_smooth() -> None:
    model = built(SlotAutoencoderSpec(resolution=128, num_slots=7, decoder=UpsamplingDecoder()))
    assert len(model.decoder.doubling) == 4
    assert parameters(model.decoder) == 4 * 64 + 64 + 5 * (64 * 64 * 25 + 64) + 64 * 4 * 9 + 4


@pytest.mark.parametrize("init", ["reference", "covloss"])
@pytest.mark.parametrize("base", [SMALL, SMALL_UPSAMPLING], ids=["full", "up"])
def test_that_one_seed_gives_one_model_and_the_global_state_has_no_part_in_it(base: SlotAutoencoderSpec, init: str) -> None:
    spec = base.model_copy(update={"init": init})
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = built(spec, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = built(spec, seed=3).state_dict(), built(spec, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].dim() > 1 or name.endswith(("mu", "log_sigma"))]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_that_every_weight_is_drawn_and_none_is_left_as_memory() -> None:
    poisoned = [torch.full((1 << 16,), math.nan) for _ in range(32)]
    del poisoned  # freed memory that an uninitialised parameter would likely get
    assert all(bool(parameter.isfinite().all()) for parameter in built(SlotAutoencoderSpec()).parameters())


@pytest.mark.parametrize("spec", [SlotAutoencoderSpec(), SlotAutoencoderSpec(decoder=UpsamplingDecoder())], ids=["full", "up"])
def test_that_covloss_init_has_the_distributions_of_torchs_defaults(spec: SlotAutoencoderSpec) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = PlainAutoencoder(spec)
    for default, mine in ((theirs.detach(), mine.detach()) for theirs, mine, _ in pairs(plain, built(spec))):
        if default.numel() >= 2000:
            assert float(mine.std() / default.std()) == pytest.approx(1, abs=0.05)
            assert float(mine.abs().max() / default.abs().max()) == pytest.approx(1, abs=0.05)
        elif default.numel() >= 64 and float(default.std()) > 0 and default.dim() == 1:
            assert float(mine.std() / default.std()) == pytest.approx(1, abs=0.35)


def test_that_covloss_init_draws_mu_normal_and_log_sigma_uniform() -> None:
    attention = built(SMALL.model_copy(update={"slot_size": 2048, "slot_mlp_size": 1})).attention.requires_grad_(False)
    assert float(attention.mu.mean()) == pytest.approx(0, abs=0.1)
    assert float(attention.mu.std()) == pytest.approx(1, abs=0.08)
    assert 0 <= float(attention.log_sigma.min()) < 0.01
    assert 0.99 < float(attention.log_sigma.max()) < 1


def test_that_reference_init_is_glorot_with_an_orthogonal_recurrent_kernel_and_no_bias() -> None:
    model = built(SlotAutoencoderSpec(init="reference")).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert float(parameter.abs().max()) == 0
    convolution, gru = model.encoder.convs[1].weight, model.attention.gru
    for weight, fans in ((convolution, 2 * 64 * 25), (model.attention.key.weight, 128), (gru.weight_ih, 64 + 192)):
        bound = math.sqrt(6 / fans)
        assert 0.97 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    torch.testing.assert_close(gru.weight_hh.T @ gru.weight_hh, torch.eye(64), atol=1e-5, rtol=0)
    for prior in (model.attention.mu, model.attention.log_sigma):
        assert 0.8 * math.sqrt(6 / 65) < float(prior.abs().max()) <= math.sqrt(6 / 65)


@pytest.mark.parametrize("name", SPECS)
def test_that_outputs_and_gradients_equal_the_plain_formulation(name: str) -> None:
    ours, plain = twins(SPECS[name])
    images, noise = batch(SPECS[name])
    output, expected = ours(images, noise), plain(images, noise)
    for mine, theirs in zip(parts(output), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    (output.reconstruction - images).square().mean().backward()
    (expected[0] - images).square().mean().backward()
    for theirs, mine, flipped in pairs(plain, ours):
        assert mine.grad is not None
        torch.testing.assert_close(as_plain(mine.grad, flipped=flipped).view_as(theirs), theirs.grad, atol=1e-5, rtol=1e-4)


def test_that_the_table_one_model_equals_the_plain_formulation() -> None:
    spec = SlotAutoencoderSpec()
    ours, plain = twins(spec)
    images, noise = batch(spec, size=1)
    with torch.no_grad():
        for mine, theirs in zip(parts(ours(images, noise)), plain(images, noise), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SPECS)
def test_that_a_gradient_reaches_every_parameter(name: str) -> None:
    model = built(SPECS[name])
    images, noise = batch(SPECS[name])
    (model(images, noise).reconstruction - images).square().mean().backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    ]
    assert without == []
    assert {"attention.mu", "attention.log_sigma"} <= set(dict(model.named_parameters()))


def test_that_permuting_the_noise_permutes_the_slots_and_leaves_the_reconstruction() -> None:
    model, order = built(SMALL), [2, 0, 1]
    images, noise = batch(SMALL)
    output, permuted = model(images, noise), model(images, noise[:, order])
    torch.testing.assert_close(permuted.slots_BKD, output.slots_BKD[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(permuted.masks_BKHW, output.masks_BKHW[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(permuted.attention_BKN, output.attention_BKN[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(permuted.reconstruction, output.reconstruction, atol=1e-5, rtol=0)


def test_that_the_output_is_a_function_of_images_and_noise_alone() -> None:
    model = built(SMALL)
    images, noise = batch(SMALL)
    torch.manual_seed(0)
    first = model(images, noise)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    again = model(images, noise)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(parts(first), parts(again), strict=True))
    assert not torch.equal(model(images, -noise).slots_BKD, first.slots_BKD)


def test_that_an_image_does_not_depend_on_the_rest_of_its_batch() -> None:
    model = built(SMALL)
    images, noise = batch(SMALL, size=3)
    whole, alone = model(images, noise), model(images[1:2], noise[1:2])
    for a, b in zip(parts(whole), parts(alone), strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-6, rtol=0)


def test_that_masks_and_attention_sum_to_one_over_slots() -> None:
    images, noise = batch(SMALL)
    output = built(SMALL)(images, noise)
    torch.testing.assert_close(output.masks_BKHW.sum(dim=1), torch.ones(2, 12, 12))
    torch.testing.assert_close(output.attention_BKN.sum(dim=1), torch.ones(2, 144))


def test_that_attention_of_a_slot_that_wins_nothing_stays_finite() -> None:
    model = built(SMALL)
    with torch.no_grad():
        model.attention.key.weight.mul_(1e4)
    images, noise = batch(SMALL)
    with torch.no_grad():
        output = model(images, noise)
    assert float(output.attention_BKN.sum(dim=2).min()) < 1e-6
    assert all(bool(part.isfinite().all()) for part in parts(output))


def test_that_bf16_autocast_leaves_the_cell_bit_for_bit_and_all_outputs_in_fp32() -> None:
    model = built(SMALL)
    inputs, (images, noise) = torch.rand(2, 20, 8, generator=seeded(3)), batch(SMALL)
    outside = model.attention(inputs, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.attention(inputs, noise)
        output = model(images, noise)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))
    assert {part.dtype for part in parts(output)} == {torch.float32}
    torch.testing.assert_close(output.masks_BKHW.sum(dim=1), torch.ones(2, 12, 12), atol=1e-6, rtol=0)
    for low, full in zip(parts(output), parts(model(images, noise)), strict=True):
        torch.testing.assert_close(low, full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["full resolution", "upsampling"])
def test_that_training_under_bf16_autocast_gives_finite_fp32_gradients(name: str) -> None:
    model = built(SPECS[name])
    images, noise = batch(SPECS[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = (model(images, noise).reconstruction - images).square().mean()
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all())


def test_that_the_state_dict_holds_weights_alone() -> None:
    model = built(SMALL)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_that_more_slots_at_test_time_need_no_new_weights() -> None:
    images, _ = batch(SMALL)
    output = built(SMALL)(images, torch.randn(2, 7, 10, generator=seeded(0)))
    assert output.masks_BKHW.shape == (2, 7, 12, 12)


def test_that_random_masks_come_from_the_noise_and_have_no_parameters() -> None:
    model: SlotModel = build_model(UntrainedScoreSpec(resolution=8, num_slots=4), generator=seeded(0))
    assert parameters(model) == 0
    assert model.noise_shape == (4, 64)
    images, noise = torch.rand(2, 3, 8, 8), torch.randn(2, *model.noise_shape, generator=seeded(1))
    output = model(images, noise)
    assert torch.equal(output.masks_BKHW.argmax(dim=1).flatten(1), noise.argmax(dim=1))
    torch.testing.assert_close(output.masks_BKHW.sum(dim=1), torch.ones(2, 8, 8))
    assert output.reconstruction.shape == images.shape
    assert float(output.reconstruction.abs().max()) == 0
    assert float(output.slots_BKD.abs().max()) == 0


def test_that_the_noise_shape_is_slots_by_slot_size() -> None:
    assert built(SMALL).noise_shape == (3, 10)


def test_that_shapes_are_checked_in_tests() -> None:
    attention: SlotAttention = built(SMALL).attention
    with pytest.raises(Exception, match="noise_BKD"):
        attention(torch.zeros(2, 20, 8), torch.zeros(3, 3, 10))
