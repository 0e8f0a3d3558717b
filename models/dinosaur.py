"""Owns slot attention on frozen ViT tokens: DINOSAUR, the CovLoss code's COCO models, AdaSlot; without the ViT itself.

Legend: B images, N tokens, C features, K slots, D slot size, Z = D, and two more with a gate, H x W the masks' grid.
"""

from __future__ import annotations

from typing import Literal, assert_never

from jaxtyping import Float
from torch import Tensor, nn

from models.decoders import CocoAdaptive, mix
from models.gate import NOISE_COLUMNS, Gate
from models.initialisation import Weights
from models.patch_mlp import PatchMlp
from models.patch_transformer import PatchTransformer
from models.slot_attention import SlotAttention
from models.slot_model import SlotModel, SlotOutput


def token_adapter(
    kind: Literal["dinosaur", "covloss"], *, feature_size: int, slot_size: int, norm_eps: float, weights: Weights
) -> nn.Sequential:
    """Tokens of width C to inputs of slot attention of width D, each token alone."""
    norm = nn.LayerNorm(feature_size, eps=norm_eps)
    match kind:
        case "dinosaur":
            return nn.Sequential(
                norm,
                weights.linear(feature_size, feature_size),
                nn.ReLU(inplace=True),
                weights.linear(feature_size, slot_size),
            )
        case "covloss":
            return nn.Sequential(
                norm,
                weights.linear(feature_size, slot_size),
                nn.ReLU(inplace=True),
                nn.LayerNorm(slot_size, eps=norm_eps),
                weights.linear(slot_size, slot_size),
                nn.ReLU(inplace=True),
                weights.linear(slot_size, slot_size),
            )
        case _:
            assert_never(kind)


class Dinosaur(SlotModel):
    """Adapter, slot attention, a gate if any, and one of three decoders: to the tokens themselves or to an image."""

    def __init__(
        self,
        *,
        num_slots: int,
        slot_size: int,
        grid: int,
        adapter: nn.Module,
        attention: SlotAttention,
        gate: Gate | None,
        decoder: PatchMlp | PatchTransformer | CocoAdaptive,
    ) -> None:
        super().__init__()
        self.slot_size = slot_size
        self.grid = grid
        self.noise_shape = (num_slots, slot_size if gate is None else slot_size + NOISE_COLUMNS)
        self.adapter = adapter
        self.attention = attention
        self.gate = gate
        self.decoder = decoder

    def forward(self, tokens_BNC: Float[Tensor, "B N C"], noise_BKZ: Float[Tensor, "B K Z"]) -> SlotOutput:
        """The first D noise columns draw the slots, the rest the gate's choice.

        The masks have the tokens' grid, or the image's resolution where an image is decoded.
        """
        slots_BKD, attention_BKN = self.attention(self.adapter(tokens_BNC), noise_BKZ[..., : self.slot_size])
        keep_BK, probability_BK = None, None
        if self.gate is not None:
            keep_BK, probability_BK = self.gate(slots_BKD, noise_BKZ[..., self.slot_size :])
        reconstruction, masks_BKHW = self._decode(slots_BKD, tokens_BNC, keep_BK)
        return SlotOutput(
            reconstruction=reconstruction,
            masks_BKHW=masks_BKHW,
            slots_BKD=slots_BKD,
            attention_BKN=attention_BKN,
            keep_BK=keep_BK,
            keep_probability_BK=probability_BK,
        )

    def _decode(self, slots_BKD: Tensor, tokens_BNC: Tensor, keep_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        decoder = self.decoder
        match decoder:
            case PatchMlp():
                decoded_BNC, masks_BNK = decoder(slots_BKD, keep_BK)
            case PatchTransformer():
                decoded_BNC, masks_BNK = decoder(slots_BKD, tokens_BNC)
            case CocoAdaptive():
                decoded_M4HW = decoder(slots_BKD.flatten(0, 1))
                return mix(decoded_M4HW.reshape(*slots_BKD.shape[:2], *decoded_M4HW.shape[1:]))
            case _:
                assert_never(decoder)
        masks_BKN = masks_BNK.transpose(1, 2).contiguous()
        return decoded_BNC.float(), masks_BKN.view(*masks_BKN.shape[:2], self.grid, self.grid)
