"""Owns DINOSAUR's autoregressive transformer decoder (Seitzer et al. 2023, arXiv 2209.14860, appendix).

Every token is predicted from the true tokens before it (in raster order) and the slots; the slots' masks are the last
layer's attention. Four facts of the original that a port may miss: pre-norm layers without a norm after the last one,
no position embedding, an output without projection, and layers that start as copies of one.

Legend: B images, N tokens, K slots, D slot size, C features and width, A heads, E = C / A.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights


class SelfAttention(nn.Module):
    """Causal attention among tokens."""

    def __init__(self, *, size: int, heads: int, weights: Weights) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = weights.xavier(size, 3 * size, bias=True)
        self.output = _output(size, weights)

    def forward(self, tokens_BNC: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """What each token takes from itself and those before it."""
        query, key, value = (_by_head(part, self.heads) for part in self.query_key_value(tokens_BNC).chunk(3, dim=2))
        taken_BANE = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out_BNC: Tensor = self.output(taken_BANE.transpose(1, 2).flatten(2))
        return out_BNC


class SlotCrossAttention(nn.Module):
    """Attention of tokens to slots, with or without its weights."""

    def __init__(self, *, size: int, heads: int, weights: Weights) -> None:
        super().__init__()
        self.heads = heads
        self.query = weights.xavier(size, size, bias=True, fan_out=3 * size)
        self.key_value = weights.xavier(size, 2 * size, bias=True, fan_out=3 * size)
        self.output = _output(size, weights)

    def forward(self, tokens_BNC: Float[Tensor, "B N C"], slots_BKC: Float[Tensor, "B K C"]) -> Float[Tensor, "B N C"]:
        """What each token takes from the slots."""
        query_BANE, key_BAKE, value_BAKE = self._projected(tokens_BNC, slots_BKC)
        return self._merged(F.scaled_dot_product_attention(query_BANE, key_BAKE, value_BAKE))

    def with_weights(
        self, tokens_BNC: Float[Tensor, "B N C"], slots_BKC: Float[Tensor, "B K C"]
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N K"]]:
        """The same, and the attention weights averaged over heads; both from weights in at least float32."""
        query_BANE, key_BAKE, value_BAKE = self._projected(tokens_BNC, slots_BKC)
        with torch.autocast(tokens_BNC.device.type, enabled=False):
            exact = torch.promote_types(query_BANE.dtype, torch.float32)
            scaled_BANE = query_BANE.to(exact) * query_BANE.shape[3] ** -0.5
            weights_BANK = (scaled_BANE @ key_BAKE.to(exact).transpose(2, 3)).softmax(dim=3)
            taken_BANE = weights_BANK @ value_BAKE.to(exact)
        return self._merged(taken_BANE), weights_BANK.mean(dim=1)

    def _projected(self, tokens_BNC: Tensor, slots_BKC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key_BKC, value_BKC = self.key_value(slots_BKC).chunk(2, dim=2)
        return _by_head(self.query(tokens_BNC), self.heads), _by_head(key_BKC, self.heads), _by_head(value_BKC, self.heads)

    def _merged(self, taken_BANE: Tensor) -> Tensor:
        out_BNC: Tensor = self.output(taken_BANE.transpose(1, 2).flatten(2))
        return out_BNC


class DecoderLayer(nn.Module):
    """Self-attention, attention to the slots, two-layer ReLU MLP; each after its norm and added to its input."""

    def __init__(self, *, size: int, heads: int, feedforward: int, weights: Weights) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_mlp = nn.LayerNorm(size), nn.LayerNorm(size), nn.LayerNorm(size)
        self.self_attention = SelfAttention(size=size, heads=heads, weights=weights)
        self.cross_attention = SlotCrossAttention(size=size, heads=heads, weights=weights)
        self.mlp = nn.Sequential(weights.linear(size, feedforward), nn.ReLU(inplace=True), weights.linear(feedforward, size))

    def forward(self, tokens_BNC: Float[Tensor, "B N C"], slots_BKC: Float[Tensor, "B K C"]) -> Float[Tensor, "B N C"]:
        """A layer whose attention to the slots nobody reads."""
        after_self_BNC = tokens_BNC + self.self_attention(self.norm_self(tokens_BNC))
        after_cross_BNC = after_self_BNC + self.cross_attention(self.norm_cross(after_self_BNC), slots_BKC)
        return self._after_mlp(after_cross_BNC)

    def with_weights(
        self, tokens_BNC: Float[Tensor, "B N C"], slots_BKC: Float[Tensor, "B K C"]
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N K"]]:
        """The same, and the attention to the slots."""
        after_self_BNC = tokens_BNC + self.self_attention(self.norm_self(tokens_BNC))
        taken_BNC, weights_BNK = self.cross_attention.with_weights(self.norm_cross(after_self_BNC), slots_BKC)
        return self._after_mlp(after_self_BNC + taken_BNC), weights_BNK

    def _after_mlp(self, tokens_BNC: Tensor) -> Tensor:
        out_BNC: Tensor = tokens_BNC + self.mlp(self.norm_mlp(tokens_BNC))
        return out_BNC


class PatchTransformer(nn.Module):
    """Slots and true tokens to predicted tokens and masks."""

    def __init__(self, *, slot_size: int, feature_size: int, layers: int, heads: int, feedforward: int, weights: Weights) -> None:
        """`weights` should draw torch's default distributions, which the original leaves to its MLPs and output layers."""
        super().__init__()
        self.start_C = weights.start_token(feature_size)
        self.embed_tokens = nn.Sequential(weights.xavier(feature_size, feature_size), nn.LayerNorm(feature_size))
        self.embed_slots = nn.Sequential(weights.xavier(slot_size, feature_size), nn.LayerNorm(feature_size))
        first = DecoderLayer(size=feature_size, heads=heads, feedforward=feedforward, weights=weights)
        self.inner = nn.ModuleList(copy.deepcopy(first) for _ in range(layers - 1))
        self.last = first

    def forward(
        self, slots_BKD: Float[Tensor, "B K D"], tokens_BNC: Float[Tensor, "B N C"]
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N K"]]:
        """(predicted tokens, masks); token n is predicted from `tokens_BNC[:, :n]`."""
        slots_BKC = self.embed_slots(slots_BKD)
        start_B1C = self.start_C.expand(len(tokens_BNC), 1, -1)
        hidden_BNC = self.embed_tokens(torch.cat((start_B1C, tokens_BNC[:, :-1].detach()), dim=1))
        for layer in self.inner:
            hidden_BNC = layer(hidden_BNC, slots_BKC)
        predicted_BNC, masks_BNK = self.last.with_weights(hidden_BNC, slots_BKC)
        return predicted_BNC, masks_BNK


def _by_head(values_BNC: Tensor, heads: int) -> Tensor:
    """[B,A,N,E]"""
    return values_BNC.view(*values_BNC.shape[:2], heads, -1).transpose(1, 2)


def _output(size: int, weights: Weights) -> nn.Linear:
    """torch's attention zeroes this layer's bias and leaves its kernel at the default."""
    layer = weights.linear(size, size)
    nn.init.zeros_(layer.bias)
    return layer
