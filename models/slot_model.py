"""Owns what every slot model is to the training loop: images and noise in, `SlotOutput` out, no randomness inside.

Legend: B images, C = 3 colours, H x W pixels, K slots, D slot size, N input positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class SlotOutput(NamedTuple):
    """What a slot model says about a batch; all in float32, also under autocast. (A tuple, so that DDP sees into it.)"""

    reconstruction_BCHW: Float[Tensor, "B 3 H W"]
    masks_BKHW: Float[Tensor, "B K H W"]
    """Softmaxed alpha of the decoder: sums to 1 over the slots."""
    slots_BKD: Float[Tensor, "B K D"]
    """Final slots, un-projected."""
    attention_BKN: Float[Tensor, "B K N"]
    """Softmax over slots of the last iteration, before the renormalisation over inputs."""


class SlotModel(nn.Module, ABC):
    """Base of the models: all noise comes in as an argument, drawn by the loop from counter-based keys."""

    noise_shape: tuple[int, int]
    """Shape (K, D) of one image's standard-normal noise."""

    @abstractmethod
    def forward(self, images_BCHW: Float[Tensor, "B 3 H W"], noise_BKD: Float[Tensor, "B K D"]) -> SlotOutput:
        """`images_BCHW` in [0, 1]; `noise_BKD` standard normal with `noise_shape`."""
