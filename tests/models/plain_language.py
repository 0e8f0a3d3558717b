"""The plain formulation of the language-guided model, as the reference code writes it: the oracle of the fast path.

Every slot's maps at once and kept, torch's default memory layout, transposed convolutions as such.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from plain import PlainPositions, PlainSlotAttention
from torch import Tensor, nn

from models.build import build_model
from models.image_decoder import ImageDecoder
from models.language_slots import LanguageSlots
from models.slot_model import ConditionedInputs
from models.spec_language import ImageDecoderSpec, LanguageSlotsSpec, MlpText2Slot, NoText2Slot, TransformerText2Slot


def plain_mlp(*widths: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class PlainWords(nn.Module):
    """torch's own pre-norm decoder layers."""

    def __init__(self, spec: LanguageSlotsSpec, form: TransformerText2Slot) -> None:
        super().__init__()
        width = form.hidden
        self.embed = nn.Linear(spec.text_size, width)
        self.positions = nn.Parameter(torch.zeros(form.text_tokens, width))
        self.queries = nn.Parameter(torch.zeros(spec.num_slots, width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, form.heads, form.feedforward, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(form.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = plain_mlp(width, width, spec.slot_size)

    def forward(self, text: Tensor, padding: Tensor) -> Tensor:
        x = self.queries.expand(len(text), -1, -1)
        words = self.embed(text) + self.positions
        for layer in self.layers:
            x = layer(x, words, memory_key_padding_mask=padding)
        return self.output(self.norm(x))


class PlainDecoder(nn.Module):
    """[M,D] to [M,4,H,W] in one sequence of layers."""

    def __init__(self, slot_size: int, spec: ImageDecoderSpec) -> None:
        super().__init__()
        self.start, k = spec.initial_resolution, spec.kernel_size
        self.positions = PlainPositions(slot_size, self.start)
        convs: list[nn.Module] = []
        for inputs, outputs in pairwise((slot_size, *spec.channels)):
            if spec.upsample == "deconv":
                convs += [nn.ConvTranspose2d(inputs, outputs, k, stride=2, padding=k // 2, output_padding=1), nn.ReLU()]
            else:
                convs += [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, k, padding=k // 2), nn.ReLU()]
        last = spec.channels[-1]
        if spec.tail_conv:
            convs += [nn.Conv2d(last, last, k, padding=k // 2), nn.ReLU()]
        self.convs = nn.Sequential(*convs, nn.Conv2d(last, 4, 3, padding=1))

    def forward(self, slots: Tensor) -> Tensor:
        x = slots[:, None, None, :].repeat(1, self.start, self.start, 1)
        return self.convs(self.positions(x).permute(0, 3, 1, 2).contiguous())


class PlainLanguageSlots(nn.Module):
    """A whole model."""

    def __init__(self, spec: LanguageSlotsSpec) -> None:
        super().__init__()
        self.spec = spec
        size, features = spec.slot_size, spec.feature_size
        self.positions = PlainPositions(features, spec.grid) if spec.enc_pos_enc else None
        self.norm = nn.LayerNorm(features) if spec.token_norm else None
        self.mlp = plain_mlp(features, size, size)
        match spec.text2slot:
            case MlpText2Slot(hidden_sizes=hidden, distribution=True):
                self.mu, self.log_sigma = (plain_mlp(spec.text_size, *hidden, size) for _ in range(2))
            case MlpText2Slot(hidden_sizes=hidden):
                self.mu = plain_mlp(spec.text_size, *hidden, spec.num_slots * size)
            case TransformerText2Slot() as form:
                self.words = PlainWords(spec, form)
            case NoText2Slot():
                self.mu, self.log_sigma = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))
        self.attention = PlainSlotAttention(size, size, spec.slot_mlp_size, spec.num_iterations, 1e-5)
        del self.attention.mu, self.attention.log_sigma
        self.attention.mu, self.attention.log_sigma = torch.zeros(1), torch.full((1,), -torch.inf)
        self.decoder = PlainDecoder(size, spec.decoder)

    def initial(self, inputs: ConditionedInputs, noise: Tensor) -> Tensor:
        """Initial slots [B,K,D]."""
        text = inputs.text
        match self.spec.text2slot:
            case MlpText2Slot(distribution=True):
                return self.mu(text)[:, None] + self.log_sigma(text).clamp(-5, 2).exp()[:, None] * noise
            case MlpText2Slot():
                return self.mu(text).reshape(noise.shape)
            case TransformerText2Slot():
                return self.words(text, inputs.padding_BL)
            case NoText2Slot():
                return self.mu + self.log_sigma.exp() * noise

    def forward(self, inputs: ConditionedInputs, noise: Tensor) -> tuple[Tensor, ...]:
        """(reconstruction, masks, slots, attention)"""
        tokens, grid = inputs.tokens_BNC, self.spec.grid
        if self.positions is not None:
            tokens = self.positions(tokens.unflatten(1, (grid, grid))).flatten(1, 2)
        if self.norm is not None:
            tokens = self.norm(tokens)
        initial = self.initial(inputs, noise)
        self.attention.mu, self.attention.log_sigma = torch.zeros_like(initial), torch.zeros_like(initial)
        slots, attention = self.attention(self.mlp(tokens), initial)  # 0 + exp(0) * initial
        decoded = self.decoder(slots.flatten(0, 1)).unflatten(0, slots.shape[:2])
        colours, alpha = decoded.split([3, 1], dim=2)
        masks = alpha.softmax(dim=1)
        return (colours * masks).sum(dim=1), masks[:, :, 0], slots, attention


def plain_decoder(decoder: ImageDecoder, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Our decoder's parameters (or what `of` makes of them) by the plain one's names."""
    found = {f"positions.dense.{name}": of(value) for name, value in decoder.positions.project.named_parameters()}
    step = 2 if isinstance(decoder.doubling[0], nn.ConvTranspose2d) else 3
    convs = {step * n + step - 2: getattr(layer, "conv", layer) for n, layer in enumerate(decoder.doubling)}
    end = step * len(decoder.doubling)
    convs |= {end: decoder.last} if decoder.tail is None else {end: decoder.tail, end + 2: decoder.last}
    for index, conv in convs.items():
        found |= {f"convs.{index}.weight": of(conv.weight), f"convs.{index}.bias": of(conv.bias)}
    return found


def plain_words(module: nn.Module, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Our transformer's parameters by torch's names."""
    found = {"positions": of(module.positions_LH), "queries": of(module.queries_KH)}
    for part in ("embed", "norm", "output"):
        found |= {f"{part}.{name}": of(value) for name, value in getattr(module, part).named_parameters()}
    for index, layer in enumerate(module.layers):
        held = {"norm1": layer.norm_self, "norm2": layer.norm_cross, "norm3": layer.norm_mlp}
        held |= {"linear1": layer.mlp[0], "linear2": layer.mlp[2]}
        for theirs, ours in (("self_attn", layer.self_attention), ("multihead_attn", layer.cross_attention)):
            held[f"{theirs}.out_proj"] = ours.output
            for name in ("weight", "bias"):
                joined = torch.cat([of(getattr(ours.query, name)), of(getattr(ours.key_value, name))])
                found[f"layers.{index}.{theirs}.in_proj_{name}"] = joined
        for theirs, part in held.items():
            found |= {f"layers.{index}.{theirs}.{name}": of(value) for name, value in part.named_parameters()}
    return found


def plain_model(ours: LanguageSlots, of: Callable[[Tensor], Tensor], form: str) -> dict[str, Tensor]:
    """All of our parameters (or what `of` makes of them) by the plain model's names."""
    found = {f"decoder.{name}": value for name, value in plain_decoder(ours.decoder, of).items()}
    found |= {f"attention.{name}": of(value) for name, value in ours.attention.named_parameters()}
    found |= {f"mlp.{name}": of(value) for name, value in ours.encoder.mlp.named_parameters()}
    if ours.encoder.positions is not None:
        named = ours.encoder.positions.project.named_parameters()
        found |= {f"positions.dense.{name}": of(value) for name, value in named}
    if ours.encoder.norm is not None:
        found |= {f"norm.{name}": of(value) for name, value in ours.encoder.norm.named_parameters()}
    if form == "transformer":
        return found | {f"words.{name}": value for name, value in plain_words(ours.text2slot, of).items()}
    return found | {name: of(value) for name, value in ours.text2slot.named_parameters()}


def twins(spec: LanguageSlotsSpec, *, seed: int = 0) -> tuple[LanguageSlots, PlainLanguageSlots]:
    """Our model and the plain one with the same weights."""
    ours = build_model(spec, generator=torch.Generator().manual_seed(seed))
    assert isinstance(ours, LanguageSlots)
    plain = PlainLanguageSlots(spec)
    values = plain_model(ours, lambda parameter: parameter.detach(), spec.text2slot.kind)
    theirs = dict(plain.named_parameters())
    assert theirs.keys() == values.keys(), theirs.keys() ^ values.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(values[name].view_as(parameter))
    return ours, plain
