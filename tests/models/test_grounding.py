"""Scores of named objects and of swapped sentences against plain loops and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.grounding import attention_grid, grounding, mask_distance
from models.scores import contingency

HIDDEN, ABSENT = 4, 9
"""A label that some images do not show, and one beyond the table."""


def pictures(seed: int, *, images: int = 12, slots: int = 4, side: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0 .. 4 in blocks, each hidden in some images, and slots that follow them badly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (images, side, 1)).repeat(side, axis=2)
    slots_of = rng.integers(0, slots, (images, 5))
    ids = np.take_along_axis(slots_of[:, None, :], labels, axis=2)
    noise = rng.random(labels.shape) < 0.3
    return labels, np.where(noise, rng.integers(0, slots, labels.shape), ids)


def plain_iou(labels: np.ndarray, ids: np.ndarray, label: int, slot: int) -> float:
    both = sum(bool(g == label and p == slot) for g, p in zip(labels.ravel(), ids.ravel(), strict=True))
    either = sum(bool(g == label or p == slot) for g, p in zip(labels.ravel(), ids.ravel(), strict=True))
    return both / either


def plain_grounding(labels: np.ndarray, ids: np.ndarray, named: tuple[int, int], slots: int) -> list[float]:
    """The five scores of one image, by their definitions."""
    parts: dict[bool, list[float]] = {True: [], False: []}
    source = math.nan
    for label in sorted(set(labels.ravel().tolist()) - {0}):
        ious = [plain_iou(labels, ids, label, slot) for slot in range(slots)]
        parts[label in named].append(max(ious))
        if label == named[0]:
            source = ious.index(max(ious))
    found = []
    for best in parts.values():
        found += [sum(best) / len(best), sum(iou >= 0.5 for iou in best) / len(best)] if best else [math.nan] * 2
    return [*found, source]


def scored(labels: np.ndarray, ids: np.ndarray, named: object, *, slots: int = 4) -> Tensor:
    """[images, 5]"""
    table = contingency(torch.as_tensor(labels), torch.as_tensor(ids), num_labels=5, num_predictions=slots)
    return torch.stack(list(grounding(table, torch.as_tensor(np.array(named)))), dim=1)


@pytest.mark.parametrize("seed", range(6))
def test_that_named_and_other_objects_score_as_plain_loops_say(seed: int) -> None:
    labels, ids = pictures(seed)
    rng = np.random.default_rng(seed + 100)
    named = np.stack([rng.choice([-1, 1, 2, 3, HIDDEN, ABSENT], 2) for _ in labels])
    expected = [plain_grounding(*one, slots=4) for one in zip(labels, ids, map(tuple, named.tolist()), strict=True)]
    np.testing.assert_allclose(scored(labels, ids, named), expected, rtol=1e-12)


LABELS = np.array([[[1, 1, 1, 1, 2, 2, 0, 0], [3, 3, 0, 0, 0, 0, 0, 0]]])
IDS = np.array([[[0, 0, 1, 1, 1, 1, 1, 1], [2, 2, 3, 3, 3, 3, 3, 3]]])
# best IoU: label 1 2/4 in slot 0 (and 2/8 in slot 1), label 2 2/6 in slot 1, label 3 1 in slot 2


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ((1, -1), [0.5, 1.0, 2 / 3, 0.5, 0]),  # an IoU of one half is found
        ((1, 2), [5 / 12, 0.5, 1.0, 1.0, 0]),
        ((2, 1), [5 / 12, 0.5, 1.0, 1.0, 1]),
        ((3, 3), [1.0, 1.0, 5 / 12, 0.5, 2]),
        ((HIDDEN, 3), [1.0, 1.0, 5 / 12, 0.5, math.nan]),  # of a hidden source the other one remains
        ((HIDDEN, ABSENT), [math.nan, math.nan, 11 / 18, 2 / 3, math.nan]),
        ((-1, -1), [math.nan, math.nan, 11 / 18, 2 / 3, math.nan]),
    ],
)
def test_that_named_objects_score_as_computed_by_hand(named: tuple[int, int], expected: list[float]) -> None:
    np.testing.assert_allclose(scored(LABELS, IDS, [named])[0], expected, rtol=1e-12)


def test_that_nothing_is_defined_where_no_object_is_visible() -> None:
    nothing = np.zeros_like(LABELS)
    assert scored(nothing, IDS, [(1, 2)]).isnan().all()
    table = torch.tensor([[[3, 1]]])  # background alone
    assert torch.stack(list(grounding(table, torch.tensor([[1, 2]])))).isnan().all()


def test_that_other_objects_are_undefined_where_all_are_named() -> None:
    found = scored(np.where(LABELS == 3, 0, LABELS), IDS, [(1, 2)])[0]
    assert found.isnan().tolist() == [False, False, True, True, False]


def test_that_the_first_of_equal_slots_is_the_sources() -> None:
    halves = np.array([[[0, 0, 1, 1, 2, 2, 2, 2], [3] * 8]])
    assert scored(LABELS, halves, [(1, -1)])[0, 4] == 0


def test_that_attention_is_laid_out_row_by_row() -> None:
    attention = torch.arange(18, dtype=torch.float32).view(1, 2, 9)
    grid = attention_grid(attention)
    assert grid is not None
    for slot in range(2):
        for token in range(9):
            assert grid[0, slot, token // 3, token % 3] == attention[0, slot, token]


def test_that_a_single_token_divides_no_image_and_an_oblong_of_tokens_is_refused() -> None:
    assert attention_grid(torch.ones(2, 3, 1)) is None
    with pytest.raises(ValueError, match="8 tokens"):
        attention_grid(torch.ones(2, 3, 8))


def test_that_the_distance_of_masks_is_half_the_sum_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, 4, 5, generator=generator).softmax(dim=1) for _ in range(2))
    found = mask_distance(one, other)
    for image in range(2):
        total = 0.0
        for row in range(4):
            for column in range(5):
                total += sum(abs(float(one[image, k, row, column] - other[image, k, row, column])) for k in range(3)) / 2
        assert float(found[image]) == pytest.approx(total / 20, rel=1e-6)


def test_that_equal_masks_have_no_distance_and_disjoint_ones_have_1() -> None:
    masks = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)  # image k belongs to slot k
    assert mask_distance(masks, masks).tolist() == [0, 0, 0]
    assert mask_distance(masks, masks.roll(1, dims=0)).tolist() == [1, 1, 1]
