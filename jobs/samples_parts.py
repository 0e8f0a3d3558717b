"""Where a part model's inputs come from: stored images with foregrounds, a frozen net's features of them, warped second views.

Legend: B images, S x S stored pixels, A numbers of a warp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jobs.randomness import generator
from jobs.samples import gather, mirror, to_images
from models.feature_net import FeatureNet
from models.part_types import PartInputs, Warped
from models.warps import WARP_NUMBERS, colour_jitter, warp_grid, warped


@dataclass(frozen=True, kw_only=True)
class PartSamples:
    """Images that are explained by parts; the targets are the images."""

    images_NSS3: np.ndarray
    """uint8"""
    foreground_NSS: np.ndarray | None = None
    """uint8, 0 or 1; None when nothing needs it."""
    net: FeatureNet | None = None
    """None in evaluation: only the objective needs features."""
    warp_seed: int | None = None
    """The draw of each sample's second view is named by (this, epoch, sample); None: there is none."""

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.images_NSS3.shape[0])

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """Images uint8 [B,S,S,3], then foregrounds uint8 [B,S,S,1] if any, then numbers of the warps float32 [B,A] if any."""
        stored = [mirror(gather(self.images_NSS3, indices), mirrored)]
        if self.foreground_NSS is not None:
            stored.append(mirror(gather(self.foreground_NSS, indices)[..., None], mirrored))
        if self.warp_seed is not None:
            drawn = [generator(self.warp_seed, "warp", epoch, int(i)).random(WARP_NUMBERS, dtype=np.float32) for i in indices]
            stored.append(torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, WARP_NUMBERS))
        return tuple(stored)

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[PartInputs, torch.Tensor]:
        """(what the model and its objective see, the images [B,3,S,S] in [0, 1])"""
        images_B3SS, rest = to_images(stored[0]), list(stored[1:])
        foreground_BSS = rest.pop(0)[..., 0].float() if self.foreground_NSS is not None else None
        view = None
        if self.warp_seed is not None:
            numbers_BA = rest.pop(0)
            grid_BSS2 = warp_grid(numbers_BA, images_B3SS.shape[-1])
            view = Warped(images_B3HW=warped(colour_jitter(images_B3SS, numbers_BA), grid_BSS2), grid_BHW2=grid_BSS2)
        features = None if self.net is None else self.net(images_B3SS)
        return PartInputs(images_B3HW=images_B3SS, foreground_BHW=foreground_BSS, features=features, warped=view), images_B3SS
