"""Every score of 500 images: ours from batched tables against loops over images, objects and slots, in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_scores.py [--images 500] [--loop-images 20] [--slots 7 11] [--json]

Both get the same slot of every pixel (224 x 224, about 6 objects, class masks too, some void pixels) and must agree on every
score. The loops take minutes for 500 images, so they run on the first `--loop-images` and their seconds are scaled up; the
two take turns in rounds, in processor time, so that a busy machine slows both. The loops are spared work that the original
codes do: intersection over union is computed once per image and label set, not once per score. `enlarging` is the way from
14 x 14 masks to the slot of every pixel, which both need and neither number contains.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, pair_confusion_matrix

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.protocols import VOID, predicted_ids  # found through the path above
from jobs.scoring import class_scores, instance_scores

SIDE, GRID, BATCH, ROUNDS = 224, 14, 64, 3


def scenes(images: int, slots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(instances, classes: uint8 [N,224,224]; soft masks [N,K,14,14]) of 3 to 9 discs that slots find roughly."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    instances = np.zeros((images, SIDE, SIDE), dtype=np.uint8)
    classes = np.zeros_like(instances)
    for image in range(images):
        for number in range(1, int(rng.integers(3, 10)) + 1):
            (y, x), radius = rng.integers(0, SIDE, 2), rng.integers(12, 60)
            inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            instances[image][inside] = number
            classes[image][inside] = rng.integers(1, 91)
        instances[image][: int(rng.integers(0, 8))] = VOID
    coarse = torch.from_numpy(instances[:, 8::16, 8::16] % slots).long()
    logits = 3 * torch.nn.functional.one_hot(coarse, slots).permute(0, 3, 1, 2).float()
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(instances), torch.from_numpy(classes), (logits + noise).softmax(dim=1)


def ours(instances: torch.Tensor, classes: torch.Tensor, ids: torch.Tensor, slots: int) -> dict[str, np.ndarray]:
    parts = []
    for some in zip(instances.split(BATCH), classes.split(BATCH), ids.split(BATCH), strict=True):
        found = instance_scores(some[0], some[2], num_slots=slots, protocol="official")
        parts.append(found | class_scores(some[1], some[2], num_slots=slots, protocol="official"))
    return {name: torch.cat([part[name].double() for part in parts]).numpy() for name in parts[0]}


def overlaps(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Overlap scores of one image's counted pixels, mask by mask."""
    segments, labels = np.unique(found), np.unique(truth)
    objects = labels[labels > 0]
    iou = np.zeros((len(objects), len(segments)))
    for i, label in enumerate(objects):
        for j, segment in enumerate(segments):
            one, other = truth == label, found == segment
            iou[i, j] = np.logical_and(one, other).sum() / np.logical_or(one, other).sum()
    best, matched = iou.max(axis=1), iou[linear_sum_assignment(iou, maximize=True)].sum()
    return {
        "fg_ari": adjusted_rand_score(truth[truth > 0], found[truth > 0]),
        "mbo": best.mean(),
        "miou": matched / len(objects),
        "miou_gd": matched / min(len(labels), len(segments)),
        "corloc_mask": float((best > 0.5).any()),
        "recovery": (best > 0.5).mean(),
    }


def loop(instances: np.ndarray, classes: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    rows = []
    for image in range(len(instances)):
        counted = instances[image] != VOID
        truth, found = instances[image][counted], ids[image][counted]
        gt, segments = truth[truth > 0], found[truth > 0]
        (_, extra), (missed, both) = pair_confusion_matrix(gt, segments)
        counts = contingency_matrix(gt, segments)
        of_classes = overlaps(classes[image].ravel(), ids[image].ravel())
        rows.append(
            {
                **overlaps(truth, found),
                **{f"{name}_class": value for name, value in of_classes.items()},
                "ari": adjusted_rand_score(truth, found),
                "pair_precision": both / (both + extra),
                "pair_recall": both / (both + missed),
                "pair_f1": 2 * both / (2 * both + extra + missed),
                "purity": counts[linear_sum_assignment(counts, maximize=True)].sum() / len(gt),
                "ami": adjusted_mutual_info_score(gt, segments),
                "nmi": normalized_mutual_info_score(gt, segments),
            }
        )
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(images: int, loop_images: int, slots: int) -> dict[str, float]:
    instances, classes, masks = scenes(images, slots)
    enlarging = seconds(lambda: predicted_ids(masks, (SIDE, SIDE), "official"))
    ids = predicted_ids(masks, (SIDE, SIDE), "official")
    few = [one[:loop_images].numpy() for one in (instances, classes, ids)]
    mine, plain = ours(instances, classes, ids, slots), loop(*few)
    difference = max(float(np.abs(mine[name][:loop_images] - plain[name]).max()) for name in plain)
    times = [(seconds(lambda: ours(instances, classes, ids, slots)), seconds(lambda: loop(*few))) for _ in range(ROUNDS)]
    fast, slow = min(one for one, _ in times), min(other for _, other in times) * images / loop_images
    return {
        "slots": slots,
        "scores": len(plain),
        "ours_s": fast,
        "loops_s_scaled": slow,
        "ratio": slow / fast,
        "enlarging_s": enlarging,
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--loop-images", type=int, default=20)
    parser.add_argument("--slots", type=int, nargs="+", default=[7, 11])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = [compare(arguments.images, arguments.loop_images, slots) for slots in arguments.slots]
    if arguments.json:
        print(json.dumps({"images": arguments.images, "loop_images": arguments.loop_images, "results": found}, indent=1))
        return
    for one in found:
        print(
            f"{one['slots']} slots: {one['scores']} scores of {arguments.images} images in {one['ours_s']:.2f} s, by loops "
            f"{one['loops_s_scaled']:.1f} s (scaled from {arguments.loop_images} images): {one['ratio']:.1f} times; "
            f"largest difference {one['largest_difference']:.1e}; enlarging {one['enlarging_s']:.2f} s"
        )


if __name__ == "__main__":
    main()
