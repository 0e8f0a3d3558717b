"""Scores over time against golden values (metrics.md F7), sklearn, plain loops, and py-motmetrics as oracle."""

from __future__ import annotations

import math
from functools import cache

import motmetrics  # type: ignore[import-untyped]  # ships no annotations
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models import video_scores

GT = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [2, 2, 0, 0]]
SWAPPED = [[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [1, 1, 0, 0]]
LABELS, SLOTS = 4, 6
RANDOM = range(25)


def enlarged(frames: list[list[list[int]]], factor: int) -> np.ndarray:
    """Every pixel becomes factor x factor pixels."""
    return np.kron(np.array(frames), np.ones((1, factor, factor), np.int64))[None]


def tables(labels_BTHW: np.ndarray, slots_BTHW: np.ndarray) -> Tensor:
    return video_scores.frame_tables(
        torch.as_tensor(labels_BTHW), torch.as_tensor(slots_BTHW), num_labels=LABELS, num_predictions=SLOTS
    )


@pytest.fixture
def swap() -> Tensor:
    """F7: two equal frames; in the second the slots of both objects have traded places."""
    return tables(np.array([[GT, GT]]), np.array([[GT, SWAPPED]]))


def wandering(seed: int, *, frames: int = 12, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Moving rectangles that hide each other and leave the image, and slots that follow them with errors."""
    draw = np.random.default_rng(seed)
    labels = np.zeros((frames, side, side), np.int64)
    slots = np.zeros_like(labels)
    slot_of = [1, 2, 3]
    place = draw.integers(0, side - 6, (3, 2))
    size = draw.integers(5, 10, (3, 2))
    step = draw.integers(-3, 4, (3, 2))
    for frame in range(frames):
        if draw.random() < 0.3:
            draw.shuffle(slot_of)
        if draw.random() < 0.2:
            slot_of[int(draw.integers(3))] = int(draw.integers(4, SLOTS))
        for number in range(3):
            top, left = place[number] + frame * step[number]
            height, width = size[number]
            labels[frame, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = number + 1
            shift = draw.integers(-2, 3, 2)
            top, left = top + shift[0], left + shift[1]
            slots[frame, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = slot_of[number]
    return labels, slots


def overlaps(labels: np.ndarray, slots: np.ndarray) -> tuple[list[int], list[int], np.ndarray]:
    """Objects and hypotheses of one frame, and their distances 1 - IoU; nan where they must not be paired."""
    objects = [number for number in range(1, LABELS) if (labels == number).any()]
    hypotheses = []
    for slot in range(SLOTS):
        mine, ground = slots == slot, labels == 0
        if mine.sum() > 5 and (mine & ground).sum() / (mine | ground).sum() <= 0.2:
            hypotheses.append(slot)
    distance = np.full((len(objects), len(hypotheses)), np.nan)
    for row, number in enumerate(objects):
        for column, slot in enumerate(hypotheses):
            iou = ((labels == number) & (slots == slot)).sum() / ((labels == number) | (slots == slot)).sum()
            if iou >= 0.5:
                distance[row, column] = 1 - iou
    return objects, hypotheses, distance


@cache
def oracle(seed: int) -> dict[str, float]:
    """py-motmetrics on a wandering video."""
    seen = motmetrics.MOTAccumulator(auto_id=True)
    for labels, slots in zip(*wandering(seed), strict=True):
        seen.update(*overlaps(labels, slots))
    names = [
        "num_objects",
        "num_predictions",
        "num_misses",
        "num_false_positives",
        "num_switches",
        "mota",
        "motp",
        "idf1",
        "idtp",
    ]
    row = motmetrics.metrics.create().compute(seen, metrics=names, name="video").iloc[0]
    return {name: float(row[name]) for name in names}


def test_that_a_swap_of_identities_gives_the_golden_values(swap: Tensor) -> None:
    assert video_scores.frame_fg_ari(swap).tolist() == [1.0]
    assert float(video_scores.video_fg_ari(swap)) == pytest.approx(-0.087912, abs=1e-6)
    assert float(video_scores.fg_ari_gap(swap)) == pytest.approx(1.087912, abs=1e-6)
    assert float(video_scores.tube_miou(swap)) == pytest.approx(0.325)
    assert float(video_scores.tube_mbo(swap)) == pytest.approx(0.325)


def test_that_a_swap_of_identities_counts_as_two_switches() -> None:
    gt = enlarged([GT, GT], 3)
    found = video_scores.tracks(tables(gt, enlarged([GT, SWAPPED], 3)))
    assert (int(found.objects), int(found.hypotheses), int(found.matches), int(found.switches)) == (4, 4, 4, 2)
    assert float(found.mota()) == 0.5
    assert float(found.motp()) == 1.0
    assert float(found.idf1()) == 0.5
    assert float(found.switch_rate()) == 50.0
    perfect = video_scores.tracks(tables(gt, gt))
    assert (int(perfect.switches), float(perfect.mota()), float(perfect.idf1())) == (0, 1.0, 1.0)


@pytest.mark.parametrize("seed", RANDOM)
def test_that_tracks_equal_py_motmetrics(seed: int) -> None:
    labels, slots = wandering(seed)
    found, expected = video_scores.tracks(tables(labels[None], slots[None])), oracle(seed)
    assert int(found.objects) == expected["num_objects"]
    assert int(found.hypotheses) == expected["num_predictions"]
    assert int(found.misses) == expected["num_misses"]
    assert int(found.false_positives) == expected["num_false_positives"]
    assert int(found.switches) == expected["num_switches"]
    assert int(found.identity_matches) == expected["idtp"]
    assert float(found.mota()) == pytest.approx(expected["mota"], abs=1e-12)
    assert float(found.motp()) == pytest.approx(1 - expected["motp"], abs=1e-12, nan_ok=True)
    assert float(found.idf1()) == pytest.approx(expected["idf1"], abs=1e-12)


def test_that_the_random_videos_hold_what_the_oracle_is_asked_about() -> None:
    rows = [oracle(seed) for seed in RANDOM]
    for name in ("num_misses", "num_false_positives", "num_switches"):
        assert sum(row[name] > 0 for row in rows) > len(RANDOM) / 2, name


def test_that_a_switch_after_a_gap_counts() -> None:
    seen, gone = np.zeros((1, 6, 6), np.int64), np.zeros((1, 6, 6), np.int64)
    seen[0, :4, :4] = 1
    labels = np.concatenate([seen, gone, seen])
    found = video_scores.tracks(tables(labels[None], np.concatenate([seen, gone, 2 * seen])[None]))
    assert (int(found.objects), int(found.switches)) == (2, 1)


def test_that_an_object_keeps_its_slot_while_the_overlap_is_one_half() -> None:
    labels = np.zeros((2, 6, 8), np.int64)
    labels[:, :4, :4] = 1
    slots = 2 * labels
    slots[1, :4, :2] = 1  # both halves have an IoU of exactly 1/2
    found = video_scores.tracks(tables(labels[None], slots[None]))
    assert (int(found.matches), int(found.switches), int(found.false_positives)) == (2, 0, 1)
    assert float(found.iou_sum) == 1.5


@pytest.mark.parametrize("second", [0, 2])
def test_that_a_slot_stands_for_one_object_at_a_time(second: int) -> None:
    labels = np.zeros((3, 8, 8), np.int64)
    labels[0, :4, :4] = 1
    labels[1, 4:, :4] = second
    labels[2, :4, :4], labels[2, 4:, :4] = 1, 2
    slots = np.minimum(labels, 1)  # slot 1 is exactly both objects at the end: an IoU of 1/2 with each
    found = video_scores.tracks(tables(labels[None], slots[None]))
    assert (int(found.matches), int(found.misses), int(found.switches)) == (2 + second // 2, 1, 0)


def test_that_background_slots_and_specks_are_no_hypotheses() -> None:
    labels = np.zeros((1, 12, 12), np.int64)
    labels[0, :4, :4] = 1
    slots = labels.copy()
    slots[0, 6:] = 2  # more than a fifth of the background
    slots[0, 4, :5] = 3
    assert int(video_scores.tracks(tables(labels[None], slots[None])).hypotheses) == 1
    slots[0, 4, :6] = 3  # one pixel more than a speck
    assert int(video_scores.tracks(tables(labels[None], slots[None])).hypotheses) == 2


def test_that_videos_are_scored_by_themselves() -> None:
    made = [wandering(seed) for seed in range(5)]
    every = tables(np.stack([labels for labels, _ in made]), np.stack([slots for _, slots in made]))
    together = video_scores.tracks(every)
    for row in range(5):
        alone = video_scores.tracks(every[row : row + 1])
        for name in ("objects", "hypotheses", "matches", "switches", "iou_sum", "identity_matches"):
            assert getattr(together, name)[row] == getattr(alone, name)[0], name
        for score in (video_scores.frame_fg_ari, video_scores.video_fg_ari, video_scores.tube_miou, video_scores.slots_used):
            assert score(every)[row] == score(every[row : row + 1])[0]


@pytest.mark.parametrize("seed", range(4))
def test_that_fg_ari_of_frames_and_video_equals_sklearn(seed: int) -> None:
    labels, slots = wandering(seed)
    counts = tables(labels[None], slots[None])
    shown = [labels[frame] > 0 for frame in range(len(labels)) if (labels[frame] > 0).any()]
    frames = [frame for frame in range(len(labels)) if (labels[frame] > 0).any()]
    by_frame = [adjusted_rand_score(labels[at][mask], slots[at][mask]) for at, mask in zip(frames, shown, strict=True)]
    assert float(video_scores.frame_fg_ari(counts)) == pytest.approx(np.mean(by_frame), abs=1e-12)
    expected = adjusted_rand_score(labels[labels > 0], slots[labels > 0])
    assert float(video_scores.video_fg_ari(counts)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_that_tube_scores_equal_plain_loops(seed: int) -> None:
    labels, slots = wandering(seed)
    present = [number for number in range(1, LABELS) if (labels == number).any()]
    iou = np.array(
        [
            [((labels == one) & (slots == slot)).sum() / ((labels == one) | (slots == slot)).sum() for slot in range(SLOTS)]
            for one in present
        ]
    )
    rows, columns = linear_sum_assignment(-iou)
    counts = tables(labels[None], slots[None])
    assert float(video_scores.tube_miou(counts)) == pytest.approx(iou[rows, columns].sum() / len(present), abs=1e-12)
    assert float(video_scores.tube_mbo(counts)) == pytest.approx(iou.max(axis=1).mean(), abs=1e-12)


def test_that_slots_permuted_in_each_frame_change_only_what_looks_over_time() -> None:
    labels, _ = wandering(1)
    slots = np.stack([np.random.default_rng(frame).permutation(SLOTS)[labels[frame]] for frame in range(len(labels))])
    steady, permuted = tables(labels[None], labels[None]), tables(labels[None], slots[None])
    assert torch.equal(video_scores.frame_fg_ari(steady), video_scores.frame_fg_ari(permuted))
    assert float(video_scores.video_fg_ari(steady)) == 1.0
    assert float(video_scores.video_fg_ari(permuted)) < 0.5
    assert float(video_scores.tube_miou(permuted)) < 0.6
    assert torch.equal(video_scores.slots_used(steady), video_scores.slots_used(permuted))


def test_that_one_permutation_for_all_frames_changes_nothing() -> None:
    labels, slots = wandering(2)
    permuted = np.array([3, 5, 0, 1, 4, 2])[slots]
    before, after = tables(labels[None], slots[None]), tables(labels[None], permuted[None])
    for score in (video_scores.video_fg_ari, video_scores.tube_miou, video_scores.largest_share):
        assert float(score(before)) == pytest.approx(float(score(after)), abs=1e-12)
    assert int(video_scores.tracks(before).switches) == int(video_scores.tracks(after).switches)
    assert float(video_scores.tracks(before).idf1()) == float(video_scores.tracks(after).idf1())


def test_that_frames_without_objects_do_not_count_and_videos_without_them_are_nan() -> None:
    empty = np.zeros_like(GT)
    some = tables(np.array([[GT, empty]]), np.array([[GT, GT]]))
    assert video_scores.frame_fg_ari(some).tolist() == [1.0]
    none = tables(np.array([[empty, empty]]), np.array([[GT, GT]]))
    for score in (video_scores.frame_fg_ari, video_scores.video_fg_ari, video_scores.fg_ari_gap, video_scores.tube_miou):
        assert math.isnan(score(none))
    found = video_scores.tracks(none)
    for value in (found.mota(), found.motp(), found.idf1(), found.switch_rate()):
        assert math.isnan(value)


def test_that_usage_counts_slots_with_one_percent_of_the_pixels() -> None:
    slots = np.zeros((1, 2, 20, 20), np.int64)
    slots[0, 0, 0, :4] = 1  # exactly 1 %
    slots[0, 0, 1, :3] = 2
    counts = tables(np.zeros_like(slots), slots)
    assert video_scores.slots_used(counts).tolist() == [1.5]
    assert float(video_scores.largest_share(counts)) == pytest.approx((393 / 400 + 1) / 2)


def test_that_mask_entropy_is_0_for_hard_and_1_for_even_masks() -> None:
    hard = torch.nn.functional.one_hot(torch.randint(0, 4, (2, 3, 5, 5), generator=torch.Generator().manual_seed(0)), 4)
    masks = hard.permute(0, 1, 4, 2, 3).float()
    masks[1] = 0.25
    assert video_scores.mask_entropy(masks).tolist() == pytest.approx([0.0, 1.0])
    assert video_scores.mask_entropy(torch.ones(1, 1, 1, 2, 2)).tolist() == [0.0]
