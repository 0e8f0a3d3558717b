"""Owns CLIP's pixel statistics: what its towers see, and what a model on top of them reconstructs.

Legend: B images, H x W pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalised(images_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Images in [0, 1] to CLIP's units, in which a squared error is about 14 times as large."""
    mean_311, std_311 = (images_BCHW.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (images_BCHW - mean_311) / std_311


def denormalised(images_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """From CLIP's units back to [0, 1]; a reconstruction may lie outside, and is clamped."""
    mean_311, std_311 = (images_BCHW.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return torch.clamp(images_BCHW * std_311 + mean_311, 0, 1)
