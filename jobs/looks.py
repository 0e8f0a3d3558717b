"""What a picture of a model's masks shows of one image: arrays on the CPU, tokens turned into colours.

Legend: B images, N tokens on a G x G grid, C features, K slots, h x w decoder masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.slot_model import SlotOutput

COLOURS = 3
SPREAD = 2.5
"""Standard deviations from the mean to the darkest and to the brightest value of a colour."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a panel shows of one image; the arrays may differ in side."""

    image_HWC: np.ndarray
    """uint8."""
    labels_HW: np.ndarray | None
    """255 = void; None when the true masks are not known."""
    reconstruction_HWC: np.ndarray
    """uint8; of tokens, their colours [G,G,3]."""
    masks_KHW: np.ndarray
    """float32, sums to 1 over (kept) slots."""
    target_HWC: np.ndarray | None = None
    """uint8 colours of the target tokens, in the basis of the reconstruction's; None when pixels are reconstructed."""
    sentence: str | None = None
    """What was said with the image."""


def looks(
    pictures_NHWC: np.ndarray,
    labels_NHW: np.ndarray | None,
    output: SlotOutput,
    targets: torch.Tensor,
    *,
    sentences: Sequence[str] | None = None,
) -> Iterator[Look]:
    """Looks of the first rows of a batch, as many as there are pictures; reconstructed images are in [0, 1]."""
    masks_BKhw = output.masks_BKHW.float().cpu().numpy()
    for i in range(len(pictures_NHWC)):
        target, reconstruction = targets[i].float().cpu(), output.reconstruction[i].float().cpu()
        colours = None
        if target.ndim == 3:
            shown = (reconstruction.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        else:
            colours, shown = token_colours(target.numpy(), reconstruction.numpy())
        yield Look(
            image_HWC=np.array(pictures_NHWC[i]),
            labels_HW=None if labels_NHW is None else np.array(labels_NHW[i]),
            reconstruction_HWC=shown,
            masks_KHW=masks_BKhw[i],
            target_HWC=colours,
            sentence=None if sentences is None else sentences[i],
        )


def token_colours(target_NC: np.ndarray, reconstruction_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as uint8 [G,G,3]: projections on the target's first three principal components, scaled by the target's spread.

    A component's sign is such that its largest loading is positive; what has no variance is mid grey.
    """
    grid = math.isqrt(len(target_NC))
    mean_C = target_NC.mean(axis=0)
    _, _, axes = np.linalg.svd(target_NC - mean_C, full_matrices=False)
    basis_3C = np.zeros((COLOURS, target_NC.shape[1]))
    basis_3C[: len(axes[:COLOURS])] = axes[:COLOURS]
    largest_3 = np.take_along_axis(basis_3C, np.abs(basis_3C).argmax(axis=1)[:, None], axis=1)
    basis_3C = np.where(largest_3 < 0, -basis_3C, basis_3C)
    spread_3 = np.maximum(((target_NC - mean_C) @ basis_3C.T).std(axis=0), 1e-6) * SPREAD

    def coloured(tokens_NC: np.ndarray) -> np.ndarray:
        values_N3 = (tokens_NC - mean_C) @ basis_3C.T / spread_3
        scaled: np.ndarray = ((values_N3.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).reshape(grid, grid, COLOURS)
        return scaled

    return coloured(target_NC), coloured(reconstruction_NC)
