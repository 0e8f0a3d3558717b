"""The three sprite shapes of Multi-dSprites as hard-edged masks on a pixel grid; geometry only, no randomness.

Measured on images of the original at 64 px (constants below, in pixels of a 64-pixel image at scale 1): squares have side
23 * scale, ellipses semi-axes 15.4 * scale and 8.7 * scale, hearts area 324 * scale^2. All are centred on their centroid.

Legend: S sprites, H = W = resolution.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

REFERENCE_SIDE = 64
SQUARE_SIDE = 23.0
ELLIPSE_AXES = (15.4, 8.7)
HEART_AREA = 324.0

HEART_CURVE_AREA = 180 * np.pi
"""Area inside x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
HEART_CURVE_CENTROID = 5 / 6
"""y of that area's centroid."""


class Shape(enum.IntEnum):
    """Shape codes of the data set's `shape` factor; 0 stands for background and null entities.

    Which code means which sprite is nowhere documented; this order follows a comment in CovLoss's code.
    """

    ELLIPSE = 1
    HEART = 2
    SQUARE = 3


def rasterise(
    *, shape_S: npt.NDArray[np.int64], center_S2: Float64, scale_S: Float64, orientation_S: Float64, resolution: int
) -> Bool:
    """Return bool [S, H, W]: whether each pixel's centre lies inside the sprite.

    Args:
        shape_S: Shape codes.
        center_S2: x and y of the centroids, in pixel indices (the centre of the first pixel is 0).
        scale_S: 1 is a square of 23/64 of the image side.
        orientation_S: radians, turning x towards y.
        resolution: side of the image in pixels.
    """
    pixels = np.arange(resolution, dtype=np.float64)
    dx_SW = pixels - center_S2[:, 0:1]
    dy_SH = pixels - center_S2[:, 1:2]
    unit_S = scale_S * (resolution / REFERENCE_SIDE)
    cos_S1 = (np.cos(orientation_S) / unit_S)[:, None]
    sin_S1 = (np.sin(orientation_S) / unit_S)[:, None]
    # Coordinates along the sprite's own axes, in pixels of a 64-pixel image at scale 1.
    u_SHW = (cos_S1 * dx_SW)[:, None, :] + (sin_S1 * dy_SH)[:, :, None]
    v_SHW = (cos_S1 * dy_SH)[:, :, None] - (sin_S1 * dx_SW)[:, None, :]
    inside_SHW: Bool = np.empty(u_SHW.shape, np.bool_)
    for shape in Shape:
        (chosen,) = np.nonzero(shape_S == shape)
        if chosen.size:
            inside_SHW[chosen] = _INSIDE[shape](u_SHW[chosen], v_SHW[chosen])
    return inside_SHW


def _in_square(u: Float64, v: Float64) -> Bool:
    half = SQUARE_SIDE / 2
    inside: Bool = (np.abs(u) <= half) & (np.abs(v) <= half)
    return inside


def _in_ellipse(u: Float64, v: Float64) -> Bool:
    major, minor = ELLIPSE_AXES
    inside: Bool = (u / major) ** 2 + (v / minor) ** 2 <= 1
    return inside


def _in_heart(u: Float64, v: Float64) -> Bool:
    """Between the two branches of the curve, t in [0, pi/2] above and t in [pi/2, pi] below; the tip points to +v."""
    factor = np.sqrt(HEART_CURVE_AREA / HEART_AREA)
    sin_t = np.cbrt(np.minimum(np.abs(u) * (factor / 16), 1.0))
    y = HEART_CURVE_CENTROID - factor * v
    sin2 = sin_t * sin_t
    cos2 = 1 - sin2
    cos_t = np.sqrt(cos2)
    # cos 2t and cos 4t are the same on both branches, cos t and cos 3t = 4 cos^3 t - 3 cos t change sign.
    even = -5 * (1 - 2 * sin2) - (1 - 8 * sin2 * cos2)
    odd = cos_t * (13 - 2 * (4 * cos2 - 3))
    inside: Bool = (y <= even + odd) & (y >= even - odd) & (np.abs(u) * factor <= 16)
    return inside


_INSIDE = {Shape.ELLIPSE: _in_ellipse, Shape.HEART: _in_heart, Shape.SQUARE: _in_square}
