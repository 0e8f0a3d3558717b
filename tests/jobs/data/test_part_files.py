"""The square that is cut out of an image: where it lies, and what becomes of labels and points."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.data.errors import Place
from jobs.data.part_files import Box, cut_labels, cut_points, window
from jobs.data.part_store import VOID

PLACE = Place(file="somewhere")


def test_that_labels_and_points_are_resized_to_the_nearest_pixel() -> None:
    labels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    cut = window((1, 1, 5, 5), width=6, height=5, pad=0.0, place=PLACE)
    assert (cut.left, cut.top, cut.side) == (1, 1, 4)
    doubled = cut_labels(labels, cut, side=8, outside=VOID)
    assert np.array_equal(doubled, np.kron(labels[1:5, 1:5], np.ones((2, 2), np.uint8)))
    assert np.array_equal(cut_labels(labels, cut, side=2, outside=VOID), labels[2:5:2, 2:5:2])
    points, seen = cut_points(np.array([[1, 1], [4, 4], [0, 2]], np.float32), np.array([1, 1, 1], np.uint8), cut, side=8)
    assert points.tolist() == [[0.5, 0.5], [6.5, 6.5], [0, 0]]
    assert seen.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("box", "pad", "expected"),
    [
        ((10, 10, 20, 30), 0.0, (5, 10, 20)),
        ((10, 10, 20, 30), 0.1, (3, 8, 24)),
        ((0, 0, 20, 20), 0.5, (0, 0, 40)),
        ((80, 40, 100, 60), 0.5, (60, 20, 40)),
        ((0, 0, 100, 60), 0.0, (0, -20, 100)),
        ((-50, 10, 20, 30), 0.0, (0, 10, 20)),
    ],
)
def test_that_the_square_stays_within_the_image_where_it_fits(box: Box, pad: float, expected: tuple[int, int, int]) -> None:
    cut = window(box, width=100, height=60, pad=pad, place=PLACE)
    assert (cut.left, cut.top, cut.side) == expected
