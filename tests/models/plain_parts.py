"""Part slots written image by image and slot by slot, on the parameters of our model: the oracle of the fast form.

The trunk, which torchvision's is the oracle of, is taken as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from plain import plain_grid
from torch import Tensor

from models.part_masks import DILATIONS
from models.part_slots import PartSlots
from models.spec_parts import PartSlotsSpec


def plain_slots(model: PartSlots, spec: PartSlotsSpec, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Slots [K,D] and attention [K,N] of one image's features [C,g,g]."""
    weights = dict(model.slots.named_parameters())  # type: ignore[union-attr]  # of models with slots

    def dense(name: str, values: Tensor) -> Tensor:
        return F.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def normed(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    code = dense("adapter.positions.project", plain_grid(spec.grid)[0])
    places = [features[:, row, column] + code[row, column] for row in range(spec.grid) for column in range(spec.grid)]
    inputs = normed("attention.norm_inputs", torch.stack([torch.relu(dense("adapter.linear", place)) for place in places]))
    keys, values = dense("attention.key", inputs), dense("attention.value", inputs)
    if spec.start == "learned":
        slots = list(weights["start.mu"])
    else:
        slots = [weights["start.mu"] + torch.exp(weights["start.log_sigma"]) * of_slot for of_slot in noise]
    for _ in range(spec.num_iterations):
        queries = [dense("attention.query", normed("attention.norm_slots", slot)) for slot in slots]
        scores = torch.stack([torch.stack([query @ key for key in keys]) for query in queries]) / spec.slot_size**0.5
        attention = torch.softmax(scores, dim=0)
        after = []
        for slot, row in zip(slots, attention, strict=True):
            raised = row + 1e-8
            update = (raised[:, None] / raised.sum() * values).sum(dim=0)
            state = model.slots.attention.gru(update[None], slot[None])[0]  # type: ignore[union-attr]
            hidden = torch.relu(dense("attention.mlp.0", normed("attention.norm_mlp", state)))
            after.append(state + dense("attention.mlp.2", hidden))
        slots = after
    return torch.stack(slots), attention


def plain_logits(model: PartSlots, spec: PartSlotsSpec, features: Tensor, slots: Tensor, attention: Tensor) -> Tensor:
    """Mask logits [K,h,w] of one image, each slot on its own."""
    weights = dict(model.head.named_parameters())

    def dense(name: str, values: Tensor) -> Tensor:
        return F.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def broadcast(slot: Tensor, grid: int) -> Tensor:
        """[1,D,h,w]"""
        code = F.linear(plain_grid(grid), weights["positions.project.weight"], weights["positions.project.bias"])
        return (slot.repeat(1, grid, grid, 1) + code).permute(0, 3, 1, 2)

    def dilated(maps: Tensor) -> Tensor:
        kernels = [weights[f"kernels.{n}"] if f"kernels.{n}" in weights else weights[f"convs.kernels.{n}"] for n in range(4)]
        parts = [F.conv2d(maps, kernel, padding=d, dilation=d) for kernel, d in zip(kernels, DILATIONS, strict=True)]
        return torch.stack(parts).sum(dim=0) + (weights["bias"][:, None, None] if "bias" in weights else 0)

    kind, found = spec.masks.kind, []
    if kind == "pixels":
        return dilated(features[None])[0]
    for slot, row in zip(slots, attention, strict=True):
        if kind == "linear":
            found.append(dilated(broadcast(slot, spec.masks.grid))[0, 0])  # type: ignore[union-attr]
        elif kind == "conv":
            hidden = broadcast(slot, spec.masks.grid)  # type: ignore[union-attr]
            for name in ("first.conv", *(f"middle.{n}" for n in range(spec.masks.layers - 2))):  # type: ignore[union-attr]
                hidden = torch.relu(F.conv2d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=2))
            found.append(F.conv2d(hidden, weights["last.weight"], padding=2)[0, 0])
        elif kind == "mlp":
            hidden = broadcast(slot, spec.grid)[0].permute(1, 2, 0)
            for name in ("first", *(f"middle.{n}" for n in range(spec.masks.layers - 2))):  # type: ignore[union-attr]
                hidden = torch.relu(dense(name, hidden))
            found.append(dense("last", hidden)[..., 0])
        elif kind == "attention":
            found.append(torch.log(row).reshape(spec.grid, spec.grid))
        else:
            pixels = dense("project", features.permute(1, 2, 0))
            found.append((pixels * slot).sum(dim=2) / spec.slot_size**0.5)
    return torch.stack(found)


def plain_forward(model: PartSlots, spec: PartSlotsSpec, images: Tensor, noise: Tensor) -> list[Tensor]:
    """Logits, masks, slots and attention of a batch; the first two alone of a model without slots."""
    logits, slots, attention = [], [], []
    for features, drawn in zip(model.trunk(images), noise, strict=True):
        if spec.masks.kind == "pixels":
            logits.append(plain_logits(model, spec, features, drawn, drawn))
            continue
        of_slots, of_inputs = plain_slots(model, spec, features, drawn)
        logits.append(plain_logits(model, spec, features, of_slots, of_inputs))
        slots.append(of_slots)
        attention.append(of_inputs)
    stacked = torch.stack(logits)
    large = F.interpolate(stacked, size=images.shape[2:], mode="bilinear", align_corners=True)
    masks = large.exp() / large.exp().sum(dim=1, keepdim=True)
    return [stacked, masks, *(torch.stack(values) for values in (slots, attention) if values)]
