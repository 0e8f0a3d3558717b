"""Owns the training objective of video models: mean squared error and weighted terms between a slot in one frame and the next.

Every term that has a weight is part of the loss (the original logged them alone, video_slots.md 4.1).

Legend: B clips, T frames, K slots, H x W pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.future import FuturePrediction
from models.objectives import ImageTerms, Objective
from models.perceptual import FrameLpips, slot_distances
from models.slot_model import Inputs
from models.spec_video import VideoObjective
from models.video_slots import VideoOutput, signed, slot_reconstructions


class VideoLoss(Objective):
    """Mean of `reconstruction_B` and `image_terms(...).total_B` over clips; owns the predictors, used in training only."""

    pools_batch = False

    def __init__(
        self,
        spec: VideoObjective,
        *,
        future_masks: FuturePrediction | None,
        future_slots: FuturePrediction | None,
        lpips: FrameLpips | None,
    ) -> None:
        """None for each term whose weight is 0."""
        super().__init__()
        self.spec = spec
        self.future_masks = future_masks
        self.future_slots = future_slots
        self.lpips = lpips

    def reconstruction_B(  # noqa: N802  # the suffix is the shape
        self, output: VideoOutput, targets: Float[Tensor, "B T 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Mean squared error of every clip over frames, colours and pixels, in `signed` units; targets are clips in [0, 1]."""
        return (output.reconstruction - signed(targets.float())).square().flatten(1).mean(dim=1)

    def pooled_rows(self, output: VideoOutput, inputs: Inputs) -> Float[Tensor, "N K D"]:
        """The slots of all frames, one frame below the other."""
        return output.slots_BTKD.flatten(0, 1)

    def image_terms(self, output: VideoOutput, inputs: Inputs) -> ImageTerms | None:
        """The weighted extra loss of every clip, and its parts before their weights; None when no term has a weight.

        Raises ValueError for clips of a single frame when there is one.
        """
        parts: dict[str, Tensor] = {}
        if self.future_masks is not None:
            parts["future_masks"] = self.future_masks.errors(output.masks_BTKHW[:, :, :, None])
        if self.future_slots is not None or self.lpips is not None:
            shown_BTK3HW = slot_reconstructions(output)
            if self.future_slots is not None:
                parts["future_slots"] = self.future_slots.errors(shown_BTK3HW)
            if self.lpips is not None:
                parts["perceptual"] = slot_distances(self.lpips, shown_BTK3HW, output.masks_BTKHW, min_area=self.spec.min_area)
        if not parts:
            return None
        total_B = torch.stack([getattr(self.spec, name) * part_B for name, part_B in parts.items()]).sum(dim=0)
        return ImageTerms(total_B=total_B, parts=parts)
