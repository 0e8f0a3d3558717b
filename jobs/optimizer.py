"""Adam and its learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from jobs.spec import AdamSpec


def learning_rate(spec: AdamSpec, step: int) -> float:
    """Rate of the update that makes `step` finished steps into `step + 1` (the originals count updates from 1).

    `during_warmup`: lr * min(1, i/w) * r^(i/d); `after_warmup`: lr * min(1, i/w) * r^(max(0, i-w)/d).
    """
    i = step + 1
    warmup = min(1.0, i / spec.warmup_steps) if spec.warmup_steps else 1.0
    decayed = i if spec.decay == "during_warmup" else max(0, i - spec.warmup_steps)
    return spec.learning_rate * warmup * float(spec.decay_rate ** (decayed / spec.decay_steps))


def build_adam(spec: AdamSpec, parameters: Iterable[torch.nn.Parameter], *, cuda: bool) -> torch.optim.Adam:
    """torch's Adam with its default betas and eps 1e-8, fused on CUDA."""
    return torch.optim.Adam(parameters, lr=spec.learning_rate, fused=cuda or None)
