"""Owns the pixel statistics of ImageNet: what nets that were trained on it see.

Legend: B images, H x W pixels.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalised(images_B3HW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """RGB in [0, 1] to torchvision's units."""
    mean_311, std_311 = (images_B3HW.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images_B3HW - mean_311) / std_311
