"""Scores of parts against sklearn, numpy and plain loops; what unstable identities cost; counts of billions of pixels."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from models import part_scores, scores
from models.part_scores import Places

RNG = np.random.default_rng(0)


def as_points(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of the points that a table counts."""
    rows, columns = np.indices(counts.shape)
    return np.repeat(rows.ravel(), counts.ravel()), np.repeat(columns.ravel(), counts.ravel())


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 30)))
)
def test_that_pooled_scores_are_sklearns(counts: np.ndarray) -> None:
    found = part_scores.pooled_nmi(torch.from_numpy(counts)), part_scores.pooled_ari(torch.from_numpy(counts))
    labels, predictions = as_points(counts)
    if not len(labels):
        assert np.isnan(found).all()
        return
    assert found[0] == pytest.approx(normalized_mutual_info_score(labels, predictions), abs=1e-9)
    assert found[1] == pytest.approx(adjusted_rand_score(labels, predictions), abs=1e-9)
    assert found[1] == pytest.approx(float(scores.ari(torch.from_numpy(counts)[None])), abs=1e-9)


def test_that_billions_of_pixels_do_not_overflow() -> None:
    shares = RNG.integers(1, 1000, (6, 6))
    small, large = torch.from_numpy(shares * 10), torch.from_numpy(shares * 10**12)
    assert part_scores.pooled_nmi(large) == pytest.approx(part_scores.pooled_nmi(small), rel=1e-12)
    assert part_scores.pooled_ari(large) == pytest.approx(part_scores.pooled_ari(small), rel=1e-3)
    parts = shares / shares.sum()
    rows, columns, both = ((one**2).sum() for one in (parts.sum(axis=1), parts.sum(axis=0), parts))
    limit = (both - rows * columns) / ((rows + columns) / 2 - rows * columns)
    assert part_scores.pooled_ari(large) == pytest.approx(limit, rel=1e-9)
    assert part_scores.pooled_ari(torch.eye(3, dtype=torch.int64) * 10**12) == 1.0


@pytest.mark.parametrize("score", [part_scores.pooled_nmi, part_scores.pooled_ari])
def test_that_names_of_parts_and_slots_do_not_matter(score: object) -> None:
    counts = torch.from_numpy(RNG.integers(0, 50, (5, 6)))
    shuffled = counts[torch.from_numpy(RNG.permutation(5))][:, torch.from_numpy(RNG.permutation(6))]
    assert callable(score)
    assert score(shuffled) == pytest.approx(score(counts), abs=1e-12)


def shown(images: int = 6, side: int = 12, labels: int = 4) -> np.ndarray:
    """Label maps [N,S,S] in which every label has a pixel."""
    maps = RNG.integers(0, labels, (images, side, side))
    maps[:, 0, :labels] = np.arange(labels)
    return maps


def tables(truth: np.ndarray, found: np.ndarray, *, labels: int = 4, slots: int = 4) -> Tensor:
    return scores.contingency(torch.from_numpy(truth), torch.from_numpy(found), num_labels=labels, num_predictions=slots)


def test_that_perfect_parts_score_one() -> None:
    truth = shown()
    counts_NCK = tables(truth, np.array([2, 0, 3, 1])[truth])
    assert part_scores.pooled_nmi(counts_NCK.sum(dim=0)) == pytest.approx(1)
    assert part_scores.pooled_ari(counts_NCK.sum(dim=0)) == 1.0
    assert part_scores.miou_matched_once(counts_NCK).tolist() == [1.0] * len(truth)
    assert scores.hungarian_miou(counts_NCK).tolist() == [1.0] * len(truth)


def test_that_identities_that_change_by_image_cost_the_data_sets_matching_alone() -> None:
    truth = shown(images=40)
    found = np.stack([RNG.permutation(4)[image] for image in truth])
    counts_NCK = tables(truth, found)
    assert scores.hungarian_miou(counts_NCK).tolist() == [1.0] * len(truth)
    assert float(part_scores.miou_matched_once(counts_NCK).mean()) < 0.5
    assert part_scores.pooled_nmi(counts_NCK.sum(dim=0)) < 0.1
    assert part_scores.pooled_ari(counts_NCK.sum(dim=0)) < 0.1


def test_that_one_matching_is_the_plain_loops_and_never_better_than_by_image() -> None:
    truth, found = shown(images=5), shown(images=5)
    found[:3] = np.where(RNG.random((3, 12, 12)) < 0.7, truth[:3], found[:3])
    truth[1][truth[1] == 2] = 0  # an image without one of the parts
    truth[4] = 0  # and one without any

    def iou(labels: np.ndarray, ids: np.ndarray, part: int, slot: int) -> float:
        both, either = ((labels == part) & (ids == slot)).sum(), ((labels == part) | (ids == slot)).sum()
        return float(both / either)

    whole = np.array([[iou(truth, found, part, slot) for slot in range(4)] for part in range(1, 4)])
    slot_of = dict(zip(*(one.tolist() for one in linear_sum_assignment(-whole)), strict=True))
    expected = [
        np.mean([iou(truth[n], found[n], part, slot_of[part - 1]) for part in range(1, 4) if (truth[n] == part).any()])
        if truth[n].any()
        else math.nan
        for n in range(5)
    ]
    counts_NCK = tables(truth, found)
    once_N = part_scores.miou_matched_once(counts_NCK)
    np.testing.assert_allclose(once_N.numpy(), expected)
    assert (once_N <= scores.hungarian_miou(counts_NCK) + 1e-12)[:4].all()


def test_that_parts_without_a_slot_of_their_own_count_zero() -> None:
    truth = shown()
    counts_NCK = tables(truth, truth.clip(max=1), slots=2)
    part = int(counts_NCK.sum(dim=0)[1:, 1].argmax())  # the largest is the one that the only part slot stands for
    expected = [float(scores.object_iou(one[None])[0, part, 1]) / 3 for one in counts_NCK]
    assert part_scores.miou_matched_once(counts_NCK).tolist() == pytest.approx(expected)


def test_that_scops_rule_compares_with_a_parts_strongest_place() -> None:
    masks_1KHW = torch.tensor([[[0.8, 0.7, 0.97]], [[0.15, 0.01, 0.02]], [[0.05, 0.29, 0.01]]])[None]
    assert part_scores.largest(masks_1KHW).tolist() == [[[0, 0, 0]]]
    relative = part_scores.above_background(masks_1KHW)
    np.testing.assert_allclose(relative[0, :, 0].numpy(), [[0.1] * 3, [1, 1 / 15, 2 / 15], [5 / 29, 1, 1 / 29]], rtol=1e-6)
    assert part_scores.largest(relative).tolist() == [[[1, 2, 1]]]
    assert part_scores.largest(part_scores.above_background(torch.zeros(1, 3, 2, 2))).tolist() == [[[0, 0], [0, 0]]]


def test_that_foreground_iou_is_of_all_parts_together() -> None:
    ids = torch.tensor([[[0, 1, 2]], [[3, 3, 0]], [[1, 0, 0]], [[2, 2, 2]]])
    foreground = torch.tensor([[[0, 1, 1]], [[0, 1, 1]], [[0, 0, 0]], [[1, 1, 1]]]).bool()
    found = part_scores.foreground_iou(ids, foreground).tolist()
    assert found[:2] == [1.0, pytest.approx(1 / 3)]
    assert math.isnan(found[2])
    assert found[3] == 1.0


def test_that_a_part_is_used_from_one_percent_of_the_pixels_on() -> None:
    ids = torch.zeros(3, 20, 20, dtype=torch.int64)
    ids[0, 0, :4], ids[0, 1, :3], ids[1] = 1, 2, 3
    assert part_scores.parts_used(ids, num_slots=5).tolist() == [1.0, 1.0, 0.0]


def test_that_keypoints_are_counted_at_their_nearest_pixel_where_visible() -> None:
    ids = torch.tensor([[[0, 1], [2, 3]], [[3, 3], [3, 0]]])
    keypoints = torch.tensor([[[0.9, 0.2], [1.6, 1.4]], [[0.4, 0.6], [math.nan, 0.0]]])
    visible = torch.tensor([[True, True], [True, False]])
    counts = part_scores.point_tables(ids, keypoints, visible, num_slots=4)
    expected = torch.zeros(2, 3, 4, dtype=torch.int64)
    expected[0, 1, 1] = expected[0, 2, 3] = expected[1, 1, 3] = 1
    assert torch.equal(counts, expected)


def test_that_a_keypoint_between_two_pixels_is_counted_at_the_later_one() -> None:
    ids, keypoints = torch.arange(4).reshape(1, 1, 4), torch.tensor([[[0.5, 0.0], [1.5, 0.0], [2.5, 0.0], [-0.5, -0.5]]])
    counts = part_scores.point_tables(ids, keypoints, torch.ones(1, 4, dtype=torch.bool), num_slots=4)
    assert counts[0, 1:].argmax(dim=1).tolist() == [1, 2, 3, 0]


def test_that_mask_vectors_are_distinct_from_the_tolerance_on() -> None:
    logits = torch.zeros(3, 3, 8, 8)
    logits[1] = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))  # the same in each row
    logits[1] += 1e-7 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))  # rounding
    logits[2] = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert part_scores.distinct_vectors(logits).tolist() == [1.0, 8.0, 64.0]
    of_pixels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert part_scores.distinct_vectors(logits + of_pixels).tolist() == [1.0, 8.0, 64.0]  # logits that give the same masks


def test_that_vectors_that_share_a_background_are_told_apart_in_any_order() -> None:
    shares = torch.tensor(
        [[0.3, 0.1, 0.6], [0.3, 0.2, 0.5], [0.2, 0.2, 0.6], [0.3, 0.1, 0.6], [0.3 + 4e-6, 0.1, 0.6], [0.3, 0.2, 0.5]]
    )
    for order in (torch.arange(6), torch.tensor([4, 1, 0, 5, 3, 2])):
        logits = shares[order].log().T.reshape(1, 3, 2, 3)
        assert part_scores.distinct_vectors(logits).tolist() == [3.0]


def test_that_centres_are_those_of_soft_masks() -> None:
    masks = torch.rand(2, 4, 5, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    found = part_scores.part_centres(masks)
    assert found.dtype == torch.float64
    for image in range(2):
        for part in range(3):
            mask = masks[image, part + 1].double().numpy()
            mass = [(x, y, mask[y, x]) for y in range(5) for x in range(7)]
            total = sum(weight for *_, weight in mass)
            expected = [sum(one[axis] * one[2] for one in mass) / total for axis in (0, 1)]
            np.testing.assert_allclose(found[image, part].numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(part_scores.part_centres(torch.zeros(1, 2, 5, 7)).numpy(), [[[3, 2]]])  # without mass: the middle


def places(images: int, seed: int, *, visible: bool = False, scale: float | None = None) -> Places:
    rng = np.random.default_rng(seed)
    return Places(
        centres_NP2=rng.uniform(0, 128, (images, 3, 2)),
        keypoints_NQ2=rng.uniform(0, 128, (images, 4, 2)).astype(np.float32),
        visible_NQ=np.ones((images, 4), bool) if visible else rng.random((images, 4)) < 0.7,
        scale_N2=(rng.uniform(20, 90, (images, 2)) if scale is None else np.full((images, 2), scale)).astype(np.float32),
    )


def test_that_keypoint_error_is_a_linear_maps_in_box_units() -> None:
    fit, test = places(40, 0), places(25, 1)
    distances = []
    for q in range(4):
        rows, asked = fit.visible_NQ[:, q], test.visible_NQ[:, q]
        inputs = (fit.centres_NP2 / fit.scale_N2[:, None]).reshape(40, 6)[rows]
        found, *_ = np.linalg.lstsq(inputs, (fit.keypoints_NQ2[:, q] / fit.scale_N2)[rows], rcond=None)
        predicted = (test.centres_NP2 / test.scale_N2[:, None]).reshape(25, 6)[asked] @ found
        distances.append(np.linalg.norm(predicted - (test.keypoints_NQ2[:, q] / test.scale_N2)[asked], axis=1))
    assert part_scores.keypoint_error(fit, test) == pytest.approx(100 * np.concatenate(distances).mean(), rel=1e-9)


def test_that_keypoints_that_are_a_linear_map_of_the_centres_have_no_error() -> None:
    matrix = RNG.normal(size=(6, 8))
    exact = [
        one._replace(keypoints_NQ2=(one.centres_NP2.reshape(-1, 6) @ matrix).reshape(-1, 4, 2))
        for one in (places(30, 2, scale=128), places(9, 3, scale=128))
    ]
    assert part_scores.keypoint_error(*exact) == pytest.approx(0, abs=1e-8)
    shifted = [one._replace(keypoints_NQ2=one.keypoints_NQ2 + 40) for one in exact]
    assert part_scores.keypoint_error(*shifted) > 1  # no intercept
    assert part_scores.landmark_error(*shifted) == pytest.approx(0, abs=1e-8)


def test_that_landmark_error_is_sklearns_without_intercept_on_standardised_numbers() -> None:
    fit, test = places(50, 4, visible=True), places(20, 5, visible=True)
    inputs, outputs = StandardScaler(), StandardScaler()
    regression = LinearRegression(fit_intercept=False).fit(
        inputs.fit_transform(fit.centres_NP2.reshape(50, 6)), outputs.fit_transform(fit.keypoints_NQ2.reshape(50, 8))
    )
    found = outputs.inverse_transform(regression.predict(inputs.transform(test.centres_NP2.reshape(20, 6)))).reshape(20, 4, 2)
    distances = np.linalg.norm((found - test.keypoints_NQ2) / test.scale_N2[:, None], axis=2)
    assert part_scores.landmark_error(fit, test) == pytest.approx(100 * distances.mean(), rel=1e-5)


def test_that_hidden_keypoints_and_still_centres_do_no_harm() -> None:
    fit, test = places(30, 6), places(10, 7)
    hidden = [one._replace(keypoints_NQ2=np.where(one.visible_NQ[..., None], one.keypoints_NQ2, np.nan)) for one in (fit, test)]
    assert part_scores.keypoint_error(*hidden) == part_scores.keypoint_error(fit, test)
    never = fit._replace(visible_NQ=fit.visible_NQ & (np.arange(4) != 2))
    three = [
        one._replace(keypoints_NQ2=one.keypoints_NQ2[:, [0, 1, 3]], visible_NQ=one.visible_NQ[:, [0, 1, 3]])
        for one in (fit, test)
    ]
    assert part_scores.keypoint_error(never, test) == pytest.approx(part_scores.keypoint_error(*three))
    assert math.isnan(part_scores.keypoint_error(fit, test._replace(visible_NQ=test.visible_NQ & False)))
    still = [one._replace(centres_NP2=np.full_like(one.centres_NP2, 63.5)) for one in (fit, test)]
    mean = [fit.keypoints_NQ2[fit.visible_NQ[:, q], q].mean(axis=0) for q in range(4)]
    errors = [
        np.linalg.norm((test.keypoints_NQ2[n, q] - mean[q]) / test.scale_N2[n])
        for q in range(4) for n in range(10) if test.visible_NQ[n, q]
    ]  # fmt: skip
    assert part_scores.landmark_error(*still) == pytest.approx(100 * float(np.mean(errors)), rel=1e-5)
