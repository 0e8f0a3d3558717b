"""The token models: sizes, initial distributions, and equality with the plain formulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from plain_dinosaur import PlainMlpDecoder, fill, plain_decoder, plain_model, twins
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.build import build_model
from models.dinosaur import Dinosaur
from models.initialisation import Weights
from models.patch_mlp import PatchMlp
from models.spec import CocoAdaptiveDecoder, DinosaurSpec, GateSpec, PatchMlpDecoder, PatchTransformerDecoder, UntrainedScoreSpec

SMALL = DinosaurSpec(
    tokens=9, feature_size=12, num_slots=4, num_iterations=2, slot_size=6, decoder=PatchMlpDecoder(hidden=10, layers=4)
)
COCO = DinosaurSpec(slot_size=64, adapter="covloss", init="covloss", decoder=CocoAdaptiveDecoder())
FEATURES = DinosaurSpec(adapter="covloss", init="covloss", decoder=PatchMlpDecoder(hidden=3072, positions="xavier"))


def small(**changes: Any) -> DinosaurSpec:
    return SMALL.model_copy(update=changes)


SPECS = {
    "mlp": SMALL,
    "mlp of two layers": small(decoder=PatchMlpDecoder(hidden=10, layers=2)),
    "mlp of three layers": small(decoder=PatchMlpDecoder(hidden=10, layers=3, positions="xavier")),
    "covloss": small(adapter="covloss", init="covloss"),
    "gate": small(gate=GateSpec(), num_slots=8),
    "cool gate": small(gate=GateSpec(temperature=0.5), num_slots=8),
    "transformer": small(decoder=PatchTransformerDecoder(layers=3, heads=2, feedforward=16)),
    "transformer of one layer": small(decoder=PatchTransformerDecoder(layers=1, heads=3, feedforward=16)),
    "image": small(
        adapter="covloss", init="covloss", decoder=CocoAdaptiveDecoder(channels=9, initial_resolution=2, conv_layers=5)
    ),
}
MLPS = [name for name, spec in SPECS.items() if isinstance(spec.decoder, PatchMlpDecoder)]
PATCHES = [name for name in SPECS if name != "image"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(spec: DinosaurSpec, seed: int = 0) -> Dinosaur:
    model = build_model(spec, generator=seeded(seed))
    assert isinstance(model, Dinosaur)
    return model


def batch(spec: DinosaurSpec, size: int = 2) -> tuple[Tensor, Tensor]:
    tokens = torch.randn(size, spec.tokens, spec.feature_size, generator=seeded(1))
    columns = spec.slot_size + (2 if spec.gate else 0)
    return tokens, torch.randn(size, spec.num_slots, columns, generator=seeded(2))


def target_like(reconstruction: Tensor) -> Tensor:
    return torch.randn(reconstruction.shape, generator=seeded(3), dtype=reconstruction.dtype)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_that_dinosaur_has_the_sheets_parameter_counts() -> None:
    model = built(DinosaurSpec())
    norm_inputs = parameters(model.attention.norm_inputs)  # which the sheet counts with the adapter
    assert parameters(model.adapter) + norm_inputs == 789_504
    assert parameters(model.attention) - norm_inputs == 1_118_464
    assert parameters(model.decoder) == 10_544_897
    assert parameters(model) == 12_452_865


def test_that_adaslots_gate_has_the_sheets_parameter_count() -> None:
    model = built(DinosaurSpec(gate=GateSpec(), num_slots=33))
    assert model.gate is not None
    assert parameters(model.gate) == 265_730
    assert parameters(model) == 12_452_865 + 265_730


def test_that_covloss_coco_model_has_the_sheets_parameter_counts() -> None:
    model = built(COCO)
    assert parameters(model.decoder) == 133_828
    assert parameters(model) == 263_876


@pytest.mark.parametrize(("slot_size", "millions"), [(256, 23.53), (1024, 45.33)])
def test_that_covloss_feature_model_has_the_sheets_parameter_counts(slot_size: int, millions: float) -> None:
    assert round(parameters(built(FEATURES.model_copy(update={"slot_size": slot_size}))) / 1e6, 2) == millions


def test_that_the_transformer_decoder_has_the_parameters_of_torchs_layers() -> None:
    layer = nn.TransformerDecoderLayer(768, 8, 3072)
    embedding = 768 + 768 * 768 + 256 * 768 + 4 * 768
    assert parameters(built(DinosaurSpec(decoder=PatchTransformerDecoder())).decoder) == 4 * parameters(layer) + embedding


@pytest.mark.parametrize("name", SPECS)
def test_that_outputs_and_gradients_equal_the_plain_formulation(name: str) -> None:
    ours, plain = twins(SPECS[name])
    with torch.no_grad():  # biases away from zero, so that each one's place is seen
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    fill(plain, plain_model(ours, lambda parameter: parameter.detach()))
    tokens, noise = batch(SPECS[name])
    output, expected = ours(tokens, noise), plain(tokens, noise)
    found = [part for part in output if part is not None]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    target = target_like(expected[0])
    weigh = torch.rand(expected[-1].shape, generator=seeded(4))
    losses = [(parts[0] - target).square().mean() + (parts[-1] * weigh).mean() for parts in (found, expected)]
    if output.keep_BK is not None:
        assert 0 < float(output.keep_BK.detach().mean()) < 1
        losses = [loss + 0.3 * parts[4].mean() for loss, parts in zip(losses, (found, expected), strict=True)]
    for loss in losses:
        loss.backward()
    gradients = plain_model(ours, lambda parameter: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    for at, theirs in plain.named_parameters():
        assert theirs.grad is not None
        torch.testing.assert_close(gradients[at].view_as(theirs), theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda m, at=at: at + m)


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@pytest.mark.parametrize("gated", [False, True])
def test_that_the_mlp_decoder_is_exact_in_float64(layers: int, gated: bool) -> None:
    weights = Weights(scheme="covloss", generator=seeded(0))
    table = weights.position_table(9, 6, "xavier")
    ours = PatchMlp(slot_size=6, hidden=10, layers=layers, feature_size=12, positions=table, weights=weights).double()
    plain = PlainMlpDecoder(6, 10, layers, 12, 9).double()
    fill(plain, plain_decoder(ours, lambda parameter: parameter.detach()))
    slots = torch.randn(3, 4, 6, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    (mine, masks), (theirs, expected) = (decoder(slots, keep if gated else None) for decoder in (ours, plain))
    torch.testing.assert_close(mine, theirs, atol=1e-13, rtol=0)
    torch.testing.assert_close(masks.transpose(1, 2), expected, atol=1e-13, rtol=0)
    target, weigh = target_like(theirs), target_like(expected)
    ((mine - target).square().sum() + (masks.transpose(1, 2) * weigh).sum()).backward()
    of_inputs = [leaf.grad.clone() for leaf in (slots, keep) if leaf.grad is not None]
    slots.grad = keep.grad = None
    ((theirs - target).square().sum() + (expected * weigh).sum()).backward()
    assert len(of_inputs) == 1 + gated
    for found, leaf in zip(of_inputs, (slots, keep), strict=False):
        assert leaf.grad is not None
        torch.testing.assert_close(found, leaf.grad, atol=1e-11, rtol=1e-11)
    gradients = plain_decoder(ours, lambda parameter: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    for at, parameter in plain.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[at], parameter.grad, atol=1e-11, rtol=1e-11)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.values = max(self.values, one.untyped_storage().nbytes() // one.element_size())
        return made


@pytest.mark.parametrize("gated", [False, True])
def test_that_no_tensor_ever_holds_the_features_of_every_slot(gated: bool) -> None:
    spec = small(feature_size=64, num_slots=7, decoder=PatchMlpDecoder(hidden=16), gate=GateSpec() if gated else None)
    ours, plain = twins(spec)
    tokens, noise = batch(spec)
    sizes = []
    for model in (ours, plain):
        with Largest() as largest:
            model(tokens, noise)[0].square().mean().backward()
        sizes.append(largest.values)
    every_slot = 2 * 7 * 9 * 64
    assert sizes[0] < every_slot <= sizes[1]


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_that_a_training_step_keeps_one_hidden_state_less_than_the_decoder_has(layers: int) -> None:
    spec = small(num_slots=16, feature_size=8, decoder=PatchMlpDecoder(hidden=64, layers=layers))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = built(spec)(*batch(spec))
    state_bytes = 2 * 9 * 16 * 64 * 4
    assert sum(size == state_bytes for size in kept.values()) == max(1, layers - 2)
    assert max(kept.values()) == state_bytes
    output.reconstruction.mean().backward()


def test_that_a_step_can_be_differentiated_twice_over_one_graph() -> None:
    model = built(SMALL)
    loss = model(*batch(SMALL)).reconstruction.square().mean()
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_that_a_gradient_reaches_every_parameter(name: str) -> None:
    model = built(SPECS[name])
    (model(*batch(SPECS[name])).reconstruction - 1).square().mean().backward()
    without = [at for at, one in model.named_parameters() if one.grad is None or not bool(one.grad.abs().sum() > 0)]
    assert set(without) <= {"decoder.to_alpha.bias"}  # a softmax does not see it: zero, up to rounding


def test_that_masks_are_on_the_decoders_own_grid_and_sum_to_one() -> None:
    for name, side in {**{name: 3 for name in PATCHES if "gate" not in name}, "image": 16}.items():
        spec = SPECS[name]
        output = built(spec)(*batch(spec))
        assert output.masks_BKHW.shape == (2, 4, side, side)
        torch.testing.assert_close(output.masks_BKHW.sum(dim=1), torch.ones(2, side, side), atol=1e-6, rtol=0)
        assert output.reconstruction.shape == ((2, 3, 16, 16) if name == "image" else (2, 9, 12))
    coco, tokens = built(COCO), torch.randn(1, 196, 768)
    with torch.no_grad():
        assert coco(tokens, torch.randn(1, 2, 64)).masks_BKHW.shape == (1, 2, 128, 128)


def test_that_the_transformer_predicts_a_token_from_those_before_it_alone() -> None:
    spec = SPECS["transformer"]
    decoder, (tokens, _) = built(spec).decoder, batch(spec)
    slots = torch.randn(2, 4, 6, generator=seeded(5))
    changed = tokens.clone()
    changed[:, 4] += 1.0
    (before, masks), (after, others) = decoder(slots, tokens), decoder(slots, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert torch.equal(masks[:, :5], others[:, :5])
    assert all(not torch.equal(before[:, n], after[:, n]) for n in range(5, 9))
    moved = decoder(slots + 1.0 * torch.randn(slots.shape, generator=seeded(6)), tokens)[0]
    assert not torch.equal(before[:, 0], moved[:, 0])


def test_that_targets_get_no_gradient_through_teacher_forcing() -> None:
    spec = SPECS["transformer"]
    tokens = batch(spec)[0].requires_grad_()
    built(spec).decoder(torch.randn(2, 4, 6, generator=seeded(5)), tokens)[0].sum().backward()
    assert tokens.grad is None


def test_that_dinosaur_init_is_torchs_default_with_zero_biases_and_a_xavier_prior() -> None:
    model = built(DinosaurSpec(gate=GateSpec())).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "gru.bias" in name:
            assert 0.9 / 16 < float(parameter.abs().max()) <= 1 / 16
        elif "bias" in name:
            assert float(parameter.abs().max()) == 0, name
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 2 + 3 + 2 + 5 + 2
    for layer in layers:
        bound = layer.in_features**-0.5
        assert 0.85 * bound < float(layer.weight.abs().max()) <= bound
        assert float(layer.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    prior = math.sqrt(3 / 256)
    for parameter in (model.attention.mu, model.attention.log_sigma):
        assert 0.9 * prior < float(parameter.abs().max()) <= prior
    reference = nn.init.xavier_uniform_(torch.empty(1, 1, 256))
    assert float(reference.abs().max()) == pytest.approx(prior, rel=0.1)


def test_that_position_tables_have_the_named_distribution() -> None:
    normal = built(DinosaurSpec(decoder=PatchMlpDecoder(hidden=1))).decoder.positions_ND.detach()
    assert normal.shape == (196, 256)
    assert float(normal.std()) == pytest.approx(0.02, rel=0.02)
    assert float(normal.abs().max()) > 3 * 0.02
    xavier = built(DinosaurSpec(decoder=PatchMlpDecoder(hidden=1, positions="xavier"))).decoder.positions_ND.detach()
    bound = math.sqrt(6 / (196 + 256))
    assert 0.99 * bound < float(xavier.abs().max()) <= bound
    assert float(xavier.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("init", ["dinosaur", "covloss"])
def test_that_the_transformer_starts_as_torchs_layer_copied(init: str) -> None:
    spec = DinosaurSpec(feature_size=96, slot_size=64, init=init, decoder=PatchTransformerDecoder(heads=4, feedforward=384))
    decoder = built(spec).decoder.requires_grad_(False)
    names = [f"layers.{index}." for index in range(4)]
    held = plain_decoder(decoder, lambda parameter: parameter)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torchs = nn.TransformerDecoderLayer(96, 4, 384)
    for at, default in torchs.named_parameters():
        mine = held[names[0] + at]
        assert all(torch.equal(mine, held[name + at]) for name in names)
        if "norm" in at:
            assert torch.equal(mine, default)
        elif float(default.detach().abs().max()) == 0:
            assert float(mine.abs().max()) == 0, at
        else:
            assert float(mine.std() / default.detach().std()) == pytest.approx(1, abs=0.15), at
            assert float(mine.abs().max() / default.detach().abs().max()) == pytest.approx(1, abs=0.05), at
    for embedding, inputs in ((decoder.embed_tokens[0], 96), (decoder.embed_slots[0], 64)):
        bound = math.sqrt(6 / (inputs + 96))
        assert embedding.bias is None
        assert 0.95 * bound < float(embedding.weight.abs().max()) <= bound
    starts = torch.stack([built(spec, seed).decoder.start_C.detach() for seed in range(8)])
    assert float(starts.std()) == pytest.approx(96**-0.5, rel=0.1)


@pytest.mark.parametrize(("init", "eps"), [("dinosaur", 1e-5), ("covloss", 1e-3)])
@pytest.mark.parametrize("adapter", ["dinosaur", "covloss"])
def test_that_the_norms_before_and_in_slot_attention_have_the_inits_epsilon(init: str, eps: float, adapter: str) -> None:
    model = built(small(init=init, adapter=adapter))
    norms = [layer for part in (model.adapter, model.attention) for layer in part.modules() if isinstance(layer, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [eps] * (4 if adapter == "dinosaur" else 5)


@pytest.mark.parametrize("name", SPECS)
def test_that_one_seed_gives_one_model_and_the_global_state_has_no_part_in_it(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = built(SPECS[name], seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = built(SPECS[name], seed=3).state_dict(), built(SPECS[name], seed=4).state_dict()
    assert all(torch.equal(first[at], again[at]) for at in first)
    drawn = [at for at in first if first[at].dim() > 1 or at.endswith(("mu", "log_sigma", "start_C"))]
    assert not any(torch.equal(first[at], other[at]) for at in drawn)
    assert all(bool(tensor.isfinite().all()) for tensor in first.values())
    assert set(first) == {at for at, _ in built(SPECS[name]).named_parameters()}


def test_that_a_gate_is_the_only_addition_to_the_state_of_the_model_without_it() -> None:
    plain, gated = built(SMALL).state_dict(), built(small(gate=GateSpec(), num_slots=33)).state_dict()
    assert {at for at in gated if not at.startswith("gate.")} == set(plain)
    assert all(torch.equal(plain[at], gated[at]) for at in plain)


def test_that_specs_agree_in_shapes_exactly_when_their_models_do() -> None:
    image = CocoAdaptiveDecoder(channels=4, conv_layers=4)
    transformer = PatchTransformerDecoder(layers=1, heads=2, feedforward=16)
    changed = [{"num_slots": 5, "num_iterations": 1, "init": "covloss"}, {"slot_size": 8}, {"feature_size": 24}, {"tokens": 16}]
    specs = [small(decoder=decoder, **change) for decoder in (SMALL.decoder, transformer, image) for change in ({}, *changed)]
    specs += [small(adapter="covloss"), small(decoder=PatchMlpDecoder(hidden=10, layers=4, positions="xavier"))]
    specs += [small(decoder=PatchMlpDecoder(hidden=10, layers=3)), small(decoder=PatchMlpDecoder(hidden=11, layers=4))]
    specs += [small(decoder=transformer.model_copy(update=one)) for one in ({"heads": 4}, {"layers": 2}, {"feedforward": 8})]
    specs += [
        small(decoder=image.model_copy(update=one)) for one in ({"initial_resolution": 4}, {"channels": 5}, {"conv_layers": 5})
    ]
    made = [{name: value.shape for name, value in built(spec).state_dict().items()} for spec in specs]
    for spec, shapes in zip(specs, made, strict=True):
        for other, others in zip(specs, made, strict=True):
            assert (spec.shapes() == other.shapes()) == (shapes == others), (spec, other)


@pytest.mark.parametrize("name", SPECS)
def test_that_bf16_autocast_leaves_every_output_in_fp32_and_close(name: str) -> None:
    model = built(SPECS[name])
    tokens, noise = batch(SPECS[name])
    full = model(tokens, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(tokens, noise)
        loss = low.reconstruction.square().mean()
    for mine, exact in zip(low, full, strict=True):
        if mine is not None and exact is not None:
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, exact, atol=0.1, rtol=0.1)
    if "gate" not in name:
        torch.testing.assert_close(low.masks_BKHW.sum(dim=1), torch.ones_like(low.masks_BKHW[:, 0]), atol=1e-6, rtol=0)
    loss.backward()
    full.reconstruction.sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("name", SPECS)
def test_that_an_image_depends_on_its_tokens_and_noise_alone(name: str) -> None:
    model = built(SPECS[name])
    tokens, noise = batch(SPECS[name], size=3)
    state = torch.random.get_rng_state()
    whole, alone = model(tokens, noise), model(tokens[1:2], noise[1:2])
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(whole, alone, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a[1:2], b, atol=1e-5, rtol=0)


def test_that_random_masks_take_tokens_and_keep_their_own_resolution() -> None:
    model = build_model(UntrainedScoreSpec(resolution=8, num_slots=4), generator=seeded(0))
    tokens, noise = torch.randn(2, 9, 12), torch.randn(2, *model.noise_shape)
    output = model(tokens, noise)
    assert output.masks_BKHW.shape == (2, 4, 8, 8)
    assert torch.equal(output.reconstruction, torch.zeros(2, 9, 12))
