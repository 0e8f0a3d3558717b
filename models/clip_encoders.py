"""Owns the encoder of frames, and the layers with which its feature maps know of earlier frames (video_slots.md 10, R31, R32).

Every layer over frames is causal: frame t sees frames up to t alone, and what it sees of frames before a chunk is a tensor that
the chunk before hands on. A video in chunks therefore is the video as a whole, of whatever length.

Legend: B clips, T frames, M = B * T, H x W pixels or places of a feature map, N = H * W of a map, C encoder channels,
S maps that a layer remembers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.initialisation import Weights
from models.slot_autoencoder import ENCODER_KERNEL, ConvEncoder

STATE_KERNEL = 3
"""Of the recurrent layers' convolutions, in places."""
TIME_KERNEL = 3
"""Of the convolutions over frames: this frame and the two before it."""


class FrameEncoder(ConvEncoder):
    """The autoencoder's encoder, with a stride of its first layer, and with or without the norm before its MLP."""

    def __init__(self, *, resolution: int, channels: int, layers: int, stride: int, norm: bool, weights: Weights) -> None:
        super().__init__(resolution=resolution // stride, channels=channels, layers=layers, weights=weights)
        if stride == 2:
            self.convs[0] = weights.halving_conv(3, channels, ENCODER_KERNEL)
        if not norm:
            self.register_module("norm", nn.Identity())


class Remembered(NamedTuple):
    """What a layer over frames says about a chunk."""

    features_BTCHW: Float[Tensor, "B T C H W"]
    """Which know of this frame and of earlier ones."""
    memory_BSCHW: Float[Tensor, "B S C H W"]
    """What the layer needs of these frames for the next: float32 also under autocast, with its gradient."""


class FrameLayer(Protocol):
    """A layer over frames."""

    maps: int
    """S, how many maps it remembers; all zeros before a video's first frame."""

    def __call__(self, features_BTCHW: Float[Tensor, "B T C H W"], memory_BSCHW: Float[Tensor, "B S C H W"]) -> Remembered: ...


class ConvGru(nn.Module):
    """A GRU whose products are convolutions (Ballas et al. 2016, arXiv 1511.06432).

    z = sigmoid(Wz * x + Uz * h + bz), r = sigmoid(Wr * x + Ur * h + br), n = tanh(Wn * x + Un * (r h) + bn),
    h <- (1 - z) h + z n. Gates and state are float32, also under autocast.
    """

    maps = 1

    def __init__(self, *, channels: int, weights: Weights) -> None:
        super().__init__()
        self.inputs = weights.conv(channels, 3 * channels, STATE_KERNEL)
        """To z, r and n."""
        self.gates = weights.conv(channels, 2 * channels, STATE_KERNEL, bias=False)
        """State to z and r."""
        self.candidate = weights.conv(channels, channels, STATE_KERNEL, bias=False)
        """Reset state to n."""

    def forward(self, features_BTCHW: Float[Tensor, "B T C H W"], memory_BSCHW: Float[Tensor, "B 1 C H W"]) -> Remembered:
        """The states after each frame."""
        state_BCHW = memory_BSCHW[:, 0]
        found = []
        for input_B3CHW in _each_frame(self.inputs, features_BTCHW):
            input_z_BCHW, input_r_BCHW, input_n_BCHW = input_B3CHW.float().chunk(3, dim=1)
            state_z_BCHW, state_r_BCHW = self.gates(state_BCHW).float().chunk(2, dim=1)
            update_BCHW = torch.sigmoid(input_z_BCHW + state_z_BCHW)
            reset_BCHW = torch.sigmoid(input_r_BCHW + state_r_BCHW)
            new_BCHW = torch.tanh(input_n_BCHW + self.candidate(reset_BCHW * state_BCHW).float())
            state_BCHW = torch.lerp(state_BCHW, new_BCHW, update_BCHW)
            found.append(state_BCHW)
        return Remembered(torch.stack(found, dim=1), state_BCHW[:, None])


class ConvLstm(nn.Module):
    """An LSTM whose products are convolutions (Shi et al. 2015, arXiv 1506.04214), without its peepholes.

    i, f, o = sigmoid(W * x + U * h + b), g = tanh(Wg * x + Ug * h + bg), c <- f c + i g, h <- o tanh(c). The paper's gates also
    see c, through weights per place that would tie the model to its resolution. Gates and state are float32, also under autocast.
    """

    maps = 2
    """h and c."""

    def __init__(self, *, channels: int, weights: Weights) -> None:
        super().__init__()
        self.inputs = weights.conv(channels, 4 * channels, STATE_KERNEL)
        """To i, f, o and g."""
        self.state = weights.conv(channels, 4 * channels, STATE_KERNEL, bias=False)

    def forward(self, features_BTCHW: Float[Tensor, "B T C H W"], memory_BSCHW: Float[Tensor, "B 2 C H W"]) -> Remembered:
        """The hidden states after each frame."""
        hidden_BCHW, cell_BCHW = memory_BSCHW.unbind(1)
        found = []
        for input_B4CHW in _each_frame(self.inputs, features_BTCHW):
            sums_B4CHW = input_B4CHW.float() + self.state(hidden_BCHW).float()
            enter_BCHW, keep_BCHW, show_BCHW, new_BCHW = sums_B4CHW.chunk(4, dim=1)
            cell_BCHW = torch.sigmoid(keep_BCHW) * cell_BCHW + torch.sigmoid(enter_BCHW) * torch.tanh(new_BCHW)
            hidden_BCHW = torch.sigmoid(show_BCHW) * torch.tanh(cell_BCHW)
            found.append(hidden_BCHW)
        return Remembered(torch.stack(found, dim=1), torch.stack((hidden_BCHW, cell_BCHW), dim=1))


class CausalConv(nn.Module):
    """The second half of a separable 3-D convolution: over frames at each place, then ReLU.

    S3D (Xie et al. 2018, arXiv 1712.04851) makes a k x k x k convolution of a k x k one within each frame and one over k frames
    at each place. The original is not causal: its convolution over frames is centred, so that a frame sees the next one, and four
    frames ahead through four layers. That suits a clip that is classified as a whole; here slots would know of an object before
    it comes, and a chunk would wait for the next one. So the same kernel looks at this frame and the two before it. There is no
    batch norm, as in the rest of the encoder.
    """

    maps = TIME_KERNEL - 1

    def __init__(self, *, channels: int, weights: Weights) -> None:
        super().__init__()
        self.over_frames = weights.conv_over_frames(channels, TIME_KERNEL)

    def forward(self, features_BTCHW: Float[Tensor, "B T C H W"], memory_BSCHW: Float[Tensor, "B S C H W"]) -> Remembered:
        """Features of as many frames; remembered are the inputs of the last ones."""
        seen_BTCHW = torch.cat((memory_BSCHW.to(features_BTCHW.dtype), features_BTCHW), dim=1)
        found_BCTHW = F.relu_(self.over_frames(seen_BTCHW.transpose(1, 2)))
        return Remembered(found_BCTHW.transpose(1, 2), seen_BTCHW[:, -self.maps :].float())


class OverFrames(nn.Module):
    """Layers over frames behind some of an encoder's convolutions."""

    def __init__(self, layers: Mapping[int, ConvGru | ConvLstm | CausalConv]) -> None:
        """`layers`: by the number of the convolution that they follow, counted from 0."""
        super().__init__()
        self.layers = nn.ModuleDict({str(number): layer for number, layer in layers.items()})

    def forward(
        self, encoder: FrameEncoder, images_BT3HW: Float[Tensor, "B T 3 H W"], memory: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "M N C"], tuple[Tensor, ...]]:
        """Tokens of every frame and what each layer remembers [B,S,C,H,W]; `memory`: of the chunk before, () before the first."""
        sizes, after = images_BT3HW.shape[:2], list[Tensor]()
        features_MCHW = images_BT3HW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for number, conv in enumerate(encoder.convs):
            features_MCHW = F.relu_(conv(features_MCHW))
            if str(number) in self.layers:
                layer: FrameLayer = self.layers[str(number)]  # type: ignore[assignment]  # of a ModuleDict
                features_BTCHW = features_MCHW.view(*sizes, *features_MCHW.shape[1:])
                remembered = layer(features_BTCHW, memory[len(after)] if memory else _nothing(features_BTCHW, layer.maps))
                features_MCHW = remembered.features_BTCHW.flatten(0, 1)
                after.append(remembered.memory_BSCHW)
        return encoder.tokens(features_MCHW), tuple(after)


def _nothing(features_BTCHW: Tensor, maps: int) -> Tensor:
    """What a layer remembers before a video's first frame."""
    clips, _, *sizes = features_BTCHW.shape
    return features_BTCHW.new_zeros((clips, maps, *sizes), dtype=torch.float32)


def _each_frame(conv: nn.Module, features_BTCHW: Tensor) -> tuple[Tensor, ...]:
    """A convolution of all frames at once, one frame after the other."""
    return conv(features_BTCHW.flatten(0, 1)).unflatten(0, features_BTCHW.shape[:2]).unbind(1)  # type: ignore[no-any-return]
