"""The terms of part slots against loops and materialised forms, in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from plain_part_terms import area_means, plain_semantic
from torch import Tensor

from models.part_terms import (
    concentration,
    equivariance,
    landmark_error,
    orthonormality,
    part_centres,
    part_contrast,
    part_descriptors,
    semantic_error,
    warped_masks,
    within_part_variance,
)
from models.warps import WARP_NUMBERS, pixel_places, warp_grid


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def soft_masks(images: int, slots: int, side: int, *, seed: int = 0) -> Tensor:
    return torch.softmax(3 * torch.randn(images, slots, side, side, generator=seeded(seed)), dim=1)


def features_of(images: int, channels: int, side: int, *, seed: int = 1) -> Tensor:
    return 4 * torch.randn(images, channels, side, side, generator=seeded(seed)).relu()


def blob(images: int, side: int) -> Tensor:
    """A foreground with hard edges, another one for each image."""
    x, y = pixel_places(side).float().unbind(dim=-1)
    return torch.stack([((x - 0.2 * index) ** 2 + y**2 < 0.5).float() for index in range(images)])


def with_gradient(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_(True) for tensor in tensors]


def assert_same(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *given: Tensor, scale: float = 1.0) -> None:
    """Equal values, and equal gradients of a weighted sum of them, up to 1e-5 of `scale`; no gradient is all zero."""
    results, gradients = [], []
    for form in (ours, plain):
        leaves = with_gradient(*given)
        value = form(*leaves)
        (value * torch.linspace(1, 2, max(1, value.numel())).view(value.shape)).sum().backward()
        results.append(value.detach())
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5 * scale)
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert bool(other.any())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("foreground", [True, False])
@pytest.mark.parametrize(("resolution", "side"), [(8, 8), (17, 8), (32, 8), (128, 8), (128, 14), (5, 8), (8, 16)])
def test_that_the_semantic_error_is_the_plain_form(resolution: int, side: int, foreground: bool) -> None:
    masks, basis = soft_masks(2, 3, 128), torch.rand(3, 16, generator=seeded(3))
    features, shown = features_of(2, 16, side), blob(2, 128) if foreground else None
    energy = float(features.square().mean())
    assert energy > 1
    assert_same(
        lambda masks, basis: semantic_error(masks, basis, features, shown, resolution=resolution).error_B,
        lambda masks, basis: plain_semantic(masks, basis, features, shown, resolution, pool=area_means),
        masks,
        basis,
        scale=energy,
    )


def test_that_features_that_masks_and_basis_explain_cost_nothing() -> None:
    masks, basis, foreground = soft_masks(2, 4, 32), torch.rand(4, 16, generator=seeded(3)), blob(2, 32)
    pooled = F.avg_pool2d(masks, 4)
    for shown in (None, foreground.new_ones(2, 32, 32)):
        explained = torch.einsum("brhw,rc->bchw", pooled, basis)
        error = semantic_error(masks, basis, explained, shown, resolution=8).error_B
        assert float(error.abs().max()) < 1e-6 * float(explained.square().mean())
    on_object = masks * foreground[:, None]  # the parts end where the object does, so that a row of ones is cut like them
    constant = basis.sum(dim=0)[None, :, None, None].expand(2, -1, 8, 8)
    error, energy = semantic_error(
        on_object.sum(dim=1, keepdim=True), basis.sum(dim=0, keepdim=True), constant, foreground, resolution=32
    )
    assert float(error.abs().max()) < 1e-6 * float(constant.square().mean())
    nothing = semantic_error(on_object * 0, basis, constant, foreground, resolution=32)
    torch.testing.assert_close(nothing.error_B, nothing.energy_B)
    torch.testing.assert_close(nothing.energy_B, energy)


def test_that_the_semantic_error_is_in_float32_and_never_holds_a_resized_feature() -> None:
    masks, basis = with_gradient(soft_masks(1, 6, 128), torch.rand(6, 64, generator=seeded(3)))
    largest = []

    def pack(tensor: Tensor) -> Tensor:
        largest.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        error = semantic_error(masks, basis, features_of(1, 64, 8), blob(1, 128), resolution=128).error_B
    assert error.dtype == torch.float32
    assert max(largest) <= 6 * 128 * 128 < 64 * 128 * 128


def test_that_orthonormality_is_the_distance_of_the_gram_matrix_from_the_identity() -> None:
    def plain(basis: Tensor) -> Tensor:
        rows = [row / row.norm() for row in basis]
        return torch.stack([(a @ b - float(i == j)) ** 2 for i, a in enumerate(rows) for j, b in enumerate(rows)]).sum()

    assert_same(orthonormality, plain, torch.rand(4, 9, generator=seeded(0)))
    assert float(orthonormality(3 * torch.eye(3, 5))) < 1e-10
    (dead,) = with_gradient(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    orthonormality(dead).backward()
    assert dead.grad is not None
    assert bool(dead.grad.isfinite().all())


def plain_centres(masks: Tensor) -> Tensor:
    along = torch.tensor([2 * index / masks.shape[-1] - 1 for index in range(masks.shape[-1])])
    share = (masks + 1e-3) / (masks + 1e-3).sum(dim=(2, 3), keepdim=True)
    return torch.stack(((share * along).sum(dim=(2, 3)), (share * along[:, None]).sum(dim=(2, 3))), dim=-1)


def plain_concentration(masks: Tensor) -> Tensor:
    along = torch.tensor([2 * index / masks.shape[-1] - 1 for index in range(masks.shape[-1])])
    share = (masks + 1e-3) / (masks + 1e-3).sum(dim=(2, 3), keepdim=True)
    totals = []
    for image, centres in zip(share, plain_centres(masks), strict=True):
        squares = [
            (part * ((along - centre[0]) ** 2 + (along[:, None] - centre[1]) ** 2)).sum()
            for part, centre in zip(image, centres, strict=True)
        ]
        totals.append(torch.stack(squares).sum())
    return torch.stack(totals)


def test_that_centres_are_means_of_the_pixels_coordinates() -> None:
    assert_same(part_centres, plain_centres, soft_masks(2, 3, 16))
    dot = torch.zeros(1, 1, 16, 16)
    dot[0, 0, 4, 12] = 1e6
    torch.testing.assert_close(part_centres(dot), torch.tensor([[[0.5, -0.5]]]), atol=1e-6, rtol=0)
    empty = part_centres(torch.zeros(1, 1, 16, 16))
    torch.testing.assert_close(empty, torch.full((1, 1, 2), -1 / 16))


def test_that_concentration_is_the_summed_variance_of_places() -> None:
    assert_same(concentration, plain_concentration, soft_masks(2, 3, 16))
    tight, wide = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    tight[0, 0, 8, 8] = 1e6
    assert float(concentration(tight)) < 1e-6
    assert float(concentration(wide)) == pytest.approx(2 * (4 / 256) * (256 - 1) / 12)


def test_that_an_images_concentration_does_not_depend_on_the_batch() -> None:
    """The original divided by the batch twice, so that it did."""
    masks = soft_masks(3, 2, 16)
    torch.testing.assert_close(concentration(masks), torch.cat([concentration(masks[index : index + 1]) for index in range(3)]))


def as_seen(logits: Tensor, side: int) -> Tensor:
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=True)


def kl_by_loops(logits: Tensor, target: Tensor) -> Tensor:
    log_masks = as_seen(logits, target.shape[-1]).log_softmax(dim=1)
    return torch.stack([(t * (t.log() - m)).sum() / t.numel() for t, m in zip(target, log_masks, strict=True)])


def test_that_equivariance_is_the_divergence_from_the_target() -> None:
    logits, target = torch.randn(2, 4, 8, 8, generator=seeded(0)), soft_masks(2, 4, 32)
    assert_same(lambda logits: equivariance(logits, target), lambda logits: kl_by_loops(logits, target), logits)


def test_that_the_landmark_error_is_the_mean_square_between_centres_of_parts() -> None:
    logits, target = torch.randn(2, 4, 8, 8, generator=seeded(0)), soft_masks(2, 4, 32)

    def plain(logits: Tensor) -> Tensor:
        masks = as_seen(logits, 32).softmax(dim=1)
        return ((plain_centres(masks)[:, 1:] - plain_centres(target)[:, 1:]) ** 2).mean(dim=(1, 2))

    assert_same(lambda logits: landmark_error(logits, target), plain, logits)


def test_that_the_target_has_no_gradient_and_is_uniform_outside_the_frame() -> None:
    (logits,) = with_gradient(torch.randn(1, 4, 8, 8, generator=seeded(0)))
    far = (pixel_places(32).float() + torch.tensor([0.5, 0.0]))[None]
    target = warped_masks(logits, far)
    assert not target.requires_grad
    outside = far[0, 0, :, 0] > 1 + 1 / 32
    assert int(outside.sum()) == 7
    assert torch.equal(target[..., outside], torch.full((1, 4, 32, 7), 0.25))
    within = as_seen(logits.detach(), 32).softmax(dim=1)
    torch.testing.assert_close(target[..., :24], within[..., 8:])


def test_that_the_identity_warp_costs_nothing() -> None:
    logits = torch.randn(2, 4, 17, 17, generator=seeded(0))
    target = warped_masks(logits, warp_grid(torch.full((2, WARP_NUMBERS), 0.5), 128))
    assert float(equivariance(logits, target).abs().max()) < 1e-7
    assert float(landmark_error(logits, target).max()) < 1e-10
    assert float(equivariance(logits.flip(3), target).min()) > 1e-2


def test_that_a_model_that_is_equivariant_under_a_translation_costs_nothing() -> None:
    """Logits that are linear in the colours of their own pixel alone, as fine as the image: 0, so uniform, where it is black."""
    images, colours = torch.rand(1, 3, 32, 32, generator=seeded(0)), torch.randn(4, 3, generator=seeded(1)) * 3
    moved = torch.zeros_like(images)
    moved[..., 5:, :-3] = images[..., :-5, 3:]  # down by 5, left by 3
    logits, moved_logits = (torch.einsum("kc,bchw->bkhw", colours, view) for view in (images, moved))
    grid = (pixel_places(32).float() + torch.tensor([3.0, -5.0]) * 2 / 32)[None]
    target = warped_masks(logits, grid)
    assert float(equivariance(moved_logits, target)) == pytest.approx(0, abs=1e-7)
    assert float(landmark_error(moved_logits, target)) == pytest.approx(0, abs=1e-10)
    assert float(equivariance(logits, target)) > 0.1


def plain_variance(masks: Tensor, features: Tensor) -> Tensor:
    step, totals = masks.shape[-1] // features.shape[-1], []
    for image, found in zip(F.avg_pool2d(masks, step), features, strict=True):
        summed, mass = torch.zeros(()), torch.zeros(())
        for part in image:
            centre = (part * found).sum(dim=(1, 2)) / part.sum()
            summed = summed + (part * ((found - centre[:, None, None]) ** 2).sum(dim=0)).sum()
            mass = mass + part.sum()
        totals.append(summed / mass)
    return torch.stack(totals)


@pytest.mark.parametrize("side", [8, 16])
def test_that_the_variance_within_parts_is_that_of_loops(side: int) -> None:
    features = features_of(2, 5, side)
    assert_same(
        lambda masks: within_part_variance(masks, features), lambda masks: plain_variance(masks, features), soft_masks(2, 3, 16)
    )


def test_that_parts_of_one_colour_have_no_variance_and_parts_that_cover_nothing_neither() -> None:
    parts = torch.zeros(1, 2, 8, 8)
    parts[0, 0, :, :4], parts[0, 1, :, 4:] = 1, 1
    colours = torch.tensor([[0.9, 0.1, 0.4], [0.2, 0.2, 1.0]])
    painted = torch.einsum("bphw,pc->bchw", parts, colours)
    assert float(within_part_variance(parts, painted)) == pytest.approx(0, abs=1e-6)
    assert float(within_part_variance(parts.flip(1)[:, :1] * 0 + 1, painted)) > 0.01
    (nothing,) = with_gradient(torch.zeros(1, 2, 8, 8))
    value = within_part_variance(nothing, painted)
    value.sum().backward()
    assert float(value.detach()) == 0
    assert nothing.grad is not None
    assert bool(nothing.grad.isfinite().all())


def test_that_descriptors_are_unit_means_of_a_parts_features() -> None:
    features = features_of(2, 5, 8)

    def plain(masks: Tensor) -> Tensor:
        pooled = F.avg_pool2d(masks, 2)
        means = [
            [(part * found).sum(dim=(1, 2)) / part.sum() for part in image] for image, found in zip(pooled, features, strict=True)
        ]
        return torch.stack([torch.stack([mean / mean.norm() for mean in row]) for row in means])

    assert_same(lambda masks: part_descriptors(masks, features), plain, soft_masks(2, 3, 16))


def plain_contrast(descriptors: Tensor, temperature: float) -> Tensor:
    images, parts = descriptors.shape[:2]
    terms = []
    for i in range(images):
        for p in range(parts):
            rivals = [
                torch.exp(descriptors[i, p] @ descriptors[j, q] / temperature)
                for j in range(images)
                for q in range(parts)
                if q != p
            ]
            for j in range(images):
                if j != i:
                    alike = torch.exp(descriptors[i, p] @ descriptors[j, p] / temperature)
                    terms.append(-torch.log(alike / (alike + torch.stack(rivals).sum())))
    return torch.stack(terms).mean()


def test_that_contrast_is_that_of_loops_over_pairs() -> None:
    descriptors = F.normalize(torch.randn(3, 4, 6, generator=seeded(0)), dim=2)
    assert_same(lambda given: part_contrast(given, temperature=0.19), lambda given: plain_contrast(given, 0.19), descriptors)


def test_that_contrast_is_small_when_parts_are_alike_across_images_only() -> None:
    same = torch.eye(3)[None].expand(4, -1, -1)
    expected = math.log1p(4 * 2 * math.exp(-1 / 0.1))
    assert float(part_contrast(same, temperature=0.1)) == pytest.approx(expected, rel=1e-3)
    turned = torch.stack([torch.eye(3).roll(index, dims=0) for index in range(3)])
    assert float(part_contrast(turned, temperature=0.1)) > 5


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 1, 4), (1, 1, 4)])
def test_that_without_pairs_or_rivals_contrast_is_zero_with_a_finite_gradient(shape: tuple[int, int, int]) -> None:
    (descriptors,) = with_gradient(F.normalize(torch.randn(shape, generator=seeded(0)), dim=2))
    value = part_contrast(descriptors, temperature=0.19)
    value.backward()
    assert float(value.detach()) == 0
    assert descriptors.grad is not None
    assert not bool(descriptors.grad.any())
