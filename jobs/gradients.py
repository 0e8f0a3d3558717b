"""The gradient of one step's loss over the global batch, exactly, over any number of ranks and micro-batches.

An image is a clip for models of videos.
Per-image terms are sums divided by the global batch size. A term that pools the batch is computed on the slots of the whole
global batch on every rank: gradient enters through this rank's own rows, and since the projection head's gradient is whole
on each of the W ranks, that term is divided by W and the slots' gradient multiplied by W before the sum over ranks.
Sentences that such a term needs are gathered like the slots, without gradient.
With accumulation the slots are computed twice: first without gradient to pool them, then micro-batch by micro-batch, each
receiving its rows of the pooled term's gradient. What an objective pools may be other rows than slots (`pooled_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from jobs.batches import Batch
from jobs.data.sampler import share
from jobs.distributed import Group
from models.objectives import Objective
from models.part_types import PartInputs, PartOutput
from models.slot_model import ConditionedInputs, Inputs, SlotOutput
from models.video_slots import VideoOutput

Forward = Callable[[Any, torch.Tensor], SlotOutput | VideoOutput | PartOutput]


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; the gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def _rows_of(inputs: Inputs, rows: slice) -> Inputs:
    return inputs.rows(rows) if isinstance(inputs, ConditionedInputs | PartInputs) else inputs[rows]


def _micro_batches(batch: Batch, parts: int) -> Iterator[tuple[slice, Any, torch.Tensor, torch.Tensor]]:
    """(rows, inputs, targets, noise) of each part."""
    count = batch.noise_BKZ.shape[0]
    for part in range(min(parts, max(1, count))):
        rows = share(count, part, min(parts, max(1, count)))
        yield rows, _rows_of(batch.inputs, rows), batch.targets[rows], batch.noise_BKZ[rows]


def _pooled(
    objective: Objective, slots_BKD: torch.Tensor, batch: Batch, group: Group, step: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The pooled term of the global batch divided by W, and its named parts (equal on every rank)."""
    world = group.world_size
    scaled_BKD = slots_BKD if world == 1 else _ScaleGradient.apply(slots_BKD, float(world))  # type: ignore[no-untyped-call]
    everything_BKD = group.gather_rows(scaled_BKD, batch.rows, batch.total)
    local_BT = objective.pooled_text(batch.inputs)
    text_BT = None if local_BT is None else group.gather_rows(local_BT.detach(), batch.rows, batch.total)
    terms = objective.slot_terms(everything_BKD, step=step, text_BT=text_BT)
    return terms.total / world, {name: part.detach() / world for name, part in terms.parts.items()}


def step_gradients(
    forward: Forward, objective: Objective, batch: Batch, group: Group, *, step: int, accumulation: int
) -> dict[str, torch.Tensor]:
    """Add this rank's share of the gradient to `.grad`; returns named scalars whose sum over ranks is the global value."""
    if batch.noise_BKZ.shape[0] == 0:  # more ranks than images in an epoch's last batch
        return _without_rows(objective, batch, group, step)
    pools = objective.pools_batch
    sums: dict[str, torch.Tensor] = {}
    slots_gradient: torch.Tensor | None = None

    def add(name: str, value: torch.Tensor) -> None:
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()

    if pools and accumulation > 1:
        sums, slots_gradient = _pooled_ahead(forward, objective, batch, group, step=step, accumulation=accumulation)
    for rows, inputs, targets, noise_BKZ in _micro_batches(batch, accumulation):
        with group.autocast():
            output = forward(inputs, noise_BKZ)
        mse = objective.reconstruction_B(output, targets).sum() / batch.total
        loss = mse
        add("mse", mse)
        by_image = objective.image_terms(output, inputs)
        if by_image is not None:
            loss = loss + by_image.total_B.sum() / batch.total
            for name, part_B in by_image.parts.items():
                add(name, part_B.sum() / batch.total)
        rows_BKD = objective.pooled_rows(output, inputs)
        if slots_gradient is not None:
            add("loss", loss)
            loss = loss + (rows_BKD.float() * slots_gradient[rows]).sum()
        elif pools:
            term, parts = _pooled(objective, rows_BKD.float(), batch, group, step)
            loss = loss + term
            add("loss", loss)
            for name, part in parts.items():
                add(name, part)
        else:
            terms = objective.slot_terms(rows_BKD, step=step, text_BT=objective.pooled_text(inputs))
            weight = noise_BKZ.shape[0] / batch.total
            loss = loss + terms.total * weight
            add("loss", loss)
            for name, part in terms.parts.items():
                add(name, part * weight)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    return sums


def _without_rows(objective: Objective, batch: Batch, group: Group, step: int) -> dict[str, torch.Tensor]:
    """A rank without images: the others pool with it, and its share of the head's gradient is due."""
    if not objective.pools_batch:
        return {}
    total, parts = _pooled(objective, objective.no_rows(batch.noise_BKZ), batch, group, step)
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    return {"loss": total.detach(), **parts}


def _pooled_ahead(
    forward: Forward, objective: Objective, batch: Batch, group: Group, *, step: int, accumulation: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The terms that pool the batch, before its micro-batches are trained on one by one: (scalars, gradient of its slots)."""
    with torch.no_grad(), group.autocast():
        found = [
            objective.pooled_rows(forward(inputs, noise), inputs).float()
            for _, inputs, _, noise in _micro_batches(batch, accumulation)
        ]
    leaf_BKD = torch.cat(found).requires_grad_()
    total, parts = _pooled(objective, leaf_BKD, batch, group, step)
    total.backward()  # type: ignore[no-untyped-call]
    return {"loss": total.detach(), **parts}, leaf_BKD.grad
