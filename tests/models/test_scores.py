"""Scores against golden fixtures (metrics.md 5), hand-computed values, sklearn and scipy."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models import clustering, scores

GT = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [2, 2, 0, 0]]
F1 = [[0, 0, 0, 3], [0, 1, 1, 3], [0, 1, 3, 3], [2, 2, 2, 0]]
F2 = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]]
F3 = [[3, 3, 3, 3], [4, 1, 1, 0], [0, 1, 1, 0], [2, 2, 0, 0]]
F4 = [[0] * 4] * 4
F5 = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 1, 1]]
GT_ONE_CLASS = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]]
SWAPPED = [[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [1, 1, 0, 0]]

GOLDEN = {
    "F1": (GT, F1, (0.370504, 0.587156, 0.708333, 0.708333, 1, 1.0)),
    "F2 merged": (GT, F2, (0.866667, 0.0, 0.5, 0.333333, 1, 0.5)),
    "F3 background split": (GT, F3, (0.473366, 1.0, 1.0, 1.0, 1, 1.0)),
    "F4 one slot": (GT, F4, (0.0, 0.0, 0.1875, 0.125, 0, 0.0)),
    "F5 flood": (GT, F5, (0.377593, 1.0, 0.642857, 0.642857, 1, 0.5)),
    "F6 one class": (GT_ONE_CLASS, F1, (0.283333, 0.0, 0.5, 0.5, 0, 0.0)),
}
SCORES = (scores.ari, scores.fg_ari, scores.best_overlap, scores.hungarian_miou, scores.corloc, scores.recovery)
ALL_SCORES = (*SCORES, scores.miou_gd, clustering.purity, clustering.nmi, clustering.ami)


def table(labels: object, predictions: object, *, num_labels: int = 3, num_predictions: int = 5) -> Tensor:
    """Table of one image given as nested lists, or of a batch given as arrays."""
    gt, found = torch.as_tensor(np.array(labels)), torch.as_tensor(np.array(predictions))
    gt, found = gt.view(-1, *gt.shape[-2:]), found.view(-1, *found.shape[-2:])
    return scores.contingency(gt, found, num_labels=num_labels, num_predictions=num_predictions)


@pytest.mark.parametrize("name", GOLDEN)
def test_that_scores_equal_the_golden_fixtures(name: str) -> None:
    labels, predictions, expected = GOLDEN[name]
    found = [float(score(table(labels, predictions))) for score in SCORES]
    assert found == pytest.approx(expected, abs=1e-6)


GOLDEN_GD = {"F1": (F1, 0.472222), "F2": (F2, 0.333333), "F3": (F3, 0.666667), "F4": (F4, 0.25), "F5": (F5, 0.642857)}


@pytest.mark.parametrize("name", GOLDEN_GD)
def test_that_miou_gd_equals_the_golden_fixtures(name: str) -> None:
    predictions, expected = GOLDEN_GD[name]
    assert float(scores.miou_gd(table(GT, predictions))) == pytest.approx(expected, abs=1e-6)


def test_that_miou_gd_counts_a_background_only_where_there_is_one() -> None:
    full = [[1, 1, 2, 2]]
    assert float(scores.miou_gd(table(full, [[0, 0, 1, 2]]))) == pytest.approx(0.75)
    assert float(scores.miou_gd(table([[0, 1, 2, 2]], [[0, 0, 1, 2]]))) == pytest.approx(1 / 3)


def test_that_f1_has_the_golden_iou_matrix() -> None:
    expected = torch.tensor([[[0, 0.75, 0, 1 / 7, 0], [0, 0, 2 / 3, 0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(scores.object_iou(table(GT, F1)), expected)


def test_that_frame_tables_add_up_to_the_video_table_of_f7() -> None:
    frames = table([GT, GT], [GT, SWAPPED])
    assert scores.ari(frames).tolist() == [1, 1]
    assert scores.fg_ari(frames).tolist() == [1, 1]
    video = frames.sum(dim=0, keepdim=True)
    assert float(scores.ari(video)) == pytest.approx(0.853235, abs=1e-6)
    assert float(scores.fg_ari(video)) == pytest.approx(-0.087912, abs=1e-6)
    torch.testing.assert_close(
        scores.object_iou(video)[0, :, :3], torch.tensor([[0, 0.4, 0.4], [0, 0.25, 0.25]], dtype=torch.float64)
    )
    assert float(scores.hungarian_miou(video)) == pytest.approx(0.325)
    assert float(scores.best_overlap(video)) == pytest.approx(0.325)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [([0, 0, 1, 2], 4 / 7), ([0, 1, 0, 1], -0.5), ([0, 1, 2, 3], 0.0), ([3, 3, 1, 1], 1.0)],
)
def test_that_ari_equals_the_one_dimensional_cases(predictions: list[int], expected: float) -> None:
    assert float(scores.ari(table([[0, 0, 1, 1]], [predictions]))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ([[0, 0, 0]], [[2, 2, 2]], 1.0),
        ([[0, 1, 2]], [[2, 0, 1]], 1.0),
        ([[0, 0, 0]], [[0, 1, 1]], 0.0),
        ([[0, 1, 1]], [[0, 0, 0]], 0.0),
        ([[1]], [[3]], 1.0),
    ],
    ids=["one cluster each", "all singletons", "one label", "one prediction", "one pixel"],
)
def test_that_ari_has_the_agreed_value_where_it_degenerates(labels: object, predictions: object, expected: float) -> None:
    assert float(scores.ari(table(labels, predictions))) == expected


def test_that_one_cluster_on_both_sides_is_exactly_one_at_video_size() -> None:
    assert scores.ari(torch.tensor([[[24 * 128 * 128 + 1]], [[393_217 * 77]]])).tolist() == [1.0, 1.0]


def test_that_one_stray_pixel_of_a_single_object_costs_the_whole_fg_ari() -> None:
    whole = torch.tensor([[[10, 0], [0, 50]]])
    stray = torch.tensor([[[10, 0], [1, 49]]])
    assert scores.fg_ari(torch.cat((whole, stray))).tolist() == [1.0, 0.0]
    assert scores.object_counts(torch.cat((whole, stray))).tolist() == [1, 1]


def test_that_an_image_without_objects_is_nan_and_spoils_no_other() -> None:
    found = {score: score(table([F4, GT], [F1, GT])) for score in ALL_SCORES[1:]}
    assert all(math.isnan(values[0]) for values in found.values())
    assert {score: float(values[1]) for score, values in found.items()} == pytest.approx(
        {score: 2 / 3 if score is scores.miou_gd else 1.0 for score in found}
    )
    assert scores.object_counts(table([F4, GT], [F1, GT])).tolist() == [0, 2]


def test_that_an_image_of_void_alone_is_nan_in_every_score() -> None:
    void = scores.contingency(
        torch.tensor([GT]), torch.tensor([F1]), num_labels=3, num_predictions=5, valid=torch.zeros(1, 4, 4, dtype=torch.bool)
    )
    assert int(void.sum()) == 0
    assert all(math.isnan(score(void)) for score in ALL_SCORES)
    assert all(math.isnan(values) for values in clustering.pair_scores(void))


def test_that_void_pixels_are_counted_nowhere() -> None:
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0, 0] = False
    valid[1, :, 2:] = False
    counts = scores.contingency(torch.tensor([GT, GT]), torch.tensor([F1, F1]), num_labels=3, num_predictions=4, valid=valid)
    left = table(np.array(GT)[:, :2], np.array(F1)[:, :2], num_predictions=4)
    cropped = torch.cat((table(GT[1:], F1[1:], num_predictions=4), left))
    assert torch.equal(counts, cropped)


@pytest.mark.parametrize(("num_labels", "num_predictions"), [(51, 5), (3, 85), (128, 255), (1000, 40)])
def test_that_counts_are_exact_for_every_number_of_cells_and_way_of_counting(num_labels: int, num_predictions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, num_labels, (3, 9, 7), generator=generator)
    predictions = torch.randint(0, num_predictions, (3, 9, 7), generator=generator)
    labels[:, 0, 0], predictions[:, 0, 0] = num_labels - 1, num_predictions - 1
    valid = torch.rand(3, 9, 7, generator=generator) > 0.2
    expected = torch.zeros(3, num_labels, num_predictions, dtype=torch.int64)
    for image, row, column in valid.nonzero().tolist():
        expected[image, labels[image, row, column], predictions[image, row, column]] += 1
    sizes = {"num_labels": num_labels, "num_predictions": num_predictions}
    assert torch.equal(scores.contingency(labels, predictions, valid=valid, **sizes), expected)
    cells = torch.where(valid, labels * num_predictions + predictions, num_labels * num_predictions).flatten(1)
    for count in (scores._count_by_image, scores._count_at_once):
        assert torch.equal(count(cells, bins=num_labels * num_predictions + 1)[:, :-1], expected.flatten(1))


def test_that_single_objects_can_be_told_apart() -> None:
    assert scores.object_counts(table([GT, GT_ONE_CLASS, F4], [F1, F1, F1])).tolist() == [2, 1, 0]


@pytest.mark.parametrize(("labels", "predictions"), [([[0, 3]], [[0, 0]]), ([[0, 0]], [[0, 5]]), ([[-1, 0]], [[0, 0]])])
def test_that_an_id_out_of_range_is_refused(labels: object, predictions: object) -> None:
    with pytest.raises(ValueError, match=r"ids run from .* allowed are 0 to"):
        table(labels, predictions)


def test_that_byte_labels_do_not_overflow() -> None:
    labels, predictions = torch.tensor([GT] * 40, dtype=torch.uint8), torch.tensor([F1] * 40, dtype=torch.uint8)
    counts = scores.contingency(labels, predictions, num_labels=3, num_predictions=5)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, table(GT, F1).expand(40, -1, -1))


def test_that_bf16_autocast_changes_no_score() -> None:
    counts = table([GT] * 3, [F1, F2, F5])
    masks = torch.rand(3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    outside = [score(counts) for score in ALL_SCORES] + [scores.stripe(masks)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [score(table([GT] * 3, [F1, F2, F5])) for score in ALL_SCORES] + [scores.stripe(masks)]
    assert all(torch.equal(a, b) and b.dtype == torch.float64 for a, b in zip(outside, inside, strict=True))


def maps_of(shape: tuple[int, int, int]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Labels 0..4 and predictions 0..6 of one shape."""
    return st.tuples(*(arrays(np.int64, shape, elements=st.integers(0, largest)) for largest in (4, 6)))


label_maps = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7)).flatmap(maps_of)


@settings(max_examples=60, deadline=None)
@given(label_maps)
def test_that_ari_equals_sklearns_on_every_map(maps: tuple[np.ndarray, np.ndarray]) -> None:
    labels, predictions = maps
    counts = table(labels, predictions, num_labels=5, num_predictions=7)
    for image, (gt, found) in enumerate(zip(labels, predictions, strict=True)):
        assert float(scores.ari(counts)[image]) == pytest.approx(adjusted_rand_score(gt.ravel(), found.ravel()), abs=1e-12)
        shown = gt > 0
        value = float(scores.fg_ari(counts)[image])
        if shown.any():
            assert value == pytest.approx(adjusted_rand_score(gt[shown], found[shown]), abs=1e-12)
        else:
            assert math.isnan(value)


@settings(max_examples=60, deadline=None)
@given(label_maps)
def test_that_overlaps_equal_a_direct_computation_on_masks(maps: tuple[np.ndarray, np.ndarray]) -> None:
    labels, predictions = maps
    counts = table(labels, predictions, num_labels=5, num_predictions=7)
    for image, (gt, found) in enumerate(zip(labels, predictions, strict=True)):
        objects = [gt == i for i in range(1, 5) if (gt == i).any()]
        if not objects:
            assert all(math.isnan(score(counts)[image]) for score in SCORES[1:])
            continue
        iou = np.array([[(o & (found == j)).sum() / (o | (found == j)).sum() for j in range(7)] for o in objects])
        best = iou.max(axis=1)
        expected = (best.mean(), iou[linear_sum_assignment(-iou)].sum() / len(objects), (best > 0.5).any(), (best > 0.5).mean())
        assert [float(score(counts)[image]) for score in SCORES[2:]] == pytest.approx([float(value) for value in expected])


@settings(max_examples=40, deadline=None)
@given(label_maps, st.permutations(range(7)), st.permutations(range(4)))
def test_that_renaming_slots_or_objects_changes_no_score(
    maps: tuple[np.ndarray, np.ndarray], slots: list[int], objects: list[int]
) -> None:
    counts = table(*maps, num_labels=5, num_predictions=7)
    renamed = counts[:, [0, *(1 + i for i in objects)]][:, :, slots]
    for score in ALL_SCORES:
        torch.testing.assert_close(score(renamed), score(counts), equal_nan=True)


def test_that_empty_slots_and_absent_labels_change_no_score() -> None:
    small, large = table(GT, F5, num_labels=3, num_predictions=3), table(GT, F5, num_labels=9, num_predictions=11)
    assert all(torch.allclose(score(small), score(large), rtol=1e-14) for score in ALL_SCORES)


def disc(size: int, radius: float) -> Tensor:
    axis = torch.arange(size) - (size - 1) / 2
    return ((axis[:, None] ** 2 + axis**2) <= radius**2).float()


def test_that_stripes_score_one_in_either_direction_and_when_slots_differ() -> None:
    rows = (torch.arange(32) // 4 % 2).float()[:, None].expand(32, 32)
    both = torch.stack((torch.stack((rows, 1 - rows)), torch.stack((rows.T, 1 - rows.T)), torch.stack((rows, rows.T))))
    torch.testing.assert_close(scores.stripe(both), torch.ones(3, dtype=torch.float64))


def test_that_a_checkerboard_and_noise_score_near_zero() -> None:
    cells = torch.arange(32)[:, None] + torch.arange(32)
    board = (cells % 2).float()
    noise = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    found = scores.stripe(torch.stack((torch.stack((board, 1 - board)), noise)))
    assert float(found[0]) == pytest.approx(0, abs=1e-12)
    assert 0 < float(found[1]) < 0.08


def test_that_blobs_score_low() -> None:
    blob = disc(64, 10)
    square = torch.zeros(64, 64)
    square[24:40, 24:40] = 1
    found = scores.stripe(torch.stack((torch.stack((blob, 1 - blob)), torch.stack((square, 1 - square)))))
    assert float(found[0]) < 0.25
    assert float(found[1]) == pytest.approx(0.25 / 1.25)


def test_that_a_slot_weighs_in_the_stripe_score_by_its_variance() -> None:
    rows = (torch.arange(16) % 2).float()[:, None].expand(16, 16)
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float()
    assert float(scores.stripe(torch.stack((rows, 0.5 * board))[None])) == pytest.approx(0.8)


def test_that_constant_masks_have_no_stripe_score() -> None:
    assert math.isnan(scores.stripe(torch.full((1, 5, 8, 8), 0.2)))
