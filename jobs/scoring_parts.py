"""Scores of a part model on labelled images. Used by validation and by `evaluate`.

Part scores are of a whole test set: `score_parts` finds columns per image, counts and centres among them, and `pooled_means`
makes scores of the columns of any images. Slot noise of image i is the draw named by (noise seed, purpose, i), so a score depends
on the batch by the model's rounding alone.
Legend: N images, B of a batch, S pixels of a side, K slots (0 = background), P = K - 1 parts, C true labels (0 = background),
Q keypoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from jobs.data.errors import DataError, Place
from jobs.data.part_store import VOID, PartSplit, PartStore
from jobs.data.store import REBUILD_HINT, SplitName
from jobs.part_panels import PartLook
from jobs.randomness import standard_normal
from jobs.samples import to_images
from jobs.scoring import Scored, mean_scores
from models import part_scores, scores
from models.part_scores import Places
from models.part_types import PartInputs, PartOutput
from models.slot_model import SlotModel

RULES: Mapping[str, Callable[[Tensor], Tensor]] = {"": lambda masks_BKSS: masks_BKSS, "_hard": part_scores.above_background}
"""Suffix of a rule's scores -> what is compared at each pixel: the masks, or what SCOPS' hard background rule makes of them."""
POOLED = "/"
"""In the name of a column that is no score of an image."""

Purpose = Literal["evaluation", "fit"]
EVALUATION: Purpose = "evaluation"
FIT: Purpose = "fit"
"""Not to be scored: to give the part centres from which keypoints are regressed."""


class TrueBatch(NamedTuple):
    """What is known of some images, on the CPU."""

    images_BSS3: Tensor
    """uint8"""
    parts_BSS: Tensor
    """uint8; VOID where nobody has said."""
    foreground_BSS: Tensor
    """bool"""
    keypoints_BQ2: Tensor
    visible_BQ: Tensor
    """bool"""

    def first(self, count: int) -> TrueBatch:
        """The first images."""
        return TrueBatch(*(part[:count] for part in self))

    @property
    def images(self) -> int:
        """B."""
        return len(self.images_BSS3)


@dataclass(frozen=True, kw_only=True)
class PartTruth:
    """A split of a store of parts, as the evaluation needs it."""

    file: str
    """The split's folder, for errors."""
    split: PartSplit
    num_labels: int
    """C of the data's parts, or 0 when they have none: then the keypoints are what parts are held against."""
    has_foreground: bool
    eye_distance: bool
    """Whether errors of keypoints are in units of the distance of the eyes, which only the truth tells."""

    @classmethod
    def of(cls, store: PartStore, name: SplitName) -> Self:
        """Raises DataError when an array is not what the manifest says, or when there is nothing to hold parts against."""
        manifest = store.manifest
        if not manifest.has_parts and not manifest.keypoint_names:
            raise DataError(
                "has neither parts nor keypoints: nothing to hold parts against",
                place=Place(file=str(store.path)),
                hint="give the `prepare` step data that have one or the other",
            )
        return cls(
            file=str(store.path / name),
            split=store.split(name),
            num_labels=len(manifest.part_names) + 1 if manifest.has_parts else 0,
            has_foreground=manifest.has_foreground,
            eye_distance=manifest.source.get("kind") == "celeba",
        )

    @property
    def keypoints(self) -> int:
        """Q."""
        return int(self.split.keypoints.shape[1])

    def read(self, images: np.ndarray) -> TrueBatch:
        """Images with the numbers `images` [B], ascending; raises DataError for labels and places that cannot be."""
        split = self.split
        parts_BSS, visible_BQ = np.array(split.parts[images]), np.array(split.visible[images], dtype=np.bool_)
        keypoints_BQ2 = np.array(split.keypoints[images])
        if self.num_labels:
            largest = int(np.where(parts_BSS == VOID, 0, parts_BSS).max(initial=0))
            if largest >= self.num_labels:
                raise self._wrong("parts.npy", f"label {largest}", f"0 to {self.num_labels - 1}, or {VOID}")
        if not np.isfinite(keypoints_BQ2[visible_BQ]).all():
            raise self._wrong("keypoints.npy", "a visible keypoint that is not a number", "numbers")
        if self.keypoints and not (split.scale[images] > 0).all():
            raise self._wrong("scale.npy", "a scale that is not above 0", "pixels above 0")
        return TrueBatch(
            images_BSS3=torch.from_numpy(np.array(split.images[images])),
            parts_BSS=torch.from_numpy(parts_BSS),
            foreground_BSS=torch.from_numpy(np.array(split.foreground[images]) > 0),
            keypoints_BQ2=torch.from_numpy(keypoints_BQ2),
            visible_BQ=torch.from_numpy(visible_BQ),
        )

    def places(self, images: np.ndarray, per_image: Mapping[str, np.ndarray]) -> Places:
        """Part centres and keypoints of the images with the numbers `images` [N] and these columns [N]."""
        split = self.split
        return Places(
            _centres_of(per_image), split.keypoints[images], split.visible[images].astype(np.bool_), split.scale[images]
        )

    def _wrong(self, name: str, found: str, expected: str) -> DataError:
        return DataError(f"holds {found}", place=Place(file=f"{self.file}/{name}"), expected=expected, hint=REBUILD_HINT)


@torch.no_grad()
def score_parts(
    model: SlotModel,
    truth: PartTruth,
    images: np.ndarray,
    *,
    noise_seed: int,
    batch_size: int,
    device: torch.device,
    purpose: Purpose = EVALUATION,
    keep: int = 0,
) -> Scored:
    """Columns of `model` in fp32 on the images with the numbers `images` [N] (maybe none), ascending.

    With the purpose `fit` only part centres are found, and the other columns are NaN. Of the first `keep` images a look is kept.
    """
    found: dict[str, list[Tensor]] = {}
    kept: list[PartLook] = []
    for start in range(0, len(images), batch_size):
        numbers = images[start : start + batch_size]
        batch = truth.read(numbers)
        noise_BKZ = np.stack([standard_normal(model.noise_shape, noise_seed, purpose, int(i)) for i in numbers])
        inputs = PartInputs(images_B3HW=to_images(batch.images_BSS3.to(device)))
        output: PartOutput = model(inputs, torch.from_numpy(noise_BKZ).to(device))
        scored = batch if purpose == EVALUATION else batch.first(0)
        columns, maps = _columns(truth, scored, output.logits_BKhw[: scored.images], output.masks_BKHW[: scored.images])
        if purpose == FIT:
            columns = {name: torch.full((batch.images,), torch.nan) for name in columns}
        for name, values_B in (columns | _centres(output)).items():
            found.setdefault(name, []).append(values_B.double().cpu())
        kept += _looks(truth, scored, output.masks_BKHW, maps, rows=min(keep - len(kept), scored.images))
    per_image = {name: torch.cat(values).numpy() for name, values in found.items()}
    return Scored(per_image=per_image, objects_N=np.zeros(0, np.int64), parts=kept)


def _columns(
    truth: PartTruth, batch: TrueBatch, logits_BKhw: Tensor, masks_BKSS: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All columns but the centres, and the map of slots [B,S,S] of each rule."""
    slots, device = masks_BKSS.shape[1], masks_BKSS.device
    columns, maps = {"mask_vectors": part_scores.distinct_vectors(logits_BKhw)}, {}
    for rule, compared in RULES.items():
        compared_BKSS = compared(masks_BKSS)
        maps[rule] = ids_BSS = part_scores.largest(compared_BKSS)
        columns[f"parts_used{rule}"] = part_scores.parts_used(ids_BSS, num_slots=slots)
        if truth.has_foreground:
            told_BSS = torch.where(_nothing_known(truth, batch).to(device), 0, ids_BSS)
            columns[f"foreground_iou{rule}"] = part_scores.foreground_iou(told_BSS, batch.foreground_BSS.to(device))
        if truth.num_labels:
            columns |= _counts(f"pixels{rule}", _pixels(batch, ids_BSS, labels=truth.num_labels, slots=slots))
        else:
            among_parts_BSS = part_scores.largest(compared_BKSS[:, 1:]) + 1
            columns |= _counts(f"points{rule}", _points(batch, ids_BSS, slots=slots))
            columns |= _counts(f"part_points{rule}", _points(batch, among_parts_BSS, slots=slots))
    return columns, maps


def _centres(output: PartOutput) -> dict[str, Tensor]:
    centres_BP2 = part_scores.part_centres(output.masks_BKHW)
    parts = range(centres_BP2.shape[1])
    return {f"centre/{k + 1}/{name}": centres_BP2[:, k, axis] for k in parts for axis, name in enumerate("xy")}


def _nothing_known(truth: PartTruth, batch: TrueBatch) -> Tensor:
    """Where data with parts say neither a part nor the object, bool [B,S,S]: outside the photograph, on another of its kind."""
    void_BSS = batch.parts_BSS == VOID if truth.num_labels else torch.zeros_like(batch.foreground_BSS)
    return void_BSS & ~batch.foreground_BSS


def _pixels(batch: TrueBatch, ids_BSS: Tensor, *, labels: int, slots: int) -> Tensor:
    parts_BSS = batch.parts_BSS.to(ids_BSS.device)
    valid_BSS = parts_BSS != VOID
    known_BSS = torch.where(valid_BSS, parts_BSS, 0)
    return scores.contingency(known_BSS, ids_BSS, num_labels=labels, num_predictions=slots, valid=valid_BSS)


def _points(batch: TrueBatch, ids_BSS: Tensor, *, slots: int) -> Tensor:
    keypoints_BQ2, visible_BQ = (part.to(ids_BSS.device) for part in (batch.keypoints_BQ2, batch.visible_BQ))
    return part_scores.point_tables(ids_BSS, keypoints_BQ2, visible_BQ, num_slots=slots)


def _counts(kind: str, counts_BCK: Tensor) -> dict[str, Tensor]:
    """A table as columns `count/<kind>/<label>/<slot>`."""
    labels, slots = counts_BCK.shape[1:]
    return {f"count/{kind}/{i}/{k}": counts_BCK[:, i, k] for i in range(labels) for k in range(slots)}


def _looks(truth: PartTruth, batch: TrueBatch, masks_BKSS: Tensor, maps: Mapping[str, Tensor], *, rows: int) -> list[PartLook]:
    """Looks of the first `rows` images of a batch."""
    return [
        PartLook(
            image_SS3=batch.images_BSS3[i].numpy(),
            parts_SS=batch.parts_BSS[i].numpy() if truth.num_labels else None,
            keypoints_V2=batch.keypoints_BQ2[i, batch.visible_BQ[i]].numpy(),
            slots_SS=maps[""][i].cpu().numpy(),
            hard_SS=maps["_hard"][i].cpu().numpy(),
            masks_KSS=masks_BKSS[i].float().cpu().numpy(),
        )
        for i in range(rows)
    ]


def pooled_means(per_image: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores of the images with these columns, by the names of jobs/metrics.py without `eval/`; none of regression."""
    means = mean_scores({name: values for name, values in per_image.items() if POOLED not in name})
    for rule in RULES:
        if (counts_NCK := _table(per_image, f"pixels{rule}")) is not None:
            counts_CK = counts_NCK.sum(dim=0)
            means |= _clusterings(counts_CK, counts_CK[1:], rule)
            once, by_image = part_scores.miou_matched_once(counts_NCK), scores.hungarian_miou(counts_NCK)
            found = {"part_miou": once, "part_miou_by_image": by_image, "identity_gap": by_image - once}
            means |= mean_scores({name + rule: values_N.numpy() for name, values_N in found.items()})
        if (points_NCK := _table(per_image, f"points{rule}")) is not None:
            among_NCK = _table(per_image, f"part_points{rule}")
            assert among_NCK is not None
            means |= _clusterings(points_NCK.sum(dim=0), among_NCK.sum(dim=0), rule)
    return means


def regression_means(fit: Places, test: Places, *, eye_distance: bool) -> dict[str, float]:
    """The error of keypoints from part centres, by its name."""
    if eye_distance:
        return {"landmark_nme": part_scores.landmark_error(fit, test)}
    return {"keypoint_error": part_scores.keypoint_error(fit, test)}


def _table(per_image: Mapping[str, np.ndarray], kind: str) -> Tensor | None:
    """What `_counts` took apart, int64 [N,C,K]; None when there is no such table."""
    cells = [name for name in per_image if name.startswith(f"count/{kind}/")]
    if not cells:
        return None
    labels, slots = (max(int(name.split("/")[at]) for name in cells) + 1 for at in (2, 3))
    rows = [np.stack([per_image[f"count/{kind}/{i}/{k}"] for k in range(slots)], axis=1) for i in range(labels)]
    return torch.from_numpy(np.stack(rows, axis=1).astype(np.int64))


def _centres_of(per_image: Mapping[str, np.ndarray]) -> np.ndarray:
    """What `_centres` took apart, [N,P,2]."""
    parts = sum(name.startswith("centre/") for name in per_image) // 2
    return np.stack([np.stack([per_image[f"centre/{k + 1}/{axis}"] for axis in "xy"], axis=1) for k in range(parts)], axis=1)


def _clusterings(every_CK: Tensor, of_parts_CK: Tensor, rule: str) -> dict[str, float]:
    return {
        f"nmi{rule}": part_scores.pooled_nmi(every_CK),
        f"ari{rule}": part_scores.pooled_ari(every_CK),
        f"fg_nmi{rule}": part_scores.pooled_nmi(of_parts_CK),
        f"fg_ari{rule}": part_scores.pooled_ari(of_parts_CK),
    }
