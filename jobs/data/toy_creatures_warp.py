"""Owns the mild warp of the toy creatures: a thin-plate spline through a grid of control points, forwards and backwards.

The displacement at a place is a weighted sum of the control points' displacements (Bookstein 1989). Weights are rounded to
multiples of WEIGHT_UNIT and displacements are whole numbers of another unit, so that their products and sums are exact in
float64, in whatever order a library adds: the same bytes on every machine.

Legend: M places, C control points; (x, y) in image sides from the image's centre.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from jobs.data.toy_creatures_scene import WARP_CONTROLS

Float64 = npt.NDArray[np.float64]

WEIGHT_UNIT = 2.0**-20
INVERSE_ROUNDS = 16
"""Each leaves less than 0.4 of the error, the steepest slope of such a spline: at the end a thousandth of a pixel at most."""


def spline_weights(places_M2: Float64) -> Float64:
    """Weights [M, C] of the control points' displacements at some places, inside or outside of the image."""
    controls_C2, solution = _solution()
    weights: Float64 = np.rint(_basis(places_M2, controls_C2) @ solution / WEIGHT_UNIT) * WEIGHT_UNIT
    return weights


@cache
def pixel_weights(resolution: int) -> Float64:
    """Weights [C, S * S] at the centres of an image's pixels, row by row."""
    across_S = (np.arange(resolution) + 0.5) / resolution - 0.5
    y_SS, x_SS = np.meshgrid(across_S, across_S, indexing="ij")
    return np.ascontiguousarray(spline_weights(np.stack([x_SS.ravel(), y_SS.ravel()], axis=1)).T)


def unwarped(targets_M2: Float64, warp_C2: Float64) -> Float64:
    """The places that are displaced to the targets: the inverse of `place + displacement(place)`, by fixed-point iteration."""
    places_M2 = targets_M2
    for _ in range(INVERSE_ROUNDS):
        places_M2 = targets_M2 - spline_weights(places_M2) @ warp_C2
    return places_M2


@cache
def _solution() -> tuple[Float64, Float64]:
    """Control points [C, 2], and the matrix [C + 3, C] that makes weights of basis functions."""
    line = np.linspace(-0.5, 0.5, WARP_CONTROLS)
    y, x = np.meshgrid(line, line, indexing="ij")
    controls_C2 = np.stack([x.ravel(), y.ravel()], axis=1)
    count = len(controls_C2)
    system = np.zeros((count + 3, count + 3))
    system[:count] = _basis(controls_C2, controls_C2)
    system[count:, :count] = system[:count, count:].T
    return controls_C2, np.asarray(np.linalg.inv(system)[:, :count], np.float64)


def _basis(places_M2: Float64, controls_C2: Float64) -> Float64:
    """r^2 log r^2 about each control point, then 1, x, y: [M, C + 3]."""
    offset = places_M2[:, None] - controls_C2
    square_MC = (offset * offset).sum(axis=2)
    bump_MC = square_MC * np.log(np.where(square_MC > 0, square_MC, 1))
    return np.concatenate([bump_MC, np.ones((len(places_M2), 1)), places_M2], axis=1)
