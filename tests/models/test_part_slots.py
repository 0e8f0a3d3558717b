"""Part slots: the sheet's table of shapes, the plain loops, gradients, identities of slots, two views in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from plain_parts import plain_forward
from torch import Tensor, nn

from models.build_parts import build_part_slots
from models.part_slots import PartSlots, masks_at
from models.part_types import PartInputs, PartOutput, Warped
from models.spec_parts import PartSlotsSpec, TrunkSpec

TINY = TrunkSpec(name="tiny", weights="random")
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "conv": {"kind": "conv", "channels": 7, "layers": 3},
    "mlp": {"kind": "mlp", "hidden": 9, "layers": 3},
    "attention": {"kind": "attention"},
    "product": {"kind": "product"},
    "pixels": {"kind": "pixels"},
}
WITH_SLOTS = [name for name in HEADS if name != "pixels"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(masks: str = "mlp", **changes: Any) -> PartSlotsSpec:
    """40 x 40 pixels, 6 x 6 features, 3 parts; without slots none of their settings."""
    base = {"resolution": 40, "num_parts": 3, "num_iterations": 2, "slot_size": 8, "slot_mlp_size": 9, "trunk": TINY.model_dump()}
    given = base | {"masks": HEADS[masks]} | changes
    if masks == "pixels":
        given = {name: value for name, value in given.items() if name not in ("start", "num_iterations")}
    return PartSlotsSpec.model_validate(given)


def built(spec: PartSlotsSpec, seed: int = 0) -> PartSlots:
    return build_part_slots(spec, generator=seeded(seed))


def batch(spec: PartSlotsSpec, count: int = 2) -> tuple[PartInputs, Tensor]:
    """Images, each of a few colours, and noise."""
    coarse = torch.rand(count, 3, 5, 5, generator=seeded(1))
    images = nn.functional.interpolate(coarse, size=(spec.resolution, spec.resolution))
    slots = 1 if spec.masks.kind == "pixels" else spec.slot_size
    return PartInputs(images_B3HW=images), torch.randn(count, spec.num_slots, slots, generator=seeded(2))


def with_second_view(inputs: PartInputs) -> PartInputs:
    images = inputs.images_B3HW.flip(3) * 0.9
    grid = torch.zeros(len(images), *images.shape[2:], 2)
    return inputs._replace(warped=Warped(images_B3HW=images, grid_BHW2=grid))


@contextmanager
def shapes_seen(model: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """What each module gives, by its name."""
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            seen[name] = tuple(first.shape)
            if inputs and isinstance(inputs[0], Tensor):
                seen[f"into {name}"] = tuple(inputs[0].shape)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    yield seen
    for hook in hooks:
        hook.remove()


def check_table(seen: dict[str, tuple[int, ...]], channels: tuple[int, int, int, int, int]) -> None:
    """Rows 2 to 18 of the sheet's table."""
    stem, *stages = channels
    assert seen["trunk.conv1"] == (1, stem, 64, 64)  # row 2
    assert seen["into trunk.layer1"] == (1, stem, 33, 33)  # row 3: the pooling rounds up
    for name, count, side in zip(("layer1", "layer2", "layer3", "layer4"), stages, (33, 17, 17, 17), strict=True):
        assert seen[f"trunk.{name}"] == (1, count, side, side)  # rows 4 to 7
    last = stages[-1]
    assert seen["slots.adapter.positions"] == (17, 17, last)  # rows 8 and 9: what is added to [1,17,17,C]
    assert seen["into slots.adapter.linear"] == (1, 289, last)  # row 10
    assert seen["slots.adapter"] == (1, 289, 64)  # row 11
    assert seen["slots"] == (1, 6, 64)  # row 12
    assert seen["head.positions"] == (8, 8, 64)  # rows 13 to 15: what is added to each of 6 slots
    assert seen["into head.convs"] == (6, 64, 8, 8)  # row 16
    assert seen["head.convs"] == (6, 1, 8, 8)  # row 17
    assert seen["head"] == (1, 6, 8, 8)  # row 18


@pytest.mark.parametrize("trunk", ["tiny", "resnet50"])
def test_that_every_row_of_the_sheets_table_has_its_shape(trunk: str) -> None:
    spec = PartSlotsSpec.model_validate({"trunk": {"name": trunk, "weights": "random"}, "masks": {"kind": "linear"}})
    model = built(spec)
    inputs, noise = batch(spec, 1)
    assert inputs.images_B3HW.shape == (1, 3, 128, 128)  # row 1
    assert model.noise_shape == (6, 64)
    with torch.no_grad(), shapes_seen(model) as seen:
        output = model(inputs, noise)
    check_table(seen, (16, 32, 64, 96, 128) if trunk == "tiny" else (64, 256, 512, 1024, 2048))
    assert output.logits_BKhw.shape == (1, 6, 8, 8)
    assert output.slots_BKD.shape == (1, 6, 64)
    assert output.attention_BKN is not None
    assert output.attention_BKN.shape == (1, 6, 289)
    assert output.masks_BKHW.shape == (1, 6, 128, 128)  # rows 19 and 22
    assert output.masks_BKHW[:, 1:].shape == (1, 5, 128, 128)  # row 23
    assert output.warped_logits_BKhw is None
    torch.testing.assert_close(output.masks_BKHW.sum(dim=1), torch.ones(1, 128, 128))


@pytest.mark.parametrize(("masks", "side"), [("linear", 8), ("conv", 8), ("mlp", 29), ("attention", 29), ("product", 29)])
def test_that_the_position_code_and_masks_follow_the_features_of_other_inputs(masks: str, side: int) -> None:
    spec = PartSlotsSpec.model_validate({"resolution": 224, "trunk": TINY.model_dump(), "masks": {"kind": masks}})
    model = built(spec)
    with torch.no_grad():
        output = model(*batch(spec, 1))
    assert output.logits_BKhw.shape == (1, 6, side, side)
    assert output.masks_BKHW.shape == (1, 6, 224, 224)
    assert output.attention_BKN is not None
    assert output.attention_BKN.shape == (1, 6, 29 * 29)


def test_that_images_of_another_size_than_the_models_are_refused() -> None:
    inputs, noise = batch(small(resolution=64))
    with pytest.raises(ValueError, match=r"features of \(9, 9\) places, the position code has \(6, 6\)"):
        built(small())(inputs, noise)


def test_that_parts_have_the_readmes_numbers_of_parameters() -> None:
    def count(module: nn.Module | None) -> int:
        return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())

    found = {}
    for name in HEADS:
        spec = PartSlotsSpec.model_validate({"trunk": TINY.model_dump(), "masks": {"kind": name}})
        model = built(spec)
        found[name] = count(model.head)
        if name == "mlp":
            assert count(model.slots.adapter) == 5 * 128 + 129 * 64  # type: ignore[union-attr]
            assert count(model.slots.attention) == 54_208  # type: ignore[union-attr]
            assert count(model.slots.start) == 6 * 64  # type: ignore[union-attr]
            assert count(model.trunk) == 53_552
    expected = {"linear": 320 + 4 * 9 * 64, "conv": 309_312, "mlp": 12_864, "attention": 0}
    assert found == expected | {"product": 129 * 64, "pixels": 4 * 9 * 128 * 6 + 6}


def tensors(output: PartOutput) -> list[Tensor]:
    found = [output.logits_BKhw, output.masks_BKHW]
    return found if output.attention_BKN is None else [*found, output.slots_BKD, output.attention_BKN]


def loss_of(masks: Tensor) -> Tensor:
    """Of masks alone, which is what objectives see, and different for every slot and place."""
    return (masks * torch.randn(masks.shape, generator=seeded(3))).sum() + masks.square().sum()


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor | None]:
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


@pytest.mark.parametrize("start", ["learned", "gaussian"])
@pytest.mark.parametrize("masks", HEADS)
def test_that_outputs_and_gradients_equal_the_plain_loops(masks: str, start: str) -> None:
    spec = small(masks, start=start)
    model = built(spec)
    inputs, noise = batch(spec)
    mine, expected = tensors(model(inputs, noise)), plain_forward(model, spec, inputs.images_B3HW, noise)
    assert len(mine) == len(expected) == (2 if masks == "pixels" else 4)
    for ours, theirs in zip(mine, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    of_mine, of_plain = gradients(loss_of(mine[1]), model), gradients(loss_of(expected[1]), model)
    for name, theirs in of_plain.items():
        assert theirs is not None, name
        torch.testing.assert_close(of_mine[name], theirs, atol=1e-5 + 1e-4 * float(theirs.abs().max()), rtol=0, msg=name)


@pytest.mark.parametrize("start", ["learned", "gaussian"])
@pytest.mark.parametrize("masks", HEADS)
def test_that_the_masks_gradient_reaches_every_trainable_parameter(masks: str, start: str) -> None:
    """But for what is the same for every slot and cancels in a softmax over slots, where the gradient is rounding."""
    cancels = ("slots.attention.norm_slots.bias", "head.positions" if masks == "linear" else "nothing else")
    spec = small(masks, start=start)
    inputs, noise = batch(spec)
    model = built(spec).train()
    for name, found in gradients(loss_of(model(inputs, noise).masks_BKHW), model).items():
        assert found is not None, name
        assert (float(found.abs().max()) > 1e-4) != name.startswith(cancels), (name, found.abs().max())


@pytest.mark.parametrize("masks", WITH_SLOTS)
def test_that_slots_that_are_not_trained_get_no_gradient_and_the_rest_does(masks: str) -> None:
    trained, frozen = built(small(masks)), built(small(masks, train_slots=False))
    assert all(torch.equal(value, frozen.state_dict()[name]) for name, value in trained.state_dict().items())
    fixed = {name for name, parameter in frozen.named_parameters() if not parameter.requires_grad}
    assert fixed == {name for name, _ in trained.named_parameters() if name.startswith(("slots.", "head.positions."))}
    assert {"slots.start.mu", "slots.adapter.linear.weight", "slots.adapter.positions.project.weight"} <= fixed
    output = frozen(*batch(small(masks)))
    reached = gradients(loss_of(output.masks_BKHW), frozen)
    assert {name.split(".")[0] for name in reached} == ({"trunk"} if masks == "attention" else {"trunk", "head"})
    assert all(found is not None and bool(found.any()) for found in reached.values())


def test_that_learned_starts_use_no_noise_and_give_equal_images_equal_masks() -> None:
    model = built(small())
    inputs, noise = batch(small())
    output, other = model(inputs, noise), model(inputs, -noise)
    assert torch.equal(output.masks_BKHW, other.masks_BKHW)
    twice = PartInputs(images_B3HW=inputs.images_B3HW[:1].repeat(2, 1, 1, 1))
    first, second = model(twice, noise).masks_BKHW
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@pytest.mark.parametrize("masks", WITH_SLOTS)
def test_that_permuting_learned_starts_permutes_masks(masks: str) -> None:
    """What a slot is, it is by its start alone."""
    model, order = built(small(masks)), [2, 0, 3, 1]
    inputs, noise = batch(small(masks))
    with torch.no_grad():
        before = model(inputs, noise)
        start = model.get_parameter("slots.start.mu")
        start.copy_(start[order].clone())
        after = model(inputs, noise)
    assert_permuted(before, after, order)


@pytest.mark.parametrize("masks", WITH_SLOTS)
def test_that_permuting_the_noise_of_a_shared_start_permutes_masks(masks: str) -> None:
    """So a slot has no role of its own: the failing control."""
    spec, order = small(masks, start="gaussian"), [2, 0, 3, 1]
    model = built(spec)
    inputs, noise = batch(spec)
    with torch.no_grad():
        before, after = model(inputs, noise), model(inputs, noise[:, order])
    assert_permuted(before, after, order)


def assert_permuted(before: PartOutput, after: PartOutput, order: list[int]) -> None:
    assert float((before.masks_BKHW[:, order] - before.masks_BKHW).abs().max()) > 1e-4
    for mine, theirs in zip(tensors(after), tensors(before), strict=True):
        torch.testing.assert_close(mine, theirs[:, order], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("start", ["learned", "gaussian"])
@pytest.mark.parametrize("masks", HEADS)
def test_that_both_views_in_one_pass_equal_two_passes(masks: str, start: str) -> None:
    spec = small(masks, start=start)
    model = built(spec)
    inputs, noise = batch(spec)
    both = with_second_view(inputs)
    assert both.warped is not None
    joint = model(both, noise)
    alone, second = model(inputs, noise), model(PartInputs(images_B3HW=both.warped.images_B3HW), noise)
    for mine, theirs in zip(tensors(joint), tensors(alone), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(joint.warped_logits_BKhw, second.logits_BKhw, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(joint.warped_logits_BKhw, joint.logits_BKhw, atol=1e-4)


def test_that_masks_are_torchs_bilinear_logits_with_corners_aligned() -> None:
    logits = torch.randn(1, 3, 5, 5, generator=seeded(4)) * 3
    found = masks_at(logits, (9, 9))
    torch.testing.assert_close(found[:, :, ::2, ::2], logits.softmax(dim=1))
    between = (logits[:, :, 0, 1] + logits[:, :, 0, 2]) / 2
    torch.testing.assert_close(found[:, :, 0, 3], between.softmax(dim=1))


def test_that_the_reference_without_slots_has_none() -> None:
    spec = small("pixels")
    model = built(spec)
    inputs, noise = batch(spec)
    output = model(inputs, noise)
    assert model.noise_shape == (4, 1)
    assert model.slots is None
    assert output.attention_BKN is None
    assert torch.equal(output.slots_BKD, torch.zeros(2, 4, 1))
    assert torch.equal(model(inputs, -noise).masks_BKHW, output.masks_BKHW)


def test_that_variants_share_their_initial_weights() -> None:
    base = built(small()).state_dict()
    for masks, start in (("mlp", "gaussian"), ("conv", "learned"), ("attention", "learned"), ("product", "gaussian")):
        variant = built(small(masks, start=start)).state_dict()
        shared = [name for name in base if name.startswith(("trunk.", "slots.adapter.", "slots.attention."))]
        assert all(torch.equal(base[name], variant[name]) for name in shared)
    assert torch.equal(built(small("pixels")).state_dict()["trunk.conv1.weight"], base["trunk.conv1.weight"])
    shared_start = built(small(start="gaussian")).state_dict()
    assert all(torch.equal(base[name], shared_start[name]) for name in base if name.startswith("head."))


@pytest.mark.parametrize("masks", HEADS)
def test_that_one_seed_gives_one_model_and_the_global_state_has_no_part_in_it(masks: str) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = built(small(masks), seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    again, other = built(small(masks), seed=3).state_dict(), built(small(masks), seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].dim() > 1)


@pytest.mark.parametrize("masks", HEADS)
def test_that_bf16_autocast_leaves_every_output_in_fp32_and_close(masks: str) -> None:
    model = built(small(masks))
    inputs, noise = batch(small(masks))
    exact = tensors(model(inputs, noise))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(with_second_view(inputs), noise)
    assert output.warped_logits_BKhw is not None
    assert output.warped_logits_BKhw.dtype == torch.float32
    for mine, theirs in zip(tensors(output), exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=0.1 * max(1.0, float(theirs.detach().abs().max())), rtol=0)
    loss_of(output.masks_BKHW).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)
