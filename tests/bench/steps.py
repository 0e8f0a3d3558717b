"""The training step that the model benchmarks time: forward, mean squared error and backward on one fixed batch."""

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
