"""Owns what the loaders of images with parts share: text lists, decoding, and the square that is cut out of an image.

Boxes are (left, top, right, bottom) on a continuous axis on which pixel i covers [i, i + 1); points are (x, y) with pixel centres
at integers. Legend: H x W pixels of the original, S x S stored pixels, Q points.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.data.errors import DataError, Place
from jobs.data.part_store import Float32, UInt8

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a data set looks like on disk, in words: the answer to whatever is missing."""

    expected: str
    hint: str

    def missing(self, path: Path, what: str) -> DataError:
        """The error for a file or folder that is not there."""
        return DataError(what, place=Place(file=str(path)), expected=self.expected, hint=self.hint)

    def unreadable(self, path: Path, error: OSError) -> DataError:
        """The error for what is there, or not, and cannot be read."""
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        return self.missing(path, "no such file or folder" if gone else f"cannot be read ({error.strerror})")

    def check_folders(self, *folders: Path) -> None:
        """Raise DataError for the first folder that is not there."""
        for folder in folders:
            if not folder.is_dir():
                raise self.missing(folder, "no such folder" if not folder.exists() else "is not a folder")

    def content(self, path: Path) -> bytes:
        """Return all of a file."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise self.unreadable(path, error) from error

    def rows(self, path: Path) -> list[list[str]]:
        """Return the words of each line of a text file; lines at its end that hold nothing do not count."""
        try:
            text = self.content(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"not a text file ({error})", place=Place(file=str(path)), hint=self.hint) from error
        return [line.split() for line in text.rstrip().splitlines()]

    def names_in(self, folder: Path) -> frozenset[str]:
        """Return what a folder holds."""
        try:
            return frozenset(os.listdir(folder))
        except OSError as error:
            raise self.unreadable(folder, error) from error

    def sizes_in(self, folder: Path, suffix: str) -> list[str]:
        """Return "name size" of the files of one suffix in a folder, by name: facts for a hash."""
        try:
            with os.scandir(folder) as entries:
                return sorted(f"{entry.name} {entry.stat().st_size}" for entry in entries if entry.name.endswith(suffix))
        except OSError as error:
            raise self.unreadable(folder, error) from error

    def check_files(self, files: Iterable[Path], *, listed_in: Path) -> None:
        """Raise DataError when a listed file is missing: at once, and not hours later."""
        there: dict[Path, frozenset[str]] = {}
        missing = []
        for file in files:
            if file.parent not in there:
                there[file.parent] = self.names_in(file.parent) if file.parent.is_dir() else frozenset()
            if file.name not in there[file.parent]:
                missing.append(file)
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            expected = f"the files of all images listed in {listed_in}"
            hint = f"was the archive unpacked to its end? {self.hint}"
            raise DataError(f"no such file{more}", place=Place(file=str(missing[0])), expected=expected, hint=hint)


def bad_line(path: Path, line: int, found: list[str], *, expected: str) -> DataError:
    """The error for a line of a list, counted from 1, that is not what it should be."""
    text = " ".join(found)
    return DataError(
        f"line {line} is `{text[:80]}`", place=Place(file=str(path)), expected=expected, hint="the file is damaged: copy it again"
    )


def numbers(path: Path, line: int, words: list[str], *, count: int, expected: str) -> list[float]:
    """The numbers that stand in a line; raises DataError unless there are `count` of them, all finite."""
    try:
        found = [float(word) for word in words]
    except ValueError as error:
        raise bad_line(path, line, words, expected=expected) from error
    if len(found) != count or not all(map(math.isfinite, found)):
        raise bad_line(path, line, words, expected=expected)
    return found


def open_rgb(path: Path, *, hint: str) -> Image.Image:
    """Decode an image to RGB, as its file holds it (an orientation tag is not followed).

    Args:
        path: the file.
        hint: what to do when it is missing.

    Raises:
        DataError: missing, not an image, or truncated.
    """
    return _decoded(path, "RGB", hint)


def open_grey(path: Path, *, hint: str) -> UInt8:
    """Decode an image to 8-bit grey [H, W]; raises as `open_rgb`."""
    return np.asarray(_decoded(path, "L", hint), dtype=np.uint8)


def image_size(path: Path, *, hint: str) -> tuple[int, int]:
    """Width and height from an image file's head; raises DataError when it is missing or not an image."""
    from PIL import Image

    with _named(path, hint), Image.open(path) as opened:
        return opened.size


def _decoded(path: Path, mode: str, hint: str) -> Image.Image:
    from PIL import Image

    with _named(path, hint), Image.open(path) as opened:
        return opened.convert(mode)


@contextmanager
def _named(path: Path, hint: str) -> Iterator[None]:
    """Turns what Pillow raises into DataError."""
    from PIL import Image

    place = Place(file=str(path))
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("no such file", place=place, expected="an image", hint=hint) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        again = "the file is damaged: copy it again"
        raise DataError(f"cannot be decoded ({error})", place=place, expected="a whole image", hint=again) from error


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square of whole pixels; may reach beyond the image."""

    left: int
    top: int
    side: int


def window(box: Box, *, width: int, height: int, pad: float, place: Place) -> Window:
    """The square about the part of a box that lies within the image, moved into the image as far as it fits there.

    Args:
        box: what must lie within the square.
        width, height: of the image, in pixels.
        pad: margin on each side, as a share of the box's longer side.
        place: named in errors.

    Raises:
        DataError: a box without area, or wholly outside the image.
    """
    left, top, right, bottom = box
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(
            f"its box, x {left:g} .. {right:g} and y {top:g} .. {bottom:g}, has no area within the image",
            place=place,
            expected=f"a box within {width} x {height} pixels",
            hint="are images and annotations of the same release? Images must not have been resized",
        )
    side = math.ceil(max(inside[2] - inside[0], inside[3] - inside[1]) * (1 + 2 * pad))

    def first(centre: float, size: int) -> int:
        return (size - side) // 2 if side >= size else min(max(round(centre - side / 2), 0), size - side)

    return Window(left=first((inside[0] + inside[2]) / 2, width), top=first((inside[1] + inside[3]) / 2, height), side=side)


def whole(*, width: int, height: int) -> Window:
    """The smallest square about a whole image; what it has beyond the image lies in two equal bars."""
    side = max(width, height)
    return Window(left=(width - side) // 2, top=(height - side) // 2, side=side)


def cut_image(image: Image.Image, cut: Window, *, side: int) -> UInt8:
    """The window of an RGB image, resized (bicubic, antialiased): uint8 [S, S, 3]; black beyond the image."""
    from PIL import Image

    square = image.crop((cut.left, cut.top, cut.left + cut.side, cut.top + cut.side))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), dtype=np.uint8)


def cut_labels(labels_HW: UInt8, cut: Window, *, side: int, outside: int) -> UInt8:
    """The window of a map of labels, nearest pixel: uint8 [S, S]; `outside` beyond the image."""
    height, width = labels_HW.shape
    offsets = ((np.arange(side) + 0.5) * cut.side / side).astype(np.int64)
    rows, columns = cut.top + offsets, cut.left + offsets
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    nearest = labels_HW[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    return np.where(inside, nearest, outside).astype(np.uint8)


def cut_points(points_Q2: Float32, visible_Q: UInt8, cut: Window, *, side: int) -> tuple[Float32, UInt8]:
    """Points in stored pixels, and which of them are to be seen there: float32 [Q, 2], uint8 [Q].

    A point beyond the square is not to be seen; where it is not, it is put at 0.
    """
    moved = (points_Q2 + 0.5 - np.array([cut.left, cut.top])) * (side / cut.side) - 0.5
    inside = ((moved >= -0.5) & (moved <= side - 0.5)).all(axis=1)
    seen = (visible_Q > 0) & inside
    return np.where(seen[:, None], moved, 0.0).astype(np.float32), seen.astype(np.uint8)
