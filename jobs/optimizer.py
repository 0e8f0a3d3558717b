"""Adam and its learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from jobs.spec import AdamSpec

FACTOR = "factor"
"""Key of a parameter group: its learning rate by that of the step."""


def learning_rate(spec: AdamSpec, step: int) -> float:
    """Rate of the update that makes `step` finished steps into `step + 1` (the originals count updates from 1).

    `during_warmup`: lr * min(1, i/w) * r^(i/d); `after_warmup`: lr * min(1, i/w) * r^(max(0, i-w)/d).
    """
    i = step + 1
    warmup = min(1.0, i / spec.warmup_steps) if spec.warmup_steps else 1.0
    decayed = i if spec.decay == "during_warmup" else max(0, i - spec.warmup_steps)
    return spec.learning_rate * warmup * float(spec.decay_rate ** (decayed / spec.decay_steps))


def build_adam(
    spec: AdamSpec, parameters: Iterable[torch.nn.Parameter], *, trunk: Iterable[torch.nn.Parameter] = (), cuda: bool
) -> torch.optim.Adam:
    """torch's Adam with its default betas and eps 1e-8, fused on CUDA; `trunk`: some of `parameters` with a rate of their own."""
    if spec.trunk_rate is None or not (slow := list(trunk)):
        return torch.optim.Adam(parameters, lr=spec.learning_rate, fused=cuda or None)
    theirs = {id(parameter) for parameter in slow}
    others = [parameter for parameter in parameters if id(parameter) not in theirs]
    groups = [{"params": others, FACTOR: 1.0}, {"params": slow, FACTOR: spec.trunk_rate / spec.learning_rate}]
    return torch.optim.Adam(groups, lr=spec.learning_rate, fused=cuda or None)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the next update's learning rate: `rate`, and of a trunk its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)
