"""Owns what goes into a part model and comes out of it. (Tuples, so that DDP and loaders see into them.)

Legend: B images, K slots (the background is number 0), D slot size, N tokens of the trunk, h x w the grid of the mask logits,
H x W pixels, C channels of a feature layer, f x f its grid.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Warped(NamedTuple):
    """A second view of each image: other colours, and warped by a transformation T."""

    images_B3HW: Float[Tensor, "B 3 H W"]
    """In [0, 1]; 0 where T looks outside the image."""
    grid_BHW2: Float[Tensor, "B H W 2"]
    """Where in the first view each pixel of the second comes from: (x, y) for `grid_sample`, align_corners=False."""


class PartInputs(NamedTuple):
    """Images of a part model, and what its objective alone needs."""

    images_B3HW: Float[Tensor, "B 3 H W"]
    """In [0, 1]."""
    foreground_BHW: Float[Tensor, "B H W"] | None = None
    """In [0, 1]: 1 on the object; None where nothing needs it."""
    features: tuple[Float[Tensor, "B C f f"], ...] | None = None
    """Of the frozen net, one per layer that the objective names, of the whole image; None outside training."""
    warped: Warped | None = None

    def rows(self, rows: slice) -> PartInputs:
        """Those of some images."""
        return PartInputs(
            images_B3HW=self.images_B3HW[rows],
            foreground_BHW=None if self.foreground_BHW is None else self.foreground_BHW[rows],
            features=None if self.features is None else tuple(layer[rows] for layer in self.features),
            warped=None if self.warped is None else Warped(*(part[rows] for part in self.warped)),
        )


class PartOutput(NamedTuple):
    """What a part model says about a batch; all in float32, also under autocast."""

    logits_BKhw: Float[Tensor, "B K h w"]
    """Of the masks, on the model's own grid."""
    masks_BKHW: Float[Tensor, "B K H W"]
    """Softmax over slots of the logits, brought to the images' size (bilinear, align_corners=True): sums to 1 over slots."""
    slots_BKD: Float[Tensor, "B K D"]
    """Final slots; of a model without slots zeros with D = 1."""
    attention_BKN: Float[Tensor, "B K N"] | None = None
    """Softmax over slots of the last iteration; None for a model without slots."""
    warped_logits_BKhw: Float[Tensor, "B K h w"] | None = None
    """Those of the second view, from the same noise; None without one."""
