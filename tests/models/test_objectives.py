"""Objectives against torch's own functions, the whole covariance matrix, and hand-set values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from plain import plain_cosine, plain_covariance
from torch import Tensor, nn

from models.build import build_objective
from models.objectives import Cosine, Covariance, Objective, covariance_terms
from models.slot_model import SlotOutput
from models.spec import CosineObjective, CovarianceObjective, ObjectiveSpec, ProjectionSpec, ReconstructionObjective

IDENTITY = ProjectionSpec(kind="identity", size=16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(spec: ObjectiveSpec, *, slot_size: int = 16, num_slots: int = 5) -> Objective:
    return build_objective(spec, slot_size=slot_size, num_slots=num_slots, generator=seeded(0))


def slots_of(images: int = 4, slots: int = 5, size: int = 16) -> Tensor:
    return torch.randn(images, slots, size, generator=seeded(1)).requires_grad_()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_that_the_projection_head_has_the_sheets_parameter_count() -> None:
    assert parameters(built(CovarianceObjective(), slot_size=64)) == 2_169_856
    batchnorm = CovarianceObjective(projection=ProjectionSpec(kind="mlp", size=1024, norm="batchnorm"))
    assert parameters(built(batchnorm, slot_size=64)) == 2_169_856 - 4 * 1024 + 4 * 5
    assert parameters(built(CosineObjective(projection=IDENTITY))) == 0


@pytest.mark.parametrize(
    ("spec", "pools"),
    [
        (ReconstructionObjective(), False),
        (CovarianceObjective(), True),
        (CovarianceObjective(projection=IDENTITY), True),
        (CosineObjective(projection=IDENTITY), False),
        (CosineObjective(projection=ProjectionSpec(kind="mlp", size=8, norm="layernorm")), False),
        (CosineObjective(projection=ProjectionSpec(kind="mlp", size=8, norm="batchnorm")), True),
    ],
)
def test_that_an_objective_pools_exactly_when_its_mean_over_images_is_another_loss(spec: ObjectiveSpec, pools: bool) -> None:
    objective, slots = built(spec), slots_of(images=6)
    whole = objective.slot_terms(slots.detach(), step=1).total
    halves = torch.stack([objective.slot_terms(half, step=1).total for half in slots.detach().chunk(2)]).mean()
    assert objective.pools_batch is pools
    assert (abs(float((whole - halves).detach())) > 1e-6 * abs(float(whole.detach()))) is pools


def test_that_the_head_is_drawn_from_its_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = built(CovarianceObjective()).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    again = built(CovarianceObjective()).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_that_an_identity_head_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"projection.size 16 .* slot_size 12"):
        built(CosineObjective(projection=IDENTITY), slot_size=12)


def test_that_reconstruction_is_mse_per_image_and_adds_nothing() -> None:
    images, guess = torch.rand(3, 3, 8, 8, generator=seeded(1)), torch.rand(3, 3, 8, 8, generator=seeded(2))
    objective = built(ReconstructionObjective())
    output = SlotOutput(guess, torch.zeros(3, 2, 8, 8), torch.zeros(3, 2, 4), torch.zeros(3, 2, 64))
    errors = objective.reconstruction_B(output, images)
    assert errors.shape == (3,)
    torch.testing.assert_close(errors.mean(), F.mse_loss(guess, images))
    torch.testing.assert_close(errors[1], F.mse_loss(guess[1], images[1]))
    terms = objective.slot_terms(slots_of(), step=1)
    assert float(terms.total) == 0
    assert terms.parts == {}


@pytest.mark.parametrize(("rows", "features"), [(20, 64), (64, 20), (32, 32), (2, 9), (9, 2)])
def test_that_the_gram_form_equals_the_whole_covariance_matrix_with_gradients(rows: int, features: int) -> None:
    pooled = torch.randn(rows, features, generator=seeded(rows), dtype=torch.float64).mul(3).add(5).requires_grad_()
    found, expected = covariance_terms(pooled), plain_covariance(pooled)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    mine, theirs = (torch.autograd.grad(terms[0] + terms[1].sum(), pooled)[0] for terms in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("rows", "features"), [(8, 100), (100, 8)])
def test_that_the_larger_of_the_two_gram_matrices_is_never_built(rows: int, features: int) -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        covariance_terms(torch.ones(rows, features, requires_grad=True))
    assert max(kept) == rows * features
    assert 8 * 8 in kept


def test_that_the_gram_form_in_fp32_is_close_at_the_size_of_table_one() -> None:
    pooled = torch.randn(320, 1024, generator=seeded(0)) @ torch.diag(torch.linspace(0.1, 2, 1024))
    mine, _ = covariance_terms(pooled)
    theirs, _ = plain_covariance(pooled.double())
    assert float(mine) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize(("divide_by", "divisor"), [("features", 16), ("features_squared", 256)])
def test_that_covloss_is_the_weighted_sum_of_its_parts(divide_by: str, divisor: int) -> None:
    spec = CovarianceObjective.model_validate(
        {"weight": 0.5, "var_weight": 3.0, "cov_weight": 7.0, "std_target": 1.5, "divide_by": divide_by, "projection": IDENTITY}
    )
    slots = slots_of()
    off_diagonal, variance = plain_covariance(slots)
    hinge = torch.relu(1.5 - torch.sqrt(variance + 1e-4)).mean()
    terms = built(spec).slot_terms(slots, step=1)
    torch.testing.assert_close(terms.parts["covariance"], off_diagonal / divisor)
    torch.testing.assert_close(terms.parts["variance"], hinge)
    torch.testing.assert_close(terms.total, 0.5 * (3 * hinge + 7 * off_diagonal / divisor))


def test_that_covloss_on_halves_of_a_batch_is_the_other_loss_that_the_sheet_measured() -> None:
    slots = torch.randn(64, 5, 64, generator=seeded(0))
    spec = CovarianceObjective(divide_by="features", projection=ProjectionSpec(kind="identity", size=64))
    objective = built(spec, slot_size=64)
    whole = float(objective.slot_terms(slots, step=1).total)
    halves = [float(objective.slot_terms(half, step=1).total) for half in slots.chunk(2)]
    assert whole == pytest.approx(0.1985, abs=0.02)  # their draw is not known; one sd of the draw is 0.006
    assert sum(halves) / 2 == pytest.approx(0.3922, abs=0.04)


def test_that_a_single_slot_has_no_covariance_and_says_so() -> None:
    with pytest.raises(ValueError, match="at least two slots"):
        built(CovarianceObjective(projection=IDENTITY)).slot_terms(slots_of(1, 1), step=1)


def test_that_the_mlp_head_is_linear_norm_relu_twice_and_linear() -> None:
    objective = built(CovarianceObjective(projection=ProjectionSpec(kind="mlp", size=24, norm="layernorm")))
    assert isinstance(objective, Covariance)
    kinds = [type(layer).__name__ for layer in objective.head.layers]
    assert kinds == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    assert objective.head.layers[1].eps == 1e-5


def test_that_a_batchnorm_head_takes_slots_as_channels_and_the_batchs_own_statistics() -> None:
    objective = built(CosineObjective(projection=ProjectionSpec(kind="mlp", size=24, norm="batchnorm")))
    assert isinstance(objective, Cosine)
    slots = slots_of()
    first, norm = objective.head.layers[0], objective.head.layers[1]
    expected = nn.BatchNorm1d(5).train()(first(slots))
    torch.testing.assert_close(norm(first(slots)), expected)
    torch.testing.assert_close(objective.eval().head.layers[1](first(slots)), expected)


@pytest.mark.parametrize("margin", [0.2, 0.0, -0.5])
def test_that_the_cosine_loss_equals_torchs_on_all_pairs_with_gradients(margin: float) -> None:
    slots = slots_of()
    found = built(CosineObjective(margin=margin, weight=0.25, projection=IDENTITY)).slot_terms(slots, step=1)
    expected = plain_cosine(slots, margin)
    torch.testing.assert_close(found.parts["cosine"], expected)
    torch.testing.assert_close(found.total, 0.25 * expected)
    mine, theirs = torch.autograd.grad(found.total, slots)[0], torch.autograd.grad(0.25 * expected, slots)[0]
    torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-5)


def test_that_identical_slots_cost_one_minus_the_margin_per_different_pair() -> None:
    slots = torch.ones(2, 5, 16)
    terms = built(CosineObjective(projection=IDENTITY)).slot_terms(slots, step=1)
    assert float(terms.parts["cosine"]) == pytest.approx(0.8 * 20 / 25)


def test_that_the_cosine_weight_rises_linearly_over_the_warm_up() -> None:
    objective, slots = built(CosineObjective(warmup_steps=4, projection=IDENTITY)), torch.ones(1, 5, 16)
    totals = [float(objective.slot_terms(slots, step=step).total) for step in (1, 2, 4, 9)]
    assert totals == pytest.approx([0.25 * totals[2], 0.5 * totals[2], totals[2], totals[2]])


def test_that_a_slot_of_zeros_keeps_the_cosine_gradient_finite() -> None:
    slots = torch.zeros(1, 5, 16, requires_grad=True)
    built(CosineObjective(projection=IDENTITY)).slot_terms(slots, step=1).total.backward()
    assert slots.grad is not None
    assert bool(slots.grad.isfinite().all())


@pytest.mark.parametrize(
    "spec",
    [CovarianceObjective(std_target=1.0, var_weight=1.0), CosineObjective(projection=ProjectionSpec(kind="mlp", size=32))],
    ids=["covariance", "cosine"],
)
def test_that_a_gradient_reaches_the_slots_and_every_parameter_of_the_head(spec: ObjectiveSpec) -> None:
    objective, slots = built(spec), slots_of()
    objective.slot_terms(slots, step=1).total.backward()
    assert slots.grad is not None
    assert float(slots.grad.abs().sum()) > 0
    biasless = [name for name, p in objective.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert biasless == []


@pytest.mark.parametrize(
    "spec",
    [CovarianceObjective(std_target=1.0, var_weight=1.0), CosineObjective(projection=IDENTITY)],
    ids=["covariance", "cosine"],
)
def test_that_bf16_autocast_changes_no_term(spec: ObjectiveSpec) -> None:
    objective, slots = built(spec), slots_of()
    outside = objective.slot_terms(slots, step=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective.slot_terms(slots, step=1)
    assert torch.equal(outside.total, inside.total)
    assert inside.total.dtype == torch.float32
    assert all(torch.equal(outside.parts[name], inside.parts[name]) for name in outside.parts)
