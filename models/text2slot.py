"""Owns Text2Slot: initial slots from a sentence, or from none. Computes in float32 also under autocast, since it costs little.

Every form takes the same noise; those without a distribution leave it alone.

Legend: B images, K slots, D slot size, T text features, L text tokens, H hidden width, A heads, E = H / A.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.initialisation import Weights
from models.slot_model import ConditionedInputs

LOG_SIGMA_BOUNDS = (-5.0, 2.0)
LOG_SIGMA_START = -1.0
"""What log_sigma is for every sentence before training."""


class SentenceDistribution(nn.Module):
    """mu and log_sigma from a sentence's feature, the same for all slots: slot k is mu + sigma * noise_k."""

    def __init__(self, *, text_size: int, hidden_sizes: tuple[int, ...], slot_size: int, weights: Weights) -> None:
        super().__init__()
        self.mu = _mlp((text_size, *hidden_sizes, slot_size), weights)
        self.log_sigma = _mlp((text_size, *hidden_sizes, slot_size), weights)
        last = self.log_sigma[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, LOG_SIGMA_START)

    def forward(self, inputs: ConditionedInputs, noise_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Initial slots from `inputs.text` [B,T]."""
        text_BT = sentence_of(inputs)
        with torch.autocast(noise_BKD.device.type, enabled=False):
            log_sigma_BD = self.log_sigma(text_BT.float()).clamp(*LOG_SIGMA_BOUNDS)
            initial_BKD: Tensor = self.mu(text_BT.float())[:, None] + log_sigma_BD.exp()[:, None] * noise_BKD.float()
        return initial_BKD


class SentencePerSlot(nn.Module):
    """One mu per slot from a sentence's feature; no noise, so slot k can come to mean the same thing in every sentence."""

    def __init__(
        self, *, text_size: int, hidden_sizes: tuple[int, ...], num_slots: int, slot_size: int, weights: Weights
    ) -> None:
        super().__init__()
        self.mu = _mlp((text_size, *hidden_sizes, num_slots * slot_size), weights)

    def forward(self, inputs: ConditionedInputs, noise_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Initial slots from `inputs.text` [B,T]."""
        with torch.autocast(noise_BKD.device.type, enabled=False):
            initial_BKD: Tensor = self.mu(sentence_of(inputs).float()).view(noise_BKD.shape)
        return initial_BKD


class SharedPrior(nn.Module):
    """mu and log_sigma as parameters: the control that sees no text."""

    def __init__(self, *, slot_size: int, weights: Weights) -> None:
        super().__init__()
        self.mu, self.log_sigma = weights.slot_prior(slot_size)

    def forward(self, inputs: ConditionedInputs, noise_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Initial slots whatever `inputs.text` is."""
        return self.mu + self.log_sigma.exp() * noise_BKD.float()


class Attention(nn.Module):
    """Multi-head attention of some vectors to others, or to themselves."""

    def __init__(self, *, size: int, heads: int, weights: Weights) -> None:
        super().__init__()
        self.heads = heads
        self.query = weights.xavier(size, size, bias=True)
        self.key_value = weights.xavier(size, 2 * size, bias=True, fan_out=size)
        self.output = weights.xavier(size, size, bias=True)

    def forward(
        self, queries_BKH: Float[Tensor, "B K H"], others_BLH: Float[Tensor, "B L H"], allowed_BL: Bool[Tensor, "B L"] | None
    ) -> Float[Tensor, "B K H"]:
        """What each query takes from the allowed others (None: from all)."""
        key_BLH, value_BLH = self.key_value(others_BLH).chunk(2, dim=2)
        query_BAKE, key_BALE, value_BALE = (
            values.unflatten(2, (self.heads, -1)).transpose(1, 2) for values in (self.query(queries_BKH), key_BLH, value_BLH)
        )
        mask_B11L = None if allowed_BL is None else allowed_BL[:, None, None]
        taken_BAKE = F.scaled_dot_product_attention(query_BAKE, key_BALE, value_BALE, attn_mask=mask_B11L)
        out_BKH: Tensor = self.output(taken_BAKE.transpose(1, 2).flatten(2))
        return out_BKH


class QueryLayer(nn.Module):
    """Queries attend to each other, then to the words, then a two-layer ReLU MLP; a norm before each (pre-norm)."""

    def __init__(self, *, size: int, heads: int, feedforward: int, weights: Weights) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_mlp = nn.LayerNorm(size), nn.LayerNorm(size), nn.LayerNorm(size)
        self.self_attention = Attention(size=size, heads=heads, weights=weights)
        self.cross_attention = Attention(size=size, heads=heads, weights=weights)
        self.mlp = nn.Sequential(weights.linear(size, feedforward), nn.ReLU(inplace=True), weights.linear(feedforward, size))

    def forward(
        self, queries_BKH: Float[Tensor, "B K H"], words_BLH: Float[Tensor, "B L H"], allowed_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B K H"]:
        """The queries after this layer."""
        normed_BKH = self.norm_self(queries_BKH)
        after_self_BKH = queries_BKH + self.self_attention(normed_BKH, normed_BKH, None)
        after_cross_BKH = after_self_BKH + self.cross_attention(self.norm_cross(after_self_BKH), words_BLH, allowed_BL)
        out_BKH: Tensor = after_cross_BKH + self.mlp(self.norm_mlp(after_cross_BKH))
        return out_BKH


class WordsPerSlot(nn.Module):
    """One learned query per slot attends to the sentence's tokens, as DETR's do to an image (Carion et al. 2020); no noise."""

    def __init__(
        self,
        *,
        text_size: int,
        text_tokens: int,
        hidden: int,
        heads: int,
        layers: int,
        feedforward: int,
        num_slots: int,
        slot_size: int,
        weights: Weights,
    ) -> None:
        super().__init__()
        self.embed = weights.linear(text_size, hidden)
        self.positions_LH = weights.learned_rows(text_tokens, hidden)
        self.queries_KH = weights.learned_rows(num_slots, hidden)
        self.layers = nn.ModuleList(
            QueryLayer(size=hidden, heads=heads, feedforward=feedforward, weights=weights) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.output = _mlp((hidden, hidden, slot_size), weights)

    def forward(self, inputs: ConditionedInputs, noise_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
        """Initial slots from `inputs.text` [B,L,T]; raises ValueError without `inputs.padding_BL`."""
        text_BLT, padding_BL = inputs.text, inputs.padding_BL
        if text_BLT is None or text_BLT.dim() != 3 or padding_BL is None:
            raise ValueError(f"text2slot=transformer takes tokens' features [B,L,T] and their padding, not {_named(text_BLT)}")
        with torch.autocast(noise_BKD.device.type, enabled=False):
            words_BLH = self.embed(text_BLT.float()) + self.positions_LH
            queries_BKH = self.queries_KH.expand(len(text_BLT), -1, -1)
            for layer in self.layers:
                queries_BKH = layer(queries_BKH, words_BLH, ~padding_BL)
            initial_BKD: Tensor = self.output(self.norm(queries_BKH))
        return initial_BKD


Text2Slot = SentenceDistribution | SentencePerSlot | WordsPerSlot | SharedPrior


def sentence_of(inputs: ConditionedInputs) -> Float[Tensor, "B T"]:
    """The sentence's feature; raises ValueError when there is none or it is per token."""
    if inputs.text is None or inputs.text.dim() != 2:
        raise ValueError(f"text2slot=mlp takes a sentence's feature [B,T], not {_named(inputs.text)}")
    return inputs.text


def _named(text: Tensor | None) -> str:
    return "no text" if text is None else f"text {list(text.shape)}"


def _mlp(widths: tuple[int, ...], weights: Weights) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [weights.linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-1])
