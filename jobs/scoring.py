"""Scores of one model on labelled images, per image and in the mean. Used by validation and by `evaluate`.

Slot noise of image i is the draw named by (noise seed, i), so a score does not depend on batch size.
Legend: N images, B of a batch, K slots, H x W pixels, h x w decoder masks, G x G tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from jobs.looks import Look, looks
from jobs.protocols import LabelSet, ProtocolName, by_protocol, predicted_ids
from jobs.randomness import standard_normal
from jobs.samples import Samples
from models import clustering, scores
from models.slot_model import SlotModel, SlotOutput

GATE_VALUES = 2
"""The last noise values of a gated model's slot are its gate's; equal ones are no noise (models/slot_model.py)."""
OF_CLASSES = ("fg_ari", "mbo", "miou", "miou_gd", "corloc_mask", "recovery")
"""Scores that are also taken against class masks, as `<score>_class`."""


@dataclass(kw_only=True)
class Scored:
    """Per-image scores [N] by name (NaN where an image does not define one), and the looks that were kept."""

    per_image: dict[str, np.ndarray]
    objects_N: np.ndarray
    """Objects that an image shows under the protocol's masks."""
    kept: list[Look] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Mean of each score over the images that define it; NaN when none does."""
        return mean_scores(self.per_image)


def mean_scores(per_image: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of each score over the images that define it; NaN when none does."""
    return {name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for name, values in per_image.items()}


def _table(labels_BHW: torch.Tensor, ids_BHW: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Counts without void pixels; of uint8 labels, since 255 + 1 is 0 there: one row more, which is dropped."""
    assert labels_BHW.dtype == torch.uint8
    shifted_BHW = labels_BHW + 1
    num_labels = max(2, int(shifted_BHW.max()) + 1)
    return scores.contingency(shifted_BHW, ids_BHW, num_labels=num_labels, num_predictions=num_slots)[:, 1:]


def _overlaps(counts_BCK: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "fg_ari": scores.fg_ari(counts_BCK),
        "mbo": scores.best_overlap(counts_BCK),
        "miou": scores.hungarian_miou(counts_BCK),
        "miou_gd": scores.miou_gd(counts_BCK),
        "corloc_mask": scores.corloc(counts_BCK),
        "recovery": scores.recovery(counts_BCK),
    }


def instance_scores(
    labels_BHW: torch.Tensor, ids_BHW: torch.Tensor, *, num_slots: int, protocol: ProtocolName
) -> dict[str, torch.Tensor]:
    """Scores [B] of predicted slots against instance masks, and `objects`, by the protocol's rules."""
    counts_BCK = _table(labels_BHW, ids_BHW, num_slots)
    objects_B = scores.object_counts(counts_BCK)
    found = by_protocol(_overlaps(counts_BCK), objects_B, protocol)
    pairs = clustering.pair_scores(counts_BCK)
    return {
        **found,
        "ari": scores.ari(counts_BCK),
        "fg_ari_single_object": torch.where(objects_B == 1, found["fg_ari"], torch.nan),
        "fg_ari_multi_object": torch.where(objects_B > 1, found["fg_ari"], torch.nan),
        "pair_precision": pairs.precision_B,
        "pair_recall": pairs.recall_B,
        "pair_f1": pairs.f1_B,
        "purity": clustering.purity(counts_BCK),
        "ami": clustering.ami(counts_BCK),
        "nmi": clustering.nmi(counts_BCK),
        "objects": objects_B,
    }


def class_scores(
    labels_BHW: torch.Tensor, ids_BHW: torch.Tensor, *, num_slots: int, protocol: ProtocolName
) -> dict[str, torch.Tensor]:
    """Scores [B] of predicted slots against class masks: instances of one class are one object."""
    counts_BCK = _table(labels_BHW, ids_BHW, num_slots)
    found = by_protocol(_overlaps(counts_BCK), scores.object_counts(counts_BCK), protocol)
    return {f"{name}_class": found[name] for name in OF_CLASSES}


def _score_batch(output: SlotOutput, targets: torch.Tensor, labels: LabelSet, images: np.ndarray) -> dict[str, torch.Tensor]:
    """Every score [B] of a batch whose images have the numbers `images`, and `objects`."""
    device, num_slots = targets.device, output.masks_BKHW.shape[1]
    instances_BHW = torch.from_numpy(np.array(labels.instances_NHW[images])).to(device)
    size = (int(instances_BHW.shape[1]), int(instances_BHW.shape[2]))
    ids_BHW = predicted_ids(output.masks_BKHW, size, labels.protocol)
    found = instance_scores(instances_BHW, ids_BHW, num_slots=num_slots, protocol=labels.protocol)
    if labels.classes_NHW is not None:
        classes_BHW = torch.from_numpy(np.array(labels.classes_NHW[images])).to(device)
        found |= class_scores(classes_BHW, ids_BHW, num_slots=num_slots, protocol=labels.protocol)
    found["stripe"] = scores.stripe(output.masks_BKHW)
    errors = (output.reconstruction - targets).square()
    found["mse"] = errors.mean(dim=tuple(range(1, errors.ndim)))
    if output.keep_BK is not None:
        found["kept_slots"] = output.keep_BK.sum(dim=1)
    return found


def _noise(model: SlotModel, noise_seed: int, images: np.ndarray, gate_noise: bool) -> np.ndarray:
    noise_BKZ = np.stack([standard_normal(model.noise_shape, noise_seed, "evaluation", int(i)) for i in images])
    if not gate_noise:
        noise_BKZ[..., -GATE_VALUES:] = 0.0
    return noise_BKZ


def _batches(images: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    return (images[start : start + batch_size] for start in range(0, len(images), batch_size))


@torch.no_grad()
def score_images(
    model: SlotModel,
    samples: Samples,
    labels: LabelSet,
    *,
    noise_seed: int,
    batch_size: int,
    device: torch.device,
    first: int = 0,
    count: int | None = None,
    gate_noise: bool = True,
    pictures_NHWC: np.ndarray | None = None,
    keep: int = 0,
) -> Scored:
    """Score `model` in fp32 on `count` (all) of the images that the labels' protocol scores, from the `first` of them on.

    `gate_noise=False` is for gated models only. Of the first `keep` images a look is kept, with the uint8 picture [H,W,3]
    that stands for the image in `pictures_NHWC`.
    """
    images = labels.scored()[first : None if count is None else first + count]
    found: dict[str, list[torch.Tensor]] = {}
    kept: list[Look] = []
    for chosen in _batches(images, batch_size):
        stored = samples.read(chosen, np.zeros(len(chosen), dtype=np.bool_))
        inputs, targets = samples.convert(tuple(one.to(device) for one in stored))
        noise_BKZ = torch.from_numpy(_noise(model, noise_seed, chosen, gate_noise)).to(device)
        output: SlotOutput = model(inputs, noise_BKZ)
        for name, values in _score_batch(output, targets, labels, chosen).items():
            found.setdefault(name, []).append(values.double().cpu())
        if pictures_NHWC is not None and len(kept) < keep:
            rows = chosen[: keep - len(kept)]
            kept += looks(pictures_NHWC[rows], labels.instances_NHW[rows], output, targets)
    per_image = {name: torch.cat(values).numpy() for name, values in found.items()}
    objects_N = per_image.pop("objects", np.zeros(0))
    return Scored(per_image=per_image, objects_N=objects_N.astype(np.int64), kept=kept)
