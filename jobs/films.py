"""Pictures of masks over time: a film (GIF) and a contact sheet (PNG) of image, true masks, predicted masks, reconstruction.

A slot has one colour in all frames, an object too; true masks are left out where none are known. The colours of masks are exact
in both files, those of images are reduced to PHOTO_COLOURS in the film. Both have their rows or columns named.
Legend: T frames, S pixels of the square's side, H x W pixels of a picture, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from jobs.panels import CAPTION, GAP, LEAST_SIDE, palette
from jobs.picture_file import Shown, save_gif, save_png

UInt8 = npt.NDArray[np.uint8]

MASK_COLOURS = 63
"""Of a film's 256; of more slots than these two share a colour."""
PHOTO_COLOURS = 192
WHITE = 255
"""Number of the colour of gaps."""
FILM_VIDEOS = 4
FILM_FRAMES = 96
"""More videos or frames would make a large file: of a longer video frames are left out, evenly."""
SHEET_FRAMES = 8
"""Frames of a video on the contact sheet, evenly spaced, the first and the last included."""
FRAME_MS = 100
NAMES_PX = 100
"""Width of the names to the left of a contact sheet."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is shown of one whole video."""

    images_TSS3: UInt8
    labels_TSS: UInt8 | None
    """0 = background; None when the true masks are not known."""
    slots_TSS: UInt8
    """The slot that owns each pixel."""
    reconstruction_TSS3: UInt8

    @property
    def tiles(self) -> tuple[str, ...]:
        """What is shown of each frame, in order."""
        truth = [] if self.labels_TSS is None else ["true masks"]
        return ("image", *truth, "predicted masks", "reconstruction")

    @property
    def tile_px(self) -> int:
        """Side of a tile, enlarged and with the white around it."""
        side: int = self.images_TSS3.shape[1]
        return _scale(side) * side + 2 * GAP


def draw_film(films: Sequence[Film]) -> list[Image.Image]:
    """One picture with a palette per frame, of all videos below each other; these have as many frames, tiles and pixels."""
    shown, length = _shown_frames(films[0], FILM_FRAMES), len(films[0].images_TSS3)
    films = [_at(film, shown) for film in films]
    photos = [photo for film in films for photo in (film.images_TSS3, film.reconstruction_TSS3)]
    common = _common_colours(photos)
    rows = [np.concatenate([_padded(tile_THW) for tile_THW in _numbers(film, common)], axis=2) for film in films]
    body_THW = np.concatenate(rows, axis=1)
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(common)] = common
    colours[PHOTO_COLOURS : PHOTO_COLOURS + MASK_COLOURS] = palette(MASK_COLOURS)
    names_HW = _inked(_lettered(films[0].tiles, films[0].tile_px, body_THW.shape[2]))
    frames = []
    for number, body_HW in zip(shown.tolist(), body_THW, strict=True):
        caption = _lettered([f"frame {number} of {length}"], body_HW.shape[1], body_HW.shape[1])
        frame = Image.fromarray(np.concatenate([names_HW, body_HW, _inked(caption)]), mode="P")
        frame.putpalette(colours.tobytes())
        frames.append(frame)
    return frames


def draw_sheet(films: Sequence[Film]) -> Image.Image:
    """Four (without true masks three) rows for each video, some of its frames from left to right; videos as in a film."""
    rows, colours = [], palette(MASK_COLOURS)
    for film in films:
        film = _at(film, _shown_frames(film, SHEET_FRAMES))
        truth = [] if film.labels_TSS is None else [colours[_label_colour(film.labels_TSS)]]
        strips = [film.images_TSS3, *truth, colours[_slot_colour(film.slots_TSS)], film.reconstruction_TSS3]
        for name, strip_TSS3 in zip(film.tiles, strips, strict=True):
            row_HW3 = np.concatenate(list(_padded(_enlarged(strip_TSS3))), axis=1)
            rows.append(np.concatenate([_name(name, len(row_HW3)), row_HW3], axis=1))
    numbers = [f"frame {number}" for number in _shown_frames(films[0], SHEET_FRAMES)]
    head = _lettered(numbers, films[0].tile_px, rows[0].shape[1] - NAMES_PX, left=NAMES_PX)
    return Image.fromarray(np.concatenate([np.asarray(head.convert("RGB")), *rows]))


def save_sheet(films: Sequence[Film], path: Path) -> None:
    """Write a contact sheet (PNG), whole or absent; nothing when there are no videos."""
    if films:
        ends = CAPTION + np.cumsum([len(film.tiles) * film.tile_px for film in films])
        text = f"{len(_shown_frames(films[0], SHEET_FRAMES))} of {len(films[0].images_TSS3)} frames"
        save_png(draw_sheet(films), path, Shown(text=text, ends=tuple(ends.tolist())))


def save_films(films: Sequence[Film], folder: Path) -> None:
    """Write `masks.gif` and `masks.png`, each whole or absent; nothing when there are no videos."""
    if not films:
        return
    save_sheet(films, folder / "masks.png")
    filmed = films[:FILM_VIDEOS]
    ends = CAPTION + np.cumsum([film.tile_px for film in filmed])
    length, drawn = len(films[0].images_TSS3), draw_film(filmed)
    text = f"{length} frames" if len(drawn) == length else f"{len(drawn)} of {length} frames"
    says = Shown(text=text, ends=tuple(ends.tolist()))
    save_gif(drawn, folder / "masks.gif", says, frame_ms=FRAME_MS)


def _shown_frames(film: Film, most: int) -> npt.NDArray[np.int64]:
    count = len(film.images_TSS3)
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _at(film: Film, frames: npt.NDArray[np.int64]) -> Film:
    """The same video, of these frames alone."""
    return Film(
        images_TSS3=film.images_TSS3[frames],
        labels_TSS=None if film.labels_TSS is None else film.labels_TSS[frames],
        slots_TSS=film.slots_TSS[frames],
        reconstruction_TSS3=film.reconstruction_TSS3[frames],
    )


def _label_colour(labels: UInt8) -> UInt8:
    """0, the background, is the palette's grey."""
    return np.where(labels == 0, 0, 1 + (labels - 1) % (MASK_COLOURS - 1)).astype(np.uint8)


def _slot_colour(slots: UInt8) -> UInt8:
    return (1 + slots % (MASK_COLOURS - 1)).astype(np.uint8)


def _common_colours(photos: Sequence[UInt8]) -> UInt8:
    """At most PHOTO_COLOURS colours [n,3] for all these images, by median cut."""
    tall = np.concatenate([photo.reshape(-1, *photo.shape[2:]) for photo in photos])
    reduced = Image.fromarray(tall).quantize(PHOTO_COLOURS, Image.Quantize.MEDIANCUT)
    colours = reduced.getpalette()
    assert colours is not None  # it has just been made
    used = int(np.asarray(reduced).max()) + 1
    return np.array(colours[: 3 * used], np.uint8).reshape(-1, 3)


def _reduced(images_TSS3: UInt8, common: UInt8) -> UInt8:
    """Numbers [T,S,S] of the nearest of some colours."""
    repeated = common[np.arange(256) % len(common)]  # Pillow looks at all 256, also at those that were not given
    holder = Image.new("P", (1, 1))
    holder.putpalette(repeated.tobytes())
    tall = Image.fromarray(images_TSS3.reshape(-1, *images_TSS3.shape[2:]))
    found = np.asarray(tall.quantize(palette=holder, dither=Image.Dither.NONE))
    return (found % len(common)).reshape(images_TSS3.shape[:3]).astype(np.uint8)


def _numbers(film: Film, common: UInt8) -> list[UInt8]:
    """Numbers of colours [T,S,S] of each tile, from left to right, enlarged."""
    truth = [] if film.labels_TSS is None else [PHOTO_COLOURS + _label_colour(film.labels_TSS)]
    masks_TSS = PHOTO_COLOURS + _slot_colour(film.slots_TSS)
    tiles = [_reduced(film.images_TSS3, common), *truth, masks_TSS, _reduced(film.reconstruction_TSS3, common)]
    return [_enlarged(tile_TSS) for tile_TSS in tiles]


def _scale(side: int) -> int:
    """Small squares are enlarged (nearest neighbour) to at least LEAST_SIDE pixels a side."""
    return max(1, -(-LEAST_SIDE // side))


def _enlarged(tiles_TSS: UInt8) -> UInt8:
    scale = _scale(tiles_TSS.shape[1])
    return tiles_TSS.repeat(scale, axis=1).repeat(scale, axis=2)


def _padded(tiles_THW: UInt8) -> UInt8:
    """With white around each, as a number of a colour or as RGB."""
    around = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    return np.pad(tiles_THW, around[: tiles_THW.ndim], constant_values=WHITE)


def _lettered(texts: Sequence[str], each_px: int, width: int, *, left: int = 0) -> Image.Image:
    """A white strip [CAPTION, left + width] with a text at the start of each piece of `each_px`."""
    strip = Image.new("L", (left + width, CAPTION), WHITE)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(CAPTION - 6)
    for i, text in enumerate(texts):
        draw.text((left + i * each_px + GAP, 0), text, fill=0, font=font)
    return strip


def _inked(strip: Image.Image) -> UInt8:
    """A strip in numbers of a film's colours; a frame's number keeps frames apart, which a GIF would otherwise merge."""
    dark = np.uint8(PHOTO_COLOURS)  # the background's grey
    return np.where(np.asarray(strip) < 128, dark, np.uint8(WHITE))


def _name(text: str, height: int) -> UInt8:
    """The name [height, NAMES_PX, 3] of a row, at half its height."""
    field = Image.new("RGB", (NAMES_PX, height), "white")
    ImageDraw.Draw(field).text((GAP, height // 2), text, fill="black", font=ImageFont.load_default(CAPTION - 6), anchor="lm")
    return np.asarray(field)
