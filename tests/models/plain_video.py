"""The video model written frame by frame: the oracle of the one pass over all frames, and the benchmark's peer.

Encoder, attention and decoder run on one frame at a time, the starts of frames are spelled out case by case, and the
transformer predictor is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from plain import PlainAutoencoder, PlainPositions, PlainSlotAttention, as_plain, pairs
from torch import Tensor, nn

from models.build_video import build_video_slots
from models.predictor import MlpStep, TransformerStep
from models.spec import SlotAutoencoderSpec
from models.spec_video import TransformerPredictor, VideoSlotsSpec
from models.video_slots import VideoSlots

Triple = tuple[str, Tensor, Tensor]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class PlainMlpStep(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, slots: Tensor) -> Tensor:
        return slots + self.second(torch.relu(self.first(self.norm(slots))))


class PlainVideo(nn.Module):
    def __init__(self, spec: VideoSlotsSpec) -> None:
        super().__init__()
        self.spec = spec
        shared = {"resolution", "num_slots", "slot_size", "num_iterations", "encoder_channels", "encoder_layers", "slot_mlp_size"}
        self.frame = PlainAutoencoder(SlotAutoencoderSpec(**spec.model_dump(include=shared), decoder=spec.decoder))
        attention = PlainSlotAttention(spec.encoder_channels, spec.slot_size, spec.slot_mlp_size, spec.num_iterations, eps=1e-5)
        for name in ("mu", "log_sigma"):  # zeros: what it is given as noise are then the slots that it starts from
            delattr(attention, name)
            attention.register_buffer(name, torch.zeros(1, 1, spec.slot_size))
        self.frame.attention = attention
        if not spec.encoder_norm:
            self.frame.norm = nn.Identity()
        if spec.encoder_stride == 2:
            self.frame.encoder[0] = nn.Conv2d(3, spec.encoder_channels, 5, stride=2, padding=2)
            self.frame.encoder_positions = PlainPositions(spec.encoder_channels, spec.resolution // 2)
        rows = () if spec.start == "gaussian" else (spec.num_slots,)
        self.mu = nn.Parameter(torch.zeros(*rows, spec.slot_size))
        if spec.start != "learned":
            self.log_sigma = nn.Parameter(torch.zeros(*rows, spec.slot_size))
        self.eval_noise = torch.zeros(spec.num_slots, spec.slot_size)
        predictor = None if spec.recurrence is None else spec.recurrence.predictor
        if isinstance(predictor, TransformerPredictor):
            layer = nn.TransformerEncoderLayer(
                spec.slot_size,
                predictor.heads,
                predictor.feedforward,
                dropout=0.0,
                batch_first=True,
                norm_first=predictor.pre_norm,
            )
            self.predictor: nn.Module | None = nn.TransformerEncoder(layer, predictor.layers, enable_nested_tensor=False)
        else:
            self.predictor = None if predictor is None else PlainMlpStep(spec.slot_size, predictor.hidden)

    def starting(self, noise: Tensor) -> Tensor:
        if self.spec.start == "learned":
            return self.mu[None].repeat(len(noise), 1, 1)
        return self.mu + torch.exp(self.log_sigma) * noise

    def forward(self, clips: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstructions, masks, slots and attention, each [B,T,...]."""
        spec, recurrence, slots = self.spec, self.spec.recurrence, None
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for index in range(clips.shape[1]):
            of_frame = {"frame": noise[:, index], "clip": noise[:, 0], "fixed": self.eval_noise.expand_as(noise[:, 0])}
            self.frame.attention.iterations = spec.num_iterations
            if slots is None or recurrence is None:
                start = self.starting(of_frame[spec.noise])
            else:
                cut = recurrence.detach_every > 0 and index % recurrence.detach_every == 0
                start = slots.detach() if cut else slots
                if self.predictor is not None:
                    start = self.predictor(start)
                self.frame.attention.iterations = recurrence.num_iterations
            image = (clips[:, index] - 0.5) / 0.5
            slots, attention, decoded = self.one_frame(image, start)
            masks = torch.softmax(decoded[:, :, 3:], dim=1)
            found.append(((masks * decoded[:, :, :3]).sum(dim=1), masks[:, :, 0], slots, attention))
        recon, masks, slots, attention = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
        return recon, masks, slots, attention

    def one_frame(self, image: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frame, (batch, _, height, width) = self.frame, image.shape
        features = frame.encoder_positions(frame.encoder(image).permute(0, 2, 3, 1)).flatten(1, 2)
        slots, attention = frame.attention(frame.mlp(frame.norm(features)), start)
        count, dim = slots.shape[1:]
        x = slots.reshape(batch * count, 1, 1, dim).repeat(1, frame.start, frame.start, 1)
        decoded = frame.decoder(frame.decoder_positions(x).permute(0, 3, 1, 2).contiguous())
        return slots, attention, decoded.reshape(batch, count, 4, height, width)


def _of_predictor(theirs: nn.Module | None, ours: nn.Module | None, what: Callable[[Tensor], Tensor]) -> Iterator[Triple]:
    """Names, the plain parameter, and `what` of ours in its layout."""
    if isinstance(theirs, PlainMlpStep):
        assert isinstance(ours, MlpStep)
        yield from _same("norm", theirs.norm, ours.norm, what)
        yield from _same("first", theirs.first, ours.mlp[0], what)
        yield from _same("second", theirs.second, ours.mlp[2], what)
    elif theirs is not None:
        assert isinstance(ours, TransformerStep)
        for index, (layer, mine) in enumerate(zip(theirs.layers, ours.layers, strict=True)):
            for kind in ("weight", "bias"):
                joined = [what(getattr(part, kind)) for part in (mine.attention.query, mine.attention.key_value)]
                yield f"{index}.in_{kind}", getattr(layer.self_attn, f"in_proj_{kind}"), torch.cat(joined)
            yield from _same(f"{index}.out", layer.self_attn.out_proj, mine.attention.output, what)
            yield from _same(f"{index}.first", layer.linear1, mine.mlp[0], what)
            yield from _same(f"{index}.second", layer.linear2, mine.mlp[2], what)
            yield from _same(f"{index}.norm1", layer.norm1, mine.norm_attention, what)
            yield from _same(f"{index}.norm2", layer.norm2, mine.norm_mlp, what)


def _same(name: str, theirs: nn.Module, ours: nn.Module, what: Callable[[Tensor], Tensor]) -> Iterator[Triple]:
    for kind in ("weight", "bias"):
        yield f"{name}.{kind}", getattr(theirs, kind), what(getattr(ours, kind))


def counterparts(plain: PlainVideo, ours: VideoSlots, what: Callable[[Tensor], Tensor]) -> list[Triple]:
    """Names, every plain parameter, and `what` (the value, the gradient) of ours in its layout."""
    found: list[Triple] = [
        (f"frame.{index}", theirs, as_plain(what(mine), flipped=flipped).view_as(theirs))
        for index, (theirs, mine, flipped) in enumerate(pairs(plain.frame, ours))  # type: ignore[arg-type]  # has the parts that count
    ]
    found += [
        (name, getattr(plain, name), what(getattr(ours.start, name))) for name in ("mu", "log_sigma") if hasattr(plain, name)
    ]
    found += _of_predictor(plain.predictor, ours.predictor, what)
    assert {id(theirs) for _, theirs, _ in found} == {id(parameter) for parameter in plain.parameters()}
    return found


def twins(spec: VideoSlotsSpec, *, seed: int = 0) -> tuple[VideoSlots, PlainVideo]:
    """Our model and the plain one with the same weights."""
    ours, plain = build_video_slots(spec, generator=seeded(seed)), PlainVideo(spec)
    with torch.no_grad():
        for _, theirs, mine in counterparts(plain, ours, lambda parameter: parameter.detach()):
            theirs.copy_(mine)
    plain.eval_noise = ours.eval_noise_KD.clone()
    return ours, plain
