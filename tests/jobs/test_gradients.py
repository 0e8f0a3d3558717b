"""A step's gradient is that of the global batch, whatever the number of ranks and micro-batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from running import MODEL, OBJECTIVES, in_group
from torch import Tensor

from jobs.batches import Batch
from jobs.data.sampler import share
from jobs.distributed import Group
from jobs.gradients import step_gradients
from jobs.randomness import generator, standard_normal
from jobs.spec import TrainSpec
from jobs.state import PARTS, TrainState, build_state

TOTALS = (8, 7, 3)
"""Global batches: even, uneven, and fewer images than four ranks."""
STEP = 5
ROUNDING = 2e-6
"""Relative rounding error of a float32 gradient that is summed in another order; a wrong one is off by 1e-3 and more."""


def spec_of(name: str) -> TrainSpec:
    return TrainSpec.model_validate({"kind": "train", "model": MODEL, "objective": OBJECTIVES[name]})


def global_batch(total: int) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(generator(1, "images", total).random((total, 3, 16, 16), dtype="float32"))
    return images, torch.from_numpy(standard_normal((total, 4, 8), 1, "noise", total))


def summed(group: Group, name: str, total: int, accumulation: int, *, pools: bool | None = None) -> dict[str, Tensor]:
    """Gradients and named scalars summed over the group's ranks, as the training loop sums them."""
    state = build_state(spec_of(name), torch.device("cpu"))
    if pools is not None:
        state.objective.pools_batch = pools
    images, noise = global_batch(total)
    rows = share(total, group.rank, group.world_size)
    batch = Batch(images[rows], images[rows], noise[rows], rows, total)
    sums = step_gradients(state.model, state.objective, batch, group, step=STEP, accumulation=accumulation)
    names = ["loss", "mse", *PARTS[spec_of(name).objective.kind]]
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
    images, noise = global_batch(total)
    output = state.model(images, noise)
    mse = (output.reconstruction - images).square().mean()
    terms = state.objective.slot_terms(output.slots_BKD, step=STEP)
    loss = mse + terms.total
    loss.backward()
    return named_gradients(state) | {"loss": loss.detach(), "mse": mse.detach()} | dict(terms.parts)


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
    for name in OBJECTIVES:
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
            assert wrong[0] < ROUNDING, (name, total, accumulation, wrong)
            assert wrong[1] < 1e-6, (name, total, accumulation, wrong)


@pytest.mark.parametrize("name", ["covariance, layernorm", "covariance, batchnorm", "covariance, identity", "cosine, batchnorm"])
def test_that_a_rank_of_its_own_statistics_would_differ(name: str, tmp_path: Path) -> None:
    (alone, _) = in_group(tmp_path, 2, partial(summed, name=name, total=8, accumulation=1, pools=False))
    assert difference(alone, oracle(name, 8)) > 1e-2


def test_that_micro_batches_of_their_own_statistics_would_differ(tmp_path: Path) -> None:
    name = "covariance, layernorm"
    (alone,) = in_group(tmp_path, 1, partial(summed, name=name, total=8, accumulation=2, pools=False))
    assert difference(alone, oracle(name, 8)) > 1e-2


def test_that_more_micro_batches_than_images_are_fine(tmp_path: Path) -> None:
    (found,) = in_group(tmp_path, 1, partial(summed, name="covariance, layernorm", total=3, accumulation=9))
    assert difference(found, oracle("covariance, layernorm", 3)) < ROUNDING


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
