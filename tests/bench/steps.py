"""What the model benchmarks share: the training step that they time (one fixed batch), and what its graph holds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[], Tensor]


def training_step(model: nn.Module, inputs: Any, target: Tensor, noise: Tensor, *, low_precision: bool) -> Step:
    """A step without optimiser and loader; it returns the reconstruction, detached, in float32."""
    device = target.device.type
    scope: Callable[[], AbstractContextManager[None]] = (
        (lambda: torch.autocast(device, dtype=torch.bfloat16)) if low_precision else nullcontext
    )

    def step() -> Tensor:
        for parameter in model.parameters():
            parameter.grad = None
        with scope():
            output = model(inputs, noise)
            loss = (output[0].float() - target).square().mean()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return output[0].detach().float()

    return step


def held_bytes(step: Step, parameters: list[nn.Parameter]) -> int:
    """What autograd keeps for the backward pass, each storage once, parameters left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    held: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed storage's address may come again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(held.values())
