"""Owns the predictors of recurrent video models: the slots that a frame starts from, given those that the last one ended with.

They cost little and compute in float32, also under autocast. Equivariant to the order of the slots.

Legend: B clips, K slots, D slot size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights
from models.text2slot import Attention


class MlpStep(nn.Module):
    """s + MLP(LN(s)), each slot on its own."""

    def __init__(self, *, slot_size: int, hidden: int, weights: Weights) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(slot_size)
        self.mlp = nn.Sequential(weights.linear(slot_size, hidden), nn.ReLU(inplace=True), weights.linear(hidden, slot_size))

    def forward(self, slots_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Slots to start the next frame from."""
        with torch.autocast(slots_BKD.device.type, enabled=False):
            predicted_BKD: Tensor = slots_BKD + self.mlp(self.norm(slots_BKD))
        return predicted_BKD


class TransformerLayer(nn.Module):
    """Slots of a frame attend to each other, then a two-layer ReLU MLP; residual, with norms before or behind the parts."""

    def __init__(self, *, slot_size: int, heads: int, feedforward: int, pre_norm: bool, weights: Weights) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = Attention(size=slot_size, heads=heads, weights=weights)
        self.norm_attention = nn.LayerNorm(slot_size)
        self.mlp = nn.Sequential(
            weights.linear(slot_size, feedforward), nn.ReLU(inplace=True), weights.linear(feedforward, slot_size)
        )
        self.norm_mlp = nn.LayerNorm(slot_size)

    def forward(self, slots_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """The slots after this layer."""
        if self.pre_norm:
            normed_BKD = self.norm_attention(slots_BKD)
            mixed_BKD = slots_BKD + self.attention(normed_BKD, normed_BKD, None)
            predicted_BKD: Tensor = mixed_BKD + self.mlp(self.norm_mlp(mixed_BKD))
            return predicted_BKD
        mixed_BKD = self.norm_attention(slots_BKD + self.attention(slots_BKD, slots_BKD, None))
        return self.norm_mlp(mixed_BKD + self.mlp(mixed_BKD))  # type: ignore[no-any-return]  # a module's call


class TransformerStep(nn.Module):
    """SAVi's predictor (arXiv 2111.12594, section 3.2): one or more transformer layers among a frame's slots."""

    def __init__(self, *, slot_size: int, layers: int, heads: int, feedforward: int, pre_norm: bool, weights: Weights) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(slot_size=slot_size, heads=heads, feedforward=feedforward, pre_norm=pre_norm, weights=weights)
            for _ in range(layers)
        )

    def forward(self, slots_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Slots to start the next frame from."""
        predicted_BKD = slots_BKD
        with torch.autocast(slots_BKD.device.type, enabled=False):
            for layer in self.layers:
                predicted_BKD = layer(predicted_BKD)
        return predicted_BKD


Predictor = MlpStep | TransformerStep
