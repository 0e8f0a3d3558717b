"""Owns slot attention on frozen CLIP tokens with initial slots from a sentence; without the CLIP towers themselves.

Legend: B images, N vision tokens, C features, K slots, D slot size, H x W pixels.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from models.decoders import mix
from models.image_decoder import ImageDecoder
from models.initialisation import Weights
from models.positions import SoftPositions
from models.slot_attention import SlotAttention
from models.slot_model import ConditionedInputs, SlotModel, SlotOutput
from models.text2slot import Text2Slot


class TokenEncoder(nn.Module):
    """Vision tokens to inputs of slot attention: a position code or none, LayerNorm or none, then a two-layer MLP per token."""

    def __init__(
        self, *, grid: int, feature_size: int, slot_size: int, position_code: bool, norm: bool, norm_eps: float, weights: Weights
    ) -> None:
        super().__init__()
        self.positions = SoftPositions(resolution=grid, channels=feature_size, weights=weights) if position_code else None
        self.norm = nn.LayerNorm(feature_size, eps=norm_eps) if norm else None
        self.mlp = nn.Sequential(
            weights.linear(feature_size, slot_size), nn.ReLU(inplace=True), weights.linear(slot_size, slot_size)
        )

    def forward(self, tokens_BNC: Float[Tensor, "B N C"]) -> Float[Tensor, "B N D"]:
        """One input per token."""
        placed_BNC = tokens_BNC if self.positions is None else tokens_BNC + self.positions().flatten(0, 1)
        inputs_BND: Tensor = self.mlp(placed_BNC if self.norm is None else self.norm(placed_BNC))
        return inputs_BND


class LanguageSlots(SlotModel):
    """Token encoder, Text2Slot, slot attention, a decoder per slot, alpha-blended into one image in CLIP's pixel units."""

    def __init__(
        self,
        *,
        num_slots: int,
        slot_size: int,
        encoder: TokenEncoder,
        text2slot: Text2Slot,
        attention: SlotAttention,
        decoder: ImageDecoder,
    ) -> None:
        super().__init__()
        self.noise_shape = (num_slots, slot_size)
        self.encoder = encoder
        self.text2slot = text2slot
        self.attention = attention
        self.decoder = decoder

    def forward(self, inputs: ConditionedInputs, noise_BKD: Float[Tensor, "B K D"]) -> SlotOutput:
        """The reconstruction is of `clip_pixels.normalised` images.

        Raises ValueError when the inputs' text is not of the form that Text2Slot takes.
        """
        initial_BKD = self.text2slot(inputs, noise_BKD)
        slots_BKD, attention_BKN = self.attention.refine(self.encoder(inputs.tokens_BNC), initial_BKD)
        decoded_M4HW = self.decoder(slots_BKD.flatten(0, 1))
        reconstruction_BCHW, masks_BKHW = mix(decoded_M4HW.reshape(*slots_BKD.shape[:2], *decoded_M4HW.shape[1:]))
        return SlotOutput(
            reconstruction=reconstruction_BCHW, masks_BKHW=masks_BKHW, slots_BKD=slots_BKD, attention_BKN=attention_BKN
        )
