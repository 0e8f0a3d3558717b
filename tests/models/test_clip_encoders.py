"""Feature maps that know of earlier frames: the layers' equations in plain loops, causality, chunks of a video, sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_video import seeded
from torch import Tensor, nn

from models.build_video import build_video_slots
from models.clip_encoders import CausalConv, ConvGru, ConvLstm, FrameLayer
from models.initialisation import Weights
from models.spec_base import UpsamplingDecoder
from models.spec_video import Recurrence, VideoSlotsSpec
from models.video_slots import VideoOutput, VideoSlots, VideoState, signed

KINDS = ("conv_gru", "conv_lstm", "conv3d")
BASE = VideoSlotsSpec(
    resolution=16,
    num_slots=3,
    slot_size=8,
    num_iterations=2,
    slot_mlp_size=9,
    encoder_channels=6,
    encoder_layers=2,
    decoder=UpsamplingDecoder(channels=7, initial_resolution=4),
)
FRAMES, CLIPS, CHANNELS, HEIGHT, WIDTH = 5, 2, 4, 6, 5


def spec_of(encoder_time: str, **changes: Any) -> VideoSlotsSpec:
    return VideoSlotsSpec.model_validate(BASE.model_dump() | {"encoder_time": encoder_time} | changes)


SPECS = {
    **{kind: spec_of(kind) for kind in KINDS},
    "conv_lstm of half the size": spec_of("conv_lstm", encoder_stride=2, encoder_norm=True),
    "conv3d of half the size": spec_of("conv3d", encoder_stride=2, encoder_layers=3),
    "conv_gru, recurrent": spec_of("conv_gru", recurrence=Recurrence().model_dump(), start="learned"),
}


def built(spec: VideoSlotsSpec, seed: int = 0) -> VideoSlots:
    return build_video_slots(spec, generator=seeded(seed))


def lively(spec: VideoSlotsSpec) -> VideoSlots:
    """With features of a size that a wrong frame would show in the slots; as drawn they are small beside the positions."""
    model = built(spec)
    with torch.no_grad():
        for conv in model.encoder.convs:
            for parameter in conv.parameters():
                parameter.mul_(4)
    return model


def batch(spec: VideoSlotsSpec, frames: int = FRAMES, clips: int = CLIPS) -> tuple[Tensor, Tensor]:
    images = torch.rand(clips, frames, 3, spec.resolution, spec.resolution, generator=seeded(1))
    return images, torch.randn(clips, frames, spec.num_slots, spec.slot_size, generator=seeded(2))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layer_of(kind: str, channels: int = CHANNELS) -> Any:
    kinds: dict[str, Callable[..., Any]] = {"conv_gru": ConvGru, "conv_lstm": ConvLstm, "conv3d": CausalConv}
    return kinds[kind](channels=channels, weights=Weights(scheme="covloss", generator=seeded(3)))


def features(frames: int = FRAMES) -> Tensor:
    return torch.randn(CLIPS, frames, CHANNELS, HEIGHT, WIDTH, generator=seeded(4))


def remembered_before(layer: FrameLayer) -> Tensor:
    return torch.randn(CLIPS, layer.maps, CHANNELS, HEIGHT, WIDTH, generator=seeded(5))


def convolved(image: Tensor, weight: Tensor) -> Tensor:
    """One image [C,H,W] with zeros around it, place by place, as [outputs,H,W]."""
    padded = F.pad(image, (1, 1, 1, 1))
    rows = [
        torch.stack([(weight * padded[:, y : y + 3, x : x + 3]).sum(dim=(1, 2, 3)) for x in range(WIDTH)], dim=1)
        for y in range(HEIGHT)
    ]
    return torch.stack(rows, dim=1)


def gate(layer: nn.Conv2d, number: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of one of the gates that a convolution feeds."""
    rows = slice(number * CHANNELS, (number + 1) * CHANNELS)
    return layer.weight[rows], torch.zeros(CHANNELS) if layer.bias is None else layer.bias[rows]


def plain_gru(layer: ConvGru, images: list[Tensor], memory: Tensor) -> tuple[list[Tensor], Tensor]:
    """The paper's equations for one clip, its frames [C,H,W] one after the other."""
    state, found = memory[0], []
    for image in images:
        sums = []
        for number in range(3):
            weight, bias = gate(layer.inputs, number)
            sums.append(convolved(image, weight) + bias[:, None, None])
        z = 1 / (1 + torch.exp(-sums[0] - convolved(state, gate(layer.gates, 0)[0])))
        r = 1 / (1 + torch.exp(-sums[1] - convolved(state, gate(layer.gates, 1)[0])))
        n = torch.tanh(sums[2] + convolved(r * state, layer.candidate.weight))
        state = (1 - z) * state + z * n
        found.append(state)
    return found, state[None]


def plain_lstm(layer: ConvLstm, images: list[Tensor], memory: Tensor) -> tuple[list[Tensor], Tensor]:
    hidden, cell, found = memory[0], memory[1], []
    for image in images:
        sums = []
        for number in range(4):
            weight, bias = gate(layer.inputs, number)
            sums.append(convolved(image, weight) + bias[:, None, None] + convolved(hidden, gate(layer.state, number)[0]))
        i, f, o = (1 / (1 + torch.exp(-one)) for one in sums[:3])
        cell = f * cell + i * torch.tanh(sums[3])
        hidden = o * torch.tanh(cell)
        found.append(hidden)
    return found, torch.stack([hidden, cell])


def plain_conv(layer: CausalConv, images: list[Tensor], memory: Tensor) -> tuple[list[Tensor], Tensor]:
    weight, bias = layer.over_frames.weight[:, :, :, 0, 0], layer.over_frames.bias
    assert bias is not None
    seen, found = [memory[0], memory[1], *images], []
    for index in range(len(images)):
        taps = [torch.einsum("oc,chw->ohw", weight[:, :, tap], seen[index + tap]) for tap in range(3)]
        found.append(torch.relu(sum(taps, bias[:, None, None])))
    return found, torch.stack(seen[-2:])


PLAIN: dict[str, Callable[..., tuple[list[Tensor], Tensor]]] = {
    "conv_gru": plain_gru, "conv_lstm": plain_lstm, "conv3d": plain_conv,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_that_a_layer_and_its_gradients_are_the_equations_frame_by_frame(kind: str) -> None:
    layer, given = layer_of(kind), features()
    memory = remembered_before(layer)
    given.requires_grad_(True)
    memory.requires_grad_(True)
    inputs = [given, memory, *layer.parameters()]
    mine = layer(given, memory)
    plain = [PLAIN[kind](layer, list(clip.unbind(0)), before) for clip, before in zip(given, memory, strict=True)]
    expected = torch.stack([torch.stack(found) for found, _ in plain]), torch.stack([after for _, after in plain])
    weights = [torch.randn(part.shape, generator=seeded(6)) for part in expected]
    gradients = []
    for output in (mine, expected):
        total = sum((part * weight).sum() for part, weight in zip(output, weights, strict=True))
        assert isinstance(total, Tensor)
        gradients.append(torch.autograd.grad(total, inputs))
    for ours, theirs in zip((*mine, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
        assert bool(ours.any())


def test_that_layers_lie_behind_the_last_convolution_or_behind_each() -> None:
    """The model's tokens, from the encoder's parts and the layers called one by one."""
    for kind, behind in (("conv_gru", {1}), ("conv_lstm", {1}), ("conv3d", {0, 1})):
        model = built(SPECS[kind])
        assert model.over_frames is not None
        images = signed(batch(BASE)[0])
        hidden = images
        for number, conv in enumerate(model.encoder.convs):
            hidden = torch.stack([torch.relu(conv(frame)) for frame in hidden.unbind(1)], dim=1)
            if number in behind:
                layer: Any = model.over_frames.layers[str(number)]
                hidden = layer(hidden, torch.zeros(CLIPS, layer.maps, *hidden.shape[2:])).features_BTCHW
        expected = torch.stack([model.encoder.tokens(frame) for frame in hidden.unbind(1)], dim=1).flatten(0, 1)
        found, _ = model.over_frames(model.encoder, images, ())
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def in_chunks(model: VideoSlots, clips: Tensor, noise: Tensor, chunk: int) -> tuple[list[Tensor], VideoState]:
    """Every output over all frames, and the last state."""
    state: VideoState | None = None
    found: list[VideoOutput] = []
    for images, drawn in zip(torch.split(clips, chunk, dim=1), torch.split(noise, chunk, dim=1), strict=True):
        found.append(model(images, drawn, state))
        state = found[-1].state
    assert state is not None
    return [torch.cat(parts, dim=1) for parts in zip(*(output[:5] for output in found), strict=True)], state


@pytest.mark.parametrize("name", SPECS)
def test_that_a_video_in_chunks_with_its_state_carried_is_the_whole_video(name: str) -> None:
    """24 frames at once, by ones and by fives: to rounding, as without layers over frames."""
    model = lively(SPECS[name])
    clips, noise = batch(SPECS[name], frames=24)
    with torch.no_grad():
        whole = model(clips, noise)
        for chunk in (1, 5, 24):
            joined, state = in_chunks(model, clips, noise, chunk)
            for mine, expected in zip(joined, whole[:5], strict=True):
                torch.testing.assert_close(mine, expected, atol=4e-6, rtol=1e-5)
            assert len(state.memory) == len(whole.state.memory) > 0
            for mine, expected in zip(state.memory, whole.state.memory, strict=True):
                torch.testing.assert_close(mine, expected, atol=4e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_that_a_chunk_that_forgot_its_video_is_another(kind: str) -> None:
    model = lively(SPECS[kind])
    clips, noise = batch(SPECS[kind])
    whole = model(clips, noise).slots_BTKD[:, 2:]
    state = model(clips[:, :2], noise[:, :2]).state
    torch.testing.assert_close(model(clips[:, 2:], noise[:, 2:], state).slots_BTKD, whole)
    assert not torch.allclose(model(clips[:, 2:], noise[:, 2:], state._replace(memory=())).slots_BTKD, whole, atol=1e-3)


def frames_seen(spec: VideoSlotsSpec, of: int, frames: int) -> list[bool]:
    """Which frames of a clip have a part in the gradient of frame `of`'s attention."""
    clips, noise = batch(spec, frames=frames, clips=1)
    clips.requires_grad_(True)
    built(spec)(clips, noise).attention_BTKN[:, of].square().sum().backward()
    assert clips.grad is not None
    return [bool(frame.any()) for frame in clips.grad.unbind(1)]


def test_that_a_frame_sees_itself_and_earlier_frames_alone() -> None:
    for kind in KINDS:
        assert frames_seen(SPECS[kind], of=3, frames=6) == [True] * 4 + [False] * 2
    assert frames_seen(spec_of("none"), of=3, frames=6) == [False] * 3 + [True] + [False] * 2
    assert frames_seen(SPECS["conv3d"], of=6, frames=8) == [False] * 2 + [True] * 5 + [False]  # two layers, two frames each


@pytest.mark.parametrize("kind", KINDS)
def test_that_no_frame_changes_with_a_later_one_and_no_clip_with_another(kind: str) -> None:
    model = lively(SPECS[kind])
    clips, noise = batch(SPECS[kind])
    changed = clips.clone()
    changed[0, 3:] = 0
    before, after = model(clips, noise), model(changed, noise)
    for mine, other in zip(before[:5], after[:5], strict=True):
        torch.testing.assert_close(mine[0, :3], other[0, :3], atol=1e-6, rtol=0)
        torch.testing.assert_close(mine[1], other[1], atol=1e-6, rtol=0)
    assert not torch.allclose(before.slots_BTKD[0, 3:], after.slots_BTKD[0, 3:], atol=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_that_the_loss_reaches_every_parameter_also_of_single_videos(name: str) -> None:
    model = built(SPECS[name])
    clips, noise = batch(SPECS[name], clips=1)
    (model(clips, noise).reconstruction - signed(clips)).square().mean().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert bool(parameter.grad.any()), label


def test_that_layers_have_the_sizes_that_the_readme_says() -> None:
    base = parameters(built(VideoSlotsSpec()))
    for kind, count in (("conv_gru", 221_376), ("conv_lstm", 295_168), ("conv3d", 49_408)):
        model = built(VideoSlotsSpec.model_validate({"encoder_time": kind}))
        assert model.over_frames is not None
        assert parameters(model.over_frames) == count
        assert parameters(model) == base + count


def test_that_none_is_the_model_of_before_and_all_share_its_weights() -> None:
    base = built(BASE)
    assert spec_of("none") == BASE
    assert base.over_frames is None
    assert base(*batch(BASE)).state.memory == ()
    held = base.state_dict()
    assert not [key for key in held if "over_frames" in key]
    for kind in KINDS:
        other = built(SPECS[kind]).state_dict()
        assert {key for key in other if not key.startswith("over_frames.")} == set(held)
        assert all(torch.equal(other[key], value) for key, value in held.items())


@pytest.mark.parametrize("name", SPECS)
def test_that_one_seed_gives_one_model_and_the_global_state_has_no_part_in_it(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = built(SPECS[name], seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    again, other = built(SPECS[name], seed=3).state_dict(), built(SPECS[name], seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].dim() > 1)


def test_that_convolutions_over_frames_start_near_the_identity_of_this_frame() -> None:
    """So that as much comes through the encoder as without them: its biases and weights are torch's, which dampen."""
    weight = layer_of("conv3d", channels=64).over_frames.weight[:, :, :, 0, 0].detach()
    rest = weight - torch.stack([torch.zeros(64, 64), torch.zeros(64, 64), torch.eye(64)], dim=2)
    assert float(rest.abs().max()) <= 1 / (64 * 3) ** 0.5
    assert float(rest.abs().max()) > 0.99 / (64 * 3) ** 0.5


@pytest.mark.parametrize("name", SPECS)
def test_that_bf16_autocast_leaves_outputs_and_memory_in_fp32_and_close(name: str) -> None:
    model = built(SPECS[name])
    clips, noise = batch(SPECS[name])
    full = model(clips, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(clips, noise)
        model(clips, noise, low.state)
    for mine, exact in zip((*low[:5], *low.state.memory), (*full[:5], *full.state.memory), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, atol=0.15, rtol=0.1)
    low.reconstruction.square().mean().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)
