"""Owns slot attention on clips: per frame or recurrent, with its start of every frame and the state carried from clip to clip.

Encoder and decoder run once over all frames of a clip; only recurrent slot attention and an encoder's recurrent layers go frame
by frame. The reconstruction and the slots' colours are in the units of `signed` images.

Legend: B clips, T frames, M = B * T, H x W pixels, N tokens of a frame, C encoder channels, h x w its feature maps, S maps that a
layer over frames remembers, K slots, D slot size, n = M * K.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.clip_encoders import FrameEncoder, OverFrames
from models.decoders import mix
from models.predictor import Predictor
from models.slot_attention import SlotAttention
from models.slot_model import SlotModel
from models.slot_start import FrameStart

WHITE = 1.0
"""In `signed` units: what the original lays a slot's reconstruction on."""
CPU_PIXELS = 1 << 14
"""Of slots' images that a CPU decodes at a time, for its caches (four slots at 64 x 64); an accelerator takes all at once."""


class VideoState(NamedTuple):
    """What a model needs to know of the frames before a chunk of a video. (A tuple, so that DDP and loaders see into it.)"""

    slots_BKD: Float[Tensor, "B K D"]
    """Final slots of the last frame, with its gradient."""
    noise_BKD: Float[Tensor, "B K D"]
    """The noise of the video's first frame."""
    frames: int
    """How many frames came before."""
    memory: tuple[Float[Tensor, "B S C h w"], ...] = ()
    """What the encoder's layers over frames remember, with its gradient; empty without such layers."""


class VideoOutput(NamedTuple):
    """What a video model says about clips; all in float32, also under autocast. As `SlotOutput`, with an axis of frames."""

    reconstruction: Float[Tensor, "B T 3 H W"]
    """Of `signed` images."""
    masks_BTKHW: Float[Tensor, "B T K H W"]
    """How the decoder divides each frame among the slots: sums to 1 over slots."""
    slots_BTKD: Float[Tensor, "B T K D"]
    """Slots after a frame's last iteration."""
    attention_BTKN: Float[Tensor, "B T K N"]
    """Softmax over slots of a frame's last iteration, before the renormalisation over inputs."""
    colours_BTK3HW: Float[Tensor, "B T K 3 H W"]
    """What each slot would paint if the image were its own, in `signed` units, not clamped."""
    state: VideoState
    """To go on with the frames that follow."""


def signed(images: Float[Tensor, "... 3 H W"]) -> Float[Tensor, "... 3 H W"]:
    """Images in [0, 1] -> [-1, 1], the model's units and its target's."""
    return 2 * images - 1


def slot_reconstructions(output: VideoOutput) -> Float[Tensor, "B T K 3 H W"]:
    """Each slot's colours where its mask is, on white (video_slots.md 4), in `signed` units, not clamped."""
    masks_BTK1HW = output.masks_BTKHW[:, :, :, None]
    return WHITE + masks_BTK1HW * (output.colours_BTK3HW - WHITE)


def _framed(values: Tensor, count: int) -> Tensor:
    """The first axis, taken apart into one of whatever length and one of `count`."""
    return values.view(-1, count, *values.shape[1:])


class FrameAttention(SlotAttention):
    """The cell, taken apart: keys and values of many frames at once, and any number of iterations from given slots."""

    def project(self, inputs_MNC: Float[Tensor, "M N C"]) -> tuple[Float[Tensor, "M N D"], Float[Tensor, "M N D"]]:
        """Keys and values, in float32."""
        with torch.autocast(inputs_MNC.device.type, enabled=False):
            normed_MNC = self.norm_inputs(inputs_MNC.float())
            return self.key(normed_MNC), self.value(normed_MNC)

    def settle(
        self,
        key_MND: Float[Tensor, "M N D"],
        value_MND: Float[Tensor, "M N D"],
        start_MKD: Float[Tensor, "M K D"],
        *,
        iterations: int,
    ) -> tuple[Float[Tensor, "M K D"], Float[Tensor, "M K N"]]:
        """Final slots, and the last iteration's softmax over slots before its renormalisation over inputs."""
        with torch.autocast(key_MND.device.type, enabled=False):
            slots_MKD, attention_MKN = self._iterate(start_MKD, key_MND, value_MND)
            for _ in range(iterations - 1):
                slots_MKD, attention_MKN = self._iterate(slots_MKD, key_MND, value_MND)
        return slots_MKD, attention_MKN


class VideoSlots(SlotModel):
    """Encoder, slot attention over the frames of a clip, a decoder per slot, alpha-blended into one image per frame."""

    eval_noise_KD: Tensor

    def __init__(
        self,
        *,
        resolution: int,
        encoder: FrameEncoder,
        over_frames: OverFrames | None,
        start: FrameStart,
        attention: FrameAttention,
        predictor: Predictor | None,
        decoder: nn.Module,
        eval_noise_KD: Float[Tensor, "K D"],
        noise: Literal["frame", "clip", "fixed"],
        detach_every: int | None,
        iterations: tuple[int, int],
    ) -> None:
        """`detach_every`: None without recurrence; 0 never. `iterations`: on a clip's first frame, and on later ones."""
        super().__init__()
        num_slots, slot_size = eval_noise_KD.shape
        self.noise_shape = (num_slots, slot_size)
        self.encoder = encoder
        self.over_frames = over_frames
        self.start = start
        self.attention = attention
        self.predictor = predictor
        self.decoder = decoder
        self.register_buffer("eval_noise_KD", eval_noise_KD)
        self._noise = noise
        self._detach_every = detach_every
        self._first_iterations, self._later_iterations = iterations
        self._cpu_slots = max(1, CPU_PIXELS // resolution**2)

    def fixed_noise(self, clips: int, frames: int) -> Float[Tensor, "{clips} {frames} K D"]:
        """The checkpoint's evaluation noise, the same for every frame of every clip (V1, V8); draws nothing."""
        return self.eval_noise_KD.expand(clips, frames, -1, -1)

    def forward(
        self,
        clips_BT3HW: Float[Tensor, "B T 3 H W"],
        noise_BTKD: Float[Tensor, "B T K D"],
        state: VideoState | None = None,
    ) -> VideoOutput:
        """`clips_BT3HW` in [0, 1]; `noise_BTKD` standard normal, of which a variant uses what it needs; no frames is an error.

        `state`: of the output for the frames before, when these go on with the same videos; None at their beginning.
        """
        frames = clips_BT3HW.shape[1]
        tokens_MNC, memory = self._encode(signed(clips_BT3HW), state)
        key_MND, value_MND = self.attention.project(tokens_MNC)
        noise_BKD = noise_BTKD[:, 0] if state is None else state.noise_BKD
        if self._detach_every is None:
            start_BTKD = self.start(self._noise_of(noise_BTKD, noise_BKD[:, None].expand_as(noise_BTKD)))
            slots_MKD, attention_MKN = self.attention.settle(
                key_MND, value_MND, start_BTKD.flatten(0, 1), iterations=self._first_iterations
            )
        else:
            slots_MKD, attention_MKN = self._recur(_framed(key_MND, frames), _framed(value_MND, frames), noise_BKD, state)
        decoded_MK4HW = _framed(self._decode(slots_MKD.flatten(0, 1)), slots_MKD.shape[1])
        reconstruction_M3HW, masks_MKHW = mix(decoded_MK4HW)
        slots_BTKD = _framed(slots_MKD, frames)
        return VideoOutput(
            reconstruction=_framed(reconstruction_M3HW, frames),
            masks_BTKHW=_framed(masks_MKHW, frames),
            slots_BTKD=slots_BTKD,
            attention_BTKN=_framed(attention_MKN, frames),
            colours_BTK3HW=_framed(decoded_MK4HW[:, :, :3].float(), frames),
            state=VideoState(
                slots_BKD=slots_BTKD[:, -1],
                noise_BKD=noise_BKD,
                frames=frames + (0 if state is None else state.frames),
                memory=memory,
            ),
        )

    def _encode(self, images_BT3HW: Tensor, state: VideoState | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens of every frame [M,N,C], and what layers over frames remember."""
        if self.over_frames is None:
            return self.encoder(images_BT3HW.flatten(0, 1)), ()
        tokens_MNC, memory = self.over_frames(self.encoder, images_BT3HW, () if state is None else state.memory)
        return tokens_MNC, memory

    def _decode(self, slots_nD: Float[Tensor, "n D"]) -> Float[Tensor, "n 4 H W"]:
        """RGB and alpha logit of slots of all frames."""
        if slots_nD.device.type != "cpu":
            decoded_n4HW: Tensor = self.decoder(slots_nD)
            return decoded_n4HW
        return torch.cat([self.decoder(part_nD) for part_nD in torch.split(slots_nD, self._cpu_slots)])

    def _recur(self, key_BTND: Tensor, value_BTND: Tensor, noise_BKD: Tensor, state: VideoState | None) -> tuple[Tensor, Tensor]:
        """Slots and attention of every frame, [M,K,D] and [M,K,N]."""
        before = 0 if state is None else state.frames
        last_BKD = None if state is None else state.slots_BKD
        slots, attention = [], []
        for index, (key_BND, value_BND) in enumerate(zip(key_BTND.unbind(1), value_BTND.unbind(1), strict=True), start=before):
            if last_BKD is None:
                start_BKD = self.start(self._noise_of(noise_BKD, noise_BKD))
                iterations = self._first_iterations
            else:
                start_BKD, iterations = self._next_start(last_BKD, index), self._later_iterations
            last_BKD, attention_BKN = self.attention.settle(key_BND, value_BND, start_BKD, iterations=iterations)
            slots.append(last_BKD)
            attention.append(attention_BKN)
        return torch.stack(slots, dim=1).flatten(0, 1), torch.stack(attention, dim=1).flatten(0, 1)

    def _next_start(self, last_BKD: Tensor, index: int) -> Tensor:
        """What frame `index` of a video, counted from 0, starts from."""
        carried_BKD = last_BKD.detach() if self._detach_every and index % self._detach_every == 0 else last_BKD
        return carried_BKD if self.predictor is None else self.predictor(carried_BKD)

    def _noise_of(self, drawn: Tensor, first: Tensor) -> Tensor:
        """Which noise to start with: `drawn` per frame, that of the video's first frame, or the checkpoint's."""
        match self._noise:
            case "frame":
                return drawn
            case "clip":
                return first
            case "fixed":
                return self.eval_noise_KD.expand(drawn.shape)
            case _:
                assert_never(self._noise)
