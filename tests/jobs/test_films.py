"""Films and contact sheets: every frame is there, and a slot keeps its colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.films import FILM_VIDEOS, MASK_COLOURS, NAMES_PX, SHEET_FRAMES, WHITE, Film, draw_film, draw_sheet, save_films
from jobs.panels import CAPTION, GAP, palette
from jobs.picture_file import shown as says

SIDE, SLOTS = 48, 3
TILE = 2 * SIDE + 2 * GAP


def film(*, frames: int = 5, labels: bool = True, still: bool = False) -> Film:
    """A slot per third of the width; the image is noise."""
    images = np.random.default_rng(0).integers(0, 256, (1 if still else frames, SIDE, SIDE, 3), dtype=np.uint8)
    images = np.broadcast_to(images, (frames, SIDE, SIDE, 3)).copy()
    slots = np.broadcast_to(np.arange(SIDE, dtype=np.uint8) * SLOTS // SIDE, (frames, SIDE, SIDE)).copy()
    return Film(
        images_TSS3=images, labels_TSS=slots.copy() if labels else None, slots_TSS=slots, reconstruction_TSS3=255 - images
    )


def tile(picture: np.ndarray, column: int, row: int = 0, *, names: int = 0) -> np.ndarray:
    """Of a film; of a sheet with `names` pixels to its left."""
    top, left = CAPTION + row * TILE + GAP, names + column * TILE + GAP
    return picture[top : top + 2 * SIDE, left : left + 2 * SIDE]


def expected(numbers_SS: np.ndarray, *, shift: int) -> np.ndarray:
    colours: np.ndarray = palette(SLOTS + 1)[numbers_SS + shift].repeat(2, axis=0).repeat(2, axis=1)
    return colours


@pytest.mark.parametrize("still", [False, True])
def test_that_a_film_has_every_frame_also_when_nothing_moves(tmp_path: Path, still: bool) -> None:
    save_films([film(frames=7, still=still)], tmp_path)
    with Image.open(tmp_path / "masks.gif") as opened:
        assert opened.n_frames == 7
        assert opened.size == (4 * TILE, TILE + 2 * CAPTION)
        assert opened.info["loop"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.gif", "masks.png"]


def test_that_frames_of_a_long_video_are_left_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.films.FILM_FRAMES", 4)
    save_films([film(frames=10)], tmp_path)
    with Image.open(tmp_path / "masks.gif") as opened:
        assert opened.n_frames == 4
        found = says(opened)
        assert found is not None
        assert found.text == "4 of 10 frames"
    drawn, whole = draw_film([film(frames=10)]), film(frames=10)
    monkeypatch.undo()
    every = draw_film([whole])
    shown = [inked(one)[-CAPTION:].tobytes() for one in every]
    assert [shown.index(inked(one)[-CAPTION:].tobytes()) for one in drawn] == [0, 3, 6, 9]


def test_that_a_slot_has_its_colour_in_every_frame_of_the_file(tmp_path: Path) -> None:
    one = film()
    save_films([one], tmp_path)
    with Image.open(tmp_path / "masks.gif") as opened:
        for number in range(opened.n_frames):
            opened.seek(number)
            shown = np.asarray(opened.convert("RGB"))
            assert one.labels_TSS is not None
            np.testing.assert_array_equal(tile(shown, 1), expected(one.labels_TSS[number], shift=0))
            np.testing.assert_array_equal(tile(shown, 2), expected(one.slots_TSS[number], shift=1))


def test_that_a_film_shows_its_images_in_colours_near_their_own() -> None:
    side = np.linspace(0, 255, SIDE).astype(np.uint8)
    smooth = np.stack(np.broadcast_arrays(side[:, None], side[None, :], np.uint8(90)), axis=2)[None].repeat(3, axis=0)
    one = Film(
        images_TSS3=smooth, labels_TSS=None, slots_TSS=np.zeros((3, SIDE, SIDE), np.uint8), reconstruction_TSS3=smooth // 2
    )
    shown = np.asarray(draw_film([one])[1].convert("RGB")).astype(int)
    enlarged = smooth[1].repeat(2, axis=0).repeat(2, axis=1).astype(int)
    assert np.abs(tile(shown, 0) - enlarged).max() < 40
    assert np.abs(tile(shown, 2) - enlarged // 2).mean() < 10


def test_that_videos_of_one_colour_can_be_filmed() -> None:
    black = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    one = Film(images_TSS3=black, labels_TSS=None, slots_TSS=black[..., 0], reconstruction_TSS3=black)
    shown = np.asarray(draw_film([one])[0].convert("RGB"))
    assert tile(shown, 0).max() == 0
    assert shown[0, 0].tolist() == [WHITE] * 3


def test_that_more_slots_than_colours_share_them() -> None:
    slots = np.arange(256, dtype=np.uint8).repeat(SIDE * SIDE // 256).reshape(1, SIDE, SIDE)
    photo = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    one = Film(images_TSS3=photo, labels_TSS=slots, slots_TSS=slots, reconstruction_TSS3=photo)
    shown = np.asarray(draw_film([one])[0].convert("RGB"))
    np.testing.assert_array_equal(tile(shown, 2), tile(np.asarray(draw_sheet([one])), 0, row=2, names=NAMES_PX))
    assert len(np.unique(tile(shown, 2).reshape(-1, 3), axis=0)) == MASK_COLOURS - 1


@pytest.mark.parametrize(("frames", "columns"), [(1, 1), (5, 5), (24, SHEET_FRAMES)])
def test_that_a_sheet_shows_frames_from_left_to_right(frames: int, columns: int) -> None:
    one = film(frames=frames)
    shown = np.asarray(draw_sheet([one, one]))
    assert shown.shape == (8 * TILE + CAPTION, NAMES_PX + columns * TILE, 3)
    for column, number in ((0, 0), (columns - 1, frames - 1)):
        tiles = [tile(shown, column, row, names=NAMES_PX) for row in range(8)]
        np.testing.assert_array_equal(tiles[0], one.images_TSS3[number].repeat(2, axis=0).repeat(2, axis=1))
        np.testing.assert_array_equal(tiles[6], expected(one.slots_TSS[number], shift=1))
        np.testing.assert_array_equal(tiles[7], one.reconstruction_TSS3[number].repeat(2, axis=0).repeat(2, axis=1))


def test_that_true_masks_are_left_out_where_none_are_known() -> None:
    assert draw_film([film(labels=False)])[0].size == (3 * TILE, TILE + 2 * CAPTION)
    assert draw_sheet([film(labels=False)]).size == (NAMES_PX + 5 * TILE, 3 * TILE + CAPTION)


def inked(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L")) < 128


def test_that_the_rows_of_a_sheet_and_the_columns_of_a_film_are_named() -> None:
    one, blind = film(frames=3), film(frames=3, labels=False)
    names = [inked(draw_sheet([one]))[CAPTION + row * TILE : CAPTION + (row + 1) * TILE, :NAMES_PX] for row in range(4)]
    others = [inked(draw_sheet([blind]))[CAPTION + row * TILE : CAPTION + (row + 1) * TILE, :NAMES_PX] for row in range(3)]
    assert all(name.any() and not name[:, -GAP:].any() for name in names)  # and none is cut off
    for name, other in zip([names[0], *names[2:]], others, strict=True):  # a name stays with what it names
        np.testing.assert_array_equal(name, other)
    assert len({name.tobytes() for name in names}) == 4
    head = inked(draw_film([one])[0])[:CAPTION]
    columns = [head[:, column * TILE : (column + 1) * TILE] for column in range(4)]
    assert len({column.tobytes() for column in columns}) == 4
    assert all(column.any() for column in columns)
    numbers = [inked(draw_sheet([film(frames=24)]))[:CAPTION, NAMES_PX + i * TILE : NAMES_PX + (i + 1) * TILE] for i in range(8)]
    assert len({number.tobytes() for number in numbers}) == 8  # frame 0, frame 3, ...


@pytest.mark.parametrize("labels", [True, False])
def test_that_files_say_where_their_videos_end(tmp_path: Path, labels: bool) -> None:
    save_films([film(frames=12, labels=labels)] * 2, tmp_path)
    rows = 4 if labels else 3
    with Image.open(tmp_path / "masks.png") as sheet:
        found = says(sheet)
        assert found is not None
        assert (found.text, found.ends) == ("8 of 12 frames", (CAPTION + rows * TILE, sheet.height))
    with Image.open(tmp_path / "masks.gif") as opened:
        found = says(opened)
        assert found is not None
        assert (found.text, found.ends) == ("12 frames", (CAPTION + TILE, CAPTION + 2 * TILE))


def test_that_a_film_shows_a_few_videos_and_the_sheet_all(tmp_path: Path) -> None:
    save_films([film(frames=2)] * (FILM_VIDEOS + 1), tmp_path)
    with Image.open(tmp_path / "masks.gif") as opened:
        assert opened.height == FILM_VIDEOS * TILE + 2 * CAPTION
    with Image.open(tmp_path / "masks.png") as opened:
        assert opened.height == (FILM_VIDEOS + 1) * 4 * TILE + CAPTION


def test_that_nothing_is_written_without_videos(tmp_path: Path) -> None:
    save_films([], tmp_path)
    assert not list(tmp_path.iterdir())
