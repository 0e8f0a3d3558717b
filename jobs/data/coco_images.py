"""Owns the geometry of COCO images: from a JPEG to a square of uint8 pixels, by the originals' two ways.

`official` (DINOSAUR's code: ToTensor, Resize(bicubic), clamp, CenterCrop): the short side becomes S, the long one
int(S * long / short), by bicubic interpolation with A = -0.75 of four pixels per axis, *without* antialiasing, which is what
torchvision 0.15 does with a float tensor; then clamped and cropped. Equal to today's
`interpolate(mode="bicubic", antialias=False)`. The original goes on with the floats; we round to uint8: an error of at most
0.5/255 and on average 0.0011 in [0, 1], or 0.005 after ImageNet normalisation.

`covloss` (CovLoss's code: Resize((S, S)) of a PIL image, ToTensor): squashed by PIL's bilinear filter, which antialiases.
PIL rounds to uint8 itself, so nothing is lost.

Legend: H x W original pixels, S x S stored pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from jobs.data.coco_annotations import CocoImage
from jobs.data.errors import DataError, Place

if TYPE_CHECKING:
    from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

Preprocessing = Literal["covloss", "official"]
CUBIC_A = -0.75
FETCH_HINT = "fetch the image again (its URL is http://images.cocodataset.org/{train2017,val2017}/NAME)"


def open_jpeg(path: Path, listed: CocoImage) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        DataError: missing, not an image, truncated, or of another size than the annotation file says.
    """
    from PIL import Image

    name = f"image {listed.id}"
    place = Place(file=str(path))
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file", place=place, expected="a JPEG", hint=FETCH_HINT) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = f"{name} cannot be decoded ({error})"
        raise DataError(what, place=place, expected="a whole JPEG", hint=FETCH_HINT) from error
    if image.size != (listed.width, listed.height):
        raise DataError(
            f"{name} is {image.width} x {image.height} pixels",
            place=place,
            expected=f"{listed.width} x {listed.height}, as its annotation file says",
            hint="are images and annotations of the same release? Images must not have been resized",
        )
    return image


def squares(image: Image.Image, preprocessing: Preprocessing, sides: tuple[int, ...]) -> tuple[UInt8, ...]:
    """Return an image, once per side, each made from the original: uint8 [S, S, 3]."""
    if preprocessing == "covloss":
        return tuple(squashed(image, side) for side in sides)
    pixels_HW3 = np.asarray(image, dtype=np.float32)
    return tuple(cropped(pixels_HW3, side) for side in sides)


def squashed(image: Image.Image, side: int) -> UInt8:
    """`covloss`: both sides become `side`, whatever the aspect ratio; uint8 [S, S, 3]."""
    from PIL import Image

    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.uint8)


def cropped(pixels_HW3: Float32, side: int) -> UInt8:
    """`official`: short side to `side`, bicubic, clamped, centre crop; uint8 [S, S, 3] from float [H, W, 3] in 0 .. 255."""
    height, width = pixels_HW3.shape[:2]
    resized = resized_size(height, width, side)
    rows, columns = crop_window(resized[0], side), crop_window(resized[1], side)
    rows_SW3 = _interpolated(pixels_HW3, height, resized[0], rows)
    square_SS3 = _interpolated(rows_SW3.swapaxes(0, 1), width, resized[1], columns).swapaxes(0, 1)
    return np.rint(np.clip(square_SS3, 0.0, 255.0)).astype(np.uint8)


def resized_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width after the short side became `side`, as torchvision counts."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def crop_window(size: int, side: int) -> slice:
    """The `side` pixels in the middle of `size`, as torchvision counts (half a pixel rounds to even)."""
    first = round((size - side) / 2.0)
    return slice(first, first + side)


def nearest_exact(size: int, resized: int) -> Int64:
    """Which of `size` pixels each of `resized` takes, int [resized]: `interpolate(mode="nearest-exact")` in its float32."""
    centres = (np.arange(resized, dtype=np.float32) + np.float32(0.5)) * (np.float32(size) / np.float32(resized))
    nearest: Int64 = np.minimum(np.floor(centres).astype(np.int64), size - 1)
    return nearest


def linear_taps(size: int, resized: int) -> tuple[Int64, Float32]:
    """Pixels [resized, 2] and weights [resized, 2] of bilinear interpolation without antialiasing, along one axis."""
    left, share = _positions(size, resized)
    left, share = np.where(left < 0, 0, left), np.where(left < 0, 0.0, share)
    return np.minimum(left[:, None] + np.arange(2), size - 1), np.stack([1 - share, share], axis=1).astype(np.float32)


def _cubic_taps(size: int, resized: int) -> tuple[Int64, Float32]:
    """Pixels [resized, 4] and weights [resized, 4] along one axis; the border repeats."""
    left, share = _positions(size, resized)

    def near(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1

    def far(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((CUBIC_A * distance - 5 * CUBIC_A) * distance + 8 * CUBIC_A) * distance - 4 * CUBIC_A

    weights = np.stack([far(share + 1), near(share), near(1 - share), far(2 - share)], axis=1)
    return np.clip(left[:, None] + np.arange(-1, 3), 0, size - 1), weights.astype(np.float32)


def _positions(size: int, resized: int) -> tuple[Int64, npt.NDArray[np.float64]]:
    """The pixel left of each new pixel's centre, and the distance from it in pixels."""
    centres = (np.arange(resized) + 0.5) * (size / resized) - 0.5
    left = np.floor(centres)
    return left.astype(np.int64), centres - left


def _interpolated(pixels: Float32, size: int, resized: int, window: slice) -> Float32:
    """Interpolate along the first axis, only for the window's pixels."""
    taps, weights = (array[window] for array in _cubic_taps(size, resized))
    first = pixels[taps[:, 0]]
    total: Float32 = first * weights[:, 0, None, None]
    for tap in range(1, taps.shape[1]):
        total += pixels[taps[:, tap]] * weights[:, tap, None, None]
    return total
