"""The objective of part slots: what it adds up, what each term needs and reaches, and what is pooled over the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_part_terms import plain_semantic
from torch import Tensor

from models.feature_net import build_feature_net
from models.part_objective import LAYER_WEIGHTS, PartsLoss, build_parts_objective, feature_layers
from models.part_terms import part_contrast, part_descriptors, within_part_variance
from models.part_types import PartInputs, PartOutput, Warped
from models.spec_parts import FeatureNetSpec, PartsObjective
from models.warps import WARP_NUMBERS, pixel_places, warp_grid, warped

TINY = FeatureNetSpec(name="tiny", weights="random")
SIDE, PARTS = 64, 3
BY_IMAGE = (
    *("semantic", "concentration", "equivariance", "landmarks", "orthonormality", "compactness", "colour_variance"),
    "background",
)
TERMS = (*BY_IMAGE, "contrast")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(**settings: Any) -> PartsLoss:
    spec = PartsObjective.model_validate({"features": TINY, "semantic": 0.0, "resolution": 16, **settings})
    return build_parts_objective(spec, num_parts=PARTS, generator=seeded(9))


def inputs(images: int = 2, layers: tuple[Any, ...] = ("relu3_2", "relu5_4")) -> PartInputs:
    pictures = torch.rand(images, 3, SIDE, SIDE, generator=seeded(1))
    grid = warp_grid(torch.rand(images, WARP_NUMBERS, generator=seeded(2)), SIDE)
    foreground = torch.zeros(images, SIDE, SIDE)
    foreground[:, 8:50, 8:50] = 1
    return PartInputs(
        images_B3HW=pictures,
        foreground_BHW=foreground,
        features=build_feature_net(TINY, layers=layers, state=None)(pictures) if layers else None,
        warped=Warped(warped(pictures, grid), grid),
    )


def told(loss: PartsLoss, images: int = 2) -> PartInputs:
    """What this objective is given, and no features that it did not ask for."""
    return inputs(images, loss.layers)


def logits(images: int = 2, seed: int = 3) -> Tensor:
    return 2 * torch.randn(images, PARTS + 1, 9, 9, generator=seeded(seed))


def output_of(maps: Tensor, warped_maps: Tensor | None = None) -> PartOutput:
    masks = F.interpolate(maps, size=(SIDE, SIDE), mode="bilinear", align_corners=True).softmax(dim=1)
    return PartOutput(
        logits_BKhw=maps, masks_BKHW=masks, slots_BKD=torch.ones(len(maps), PARTS + 1, 8), warped_logits_BKhw=warped_maps
    )


def output(images: int = 2) -> PartOutput:
    return output_of(logits(images), logits(images, seed=4))


def terms_of(loss: PartsLoss, given: PartOutput, told_inputs: PartInputs) -> dict[str, Tensor]:
    terms = loss.image_terms(given, told_inputs)
    assert terms is not None
    return {**terms.parts, "total": terms.total_B}


def whole_loss(loss: PartsLoss, given: PartOutput, told_inputs: PartInputs) -> Tensor:
    """As the training loop adds it up."""
    terms = loss.image_terms(given, told_inputs)
    pooled = loss.slot_terms(loss.pooled_rows(given, told_inputs), step=1)
    return pooled.total if terms is None else terms.total_B.mean() + pooled.total


def test_that_every_weight_counts_and_the_total_is_their_sum() -> None:
    weights = dict(zip(BY_IMAGE, (0.5, 2.0, 3.0, 4.0, 0.25, 1.5, 6.0, 0.75), strict=True))
    loss = objective(**weights)
    found = terms_of(loss, output(), told(loss))
    assert list(found) == ["semantic", "semantic_energy", *BY_IMAGE[1:], "total"]
    assert all(part.shape == (2,) and bool((part > 0).all()) for part in found.values())
    torch.testing.assert_close(found["total"], sum(weights[name] * found[name] for name in BY_IMAGE))
    for name in BY_IMAGE:
        single = objective(**{name: 2.0, "semantic": 1.0 if name == "orthonormality" else 2.0 * (name == "semantic")})
        alone = terms_of(single, output(), told(single))
        torch.testing.assert_close(alone[name], found[name])
        torch.testing.assert_close(alone["total"], 2 * found[name] + (found["semantic"] if name == "orthonormality" else 0))


@pytest.mark.parametrize("name", TERMS)
def test_that_every_terms_gradient_reaches_the_masks_or_the_basis(name: str) -> None:
    loss = objective(**{name: 1.0})
    maps, warped_maps = logits().requires_grad_(True), logits(seed=4).requires_grad_(True)
    whole_loss(loss, output_of(maps, warped_maps), told(loss)).backward()
    reached = {
        "maps": maps.grad is not None and bool(maps.grad.any()),
        "warped": warped_maps.grad is not None and bool(warped_maps.grad.any()),
        "basis": loss.basis_RC is not None and loss.basis_RC.grad is not None and bool(loss.basis_RC.grad.any()),
    }
    assert reached == {
        "maps": name in ("semantic", "concentration", "compactness", "contrast", "colour_variance", "background"),
        "warped": name in ("equivariance", "landmarks"),
        "basis": name in ("semantic", "orthonormality"),
    }
    if loss.basis_RC is not None and loss.basis_RC.grad is not None:
        assert all(bool(row.any()) for row in loss.basis_RC.grad)


@pytest.mark.parametrize("name", TERMS)
def test_that_a_weight_of_zero_computes_and_needs_nothing(name: str) -> None:
    loss = objective(**{other: 1.0 for other in TERMS if other != name})
    assert name not in terms_of(loss, output(), told(loss))
    alone = objective(**{name: 1.0})
    assert (alone.basis_RC is None) == (name not in ("semantic", "orthonormality"))
    assert len(alone.layers) == {"semantic": 1, "compactness": 2, "contrast": 2}.get(name, 0)
    assert alone.pools_batch == (name == "contrast")
    bare = PartInputs(images_B3HW=inputs().images_B3HW)
    if name in ("concentration", "orthonormality"):
        whole_loss(alone, output_of(logits()), bare)
    else:
        with pytest.raises(ValueError, match=r"the objective needs the features|needs the foreground|need a second view"):
            whole_loss(alone, output_of(logits()), bare)


def test_that_images_are_not_reconstructed_and_contrast_alone_has_no_terms_of_images() -> None:
    loss = objective(contrast=1.0)
    assert loss.reconstruction_B(output(), inputs().images_B3HW).tolist() == [0, 0]
    assert loss.image_terms(output(), told(loss)) is None


@pytest.mark.parametrize("foreground", ["truth", "none"])
@pytest.mark.parametrize("background_row", [True, False])
def test_that_the_semantic_term_takes_the_last_layer_and_the_rows_and_foreground_of_the_spec(
    foreground: str, background_row: bool
) -> None:
    loss = objective(semantic=1.0, foreground=foreground, background_row=background_row)
    loss.layers = ("relu3_2", "relu5_4")
    given, told_inputs = output(), told(loss)
    assert loss.basis_RC is not None
    assert loss.basis_RC.shape == (PARTS + background_row, TINY.channels["relu5_4"])
    assert bool((loss.basis_RC > 0).all())
    with torch.no_grad():
        loss.basis_RC -= 0.5  # some below 0, which count as 0
    assert told_inputs.features is not None
    expected = plain_semantic(
        given.masks_BKHW[:, 0 if background_row else 1 :],
        loss.basis_RC.detach().clamp(min=0),
        told_inputs.features[-1],
        told_inputs.foreground_BHW if foreground == "truth" else None,
        16,
    )
    torch.testing.assert_close(terms_of(loss, given, told_inputs)["semantic"].detach(), expected, rtol=1e-5, atol=1e-6)


def among_parts(given: PartOutput, told_inputs: PartInputs) -> Tensor:
    """The parts' masks, that of the background left out before the softmax, on the object."""
    assert told_inputs.foreground_BHW is not None
    resized = F.interpolate(given.logits_BKhw, size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    return resized[:, 1:].softmax(dim=1) * told_inputs.foreground_BHW[:, None]


def test_that_parts_cannot_leave_the_object_to_the_background() -> None:
    """Choudhury's terms (arXiv 2111.06349) are about parts that share the object: the background taking all saves nothing."""
    loss = objective(compactness=1.0, colour_variance=1.0, contrast=1.0)
    told_inputs = told(loss)
    maps = logits()
    all_background = maps.clone()
    all_background[:, 0] += 50
    one, other = (whole_loss(loss, output_of(given), told_inputs) for given in (maps, all_background))
    torch.testing.assert_close(one, other)


def test_that_the_background_learns_where_it_is_from_the_foreground() -> None:
    loss = objective(background=1.0)
    told_inputs, maps = told(loss), logits().requires_grad_(True)
    assert told_inputs.foreground_BHW is not None
    given = output_of(maps)
    expected = F.binary_cross_entropy(given.masks_BKHW[:, 0], 1 - told_inputs.foreground_BHW, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(terms_of(loss, given, told_inputs)["background"], expected)


def test_that_the_background_is_no_part() -> None:
    """Choudhury's terms and concentration see slots 1 to P, on the object."""
    loss = objective(compactness=1.0, colour_variance=1.0)
    given, told_inputs = output(), told(loss)
    assert told_inputs.features is not None
    seen = among_parts(given, told_inputs)
    found = terms_of(loss, given, told_inputs)
    torch.testing.assert_close(found["colour_variance"], within_part_variance(seen, told_inputs.images_B3HW))
    third, fifth = (within_part_variance(seen, layer) for layer in told_inputs.features)
    torch.testing.assert_close(found["compactness"], 0.33 * third + fifth)


def test_that_an_images_terms_do_not_depend_on_the_others() -> None:
    loss = objective(**{name: 1.0 for name in BY_IMAGE})
    given, told_inputs = output(3), told(loss, 3)
    whole = terms_of(loss, given, told_inputs)

    def rows(part: slice) -> dict[str, Tensor]:
        cut = [None if value is None else value[part] for value in given]
        return terms_of(loss, PartOutput(*cut), told_inputs.rows(part))  # type: ignore[arg-type]

    one, two = rows(slice(0, 1)), rows(slice(1, 3))
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat((one[name], two[name])), value)


def test_that_the_second_view_is_held_against_the_warped_first_one() -> None:
    """A model whose logits are colours, and images moved by whole pixels: its second view is what the objective expects."""
    loss = objective(equivariance=1.0, landmarks=1.0)
    images = torch.rand(1, 3, SIDE, SIDE, generator=seeded(1))
    images[:, :, :6] = images[:, :, -6:] = images[..., :6] = images[..., -6:] = 0
    moved = torch.zeros_like(images)
    moved[..., 5:, :-3] = images[..., :-5, 3:]
    grid = (pixel_places(SIDE).float() + torch.tensor([3.0, -5.0]) * 2 / SIDE)[None]
    maps, moved_maps = (torch.einsum("kc,bchw->bkhw", 5 * torch.eye(PARTS + 1, 3), view) for view in (images, moved))
    told_inputs = PartInputs(images_B3HW=images, warped=Warped(moved, grid))
    right, wrong = (terms_of(loss, output_of(maps, view), told_inputs) for view in (moved_maps, maps))
    assert float(right["total"]) == pytest.approx(0, abs=1e-6)
    assert float(wrong["equivariance"]) > 0.1
    assert float(wrong["landmarks"]) > 1e-4


def test_that_contrast_of_a_batch_in_two_halves_is_that_of_the_whole_when_pooled() -> None:
    loss = objective(contrast=2.0)
    told_inputs, gradients, values = told(loss, 4), [], []
    for cuts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        maps = logits(4).requires_grad_(True)
        pooled = torch.cat([loss.pooled_rows(output_of(maps[cut]), told_inputs.rows(cut)) for cut in cuts])
        assert pooled.shape == (4, PARTS, 16 + 64)
        terms = loss.slot_terms(pooled, step=1)
        terms.total.backward()
        values.append(terms.total.detach())
        gradients.append(maps.grad)
        torch.testing.assert_close(terms.total, 2 * terms.parts["contrast"])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    halves = [
        loss.slot_terms(loss.pooled_rows(output_of(logits(4)[cut]), told_inputs.rows(cut)), step=1).total
        for cut in (slice(0, 2), slice(2, 4))
    ]
    assert abs(float(torch.stack(halves).mean() - values[0])) > 0.1  # which is why it is pooled


def test_that_contrast_weighs_its_layers_on_the_object() -> None:
    loss = objective(contrast=1.0, temperature=0.3)
    given, told_inputs = output(), told(loss)
    assert told_inputs.features is not None
    seen = among_parts(given, told_inputs)
    third, fifth = (part_contrast(part_descriptors(seen, layer), temperature=0.3) for layer in told_inputs.features)
    found = loss.slot_terms(loss.pooled_rows(given, told_inputs), step=1).total
    torch.testing.assert_close(found, 0.33 * third + fifth)
    assert list(LAYER_WEIGHTS) == list(loss.layers)


def test_that_without_contrast_the_slots_are_pooled_and_count_nothing() -> None:
    loss = objective(semantic=1.0)
    pooled = loss.pooled_rows(output(), told(loss))
    assert torch.equal(pooled, output().slots_BKD)
    terms = loss.slot_terms(pooled, step=1)
    assert float(terms.total) == 0
    assert terms.parts == {}


@pytest.mark.parametrize("precise", ["semantic", "compactness", "equivariance", "contrast"])
def test_that_terms_compute_in_fp32_under_autocast(precise: str) -> None:
    loss = objective(**{precise: 1.0})
    full = whole_loss(loss, output(), told(loss))
    given, told_inputs = output(), told(loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whole_loss(loss, given, told_inputs), full)


def test_that_features_of_another_number_of_layers_are_refused() -> None:
    loss = objective(contrast=1.0)
    with pytest.raises(ValueError, match=r"needs the features of relu3_2, relu5_4, given 1 layers"):
        loss.pooled_rows(output(), inputs(layers=("relu5_4",)))


def test_that_layers_are_those_that_terms_with_a_weight_look_at() -> None:
    assert feature_layers(PartsObjective()) == ("relu5_4",)
    assert feature_layers(PartsObjective(semantic=0, concentration=1)) == ()
    assert feature_layers(PartsObjective(semantic=0, contrast=1)) == ("relu3_2", "relu5_4")


def test_that_the_basis_is_the_absolute_of_normals_and_the_only_parameter_and_drawn_from_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    loss, again = objective(semantic=1.0), objective(semantic=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [name for name, _ in loss.named_parameters()] == ["basis_RC"]
    assert torch.equal(loss.state_dict()["basis_RC"], torch.randn(PARTS, 64, generator=seeded(9)).abs())
    again.load_state_dict(loss.state_dict())
    untouched = seeded(9)
    build_parts_objective(PartsObjective(semantic=0, contrast=1), num_parts=PARTS, generator=untouched)
    assert torch.equal(untouched.get_state(), seeded(9).get_state())


def test_that_shapes_from_the_features_to_the_loss_are_the_sheets_rows_20_to_26() -> None:
    spec = PartsObjective(features=FeatureNetSpec(weights="random"), foreground="none", resolution=128)
    loss = build_parts_objective(spec, num_parts=5, generator=seeded(0))
    pictures = torch.rand(1, 3, 128, 128, generator=seeded(1))
    (features,) = build_feature_net(spec.features, layers=loss.layers, state=None)(pictures)
    assert features.shape == (1, 512, 8, 8)  # row 20
    upsampled = F.interpolate(features, size=(128, 128), mode="bilinear", align_corners=True)
    assert upsampled.shape == (1, 512, 128, 128)  # row 21
    maps = torch.randn(1, 6, 8, 8, generator=seeded(2))
    masks = F.interpolate(maps, size=(128, 128), mode="bilinear", align_corners=True).softmax(dim=1)
    assert masks.shape == (1, 6, 128, 128)  # row 22
    parts = masks[:, 1:]
    assert parts.shape == (1, 5, 128, 128)  # row 23
    pixels = parts[0].flatten(1).T
    assert pixels.shape == (16384, 5)  # row 24
    assert loss.basis_RC is not None
    prediction = pixels @ loss.basis_RC.detach().relu()
    assert prediction.shape == (16384, 512)  # row 25
    expected = F.mse_loss(prediction, upsampled[0].flatten(1).T)
    assert expected.shape == ()  # row 26
    given = PartOutput(logits_BKhw=maps, masks_BKHW=masks, slots_BKD=torch.zeros(1, 6, 64))
    found = terms_of(loss, given, PartInputs(images_B3HW=pictures, features=(features,)))
    torch.testing.assert_close(found["total"].detach(), expected[None], rtol=1e-5, atol=0)
