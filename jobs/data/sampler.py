"""Which samples make the batch of a step: a function of (seed, step) alone. Torch-free.

The global batch at step s is a slice of the epoch's seeded permutation; each rank takes a contiguous share of its rows,
so another world size sees the same batches, and restoring at any step costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jobs.randomness import permutation


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(count, seed, "order", epoch)


@dataclass(frozen=True, kw_only=True)
class StepSampler:
    """Batches of `batch_size` out of `count` samples; the last of an epoch is smaller unless `drop_last`."""

    count: int
    batch_size: int
    seed: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise ValueError(f"batch_size {self.batch_size} is larger than the {self.count} samples, and drop_last is on")

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every sample was seen once (but for a dropped rest)."""
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def epoch(self, step: int) -> int:
        """Of the step that follows `step` finished ones, counted from 0."""
        return step // self.steps_per_epoch

    def global_batch(self, step: int) -> np.ndarray:
        """Sample indices [B] of the step that follows `step` finished ones (B = batch_size, less at an epoch's end)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return _order(self.count, self.seed, epoch)[start : start + self.batch_size]


def share(total: int, part: int, parts: int) -> slice:
    """The contiguous rows of `total` that part number `part` of `parts` takes; sizes differ by at most one."""
    return slice(total * part // parts, total * (part + 1) // parts)
