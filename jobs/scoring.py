"""Scores of one model on labelled images, per image and in the mean. Used by validation and by `evaluate`.

Slot noise of image i is the draw named by (noise seed, i), so a score does not depend on batch size.
Legend: N images, B of a batch, K slots, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from jobs.batches import to_images
from jobs.randomness import standard_normal
from models import scores
from models.slot_model import SlotModel

SCORES = (
    "fg_ari",
    "ari",
    "mbo",
    "miou",
    "corloc_mask",
    "recovery",
    "stripe",
    "mse",
    "fg_ari_single_object",
    "fg_ari_multi_object",
)
"""Per-image scores; NaN where an image does not define one."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a panel shows of one image; arrays on the CPU."""

    image_HWC: np.ndarray
    """uint8."""
    labels_HW: np.ndarray
    reconstruction_HWC: np.ndarray
    """uint8."""
    masks_KHW: np.ndarray
    """float32, sums to 1 over slots."""


@dataclass(kw_only=True)
class Scored:
    """Per-image scores [N] by name, and the looks that were kept."""

    per_image: dict[str, np.ndarray]
    kept: list[Look] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Mean of each score over the images that define it; NaN when none does."""
        return {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
            for name, values in self.per_image.items()
        }


def _score_batch(masks_BKHW: torch.Tensor, labels_BHW: torch.Tensor, mse_B: torch.Tensor) -> dict[str, torch.Tensor]:
    counts_BCK = scores.contingency(
        labels_BHW,
        masks_BKHW.argmax(dim=1),
        num_labels=int(labels_BHW.max()) + 1,
        num_predictions=masks_BKHW.shape[1],
    )
    fg_ari_B, objects_B = scores.fg_ari(counts_BCK), scores.object_counts(counts_BCK)
    return {
        "fg_ari": fg_ari_B,
        "ari": scores.ari(counts_BCK),
        "mbo": scores.best_overlap(counts_BCK),
        "miou": scores.hungarian_miou(counts_BCK),
        "corloc_mask": scores.corloc(counts_BCK),
        "recovery": scores.recovery(counts_BCK),
        "stripe": scores.stripe(masks_BKHW),
        "mse": mse_B,
        "fg_ari_single_object": torch.where(objects_B == 1, fg_ari_B, torch.nan),
        "fg_ari_multi_object": torch.where(objects_B > 1, fg_ari_B, torch.nan),
    }


def _looks(images: np.ndarray, labels: np.ndarray, reconstruction_BCHW: torch.Tensor, masks_BKHW: torch.Tensor) -> Iterator[Look]:
    recon = (reconstruction_BCHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    masks = masks_BKHW.float().cpu().numpy()
    for i in range(len(images)):
        yield Look(image_HWC=np.array(images[i]), labels_HW=np.array(labels[i]), reconstruction_HWC=recon[i], masks_KHW=masks[i])


@torch.no_grad()
def score_images(
    model: SlotModel,
    images_NHWC: np.ndarray,
    labels_NHW: np.ndarray,
    *,
    noise_seed: int,
    batch_size: int,
    device: torch.device,
    keep: int = 0,
) -> Scored:
    """Score `model` in fp32 on uint8 images [N,H,W,3] with label maps [N,H,W] (0 = background)."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in SCORES}
    kept: list[Look] = []
    for start in range(0, len(images_NHWC), batch_size):
        stop = min(start + batch_size, len(images_NHWC))
        noise = np.stack([standard_normal(model.noise_shape, noise_seed, "evaluation", i) for i in range(start, stop)])
        images_BCHW = to_images(torch.from_numpy(np.array(images_NHWC[start:stop])).to(device))
        output = model(images_BCHW, torch.from_numpy(noise).to(device))
        mse_B = (output.reconstruction - images_BCHW).square().mean(dim=(1, 2, 3))
        labels_BHW = torch.from_numpy(np.array(labels_NHW[start:stop])).to(device).long()
        for name, values in _score_batch(output.masks_BKHW, labels_BHW, mse_B).items():
            found[name].append(values.double().cpu())
        if len(kept) < keep:
            wanted = slice(start, min(stop, keep))
            rows = wanted.stop - wanted.start
            kept += _looks(images_NHWC[wanted], labels_NHW[wanted], output.reconstruction[:rows], output.masks_BKHW[:rows])
    return Scored(per_image={name: torch.cat(values).numpy() for name, values in found.items()}, kept=kept)
