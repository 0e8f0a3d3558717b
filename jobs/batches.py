"""From a step to its tensors: samples and slot noise of this rank's share, loaded ahead by worker processes if asked.

An item of the loader's data set is a *step*: which samples and which noise belong to it is a function of (seed, step), so no
loader state is ever saved and the number of workers does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from jobs.data.sampler import StepSampler, share
from jobs.randomness import standard_normal
from jobs.samples import Samples
from models.slot_model import Inputs


class Batch(NamedTuple):
    """One rank's share of a step's global batch, on the device. Legend: B images of this rank, K slots, Z noise values.

    Of videos B counts clips of T frames, and noise is [B,T,K,Z].
    """

    inputs: Inputs
    """What the model sees: float32 images [B,3,H,W] in [0, 1], clips [B,T,3,H,W], tokens [B,N,C], tokens with a sentence, or
    images with what a part model's objective needs."""
    targets: torch.Tensor
    """What is to be reconstructed: the inputs themselves, or images [B,3,T,T] in [0, 1]."""
    noise_BKZ: torch.Tensor
    """Standard normal."""
    rows: slice
    """Which rows of the global batch these are."""
    total: int
    """Rows of the global batch."""


@dataclass(frozen=True, kw_only=True)
class StepDataset(Dataset[tuple[tuple[torch.Tensor, ...], torch.Tensor, int, int, int]]):
    """Maps a step to this rank's share of it: stored samples, and noise."""

    samples: Samples
    sampler: StepSampler
    seed: int
    noise_shape: tuple[int, ...]
    """Of one sample."""
    rank: int
    world_size: int
    flip: bool = False
    """Mirror each sample with probability one half, as a function of (seed, step)."""
    shuffled: bool = False
    """Tell each sample the sentence of the one before it in the global batch, whose order is random (a lone sample that of
    the one half the data away)."""

    def __getitem__(self, step: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, int, int, int]:
        indices = self.sampler.global_batch(step)
        rows = share(len(indices), self.rank, self.world_size)
        noise_BKZ = standard_normal((len(indices), *self.noise_shape), self.seed, "slots", step)[rows]
        mirrored = np.zeros(len(indices), dtype=np.bool_)
        if self.flip:
            mirrored = standard_normal((len(indices),), self.seed, "flip", step) < 0
        told = self._others(indices)[rows] if self.shuffled else None
        stored = self.samples.read(indices[rows], mirrored[rows], told, self.sampler.epoch(step))
        return stored, torch.from_numpy(noise_BKZ), rows.start, rows.stop, len(indices)

    def _others(self, indices: np.ndarray) -> np.ndarray:
        """For each sample of a global batch another one."""
        count = self.samples.count
        return np.roll(indices, 1) if len(indices) > 1 else (indices + max(1, count // 2)) % count


def _in_worker(_: int) -> None:
    """The notice signals stay blocked, as inherited: Slurm may send them to every process of the step, and a worker that
    ends takes the rank with it before its checkpoint. A worker ends when it is told to, or within seconds of its rank."""
    torch.set_num_threads(1)


def step_batches(dataset: StepDataset, *, start: int, stop: int, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of steps start .. stop-1, in order."""
    loader: DataLoader[tuple[tuple[torch.Tensor, ...], torch.Tensor, int, int, int]] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        worker_init_fn=_in_worker if workers else None,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )
    for stored, noise, first, last, total in loader:
        there = tuple(one.to(device, non_blocking=True) for one in stored)
        inputs, targets = dataset.samples.convert(there)
        yield Batch(inputs, targets, noise.to(device, non_blocking=True), slice(first, last), total)
