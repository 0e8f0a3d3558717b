"""What a model is given: the stored samples, in the asked order, mirrored or not, with the right targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from jobs.batches import StepDataset, step_batches
from jobs.data.sampler import StepSampler
from jobs.data.toy_video import open_toy_video
from jobs.data.video import ClipWindows
from jobs.data_spec import RecordRange, ToyVideoSpec
from jobs.randomness import standard_normal
from jobs.samples import ImageSamples, OnlineSamples, TokenSamples, VideoSamples

COUNT = 5
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 6, 3), dtype=np.uint8)
TARGETS = np.random.default_rng(1).integers(0, 256, (COUNT, 2, 2, 3), dtype=np.uint8)
INDICES = np.array([3, 0, 4])
MIRRORED = np.array([True, False, True])
NOT_MIRRORED = np.zeros(3, dtype=np.bool_)


def expected(images: np.ndarray, mirrored: np.ndarray = NOT_MIRRORED) -> torch.Tensor:
    rows = [images[index][:, ::-1] if flip else images[index] for index, flip in zip(INDICES, mirrored, strict=True)]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class FakeFeatures:
    """Tokens that say which image they are of, and whether it was mirrored."""

    count: int = COUNT

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> torch.Tensor:
        named = torch.tensor([[[float(index), float(flip)]] for index, flip in zip(indices, mirrored, strict=True)])
        return named.to(torch.bfloat16)


def test_that_images_come_in_the_asked_order_and_mirrored_where_asked() -> None:
    samples = ImageSamples(images_NHWC=IMAGES)
    inputs, targets = samples.convert(samples.read(INDICES, MIRRORED))
    assert samples.count == COUNT
    assert torch.equal(inputs, expected(IMAGES, MIRRORED))
    assert torch.equal(targets, inputs)


def test_that_tokens_are_their_own_targets_in_float32() -> None:
    samples = TokenSamples(features=FakeFeatures())
    inputs, targets = samples.convert(samples.read(INDICES, MIRRORED))
    assert inputs.dtype == torch.float32
    assert inputs[:, 0].tolist() == [[3.0, 1.0], [0.0, 0.0], [4.0, 1.0]]
    assert torch.equal(targets, inputs)


def test_that_tokens_may_have_images_for_targets() -> None:
    samples = TokenSamples(features=FakeFeatures(), targets_NTTC=TARGETS)
    inputs, targets = samples.convert(samples.read(INDICES, NOT_MIRRORED))
    assert inputs[:, 0, 0].tolist() == [3.0, 0.0, 4.0]
    assert torch.equal(targets, expected(TARGETS))


def test_that_online_tokens_are_the_backbones_of_the_mirrored_image_without_gradient() -> None:
    backbone = torch.nn.Conv2d(3, 2, 2)
    samples = OnlineSamples(images_NHWC=IMAGES, backbone=backbone, targets_NTTC=TARGETS)
    inputs, targets = samples.convert(samples.read(INDICES, MIRRORED))
    assert torch.equal(inputs, backbone(expected(IMAGES, MIRRORED)).detach())
    assert not inputs.requires_grad
    assert torch.equal(targets, expected(TARGETS))


VIDEOS = open_toy_video(
    ToyVideoSpec(resolution=32, video_frames=20, train=RecordRange(first=0, count=COUNT), test=RecordRange(first=COUNT, count=1))
).train
WINDOWS = ClipWindows(seed=3, video_frames=20, clip_frames=4, frame_step=2)


def clip(video: int, epoch: int) -> torch.Tensor:
    """[T,3,H,W] read by itself."""
    videos = np.array([video])
    images = VIDEOS.read(videos, WINDOWS.frames(epoch, videos)).images_BTSS3[0]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def test_that_a_clip_depends_on_its_video_and_epoch_alone() -> None:
    samples = VideoSamples(videos=VIDEOS, windows=WINDOWS)
    for epoch in (0, 1):
        inputs, targets = samples.convert(samples.read(INDICES, NOT_MIRRORED, None, epoch))
        assert torch.equal(inputs, torch.stack([clip(int(video), epoch) for video in INDICES]))
        assert torch.equal(inputs, targets)
    assert samples.count == COUNT
    assert any(not torch.equal(clip(video, 0), clip(video, 1)) for video in range(COUNT))


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (0, 2), (0, 3)])
def test_that_workers_and_ranks_see_the_clips_of_their_step(workers: int, world_size: int) -> None:
    sampler = StepSampler(count=COUNT, batch_size=2, seed=3)
    ranks = []
    for rank in range(world_size):
        dataset = StepDataset(
            samples=VideoSamples(videos=VIDEOS, windows=WINDOWS), sampler=sampler, seed=3, noise_shape=(4, 2, 5),
            rank=rank, world_size=world_size,
        )  # fmt: skip
        ranks.append(list(step_batches(dataset, start=1, stop=7, workers=workers, device=torch.device("cpu"))))
    for step, parts in enumerate(zip(*ranks, strict=True), start=1):
        videos, epoch = sampler.global_batch(step), sampler.epoch(step)
        assert epoch == step // 3
        assert torch.equal(torch.cat([part.inputs for part in parts]), torch.stack([clip(int(video), epoch) for video in videos]))
        noise = torch.cat([part.noise_BKZ for part in parts])
        assert noise.shape == (len(videos), 4, 2, 5)
        assert torch.equal(noise, torch.from_numpy(standard_normal((len(videos), 4, 2, 5), 3, "slots", step)))


def test_that_shuffled_sentences_are_always_another_samples() -> None:
    class Counted:
        count = 6

    def others(*indices: int) -> list[int]:
        sampler = StepSampler(count=6, batch_size=2, seed=0, drop_last=False)
        dataset = StepDataset(
            samples=Counted(),
            sampler=sampler,
            seed=0,
            noise_shape=(1, 1),
            rank=0,
            world_size=1,
            shuffled=True,  # type: ignore[arg-type]
        )
        return dataset._others(np.array(indices)).tolist()

    assert others(4, 0, 2) == [2, 4, 0]
    assert others(5) == [2]
