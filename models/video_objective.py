"""Owns the training objective of video models: mean squared error and weighted terms between a slot in one frame and the next.

Every term that has a weight is part of the loss (the original logged them alone, video_slots.md 4.1).

Legend: B clips, T frames, K slots, H x W pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.future import FuturePrediction
from models.objectives import SlotTerms
from models.perceptual import FrameLpips, slot_distance
from models.spec_video import VideoObjective
from models.video_slots import VideoOutput, signed, slot_reconstructions


class VideoLoss(nn.Module):
    """A loss = mean of `reconstruction_B` + `terms(...).total`; owns the predictors, used in training only."""

    pools_batch = False
    """Every term is a mean over clips."""

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
        self, output: VideoOutput, clips_BT3HW: Float[Tensor, "B T 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Mean squared error of every clip over frames, colours and pixels, in `signed` units; clips are in [0, 1]."""
        return (output.reconstruction - signed(clips_BT3HW.float())).square().flatten(1).mean(dim=1)

    def terms(self, output: VideoOutput) -> SlotTerms:
        """The weighted extra loss. Raises ValueError for clips of a single frame when there is one."""
        parts: dict[str, Tensor] = {}
        if self.future_masks is not None:
            parts["future_masks"] = self.future_masks.error(output.masks_BTKHW[:, :, :, None])
        if self.future_slots is not None or self.lpips is not None:
            shown_BTK3HW = slot_reconstructions(output)
            if self.future_slots is not None:
                parts["future_slots"] = self.future_slots.error(shown_BTK3HW)
            if self.lpips is not None:
                parts["perceptual"] = slot_distance(self.lpips, shown_BTK3HW, output.masks_BTKHW, min_area=self.spec.min_area)
        total = torch.zeros((), device=output.reconstruction.device)
        for name, part in parts.items():
            total = total + getattr(self.spec, name) * part
        return SlotTerms(total=total, parts=parts)
