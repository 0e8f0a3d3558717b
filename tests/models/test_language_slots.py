"""The language-guided model: sizes, coupled keys, text to slots, and equality with the plain formulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_language import PlainLanguageSlots, plain_model, twins
from pydantic import ValidationError
from torch import Tensor, nn

from models import image_decoder
from models.build import build_model
from models.image_decoder import ImageDecoder
from models.initialisation import Weights
from models.language_slots import LanguageSlots
from models.slot_model import ConditionedInputs
from models.spec_language import ImageDecoderSpec, LanguageSlotsSpec, MlpText2Slot, NoText2Slot, TransformerText2Slot
from models.text2slot import SentenceDistribution

WORDS = TransformerText2Slot(text_tokens=5, hidden=6, heads=2, layers=2, feedforward=8)
SMALL = LanguageSlotsSpec(
    resolution=16,
    tokens=4,
    feature_size=10,
    text_size=7,
    num_slots=3,
    slot_size=6,
    num_iterations=2,
    slot_mlp_size=9,
    text2slot=MlpText2Slot(hidden_sizes=(5,)),
    decoder=ImageDecoderSpec(initial_resolution=2, channels=(14, 12, 10)),
)


def small(**changes: Any) -> LanguageSlotsSpec:
    """Validated, unlike a copy."""
    return LanguageSlotsSpec.model_validate(SMALL.model_dump() | changes)


def decoder(**changes: Any) -> dict[str, Any]:
    return SMALL.decoder.model_dump() | changes


SPECS = {
    "base": SMALL,
    "one dense layer": small(text2slot=MlpText2Slot(hidden_sizes=())),
    "mu per slot": small(text2slot=MlpText2Slot(hidden_sizes=(5, 4), distribution=False)),
    "words": small(text2slot=WORDS),
    "no text": small(text2slot=NoText2Slot()),
    "one global token": small(global_features=True, tokens=1),
    "position code and norm": small(enc_pos_enc=True, token_norm=True),
    "kernel of five": small(decoder=decoder(kernel_size=5)),
    "resize and convolve": small(decoder=decoder(upsample="resize_conv")),
    "no tail": small(decoder=decoder(tail_conv=False)),
    "one doubling": small(resolution=8, decoder=decoder(initial_resolution=4, channels=(9,))),
}
DECODERS = ["base", "kernel of five", "resize and convolve", "no tail", "one doubling"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(spec: LanguageSlotsSpec, seed: int = 0) -> LanguageSlots:
    model = build_model(spec, generator=seeded(seed))
    assert isinstance(model, LanguageSlots)
    return model


def batch(spec: LanguageSlotsSpec, size: int = 2) -> tuple[ConditionedInputs, Tensor]:
    generator = seeded(1)
    tokens = torch.randn(size, spec.tokens, spec.feature_size, generator=generator)
    text, padding = torch.randn(size, spec.text_size, generator=generator), None
    if isinstance(spec.text2slot, TransformerText2Slot):
        text = torch.randn(size, spec.text2slot.text_tokens, spec.text_size, generator=generator)
        padding = torch.arange(spec.text2slot.text_tokens)[None] > torch.arange(size)[:, None] + 1
    noise = torch.randn(size, spec.num_slots, spec.slot_size, generator=generator)
    return ConditionedInputs(tokens_BNC=tokens, text=text, padding_BL=padding), noise


def target(spec: LanguageSlotsSpec, size: int = 2) -> Tensor:
    return torch.randn(size, 3, spec.resolution, spec.resolution, generator=seeded(2))


def stirred(ours: LanguageSlots, plain: PlainLanguageSlots, form: str) -> None:
    """Both with log_sigma's last layer filled, which starts at zero and would stop its gradients."""
    if isinstance(ours.text2slot, SentenceDistribution):
        nn.init.normal_(ours.text2slot.log_sigma[-1].weight, generator=seeded(7))
        values = plain_model(ours, lambda parameter: parameter.detach(), form)
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter.copy_(values[name].view_as(parameter))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("recomputed", [0, 1, 2])
@pytest.mark.parametrize("name", SPECS)
def test_that_outputs_and_gradients_equal_the_plain_formulation(name: str, recomputed: int) -> None:
    spec = SPECS[name]
    if recomputed != 1 and name not in DECODERS:
        pytest.skip("the decoder is that of another case")
    ours, plain = twins(spec)
    stirred(ours, plain, spec.text2slot.kind)
    ours.decoder.recomputed_maps = recomputed
    inputs, noise = batch(spec)
    output, expected = ours(inputs, noise), plain(inputs, noise)
    for mine, theirs in zip(output[:4], expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)
    (output.reconstruction - target(spec)).square().mean().backward()
    (expected[0] - target(spec)).square().mean().backward()
    gradients = plain_model(ours, lambda parameter: parameter.grad, spec.text2slot.kind)
    theirs_by_name = dict(plain.named_parameters())
    assert gradients.keys() == theirs_by_name.keys()
    for parameter, gradient in gradients.items():
        theirs = theirs_by_name[parameter].grad
        assert theirs is not None
        torch.testing.assert_close(gradient.view_as(theirs), theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_that_a_gradient_reaches_every_parameter(name: str) -> None:
    model = built(SPECS[name])
    if isinstance(model.text2slot, SentenceDistribution):
        nn.init.normal_(model.text2slot.log_sigma[-1].weight, generator=seeded(7))
    inputs, noise = batch(SPECS[name])
    (model(inputs, noise).reconstruction - target(SPECS[name])).square().mean().backward()
    silent = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    }
    indifferent = {"attention.query.weight", "attention.key.weight", "attention.norm_slots.weight", "attention.norm_slots.bias"}
    assert silent <= (indifferent if SPECS[name].tokens == 1 else set())


@pytest.mark.parametrize("name", SPECS)
def test_that_one_seed_gives_one_model_and_the_global_state_has_no_part_in_it(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = built(SPECS[name], seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    again, other = built(SPECS[name], seed=3).state_dict(), built(SPECS[name], seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [
        key for key in first if first[key].dim() > 1 and not (key.startswith("text2slot.log_sigma") and not first[key].any())
    ]
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_that_the_form_of_text2slot_leaves_the_other_initial_weights_alone() -> None:
    first, second = built(SPECS["base"]).state_dict(), built(SPECS["words"]).state_dict()
    shared = [name for name in first if not name.startswith("text2slot.")]
    assert shared
    assert all(torch.equal(first[name], second[name]) for name in shared)


TEXT2SLOT_COUNTS = [
    (7, 64, (), 65_664, 229_824),
    (7, 64, (256,), 295_552, 246_464),
    (7, 64, (512,), 590_976, 492_480),
    (7, 64, (256, 256), 427_136, 312_256),
    (3, 64, (), 65_664, 98_496),
    (3, 64, (256,), 295_552, 180_672),
    (7, 128, (), 131_328, 459_648),
    (7, 128, (256,), 328_448, 361_600),
]


@pytest.mark.parametrize(("slots", "size", "hidden", "distribution", "per_slot"), TEXT2SLOT_COUNTS)
def test_that_text2slot_has_the_sheets_parameter_counts(
    slots: int, size: int, hidden: tuple[int, ...], distribution: int, per_slot: int
) -> None:
    for shared, expected in ((True, distribution), (False, per_slot)):
        form = MlpText2Slot(hidden_sizes=hidden, distribution=shared)
        spec = small(text_size=512, num_slots=slots, slot_size=size, text2slot=form)
        assert parameters(built(spec).text2slot) == expected


DEFAULT = (64,) * 5
WIDE = (128, 64, 64, 64, 64)
DECODER_COSTS = [  # initial side, kernel, channels, upsampling, slot size; thousands of parameters without and with the tail
    (7, 3, DEFAULT, "deconv", 64, 187, 224),
    (7, 5, DEFAULT, "deconv", 64, 515, 617),
    (14, 3, DEFAULT[:4], "deconv", 64, 150, 187),
    (14, 5, DEFAULT[:4], "deconv", 64, 412, 515),
    (7, 3, DEFAULT, "resize_conv", 64, 187, 224),
    (7, 5, DEFAULT, "resize_conv", 64, 515, 617),
    (7, 5, WIDE, "deconv", 128, 924, 1027),
    (7, 5, (128,) * 5, "deconv", 128, 2053, 2463),
]


@pytest.mark.parametrize(("start", "kernel", "channels", "upsample", "size", "bare", "tailed"), DECODER_COSTS)
def test_that_decoders_have_the_sheets_sizes_and_reach_224(
    start: int, kernel: int, channels: tuple[int, ...], upsample: str, size: int, bare: int, tailed: int
) -> None:
    for tail, thousands in ((False, bare), (True, tailed)):
        settings = {"initial_resolution": start, "kernel_size": kernel, "channels": channels, "upsample": upsample}
        model = built(LanguageSlotsSpec.model_validate({"slot_size": size, "decoder": settings | {"tail_conv": tail}})).decoder
        convolutions = parameters(model) - parameters(model.positions)
        assert abs(convolutions - 1000 * thousands) <= 1000
        sides = []
        maps = torch.empty(1, size, start, start, device="meta")
        model = model.to("meta")
        for layer in model.doubling:
            maps = layer(maps)
            sides.append(maps.shape[2])
            assert maps.shape[1] == channels[len(sides) - 1]
        assert sides == [start * 2 ** (n + 1) for n in range(len(channels))]
        assert sides[-1] == 224
        assert model(torch.empty(1, size, device="meta")).shape == (1, 4, 224, 224)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder": {"initial_resolution": 14}}, "14 with 5 decoder.channels makes 448 x 448 pixels, resolution is 224"),
        ({"decoder": {"initial_resolution": 14}}, "7 with 5 or 14 with 4 or 28 with 3"),
        ({"decoder": {"channels": [64] * 4}}, "7 with 4 decoder.channels makes 112 x 112 pixels"),
        ({"decoder": {"kernel_size": 4}}, "Input should be 3 or 5"),
        ({"decoder": {"channels": [64, 0, 64, 64, 64]}}, "greater than or equal to 1"),
        ({"global_features": True}, "global_features gives 1 token, tokens is 49"),
        ({"tokens": 48}, "tokens 48 is not a square number: 49 is a 7 x 7 grid"),
        ({"global_features": True, "tokens": 1, "enc_pos_enc": True}, "enc_pos_enc needs a grid of tokens, tokens is 1"),
        ({"text2slot": {"kind": "transformer", "heads": 3}}, "hidden 64 is not a multiple of heads 3"),
        ({"text2slot": {"kind": "mlp", "hidden": [3]}}, "Extra inputs are not permitted"),
    ],
)
def test_that_keys_that_do_not_fit_each_other_are_refused_with_what_would(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LanguageSlotsSpec.model_validate(changes)


def test_that_every_misfit_is_told_at_once() -> None:
    with pytest.raises(ValidationError, match=r"makes 112 x 112 pixels.*tokens 48 is not a square"):
        LanguageSlotsSpec.model_validate({"decoder": {"channels": [64] * 4}, "tokens": 48})


def test_that_a_distribution_gives_all_slots_one_mean_and_starts_at_sigma_one_over_e() -> None:
    model = built(SMALL)
    inputs, noise = batch(SMALL)
    centre = model.text2slot(inputs, torch.zeros_like(noise))
    assert torch.equal(centre, centre[:, :1].expand_as(centre))
    assert not torch.allclose(centre[0], centre[1])
    torch.testing.assert_close(model.text2slot(inputs, noise) - centre, torch.exp(torch.tensor(-1.0)) * noise)


@pytest.mark.parametrize(("bias", "sigma"), [(100.0, 2.0), (-100.0, -5.0)])
def test_that_log_sigma_is_clamped(bias: float, sigma: float) -> None:
    model = built(SMALL)
    nn.init.constant_(model.text2slot.log_sigma[-1].bias, bias)
    inputs, noise = batch(SMALL)
    spread = model.text2slot(inputs, noise) - model.text2slot(inputs, torch.zeros_like(noise))
    torch.testing.assert_close(spread, torch.exp(torch.tensor(sigma)) * noise, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["mu per slot", "words"])
def test_that_one_mu_per_slot_tells_slots_apart_without_noise(name: str) -> None:
    inputs, noise = batch(SPECS[name])
    model = built(SPECS[name])
    initial = model.text2slot(inputs, noise)
    assert torch.equal(initial, model.text2slot(inputs, torch.zeros_like(noise)))
    assert not torch.allclose(initial[:, 0], initial[:, 1])
    assert not torch.allclose(initial[0], initial[1])


def test_that_padding_has_no_part_in_the_slots() -> None:
    spec = SPECS["words"]
    inputs, noise = batch(spec)
    assert inputs.text is not None
    assert inputs.padding_BL is not None
    other = inputs._replace(text=torch.where(inputs.padding_BL[..., None], torch.full_like(inputs.text, 9.0), inputs.text))
    model = built(spec)
    assert torch.equal(model.text2slot(inputs, noise), model.text2slot(other, noise))
    unpadded = inputs._replace(padding_BL=torch.zeros_like(inputs.padding_BL))
    assert not torch.allclose(model.text2slot(inputs, noise), model.text2slot(unpadded, noise))


def test_that_the_control_without_text_does_not_need_or_see_any() -> None:
    spec = SPECS["no text"]
    inputs, noise = batch(spec)
    model = built(spec)
    assert torch.equal(model(inputs, noise).masks_BKHW, model(inputs._replace(text=None), noise).masks_BKHW)
    assert {"text2slot.mu", "text2slot.log_sigma"} <= set(dict(model.named_parameters()))


@pytest.mark.parametrize(("form", "other"), [("base", "words"), ("words", "base")])
def test_that_text_of_another_form_is_refused(form: str, other: str) -> None:
    inputs, noise = batch(SPECS[other])
    with pytest.raises(ValueError, match=r"text2slot=.* takes .* not text \[2, "):
        built(SPECS[form])(inputs, noise)
    with pytest.raises(ValueError, match="not no text"):
        built(SPECS[form])(inputs._replace(text=None), noise)


def test_that_one_global_token_gives_every_slot_the_same_update() -> None:
    spec = small(global_features=True, tokens=1, num_iterations=1)
    inputs, noise = batch(spec)
    model = built(spec)
    seen: list[Tensor] = []
    model.attention.gru.register_forward_hook(lambda module, values, output: seen.append(values[0]))
    model(inputs, noise)
    updates = seen[0].view(noise.shape)
    torch.testing.assert_close(updates, updates[:, :1].expand_as(updates), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("recomputed", [0, 1, 2])
def test_that_chunks_of_slots_change_neither_values_nor_gradients(recomputed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, noise = batch(SMALL)
    found = []
    for size in (1, 4, 100):
        monkeypatch.setattr(image_decoder, "CHUNK", {"cpu": size, "other": size})
        model = built(SMALL)
        model.decoder.recomputed_maps = recomputed
        output = model(inputs, noise)
        output.reconstruction.square().mean().backward()
        found.append([output.reconstruction, *(p.grad for p in model.parameters() if p.grad is not None)])
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)


def held_full_maps(recomputed: int, *, tail: bool = True) -> float:
    """Floats that autograd keeps, in full-resolution maps of all slots."""
    settings = {"initial_resolution": 4, "channels": [16, 16, 16], "tail_conv": tail}
    spec = small(resolution=32, decoder=settings)
    weights = Weights(scheme="covloss", generator=seeded(0))
    given = spec.decoder.model_dump(exclude={"recomputed_maps"})
    module = ImageDecoder(slot_size=6, recomputed_maps=recomputed, weights=weights, **given)
    known = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known:
            held[pointer] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.randn(6, 6, generator=seeded(3)))
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values()) / (6 * 16 * 32 * 32 * 4)


def test_that_full_resolution_maps_are_kept_as_few_as_asked() -> None:
    smaller = 0.25 + 0.0625 + 0.1
    assert 2 < held_full_maps(0) < 2 + smaller
    assert 1 < held_full_maps(1) < 1 + smaller
    assert held_full_maps(2) < smaller
    assert 1 < held_full_maps(0, tail=False) < 1 + smaller
    assert held_full_maps(1, tail=False) < smaller


@pytest.mark.parametrize("name", SPECS)
def test_that_bf16_autocast_leaves_every_output_in_fp32_and_close(name: str) -> None:
    model = built(SPECS[name])
    inputs, noise = batch(SPECS[name])
    full = model(inputs, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(inputs, noise)
        loss = low.reconstruction.square().mean()
    for mine, exact in zip(low[:4], full[:4], strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(low.masks_BKHW.sum(dim=1), torch.ones_like(low.masks_BKHW[:, 0]), atol=1e-6, rtol=0)
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or (parameter.grad.dtype == torch.float32 and bool(parameter.grad.isfinite().all()))


def test_that_maps_are_channels_last_in_memory() -> None:
    model = built(SMALL)
    seen = []
    for layer in [*model.decoder.doubling, model.decoder.tail]:
        layer.register_forward_hook(
            lambda module, values, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    model(*batch(SMALL))
    assert seen
    assert all(seen)
