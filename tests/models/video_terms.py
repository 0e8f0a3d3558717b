"""What the tests of the video objective's terms share: a small model of 32 x 32 pixels, clips, and who gets a gradient."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from models.build_video import build_video_objective, build_video_slots
from models.objectives import ImageTerms
from models.perceptual import FrameLpips, build_lpips
from models.spec_base import UpsamplingDecoder
from models.spec_video import LpipsSpec, VideoObjective, VideoSlotsSpec
from models.video_objective import VideoLoss
from models.video_slots import VideoOutput, VideoSlots

MODEL = VideoSlotsSpec(
    resolution=32,
    num_slots=3,
    slot_size=8,
    num_iterations=2,
    slot_mlp_size=9,
    encoder_channels=6,
    encoder_layers=2,
    decoder=UpsamplingDecoder(channels=7, initial_resolution=8),
    start="learned",
)
FRAMES = 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(spec: VideoSlotsSpec = MODEL) -> VideoSlots:
    return build_video_slots(spec, generator=seeded(0))


@functools.cache
def frozen_lpips() -> FrameLpips:
    """Built once: torchvision makes the trunk's large classifier with it, to throw it away."""
    return build_lpips(LpipsSpec(weights="random"), state=None)


def objective(**settings: Any) -> VideoLoss:
    spec = VideoObjective(lpips=LpipsSpec(weights="random"), future_channels=4, **settings)
    net = frozen_lpips() if spec.perceptual else None
    return build_video_objective(spec, model=MODEL, generator=seeded(9), lpips=net)


def batch(clips: int = 2, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    images = torch.rand(clips, frames, 3, MODEL.resolution, MODEL.resolution, generator=seeded(1))
    return images, torch.randn(clips, frames, MODEL.num_slots, MODEL.slot_size, generator=seeded(2))


def output_of(model: VideoSlots, clips: int = 2, frames: int = FRAMES) -> VideoOutput:
    return model(*batch(clips, frames))


def terms_of(loss: VideoLoss, output: VideoOutput) -> ImageTerms:
    """The terms of an objective that has some."""
    terms = loss.image_terms(output, batch()[0])
    assert terms is not None
    return terms


def without_gradient(model: VideoSlots, loss: Tensor) -> list[str]:
    """Names of the model's parameters that the loss says nothing about."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None or not bool(parameter.grad.any())]
