"""The plain formulation of the token models, as the reference codes write it: the oracle of the fast paths.

Slots broadcast to all positions before the MLP, features decoded for every slot, torch's own transformer layers and
Gumbel-softmax by its two logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from plain import PlainPositions, PlainSlotAttention
from torch import Tensor, nn

from models.build import build_model
from models.decoders import CocoAdaptive
from models.dinosaur import Dinosaur
from models.patch_mlp import PatchMlp
from models.patch_transformer import DecoderLayer, PatchTransformer
from models.spec import CocoAdaptiveDecoder, DinosaurSpec, PatchMlpDecoder, PatchTransformerDecoder


def plain_gate(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Straight-through Gumbel-softmax over (drop, keep); the index-1 column."""
    gumbel = -torch.log(-torch.log(0.5 * (1 + torch.erf(noise.double() / math.sqrt(2))))).to(noise.dtype)
    soft = torch.softmax((logits + gumbel) / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return (hard - soft.detach() + soft)[..., 1]


class PlainMlpDecoder(nn.Module):
    """With `layers` linear layers; the last gives features and alpha of every slot."""

    def __init__(self, slot_size: int, hidden: int, layers: int, features: int, tokens: int) -> None:
        super().__init__()
        self.features = features
        self.positions = nn.Parameter(torch.zeros(tokens, slot_size))
        widths = [slot_size] + [hidden] * (layers - 1) + [features + 1]
        parts: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            parts += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.mlp = nn.Sequential(*parts[:-1])

    def forward(self, slots: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """(reconstruction [B,N,C], masks [B,K,N])"""
        placed = slots[:, :, None, :].expand(-1, -1, len(self.positions), -1) + self.positions
        decoded, alpha = self.mlp(placed).split([self.features, 1], dim=-1)
        masks = alpha.softmax(dim=1)
        if keep is not None:
            masks = masks * keep[:, :, None, None]
            masks = masks / (masks.sum(dim=1, keepdim=True) + 1e-5)
        return (decoded * masks).sum(dim=1), masks[..., 0]


class PlainTransformerDecoder(nn.Module):
    """torch's own layers."""

    def __init__(self, slot_size: int, features: int, layers: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(1, 1, features))
        self.embed_tokens = nn.Sequential(nn.Linear(features, features, bias=False), nn.LayerNorm(features))
        self.embed_slots = nn.Sequential(nn.Linear(slot_size, features, bias=False), nn.LayerNorm(features))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(features, heads, feedforward, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )

    def forward(self, slots: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstruction [B,N,C], masks [B,K,N])"""
        batch, count, _ = tokens.shape
        x = self.embed_tokens(torch.cat([self.start.expand(batch, -1, -1), tokens[:, :-1]], dim=1))
        memory = self.embed_slots(slots)
        causal = torch.full((count, count), -math.inf, dtype=x.dtype).triu(1)
        for layer in self.layers:
            before, x = x, layer(x, memory, causal)
        last = self.layers[-1]
        normed = last.norm1(before)
        middle = before + last.self_attn(normed, normed, normed, attn_mask=causal, need_weights=False)[0]
        _, weights = last.multihead_attn(last.norm2(middle), memory, memory, need_weights=True, average_attn_weights=True)
        return x, weights.transpose(1, 2)


class PlainCocoDecoder(nn.Module):
    """Transposed convolutions as such."""

    def __init__(self, slot_size: int, spec: CocoAdaptiveDecoder) -> None:
        super().__init__()
        self.start, width = spec.initial_resolution, spec.channels
        self.positions = PlainPositions(slot_size, self.start)
        self.mlp = nn.Sequential(
            nn.Linear(slot_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        convs: list[nn.Module] = []
        for _ in range(spec.conv_layers - 2):
            convs += [nn.ConvTranspose2d(width, width, 5, stride=2, padding=2, output_padding=1), nn.ReLU()]
        convs += [nn.ConvTranspose2d(width, width, 5, padding=2), nn.ReLU(), nn.ConvTranspose2d(width, 4, 3, padding=1)]
        self.convs = nn.Sequential(*convs)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """(image [B,3,H,W], masks [B,K,H,W])"""
        batch, count, dim = slots.shape
        x = slots.reshape(batch * count, 1, 1, dim).repeat(1, self.start, self.start, 1)
        x = self.convs(self.mlp(self.positions(x)).permute(0, 3, 1, 2))
        colours, alpha = x.reshape(batch, count, *x.shape[1:]).split([3, 1], dim=2)
        masks = alpha.softmax(dim=1)
        return (colours * masks).sum(dim=1), masks[:, :, 0]


class PlainDinosaur(nn.Module):
    """A whole token model."""

    def __init__(self, spec: DinosaurSpec) -> None:
        super().__init__()
        self.spec = spec
        size, features = spec.slot_size, spec.feature_size
        eps = 1e-3 if spec.init == "covloss" else 1e-5
        if spec.adapter == "dinosaur":
            rest: list[nn.Module] = [nn.Linear(features, features), nn.ReLU(), nn.Linear(features, size)]
        else:
            rest = [nn.Linear(features, size), nn.ReLU(), nn.LayerNorm(size, eps=eps)]
            rest += [nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size)]
        self.adapter = nn.Sequential(nn.LayerNorm(features, eps=eps), *rest)
        self.attention = PlainSlotAttention(size, size, 4 * size, spec.num_iterations, eps)
        if spec.gate is not None:
            self.gate = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.ReLU(), nn.Linear(4 * size, 2))
        match spec.decoder:
            case PatchMlpDecoder(hidden=hidden, layers=layers):
                self.decoder: nn.Module = PlainMlpDecoder(size, hidden, layers, features, spec.tokens)
            case PatchTransformerDecoder(layers=layers, heads=heads, feedforward=feedforward):
                self.decoder = PlainTransformerDecoder(size, features, layers, heads, feedforward)
            case CocoAdaptiveDecoder():
                self.decoder = PlainCocoDecoder(size, spec.decoder)

    def forward(self, tokens: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """(reconstruction, masks on their grid, slots, attention), and (keep, keep probability) with a gate."""
        size, grid = self.spec.slot_size, self.spec.grid
        slots, attention = self.attention(self.adapter(tokens), noise[..., :size])
        if self.spec.gate is not None:
            logits = self.gate(slots)
            keep = plain_gate(logits, noise[..., size:], self.spec.gate.temperature)
            reconstruction, masks = self.decoder(slots, keep)
            extra: tuple[Tensor, ...] = (keep, logits.softmax(dim=-1)[..., 1])
        else:
            extra = ()
            match self.spec.decoder:
                case PatchMlpDecoder():
                    reconstruction, masks = self.decoder(slots, None)
                case PatchTransformerDecoder():
                    reconstruction, masks = self.decoder(slots, tokens)
                case CocoAdaptiveDecoder():
                    reconstruction, masks = self.decoder(slots)
        if masks.dim() == 3:
            masks = masks.reshape(*masks.shape[:2], grid, grid)
        return reconstruction, masks, slots, attention, *extra


def plain_layer(layer: DecoderLayer, of: Callable[[Tensor], Tensor], prefix: str) -> dict[str, Tensor]:
    """Our transformer layer under the names of torch's."""
    own, cross = layer.self_attention, layer.cross_attention
    found = {}
    for name in ("weight", "bias"):
        found[f"self_attn.in_proj_{name}"] = of(getattr(own.query_key_value, name))
        found[f"multihead_attn.in_proj_{name}"] = torch.cat([of(getattr(cross.query, name)), of(getattr(cross.key_value, name))])
        held = {
            "self_attn.out_proj": own.output, "multihead_attn.out_proj": cross.output, "norm1": layer.norm_self,
            "norm2": layer.norm_cross, "norm3": layer.norm_mlp, "linear1": layer.mlp[0], "linear2": layer.mlp[2],
        }  # fmt: skip
        found |= {f"{theirs}.{name}": of(getattr(mine, name)) for theirs, mine in held.items()}
    return {prefix + name: tensor for name, tensor in found.items()}


def plain_decoder(decoder: nn.Module, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Our decoder's parameters (or what `of` makes of them) by the plain one's names."""
    found: dict[str, Tensor] = {}
    match decoder:
        case PatchMlp():
            found["positions"] = of(decoder.positions_ND)
            hidden = [decoder.first, *decoder.middle]
            for name in ("weight", "bias"):
                found |= {f"mlp.{2 * index}.{name}": of(getattr(layer, name)) for index, layer in enumerate(hidden)}
                last = [of(getattr(decoder.to_features, name)), of(getattr(decoder.to_alpha, name))]
                found[f"mlp.{2 * len(hidden)}.{name}"] = torch.cat(last)
        case PatchTransformer():
            found["start"] = of(decoder.start_C)
            for part in ("embed_tokens", "embed_slots"):
                found |= {f"{part}.{name}": of(value) for name, value in getattr(decoder, part).named_parameters()}
            for index, layer in enumerate([*decoder.inner, decoder.last]):
                found |= plain_layer(layer, of, f"layers.{index}.")
        case CocoAdaptive():
            found |= {f"positions.dense.{name}": of(value) for name, value in decoder.positions.project.named_parameters()}
            found |= {f"mlp.{name}": of(value) for name, value in decoder.mlp.named_parameters()}
            for index, conv in enumerate([*decoder.doubling, decoder.smooth, decoder.last]):
                kernel = of(conv.weight)
                turned = kernel.flip(2, 3).transpose(0, 1) if isinstance(conv, nn.Conv2d) else kernel
                found |= {f"convs.{2 * index}.weight": turned, f"convs.{2 * index}.bias": of(conv.bias)}
    return found


def plain_model(ours: Dinosaur, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """All of our parameters (or what `of` makes of them) by the plain model's names."""
    found = {f"decoder.{name}": value for name, value in plain_decoder(ours.decoder, of).items()}
    for part, module in (("adapter", ours.adapter), ("attention", ours.attention)):
        found |= {f"{part}.{name}": of(value) for name, value in module.named_parameters()}
    if ours.gate is not None:
        found |= {f"gate.{name}": of(value) for name, value in ours.gate.layers.named_parameters()}
    return found


@torch.no_grad()
def fill(plain: nn.Module, values: dict[str, Tensor]) -> None:
    """Set every parameter of the plain module."""
    theirs = dict(plain.named_parameters())
    assert theirs.keys() == values.keys(), theirs.keys() ^ values.keys()
    for name, parameter in theirs.items():
        parameter.copy_(values[name].view_as(parameter))


def twins(spec: DinosaurSpec, *, seed: int = 0) -> tuple[Dinosaur, PlainDinosaur]:
    """Our model and the plain one with the same weights."""
    ours = build_model(spec, generator=torch.Generator().manual_seed(seed))
    assert isinstance(ours, Dinosaur)
    plain = PlainDinosaur(spec)
    fill(plain, plain_model(ours, lambda parameter: parameter.detach()))
    return ours, plain
