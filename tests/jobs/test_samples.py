"""What a model is given: the stored samples, in the asked order, mirrored or not, with the right targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jobs.samples import ImageSamples, OnlineSamples, TokenSamples

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
