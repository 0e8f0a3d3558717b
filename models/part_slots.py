"""Owns slot attention on a trainable ResNet, where every slot is a part of one kind of object (scops_slots.md 1 and 2).

Slot 0 is the background. The reference without slots reads its masks from the trunk's features.

Legend: B images, V = B or, with a second view of each, 2 B images; H x W pixels, C trunk channels, g x g the trunk's grid,
N = g * g, K slots, D slot size, h x w the grid of the mask logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.dilated_resnet import DilatedResNet
from models.initialisation import Weights
from models.part_masks import BroadcastMasks, DilatedConvs, SlotMasks
from models.part_types import PartInputs, PartOutput
from models.positions import SoftPositions
from models.slot_attention import SlotAttention
from models.slot_model import SlotModel
from models.slot_start import FrameStart


class FeatureAdapter(nn.Module):
    """The trunk's features with a position code, one linear layer and ReLU: inputs of slot attention (rows 8 to 11)."""

    def __init__(self, *, grid: int, channels: int, slot_size: int, weights: Weights) -> None:
        super().__init__()
        self.positions = SoftPositions(resolution=grid, channels=channels, weights=weights)
        self.linear = weights.linear(channels, slot_size)

    def forward(self, features_BCgg: Float[Tensor, "B C g g"]) -> Float[Tensor, "B N D"]:
        """One input per place, row by row; raises ValueError for features of another grid than the position code's."""
        expected = self.positions.grid_HW4.shape[:2]
        if features_BCgg.shape[2:] != expected:
            raise ValueError(f"features of {tuple(features_BCgg.shape[2:])} places, the position code has {tuple(expected)}")
        placed_BggC = features_BCgg.permute(0, 2, 3, 1) + self.positions()
        return F.relu_(self.linear(placed_BggC.flatten(1, 2)))


class PartAttention(nn.Module):
    """From features to slots: adapter, initial slots and slot attention."""

    def __init__(self, *, adapter: FeatureAdapter, start: FrameStart, attention: SlotAttention) -> None:
        super().__init__()
        self.adapter = adapter
        self.start = start
        self.attention = attention

    def forward(
        self, features_BCgg: Float[Tensor, "B C g g"], noise_BKD: Float[Tensor, "B K D"]
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K N"]]:
        """Final slots, and the last iteration's softmax over slots."""
        return self.attention.refine(self.adapter(features_BCgg), self.start(noise_BKD))


class PartSlots(SlotModel):
    """Trunk, slot attention on its features, mask logits of each slot, masks at the images' size."""

    def __init__(
        self,
        *,
        noise_shape: tuple[int, int],
        trunk: DilatedResNet,
        slots: PartAttention | None,
        head: SlotMasks | DilatedConvs,
        train_slots: bool,
    ) -> None:
        """`slots`: None if and only if the head takes features alone (ValueError).

        `train_slots=False`: their weights and those of the head's position code stay as they are.
        """
        super().__init__()
        if (slots is None) != isinstance(head, DilatedConvs):
            raise ValueError(f"a head that is a {type(head).__name__} and slots that are {type(slots).__name__}")
        self.noise_shape = noise_shape
        self.trunk = trunk
        self.slots = slots
        self.head = head
        if slots is not None and not train_slots:
            slots.requires_grad_(False)
            if isinstance(head, BroadcastMasks):
                head.positions.requires_grad_(False)

    def forward(self, inputs: PartInputs, noise_BKD: Float[Tensor, "B K D"]) -> PartOutput:
        """`noise_BKD` standard normal of `noise_shape`, of which learned starts use nothing; the same for both views.

        Raises ValueError for images of another size than the model was built for, unless it has no slots.
        """
        count, size = len(inputs.images_B3HW), inputs.images_B3HW.shape[2:]
        views = (inputs.images_B3HW,) if inputs.warped is None else (inputs.images_B3HW, inputs.warped.images_B3HW)
        logits_VKhw, slots_VKD, attention_VKN = self._seen(torch.cat(views), noise_BKD.repeat(len(views), 1, 1))
        logits_BKhw = logits_VKhw[:count]
        return PartOutput(
            logits_BKhw=logits_BKhw,
            masks_BKHW=masks_at(logits_BKhw, (size[0], size[1])),
            slots_BKD=slots_VKD[:count],
            attention_BKN=None if attention_VKN is None else attention_VKN[:count],
            warped_logits_BKhw=None if inputs.warped is None else logits_VKhw[count:],
        )

    def _seen(self, images_V3HW: Tensor, noise_VKD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mask logits, slots and attention."""
        features_VCgg = self.trunk(images_V3HW)
        if self.slots is None:
            logits_VKhw: Tensor = self.head(features_VCgg)
            return logits_VKhw.float(), features_VCgg.new_zeros(len(images_V3HW), self.noise_shape[0], 1), None
        slots_VKD, attention_VKN = self.slots(features_VCgg, noise_VKD)
        return self.head(features_VCgg, slots_VKD, attention_VKN).float(), slots_VKD, attention_VKN


def masks_at(logits_BKhw: Float[Tensor, "B K h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
    """Softmax over slots of the logits brought to `size` pixels (rows 19 and 22), in float32."""
    with torch.autocast(logits_BKhw.device.type, enabled=False):
        resized_BKHW = F.interpolate(logits_BKhw.float(), size=size, mode="bilinear", align_corners=True)
        return resized_BKHW.softmax(dim=1)
