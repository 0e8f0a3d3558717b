"""Clustering scores of foreground pixels against sklearn, on random tables and where they degenerate."""

from __future__ import annotations

import math
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information, pair_confusion_matrix
from torch import Tensor

from models import clustering, scores


def table(labels: np.ndarray, predictions: np.ndarray) -> Tensor:
    """Tables of a batch [B, pixels] of up to 5 labels and 6 segments."""
    gt, found = (torch.from_numpy(np.asarray(one)).reshape(len(one), 1, -1) for one in (labels, predictions))
    return scores.contingency(gt, found, num_labels=5, num_predictions=6)


def plain(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """All scores of one image's pixels, as AdaSlot's evaluation computes them."""
    gt, found = labels[labels > 0], predictions[labels > 0]
    (_, false_positives), (false_negatives, positives) = pair_confusion_matrix(gt, found)
    with np.errstate(invalid="ignore"):
        precision = np.float64(positives) / (positives + false_positives)
        recall = np.float64(positives) / (positives + false_negatives)
        f1 = 2 * precision * recall / (precision + recall)
    counts = contingency_matrix(gt, found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn doubts that so many clusters are classes
        information = adjusted_mutual_info_score(gt, found), normalized_mutual_info_score(gt, found)
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "purity": counts[linear_sum_assignment(counts, maximize=True)].sum() / len(gt),
        "ami": information[0],
        "nmi": information[1],
    }


def ours(counts: Tensor, image: int) -> dict[str, float]:
    pairs = clustering.pair_scores(counts)
    found = {
        "precision": pairs.precision_B,
        "recall": pairs.recall_B,
        "f1": pairs.f1_B,
        "purity": clustering.purity(counts),
        "ami": clustering.ami(counts),
        "nmi": clustering.nmi(counts),
    }
    return {name: float(values[image]) for name, values in found.items()}


def maps_of(shape: tuple[int, int]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    return st.tuples(*(arrays(np.int64, shape, elements=st.integers(0, largest)) for largest in (4, 5)))


label_maps = st.tuples(st.integers(1, 3), st.integers(1, 40)).flatmap(maps_of)


@settings(max_examples=80, deadline=None)
@given(label_maps)
def test_that_every_score_equals_sklearns_on_every_map(maps: tuple[np.ndarray, np.ndarray]) -> None:
    counts = table(*maps)
    for image, (labels, predictions) in enumerate(zip(*maps, strict=True)):
        if (labels > 0).any():
            assert ours(counts, image) == pytest.approx(plain(labels, predictions), abs=1e-9, nan_ok=True)
        else:
            assert all(math.isnan(value) for value in ours(counts, image).values())


@pytest.mark.parametrize("pixels", [2_000, 60_000])
@pytest.mark.parametrize("noise", [0.02, 0.5, 1.0])
def test_that_scores_of_image_sized_clusters_equal_sklearns(pixels: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 5, pixels))
    predictions = np.where(rng.random(pixels) < noise, rng.integers(0, 6, pixels), labels)
    assert ours(table(labels[None], predictions[None]), 0) == pytest.approx(plain(labels, predictions), abs=1e-9)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.97])
def test_that_the_window_of_expected_information_leaves_nothing_out(share: float) -> None:
    rng = np.random.default_rng(1)
    pixels = 30_000
    labels, predictions = 1 + (rng.random(pixels) < share), (rng.random((pixels, 1)) < [[0.001, 0.5, 0.9]]).sum(axis=1)
    counts = table(labels[None], predictions[None])[:, 1:]
    expected = expected_mutual_information(contingency_matrix(labels, predictions), pixels)
    assert float(clustering.expected_mutual_information(counts)) == pytest.approx(expected, rel=1e-7, abs=1e-13)


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ([1, 1, 1], [2, 2, 2], (1.0, 1.0)),
        ([1, 1, 1], [0, 1, 1], (0.0, 0.0)),
        ([1, 2, 2], [0, 0, 0], (0.0, 0.0)),
        ([1, 2, 3], [2, 0, 1], (1.0, 1.0)),
        ([1, 1, 2, 2], [0, 1, 0, 1], (-0.5, 0.0)),
        ([0, 1, 1, 0], [4, 2, 2, 5], (1.0, 1.0)),
    ],
    ids=["one cluster each", "one object", "one segment", "all singletons", "independent", "background does not count"],
)
def test_that_information_has_the_agreed_value_where_it_degenerates(
    labels: list[int], predictions: list[int], expected: tuple[float, float]
) -> None:
    counts = table(np.array([labels]), np.array([predictions]))
    assert (float(clustering.ami(counts)), float(clustering.nmi(counts))) == pytest.approx(expected, abs=1e-9)


def test_that_pair_scores_are_the_shares_of_pairs() -> None:
    # object 1 = pixels 0-2, object 2 = pixels 3-4; segment 0 = pixels 0-1, segment 1 = pixels 2-4: of 4 pairs each, 2 agree
    counts = table(np.array([[1, 1, 1, 2, 2, 0]]), np.array([[0, 0, 1, 1, 1, 1]]))
    assert [float(values) for values in clustering.pair_scores(counts)] == pytest.approx([0.5, 0.5, 0.5])
    assert float(clustering.purity(counts)) == pytest.approx(0.8)


def test_that_pair_scores_are_undefined_without_pairs() -> None:
    singletons = table(np.array([[1, 2, 2]]), np.array([[0, 1, 2]]))
    precision, recall, f1 = (float(values) for values in clustering.pair_scores(singletons))
    assert math.isnan(precision)
    assert recall == 0
    assert math.isnan(f1)


def test_that_one_object_in_several_segments_is_exactly_zero() -> None:
    rng = np.random.default_rng(0)
    counts = table(np.ones((1, 5_000), dtype=np.int64), rng.integers(0, 6, (1, 5_000)))
    assert float(clustering.ami(counts)) == 0.0
    assert float(clustering.nmi(counts)) == 0.0
