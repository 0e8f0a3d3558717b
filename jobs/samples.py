"""Where a model's inputs and targets come from: stored images, stored tokens, images that a backbone turns into tokens, videos.

`read` happens in a loader process and returns what lies in the store; `convert` happens on the device.
Legend: B images, S x S stored pixels, T x T target pixels, N tokens, C features; of a sentence L tokens, F features; of a clip
T frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from jobs.data.clip_store import FrameImages
from jobs.data.clips_frames import Frames
from jobs.data.features import Features, StoredFeatures
from jobs.data.text_features import TextStore
from jobs.data.video import ClipWindows, Videos
from jobs.data.video_store import FirstFrames
from models.clip_pixels import normalised
from models.slot_model import ConditionedInputs, Inputs

Pixels = np.ndarray | FrameImages | FirstFrames
"""Stored images [N,S,S,3], or frames that are drawn or decoded when they are asked for."""


class Samples(Protocol):
    """Samples by number."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """The stored tensors of samples `indices` [B], mirrored where `mirrored` [B] says so; on the CPU.

        `told` [B]: the samples whose sentences these are told; None: their own. Without sentences it has no effect. `epoch`: of
        which the samples are; of videos it decides, with their numbers, which frames are read.
        """
        ...

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[Inputs, torch.Tensor]:
        """(inputs, targets) of stored tensors, which are on the device by now."""
        ...


def to_images(images_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 [B,H,W,C] -> float32 [B,C,H,W] in [0, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)


def to_clips(images_BTHWC: torch.Tensor) -> torch.Tensor:
    """uint8 [B,T,H,W,C] -> float32 [B,T,C,H,W] in [0, 1]."""
    return images_BTHWC.permute(0, 1, 4, 2, 3).to(torch.float32).div_(255.0)


def gather(stored: Pixels, indices: np.ndarray) -> torch.Tensor:
    """Copy rows out of a memory map, reading it front to back."""
    order = np.argsort(indices, kind="stable")
    rows = np.empty((len(indices), *stored.shape[1:]), dtype=stored.dtype)
    rows[order] = stored[indices[order]]
    return torch.from_numpy(rows)


def mirror(images_BHWC: torch.Tensor, mirrored: np.ndarray) -> torch.Tensor:
    """Flip the chosen images left to right."""
    chosen = torch.from_numpy(np.asarray(mirrored, dtype=np.bool_))
    return torch.where(chosen[:, None, None, None], images_BHWC.flip(2), images_BHWC) if chosen.any() else images_BHWC


@dataclass(frozen=True, kw_only=True)
class ImageSamples:
    """Images that are reconstructed themselves."""

    images_NHWC: Pixels
    """uint8"""

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.images_NHWC.shape[0])

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """(images uint8 [B,H,W,3],)"""
        return (mirror(gather(self.images_NHWC, indices), mirrored),)

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """The images [B,3,H,W] in [0, 1], twice."""
        images_BCHW = to_images(stored[0])
        return images_BCHW, images_BCHW


@dataclass(frozen=True, kw_only=True)
class TokenSamples:
    """Tokens of an `embed` run; targets are the tokens, or images."""

    features: Features
    targets_NTTC: np.ndarray | None = None
    """uint8; None when tokens are reconstructed."""

    @property
    def count(self) -> int:
        """How many there are."""
        return self.features.count

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """(tokens [B,N,C] as stored, and target images uint8 [B,T,T,3] if any)"""
        tokens = self.features.read(indices, mirrored)
        return (tokens,) if self.targets_NTTC is None else (tokens, gather(self.targets_NTTC, indices))

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens in float32, targets)"""
        tokens_BNC = stored[0].float()
        return tokens_BNC, tokens_BNC if self.targets_NTTC is None else to_images(stored[1])


@dataclass(frozen=True, kw_only=True)
class OnlineSamples:
    """Images that a frozen backbone turns into tokens in the loop, as the original codes do."""

    images_NHWC: Pixels
    backbone: torch.nn.Module
    """Images [B,3,H,W] in [0, 1] -> tokens [B,N,C] in float32."""
    targets_NTTC: np.ndarray | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.images_NHWC.shape[0])

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """(images uint8 [B,S,S,3], and target images uint8 [B,T,T,3] if any)"""
        images = mirror(gather(self.images_NHWC, indices), mirrored)
        return (images,) if self.targets_NTTC is None else (images, gather(self.targets_NTTC, indices))

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens in float32, targets)"""
        with torch.no_grad():
            tokens_BNC: torch.Tensor = self.backbone(to_images(stored[0])).float()
        return tokens_BNC, tokens_BNC if self.targets_NTTC is None else to_images(stored[1])


Towers = Callable[[torch.Tensor], torch.Tensor]
"""Images [B,3,S,S] in [0, 1] -> vision tokens [B,N,C]."""


@dataclass(frozen=True, kw_only=True)
class LanguageSamples:
    """Frames with their sentences, for models on CLIP; the targets are the frames in CLIP's pixel units."""

    frames: Frames
    vision: Towers | StoredFeatures
    """CLIP's vision tower in the loop, or its stored tokens."""
    texts: TextStore | None
    """None: the model is told nothing."""
    text_tokens: int | None = None
    """Length L that the features of a sentence's tokens are padded to; None: one feature per sentence."""

    @property
    def count(self) -> int:
        """How many there are."""
        return self.frames.count

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """Frames uint8 [B,S,S,3] and names [B,2,2], then text and padding if any, then stored tokens if any."""
        assert not mirrored.any(), "a mirrored frame would contradict left and right in its sentence"
        batch = self.frames.read(indices)
        sentences_B = batch.sentences_B if told is None else self.frames.sentences(told)
        stored = [torch.from_numpy(batch.images_BSS3), torch.from_numpy(batch.names_B22), *self._text(sentences_B)]
        if isinstance(self.vision, StoredFeatures):
            stored.append(self.vision.read(indices, mirrored))
        return tuple(stored)

    def _text(self, sentences_B: np.ndarray) -> tuple[torch.Tensor, ...]:
        """([B,F],) or ([B,L,F], padding [B,L]); () for a model that is told nothing."""
        if self.texts is None:
            return ()
        if self.text_tokens is None:
            return (torch.from_numpy(self.texts.sentence_ST[sentences_B]),)
        tokens, padding = self.texts.tokens_SLT, self.texts.padding_SL
        assert tokens is not None
        assert padding is not None
        missing = self.text_tokens - tokens.shape[1]
        tokens_BLF = np.pad(tokens[sentences_B], ((0, 0), (0, missing), (0, 0)))
        padding_BL = np.pad(padding[sentences_B], ((0, 0), (0, missing)), constant_values=True)
        return torch.from_numpy(tokens_BLF), torch.from_numpy(padding_BL)

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[ConditionedInputs, torch.Tensor]:
        """(vision tokens in float32 with what the model is told, the frames [B,3,S,S] in CLIP's units)"""
        images_BCHW, names_B22, told = to_images(stored[0]), stored[1], list(stored[2:])
        tokens_BNC = told.pop().float() if isinstance(self.vision, StoredFeatures) else self.vision(images_BCHW)
        text, padding_BL = (*told, None, None)[:2]
        inputs = ConditionedInputs(tokens_BNC=tokens_BNC, text=text, padding_BL=padding_BL, names_B22=names_B22)
        return inputs, normalised(images_BCHW)


@dataclass(frozen=True, kw_only=True)
class VideoSamples:
    """Clips of videos, a sample per video, that are reconstructed themselves."""

    videos: Videos
    windows: ClipWindows

    @property
    def count(self) -> int:
        """How many videos there are."""
        return self.videos.count

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """(clips uint8 [B,T,H,W,3],)"""
        assert not mirrored.any(), "clips are not mirrored"
        videos_B = indices.astype(np.int64)
        return (torch.from_numpy(self.videos.read(videos_B, self.windows.frames(epoch, videos_B)).images_BTSS3),)

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """The clips [B,T,3,H,W] in [0, 1], twice."""
        clips_BT3HW = to_clips(stored[0])
        return clips_BT3HW, clips_BT3HW
