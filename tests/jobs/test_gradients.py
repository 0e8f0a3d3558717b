"""A step's gradient is that of the global batch, whatever the number of ranks and micro-batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from running import MODEL, OBJECTIVES, in_group
from torch import Tensor

from jobs.accumulation import micro_batches
from jobs.batches import Batch
from jobs.data.sampler import share
from jobs.distributed import Group
from jobs.gradients import step_gradients
from jobs.randomness import generator, standard_normal
from jobs.spec import TrainSpec
from jobs.state import TrainState, build_state, loss_names, loss_parts
from models.part_types import PartInputs, PartOutput, Warped
from models.slot_model import ConditionedInputs, Inputs
from models.spec import ObjectiveSpec
from models.warps import WARP_NUMBERS, warp_grid

TOTALS = (8, 7, 3)
"""Global batches: even, uneven, and fewer images than four ranks."""
STEP = 5
ROUNDING = 2e-6
"""Relative rounding error of a float32 gradient that is summed in another order; a wrong one is off by 1e-3 and more."""

LANGUAGE = {
    "kind": "language_slots", "resolution": 16, "tokens": 4, "feature_size": 10, "text_size": 7, "num_slots": 4, "slot_size": 8,
    "num_iterations": 2, "slot_mlp_size": 16, "text2slot": {"kind": "mlp", "hidden_sizes": [5]},
    "decoder": {"initial_resolution": 4, "channels": [8, 8]},
}  # fmt: skip
WORDS = {"kind": "transformer", "text_tokens": 5, "hidden": 6, "heads": 2, "layers": 1, "feedforward": 8}
GATED = {
    "kind": "dinosaur", "tokens": 4, "feature_size": 10, "num_slots": 4, "slot_size": 8, "num_iterations": 2, "gate": {},
    "decoder": {"kind": "patch_mlp", "hidden": 12},
}  # fmt: skip
VIDEO = {
    "kind": "video_slots", "resolution": 32, "num_slots": 4, "slot_size": 8, "num_iterations": 2, "slot_mlp_size": 9,
    "encoder_channels": 6, "encoder_layers": 2, "decoder": {"channels": 6, "initial_resolution": 16},
    "recurrence": {"detach_every": 2, "num_iterations": 1, "predictor": {"kind": "mlp", "hidden": 7}},
}  # fmt: skip
BETWEEN_FRAMES = {"kind": "video", "future_masks": 0.7, "future_slots": 0.4, "future_channels": 4}
PERCEPTUAL = {"kind": "video", "perceptual": 0.5, "lpips": {"weights": "random"}}
FRAMES = 3
PARTS = {
    "kind": "part_slots", "resolution": 32, "num_parts": 3, "slot_size": 8, "slot_mlp_size": 9, "num_iterations": 2,
    "start": "gaussian", "trunk": {"name": "tiny", "weights": "random"}, "masks": {"kind": "mlp", "layers": 2, "hidden": 8},
}  # fmt: skip
WHAT_A_PART_IS = {
    "kind": "parts", "features": {"name": "tiny", "weights": "random"}, "resolution": 8, "concentration": 0.1,
    "equivariance": 0.2, "landmarks": 0.3, "orthonormality": 0.01, "compactness": 0.1, "contrast": 3.0, "colour_variance": 0.1,
}  # fmt: skip
SEMANTIC = {"kind": "semantic", "contrastive": 0.7, "temperature": 0.1, "text": 1.5, "names": 0.4, "entropy": 0.3, "hidden": 6}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: (MODEL, objective) for name, objective in OBJECTIVES.items()},
    "semantic": (LANGUAGE | {"text2slot": WORDS}, SEMANTIC),
    "semantic, not pooled": (LANGUAGE, SEMANTIC | {"contrastive": 0.0}),
    "video": (VIDEO, BETWEEN_FRAMES),
    "gated": (GATED, {"kind": "reconstruction", "sparsity": 0.5}),
}
"""Model and objective."""
SLOW = {"perceptual": (VIDEO, PERCEPTUAL), "parts": (PARTS, WHAT_A_PART_IS)}
"""Likewise, for fewer tests."""
SENTENCES = 3


def spec_of(name: str) -> TrainSpec:
    model, objective = (CASES | SLOW)[name]
    clip = {"frames": FRAMES} if model is VIDEO else None
    return TrainSpec.model_validate({"kind": "train", "model": model, "objective": objective, "clip": clip})


def global_batch(name: str, total: int) -> tuple[Inputs | PartInputs, Tensor, Tensor]:
    """(inputs, targets, noise); sentences repeat in it, and some name one object or none."""
    model = (CASES | SLOW)[name][0]
    if model is VIDEO:
        clips = torch.from_numpy(generator(1, "clips", total).random((total, FRAMES, 3, 32, 32), dtype="float32"))
        return clips, clips, torch.from_numpy(standard_normal((total, FRAMES, 4, 8), 1, "noise", total))
    if model is PARTS:
        images, seen = (torch.from_numpy(generator(1, of, total).random((total, 3, 32, 32), dtype="float32")) for of in "ab")
        numbers = torch.from_numpy(generator(1, "warp").random((total, WARP_NUMBERS), dtype="float32"))
        features = tuple(
            torch.rand(total, *shape, generator=torch.Generator().manual_seed(2)) for shape in ((16, 8, 8), (64, 2, 2))
        )
        inputs = PartInputs(images, (images[:, 0] > 0.3).float(), features, Warped(seen, warp_grid(numbers, 32)))
        return inputs, images, torch.from_numpy(standard_normal((total, 4, 8), 1, "noise", total))
    noise_size = 10 if model is GATED else 8
    noise = torch.from_numpy(standard_normal((total, 4, noise_size), 1, "noise", total))
    images = torch.from_numpy(generator(1, "images", total).random((total, 3, 16, 16), dtype="float32"))
    if model is MODEL:
        return images, images, noise
    tokens = torch.from_numpy(standard_normal((total, 4, 10), 1, "tokens", total))
    if model is GATED:
        return tokens, tokens, noise
    sentence_B = torch.arange(total) % SENTENCES
    shape = (SENTENCES, 5, 7) if name == "semantic" else (SENTENCES, 7)
    text = torch.from_numpy(standard_normal(shape, 1, "text"))[sentence_B]
    padding = torch.arange(5) > 2 + sentence_B[:, None] if name == "semantic" else None
    names = torch.from_numpy(generator(1, "names").integers(0, 4, (SENTENCES, 2, 2)))
    names[1, 1] = names[2] = -1
    return ConditionedInputs(tokens, text, padding, names[sentence_B]), images, noise


def summed(group: Group, name: str, total: int, accumulation: int, *, pools: bool | None = None) -> dict[str, Tensor]:
    """Gradients and named scalars summed over the group's ranks, as the training loop sums them."""
    state = build_state(spec_of(name), torch.device("cpu"))
    if pools is not None:
        state.objective.pools_batch = pools
    inputs, targets, noise = global_batch(name, total)
    rows = share(total, group.rank, group.world_size)
    mine = inputs.rows(rows) if isinstance(inputs, ConditionedInputs | PartInputs) else inputs[rows]
    batch = Batch(mine, targets[rows], noise[rows], rows, total)
    sums = step_gradients(state.model, state.objective, batch, group, step=STEP, accumulation=accumulation)
    names = loss_names(spec_of(name))
    local = torch.stack([sums.get(one, torch.zeros(())).float() for one in names])
    scalars = group.sum_gradients(state.parameters(), local)
    return named_gradients(state) | dict(zip(names, scalars, strict=True))


def named_gradients(state: TrainState) -> dict[str, Tensor]:
    modules = {"model": state.model, "objective": state.objective}
    return {
        f"{part}.{name}": torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def oracle(name: str, total: int) -> dict[str, Tensor]:
    """Plain autograd on the whole batch in one process."""
    state = build_state(spec_of(name), torch.device("cpu"))
    inputs, targets, noise = global_batch(name, total)
    output = state.model(inputs, noise)
    if (CASES | SLOW)[name][0] is VIDEO:
        mse, slots = (output.reconstruction - (2 * targets - 1)).square().mean(), output.slots_BTKD[:, 0]
    elif isinstance(output, PartOutput):
        mse, slots = torch.zeros(()), state.objective.pooled_rows(output, inputs)
    else:
        mse, slots = (output.reconstruction - targets).square().mean(), output.slots_BKD
    text = None if isinstance(inputs, PartInputs) else state.objective.pooled_text(inputs)
    terms = state.objective.slot_terms(slots, step=STEP, text_BT=text)
    by_image = state.objective.image_terms(output, inputs)
    loss = mse + terms.total
    parts = dict(terms.parts)
    if by_image is not None:
        loss = loss + by_image.total_B.mean()
        parts |= {part: value_B.detach().mean() for part, value_B in by_image.parts.items()}
    loss.backward()
    assert parts.keys() == set(loss_parts(spec_of(name)))
    scalars = {"loss": loss.detach(), "mse": mse.detach()} | parts
    return named_gradients(state) | {scalar: scalars[scalar] for scalar in loss_names(spec_of(name))}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative error of the whole gradient (Euclidean norm)."""
    assert one.keys() == other.keys()
    vectors = [torch.cat([of[name].detach().flatten() for name in other if "." in name]) for of in (one, other)]
    return float((vectors[0] - vectors[1]).norm() / vectors[1].norm())


def scalar_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of the loss and its parts."""
    return max(abs(float(one[name]) - float(value)) / max(1.0, float(value)) for name, value in other.items() if "." not in name)


def every_case(group: Group) -> dict[tuple[str, int, int], dict[str, Tensor]]:
    cases: dict[tuple[str, int, int], Any] = {}
    for name in CASES:
        for total in TOTALS:
            for accumulation in (1, 2):
                cases[name, total, accumulation] = {k: v.detach() for k, v in summed(group, name, total, accumulation).items()}
    return cases


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_that_gradients_are_those_of_the_global_batch(world_size: int, tmp_path: Path) -> None:
    for found in in_group(tmp_path, world_size, every_case):
        for (name, total, accumulation), gradients in found.items():
            expected = oracle(name, total)
            wrong = difference(gradients, expected), scalar_difference(gradients, expected)
            rounding = 10 * ROUNDING if name == "video" else ROUNDING  # its biases' gradients sum 10^5 pixels
            assert wrong[0] < rounding, (name, total, accumulation, wrong)
            assert wrong[1] < 1e-6, (name, total, accumulation, wrong)


def perceptual_cases(group: Group) -> list[dict[str, Tensor]]:
    return [summed(group, "perceptual", total=5, accumulation=accumulation) for accumulation in (1, 2)]


def test_that_lpips_between_frames_is_that_of_the_global_batch(tmp_path: Path) -> None:
    expected = oracle("perceptual", 5)
    assert float(expected["perceptual"]) > 0
    for rank in in_group(tmp_path, 2, perceptual_cases):
        for found in rank:
            assert difference(found, expected) < 10 * ROUNDING
            assert scalar_difference(found, expected) < 1e-6


def part_cases(group: Group) -> dict[tuple[int, int], dict[str, Tensor]]:
    return {(total, parts): summed(group, "parts", total=total, accumulation=parts) for total in (3, 6) for parts in (1, 2)}


@pytest.mark.parametrize("world_size", [1, 4])
def test_that_terms_of_parts_are_those_of_the_global_batch(world_size: int, tmp_path: Path) -> None:
    """Also of a batch of which a rank has no image."""
    expected = {total: oracle("parts", total) for total in (3, 6)}
    for rank in in_group(tmp_path, world_size, part_cases):
        for (total, accumulation), found in rank.items():
            wrong = difference(found, expected[total]), scalar_difference(found, expected[total])
            assert wrong[0] < 10 * ROUNDING, (total, accumulation, wrong)
            assert wrong[1] < 1e-6, (total, accumulation, wrong)


@pytest.mark.parametrize(
    "name",
    ["covariance, layernorm", "covariance, batchnorm", "covariance, identity", "cosine, batchnorm", "semantic", "parts"],
)
def test_that_a_rank_of_its_own_statistics_would_differ(name: str, tmp_path: Path) -> None:
    (alone, _) = in_group(tmp_path, 2, partial(summed, name=name, total=8, accumulation=1, pools=False))
    assert difference(alone, oracle(name, 8)) > (5e-3 if name == "parts" else 1e-2)  # 7.4e-3 of parts was measured


def test_that_micro_batches_of_their_own_statistics_would_differ(tmp_path: Path) -> None:
    name = "covariance, layernorm"
    (alone,) = in_group(tmp_path, 1, partial(summed, name=name, total=8, accumulation=2, pools=False))
    assert difference(alone, oracle(name, 8)) > 1e-2


def test_that_more_micro_batches_than_images_are_fine(tmp_path: Path) -> None:
    (found,) = in_group(tmp_path, 1, partial(summed, name="covariance, layernorm", total=3, accumulation=9))
    assert difference(found, oracle("covariance, layernorm", 3)) < ROUNDING


PLANNED = {"planned_tasks": 4, "batch_size": 8}
"""With an accumulation of 2 the ranks have micro-batches of one image, whatever their number."""


def adapted_cases(group: Group) -> dict[str, dict[str, Tensor]]:
    parts = micro_batches(2, world_size=group.world_size, **PLANNED)
    return {name: summed(group, name, PLANNED["batch_size"], parts) for name in CASES | SLOW}


def test_that_the_cases_have_every_objective_there_is() -> None:
    kinds = {spec.model_fields["kind"].default for spec in get_args(get_args(ObjectiveSpec)[0])}
    assert kinds == {objective["kind"] for _, objective in (CASES | SLOW).values()}


def test_that_any_world_size_with_its_own_accumulation_finds_the_same_gradient(tmp_path: Path) -> None:
    expected = {name: oracle(name, PLANNED["batch_size"]) for name in CASES | SLOW}
    for world_size in (1, 2, 4):
        for rank in in_group(tmp_path / str(world_size), world_size, adapted_cases):
            for name, found in rank.items():
                wrong = difference(found, expected[name]), scalar_difference(found, expected[name])
                assert wrong[0] < (10 * ROUNDING if name in ("video", *SLOW) else ROUNDING), (world_size, name, wrong)
                assert wrong[1] < 1e-6, (world_size, name, wrong)


def test_that_only_terms_with_a_weight_are_logged() -> None:
    assert loss_parts(spec_of("semantic")) == ("contrastive", "text", "names", "entropy")
    assert loss_parts(spec_of("semantic, not pooled")) == ("text", "names", "entropy")
    assert loss_parts(spec_of("video")) == ("future_masks", "future_slots")
    assert loss_parts(spec_of("gated")) == ("sparsity", "kept_slots", "keep_probability")


def agreements(group: Group) -> list[tuple[bool, bool]]:
    """Rank 1 wants to stop from step 2 on, rank 0 wants to save at step 5; a step takes no time."""
    found = []
    for step in range(5000):
        found.append(group.agree(step, stop=group.rank == 1 and step >= 2, save=group.rank == 0))
        if found[-1][0]:
            break
    return found


def test_that_all_ranks_stop_at_one_step(tmp_path: Path) -> None:
    one, other, third = in_group(tmp_path, 3, agreements)
    assert one == other == third
    assert one[-1] == (True, True)
    assert one[0] == (False, True)


def gathered(group: Group) -> tuple[Tensor, Tensor]:
    rows = share(5, group.rank, group.world_size)
    local = (torch.arange(5.0)[rows, None] + 1).requires_grad_()
    everything = group.gather_rows(local, rows, 5)
    everything.square().sum().backward()  # type: ignore[no-untyped-call]
    assert local.grad is not None
    return everything.detach(), local.grad


def test_that_gathering_lets_gradient_into_the_ranks_own_rows_alone(tmp_path: Path) -> None:
    for rank, (everything, gradient) in enumerate(in_group(tmp_path, 2, gathered)):
        assert everything.flatten().tolist() == [1, 2, 3, 4, 5]
        assert gradient.flatten().tolist() == [[2, 4], [6, 8, 10]][rank]
