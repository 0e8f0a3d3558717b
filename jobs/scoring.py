"""Scores of one model on labelled images, per image and in the mean. Used by validation and by `evaluate`.

Slot noise of image i is the draw named by (noise seed, i), so a score does not depend on batch size. Without true masks there
are scores of the reconstruction and of swapped sentences alone.
Legend: N images, B of a batch, K slots, H x W pixels, h x w decoder masks, G x G tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from jobs import grounding
from jobs.films import Film
from jobs.looks import Look, looks
from jobs.part_panels import PartLook
from jobs.protocols import LabelSet, ProtocolName, Truth, by_protocol, label_table, predicted_ids
from jobs.randomness import standard_normal
from jobs.samples import Pixels, Samples
from models import clustering, scores
from models.clip_pixels import denormalised
from models.part_types import PartInputs
from models.slot_model import ConditionedInputs, Inputs, SlotModel, SlotOutput

GATE_VALUES = 2
"""The last noise values of a gated model's slot are its gate's; equal ones are no noise (models/slot_model.py)."""
OF_CLASSES = ("fg_ari", "mbo", "miou", "miou_gd", "corloc_mask", "recovery")
"""Scores that are also taken against class masks, as `<score>_class`."""


@dataclass(kw_only=True)
class Scored:
    """Scores [N] per image or video by name (NaN where one is not defined), and the pictures that were kept."""

    per_image: dict[str, np.ndarray]
    objects_N: np.ndarray
    """Objects that an image (a video) shows under the protocol's masks; [0] when there are no masks."""
    kept: list[Look] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    """Of videos, in place of looks."""
    parts: list[PartLook] = field(default_factory=list)
    """Of part models, in place of looks."""

    def means(self) -> dict[str, float]:
        """As `mean_scores`."""
        return mean_scores(self.per_image)


def mean_scores(per_image: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of each score over the images that define it; NaN when none does. `src_slot` becomes `binding_accuracy`."""
    means = {name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for name, values in per_image.items()}
    if means.pop(grounding.SRC_SLOT, None) is not None:
        means["binding_accuracy"] = grounding.binding(per_image[grounding.SRC_SLOT])
    return means


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
    return scores_of_table(label_table(labels_BHW, ids_BHW, num_slots), protocol)


def scores_of_table(counts_BCK: torch.Tensor, protocol: ProtocolName) -> dict[str, torch.Tensor]:
    """The same from counts of pixels by instance and slot."""
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
    counts_BCK = label_table(labels_BHW, ids_BHW, num_slots)
    found = by_protocol(_overlaps(counts_BCK), scores.object_counts(counts_BCK), protocol)
    return {f"{name}_class": found[name] for name in OF_CLASSES}


def _score_batch(output: SlotOutput, targets: torch.Tensor, truth: Truth, protocol: ProtocolName) -> dict[str, torch.Tensor]:
    """Every score [B] of a batch, and `objects` when its masks are known."""
    found: dict[str, torch.Tensor] = {}
    num_slots = output.masks_BKHW.shape[1]
    if truth.instances_BHW is not None:
        size = (int(truth.instances_BHW.shape[1]), int(truth.instances_BHW.shape[2]))
        ids_BHW = predicted_ids(output.masks_BKHW, size, protocol)
        counts_BCK = label_table(truth.instances_BHW, ids_BHW, num_slots)
        found |= scores_of_table(counts_BCK, protocol)
        if truth.classes_BHW is not None:
            found |= class_scores(truth.classes_BHW, ids_BHW, num_slots=num_slots, protocol=protocol)
        if truth.named_B2 is not None:
            found |= grounding.named_scores(counts_BCK, truth.named_B2)
    found["stripe"] = scores.stripe(output.masks_BKHW)
    found["mse"] = grounding.squared_error(output, targets)
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


def _read(
    samples: Samples, images: np.ndarray, device: torch.device, *, told: np.ndarray | None = None
) -> tuple[Inputs, torch.Tensor]:
    unmirrored = np.zeros(len(images), dtype=np.bool_)
    inputs, targets = samples.convert(tuple(one.to(device) for one in samples.read(images, unmirrored, told)))
    assert not isinstance(inputs, PartInputs)  # part models have scores of their own (jobs.scoring_parts)
    return inputs, targets


def _looks(
    output: SlotOutput, inputs: Inputs, targets: torch.Tensor, labels: LabelSet, pictures: np.ndarray, rows: np.ndarray
) -> list[Look]:
    """Looks of the images with the numbers `rows`, the first of the batch."""
    shown = output
    if isinstance(inputs, ConditionedInputs):
        shown = output._replace(reconstruction=denormalised(output.reconstruction))
    masks_NHW = labels.instances_NHW[rows] if labels.has_masks else None
    return list(looks(pictures, masks_NHW, shown, targets, sentences=labels.sentences(rows)))


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
    text_swap: bool = False,
    pictures_NHWC: Pixels | None = None,
    keep: int = 0,
) -> Scored:
    """Score `model` in fp32 on `count` (all) of the images that the labels' protocol scores, from the `first` of them on.

    `gate_noise=False` is for gated models only. `text_swap` scores a model that is told sentences a second time, each image
    with the next clip's. Of the first `keep` images a look is kept, with the uint8 picture [H,W,3] that stands for the image in
    `pictures_NHWC`.
    """
    images = labels.scored()[first : None if count is None else first + count]
    found: dict[str, list[torch.Tensor]] = {}
    kept: list[Look] = []
    for chosen in _batches(images, batch_size):
        inputs, targets = _read(samples, chosen, device)
        noise_BKZ = torch.from_numpy(_noise(model, noise_seed, chosen, gate_noise)).to(device)
        output: SlotOutput = model(inputs, noise_BKZ)
        truth = labels.truth(chosen, device)
        scored = _score_batch(output, targets, truth, labels.protocol)
        if isinstance(inputs, ConditionedInputs):
            if truth.instances_BHW is not None:
                scored |= grounding.attention_scores(output.attention_BKN, truth.instances_BHW, labels.protocol)
            told = grounding.other_scene(chosen, samples.count)
            if text_swap and inputs.text is not None and told is not None:
                other_inputs, _ = _read(samples, chosen, device, told=told)
                assert isinstance(other_inputs, ConditionedInputs)
                other = grounding.Told(other_inputs, model(other_inputs, noise_BKZ))
                scored |= grounding.swap_scores(grounding.Told(inputs, output), other, targets, truth, labels.protocol)
        for name, values in scored.items():
            found.setdefault(name, []).append(values.double().cpu())
        if pictures_NHWC is not None and len(kept) < keep:
            rows = chosen[: keep - len(kept)]
            kept += _looks(output, inputs, targets, labels, pictures_NHWC[rows], rows)
    per_image = {name: torch.cat(values).numpy() for name, values in found.items()}
    objects_N = per_image.pop("objects", np.zeros(0))
    return Scored(per_image=per_image, objects_N=objects_N.astype(np.int64), kept=kept)
