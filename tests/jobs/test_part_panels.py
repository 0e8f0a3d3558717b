"""Pictures of part maps: what stands where, in which colour, and what the file says of itself."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.panels import GAP, SLOT_COLUMNS, palette
from jobs.part_panels import PartLook, draw_part_panel, save_part_panel
from jobs.picture_file import shown

SIDE = 96
TILE = SIDE + 2 * GAP


def look(slots: int = 3, side: int = SIDE) -> PartLook:
    """Slot 1 owns the right half, by the other rule slot 2; the truth there is part 2, and a quarter is not annotated."""
    ids, hard, parts = (np.zeros((side, side), np.int64) for _ in range(3))
    ids[:, side // 2 :], hard[:, side // 2 :], parts[:, side // 2 :] = 1, 2, 2
    parts[: side // 2, : side // 2] = 255
    masks = np.zeros((slots, side, side), np.float32)
    masks[0, :, : side // 2] = masks[1, :, side // 2 :] = 1
    return PartLook(
        image_SS3=np.full((side, side, 3), 200, np.uint8),
        parts_SS=parts.astype(np.uint8),
        keypoints_V2=np.zeros((0, 2), np.float32),
        slots_SS=ids,
        hard_SS=hard,
        masks_KSS=masks,
    )


def pixel(panel: Image.Image, column: int, row: int, across: int) -> list[int]:
    found: list[int] = np.asarray(panel)[GAP + row, column * TILE + GAP + across].tolist()
    return found


def test_that_a_row_shows_truth_both_rules_and_soft_masks_in_the_colours_of_parts() -> None:
    panel = draw_part_panel([look(), look()])
    assert panel.size == ((4 + 3) * TILE, 2 * TILE)
    colours = palette(3).tolist()
    assert pixel(panel, 0, 50, 10) == [200, 200, 200]
    assert pixel(panel, 1, 10, 10) == [255, 255, 255]  # not annotated
    assert [pixel(panel, 1, 90, across) for across in (10, 90)] == [colours[0], colours[2]]
    assert [pixel(panel, 2, 90, across) for across in (10, 90)] == [colours[0], colours[1]]
    assert [pixel(panel, 3, 90, across) for across in (10, 90)] == [colours[0], colours[2]]
    assert [pixel(panel, 4, 50, across) for across in (10, 90)] == [[200] * 3, [255] * 3]
    assert [pixel(panel, 5, 50, across) for across in (10, 90)] == [[255] * 3, [200] * 3]
    assert pixel(panel, 6, 50, 90) == [255, 255, 255]


def test_that_a_soft_mask_is_faint() -> None:
    faint = look()
    faint.masks_KSS[:2] = 0.5
    assert pixel(draw_part_panel([faint]), 4, 50, 10) == [228, 228, 228]


def test_that_keypoints_are_dots_on_the_enlarged_image() -> None:
    plain, dotted = (
        draw_part_panel([one]) for one in (look(side=48), replace(look(side=48), keypoints_V2=np.array([[30.0, 10.0]])))
    )
    assert pixel(dotted, 0, 21, 61) == [255, 255, 255]
    changed = np.argwhere((np.asarray(plain) != np.asarray(dotted)).any(axis=2)) - GAP
    assert changed.min() >= 0
    np.testing.assert_allclose(changed.mean(axis=0), [21, 61], atol=0.6)


def test_that_a_row_without_true_parts_has_a_tile_less() -> None:
    whole, without = (np.asarray(draw_part_panel([one])) for one in (look(), replace(look(), parts_SS=None)))
    np.testing.assert_array_equal(without, np.concatenate([whole[:, :TILE], whole[:, 2 * TILE :]], axis=1))


def test_that_of_many_slots_those_that_own_most_are_shown() -> None:
    many = look(slots=SLOT_COLUMNS + 9)
    many.slots_SS[:] = SLOT_COLUMNS + 5
    assert many.shown_slots.tolist() == [*range(SLOT_COLUMNS - 1), SLOT_COLUMNS + 5]
    assert draw_part_panel([many]).width == (4 + SLOT_COLUMNS) * TILE


def test_that_a_panel_says_what_it_shows_and_where_it_may_be_cut(tmp_path: Path) -> None:
    save_part_panel([look(side=48), look(side=48)], tmp_path / "artifacts" / "masks.png")
    save_part_panel([], tmp_path / "artifacts" / "none.png")
    assert os.listdir(tmp_path / "artifacts") == ["masks.png"]
    with Image.open(tmp_path / "artifacts" / "masks.png") as picture:
        says = shown(picture)
        assert says is not None
        assert says.ends == (TILE, 2 * TILE)
        assert says.ends[-1] == picture.height
        assert says.text == "image, true parts, slots, slots by the hard background rule, each slot"
