"""Where a model's inputs and targets come from: stored images, stored tokens, or images that a backbone turns into tokens.

`read` happens in a loader process and returns what lies in the store; `convert` happens on the device.
Legend: B images, S x S stored pixels, T x T target pixels, N tokens, C features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from jobs.data.features import Features


class Samples(Protocol):
    """Samples by number."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The stored tensors of samples `indices` [B], mirrored where `mirrored` [B] says so; on the CPU."""
        ...

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, targets) of stored tensors, which are on the device by now."""
        ...


def to_images(images_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 [B,H,W,C] -> float32 [B,C,H,W] in [0, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)


def gather(stored: np.ndarray, indices: np.ndarray) -> torch.Tensor:
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

    images_NHWC: np.ndarray
    """uint8"""

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.images_NHWC.shape[0])

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> tuple[torch.Tensor, ...]:
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

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> tuple[torch.Tensor, ...]:
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

    images_NHWC: np.ndarray
    backbone: torch.nn.Module
    """Images [B,3,H,W] in [0, 1] -> tokens [B,N,C] in float32."""
    targets_NTTC: np.ndarray | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.images_NHWC.shape[0])

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> tuple[torch.Tensor, ...]:
        """(images uint8 [B,S,S,3], and target images uint8 [B,T,T,3] if any)"""
        images = mirror(gather(self.images_NHWC, indices), mirrored)
        return (images,) if self.targets_NTTC is None else (images, gather(self.targets_NTTC, indices))

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens in float32, targets)"""
        with torch.no_grad():
            tokens_BNC: torch.Tensor = self.backbone(to_images(stored[0])).float()
        return tokens_BNC, tokens_BNC if self.targets_NTTC is None else to_images(stored[1])
