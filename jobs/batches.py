"""From a step to its tensors: images and slot noise of this rank's share, loaded ahead by worker processes if asked.

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


class Batch(NamedTuple):
    """One rank's share of a step's global batch. Legend: B images of this rank, C channels, H x W pixels, K slots, D noise."""

    images_BCHW: torch.Tensor
    """float32 in [0, 1]."""
    noise_BKD: torch.Tensor
    """Standard normal."""
    rows: slice
    """Which rows of the global batch these are."""
    total: int
    """Rows of the global batch."""


def to_images(images_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 [B,H,W,C] -> float32 [B,C,H,W] in [0, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)


@dataclass(frozen=True, kw_only=True)
class StepDataset(Dataset[tuple[torch.Tensor, torch.Tensor, int, int, int]]):
    """Maps a step to this rank's share of it, as uint8 images and noise."""

    images_NHWC: np.ndarray
    sampler: StepSampler
    seed: int
    noise_shape: tuple[int, int]
    rank: int
    world_size: int

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, int, int, int]:
        indices = self.sampler.global_batch(step)
        rows = share(len(indices), self.rank, self.world_size)
        noise_BKD = standard_normal((len(indices), *self.noise_shape), self.seed, "slots", step)[rows]
        mine = indices[rows]
        order = np.argsort(mine, kind="stable")  # read the map front to back
        images = np.empty((len(mine), *self.images_NHWC.shape[1:]), dtype=np.uint8)
        images[order] = self.images_NHWC[mine[order]]
        return torch.from_numpy(images), torch.from_numpy(noise_BKD), rows.start, rows.stop, len(indices)


def _in_worker(_: int) -> None:
    """The notice signals stay blocked, as inherited: Slurm may send them to every process of the step, and a worker that
    ends takes the rank with it before its checkpoint. A worker ends when it is told to, or within seconds of its rank."""
    torch.set_num_threads(1)


def step_batches(dataset: StepDataset, *, start: int, stop: int, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of steps start .. stop-1, in order."""
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor, int, int, int]] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        worker_init_fn=_in_worker if workers else None,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )
    for images, noise, first, last, total in loader:
        images_BCHW = to_images(images.to(device, non_blocking=True))
        yield Batch(images_BCHW, noise.to(device, non_blocking=True), slice(first, last), total)
