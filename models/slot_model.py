"""Owns what every slot model is to the training loop: inputs and noise in, `SlotOutput` out, no randomness inside.

Legend: B images, C channels, H x W pixels or patches, N tokens, K slots, D slot size, Z noise values per slot,
L text tokens, T text features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.part_types import PartInputs


class SlotOutput(NamedTuple):
    """What a slot model says about a batch; all in float32, also under autocast. (A tuple, so that DDP sees into it.)"""

    reconstruction: Float[Tensor, "B ..."]
    """As the target: an image [B,3,H,W], or tokens [B,N,C]."""
    masks_BKHW: Float[Tensor, "B K H W"]
    """How the decoder divides the image (or its grid of patches) among the slots: sums to 1 over the (kept) slots."""
    slots_BKD: Float[Tensor, "B K D"]
    """Final slots, un-projected."""
    attention_BKN: Float[Tensor, "B K N"]
    """Softmax over slots of the last iteration, before the renormalisation over inputs."""
    keep_BK: Float[Tensor, "B K"] | None = None
    """A gated model's choice, 0 or 1, with the straight-through gradient; None without a gate."""
    keep_probability_BK: Float[Tensor, "B K"] | None = None
    """The gate's probability of keeping each slot, before its noise."""


class ConditionedInputs(NamedTuple):
    """Inputs of a model that is told about its image in words. (A tuple, so that DDP and loaders see into it.)"""

    tokens_BNC: Float[Tensor, "B N C"]
    """Vision tokens."""
    text: Float[Tensor, "B ... T"] | None = None
    """A sentence's feature [B,T], or its tokens' features [B,L,T], as the model declares; None for a model without text."""
    padding_BL: Bool[Tensor, "B L"] | None = None
    """With tokens' features: true where there is no token of the sentence."""
    names_B22: Int[Tensor, "B 2 2"] | None = None
    """Colour and shape numbers of the two objects that the sentence names, -1 for one that is not named; for objectives only."""

    def rows(self, rows: slice) -> ConditionedInputs:
        """Those of some images."""
        text, padding_BL, names_B22 = (None if part is None else part[rows] for part in self[1:])
        return ConditionedInputs(tokens_BNC=self.tokens_BNC[rows], text=text, padding_BL=padding_BL, names_B22=names_B22)


Inputs = Tensor | ConditionedInputs | PartInputs
"""What a slot model sees: images [B,3,H,W] in [0, 1], clips [B,T,3,H,W], tokens [B,N,C], tokens and a sentence, or a part
model's images with what its objective needs."""


class SlotModel(nn.Module, ABC):
    """Base of the models: all noise comes in as an argument, drawn by the loop from counter-based keys."""

    noise_shape: tuple[int, int]
    """Shape (K, Z) of the standard-normal noise of one image, or of one frame of a clip: Z = D, and two values more for a gate.

    A gate turns its two columns z into Gumbel noise -log(-log(Phi(z))); equal columns (zeros) are no noise.
    """

    @abstractmethod
    def forward(self, inputs: Any, noise: Float[Tensor, "B ..."]) -> Any:
        """Inputs of the model's own kind, with noise of `noise_shape` per image: `SlotOutput`.

        Of clips [B,T,3,H,W] in [0, 1], with noise per frame [B,T,K,Z]: `VideoOutput` (models.video_slots).
        """
