"""Pictures: panels of masks, colours of tokens, kept slots against objects."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.looks import Look, looks, token_colours
from jobs.panels import CAPTION, GAP, SLOT_COLUMNS, draw_panel, palette, save_panel
from jobs.picture_file import Shown, shown
from jobs.plots import kept_by_objects, save_kept_slots
from models.slot_model import SlotOutput


def look(side: int = 16, slots: int = 3) -> Look:
    masks = np.zeros((slots, side, side), dtype=np.float32)
    masks[0] = 1
    image = np.full((side, side, 3), 200, dtype=np.uint8)
    return Look(image_HWC=image, labels_HW=np.zeros((side, side), dtype=np.uint8), reconstruction_HWC=image, masks_KHW=masks)


def test_that_a_panel_shows_a_row_per_image_and_a_column_per_slot(tmp_path: Path) -> None:
    panel = draw_panel([look(), look()])
    tile = 96 + 2 * GAP
    assert panel.size == ((4 + 3) * tile, 2 * tile)
    pixels = np.asarray(panel)
    assert pixels[tile // 2, tile // 2].tolist() == [200, 200, 200]
    assert pixels[tile // 2, 4 * tile + tile // 2].tolist() == [200, 200, 200]  # the slot that has it all
    assert pixels[tile // 2, 5 * tile + tile // 2].tolist() == [255, 255, 255]
    save_panel([look(128)], tmp_path / "artifacts" / "a.png")
    save_panel([], tmp_path / "artifacts" / "b.png")
    assert os.listdir(tmp_path / "artifacts") == ["a.png"]
    with Image.open(tmp_path / "artifacts" / "a.png") as image:
        assert image.size == (7 * (128 + 2 * GAP), 128 + 2 * GAP)


def token_look(*, slots: int = 3) -> Look:
    """A 96 x 96 image, labels of side 120 with a void quarter, masks and tokens of side 4: slot 1 owns the right half."""
    labels = np.zeros((120, 120), dtype=np.uint8)
    labels[:60, :60] = 255
    labels[60:, 60:] = 2
    masks = np.zeros((slots, 4, 4), dtype=np.float32)
    masks[0, :, :2] = masks[1, :, 2:] = 1
    tokens = np.full((4, 4, 3), 60, dtype=np.uint8)
    image = np.full((96, 96, 3), 200, dtype=np.uint8)
    return Look(image_HWC=image, labels_HW=labels, reconstruction_HWC=tokens, masks_KHW=masks, target_HWC=tokens + 40)


def test_that_a_panel_of_tokens_brings_everything_to_the_images_side() -> None:
    tile = 96 + 2 * GAP
    panel = np.asarray(draw_panel([token_look()]))
    assert panel.shape == (tile, (5 + 3) * tile, 3)

    def pixel(column: int, row: int, across: int) -> list[int]:
        found: list[int] = panel[GAP + row, column * tile + GAP + across].tolist()
        return found

    assert pixel(1, 10, 10) == [255, 255, 255]  # void
    assert pixel(1, 90, 90) == palette(3)[2].tolist()
    assert pixel(2, 5, 5) == palette(4)[1].tolist()
    assert pixel(2, 5, 90) == palette(4)[2].tolist()
    assert pixel(3, 50, 50) == [100, 100, 100]  # target
    assert pixel(4, 50, 50) == [60, 60, 60]  # reconstruction
    assert pixel(5, 5, 5) == [200, 200, 200]  # a slot shows its part of the image, not of the tokens
    assert pixel(6, 5, 5) == [255, 255, 255]


def test_that_a_panel_of_many_slots_shows_those_that_own_most() -> None:
    tile = 96 + 2 * GAP
    panel = np.asarray(draw_panel([token_look(slots=33)]))
    assert panel.shape[1] == (5 + SLOT_COLUMNS) * tile
    owners = [panel[GAP + 5, (5 + k) * tile + GAP + 90].tolist() for k in range(3)]
    assert owners == [[255, 255, 255], [200, 200, 200], [255, 255, 255]]


def test_that_a_sentence_stands_below_its_row() -> None:
    plain = np.asarray(draw_panel([look(), look()]))
    spoken = np.asarray(draw_panel([replace(look(), sentence="put the red cube behind the blue cone"), look()]))
    tile = plain.shape[0] // 2
    assert spoken.shape == (2 * tile + CAPTION, plain.shape[1], 3)
    np.testing.assert_array_equal(spoken[:tile], plain[:tile])
    np.testing.assert_array_equal(spoken[tile + CAPTION :], plain[tile:])
    caption = spoken[tile : tile + CAPTION]
    assert caption.min() < 64
    assert (caption[:, 300:] == 255).all()  # about 40 letters of 6 pixels
    other = np.asarray(draw_panel([replace(look(), sentence="lift up the red cube")]))[tile:]
    assert (other != caption[:, : other.shape[1]]).any()


def test_that_a_row_without_true_masks_has_a_tile_less() -> None:
    tile = 96 + 2 * GAP
    panel = np.asarray(draw_panel([replace(look(), labels_HW=None)]))
    whole = np.asarray(draw_panel([look()]))
    assert panel.shape[1] == (3 + 3) * tile
    np.testing.assert_array_equal(panel, np.concatenate([whole[:, :tile], whole[:, 2 * tile :]], axis=1))


def said(looks: list[Look], path: Path) -> Shown | None:
    save_panel(looks, path)
    with Image.open(path) as picture:
        return shown(picture)


def test_that_a_file_says_what_it_shows_and_where_its_images_end(tmp_path: Path) -> None:
    tile = 96 + 2 * GAP
    found = said([look(), replace(look(), sentence="lift up the red cube"), look()], tmp_path / "a.png")
    ends = (tile, 2 * tile + CAPTION, 3 * tile + CAPTION)
    assert found == Shown(text="image, true masks, predicted masks, reconstruction, each slot", ends=ends)
    blind = said([replace(look(), labels_HW=None)], tmp_path / "a.png")
    assert blind == Shown(text="image, predicted masks, reconstruction, each slot", ends=(tile,))
    tokens = said([token_look(slots=33)], tmp_path / "a.png")
    assert tokens is not None
    assert tokens.text == "image, true masks, predicted masks, target tokens, reconstruction, the 11 slots that own most"
    draw_panel([look()]).save(tmp_path / "silent.png")
    with Image.open(tmp_path / "silent.png") as picture:
        assert shown(picture) is None
    draw_panel([look()]).save(tmp_path / "foreign.gif", comment=b"by hand")
    with Image.open(tmp_path / "foreign.gif") as picture:
        assert shown(picture) is None


def test_that_tokens_are_coloured_in_the_targets_basis() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(16, 8)) * [9, 5, 3, 0.1, 0.1, 0.1, 0.1, 0.1] + 7
    colours, same = token_colours(target, target.copy())
    assert colours.shape == (4, 4, 3)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours, same)
    _, flat = token_colours(target, np.broadcast_to(target.mean(axis=0), target.shape))
    assert set(flat.ravel().tolist()) <= {127, 128}
    _, shifted = token_colours(target, target + np.eye(8)[0] * 4)
    assert (shifted[..., 0].astype(int) >= colours[..., 0]).all()
    assert (np.abs(shifted[..., 1:].astype(int) - colours[..., 1:]) < 40).all()
    mirrored, _ = token_colours(np.ascontiguousarray(target[::-1]), target)
    np.testing.assert_allclose(mirrored[::-1, ::-1], colours, atol=1)


def test_that_tokens_without_variance_are_grey() -> None:
    found, _ = token_colours(np.ones((4, 2)), np.ones((4, 2)))
    assert set(found.ravel().tolist()) <= {127, 128}


@pytest.mark.parametrize("tokens", [True, False])
def test_that_a_look_shows_what_is_reconstructed(tokens: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand((2, 16, 5) if tokens else (2, 3, 8, 8), generator=generator)
    masks = torch.rand(2, 3, 4, 4, generator=generator).softmax(dim=1)
    output = SlotOutput(target.clone(), masks, torch.zeros(2, 3, 4), torch.zeros(2, 3, 16))
    pictures, labels = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 10, 10), np.uint8)
    (found,) = looks(pictures, labels, output, target)
    if tokens:
        assert found.target_HWC is not None
        np.testing.assert_array_equal(found.target_HWC, found.reconstruction_HWC)
        assert found.reconstruction_HWC.shape == (4, 4, 3)
    else:
        assert found.target_HWC is None
        expected = (target[0] * 255).round().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found.reconstruction_HWC, expected)


def test_that_kept_slots_are_averaged_by_objects_and_drawn(tmp_path: Path) -> None:
    kept = {(2, 3): 3, (2, 7): 1, (0, 1): 2}
    rows = kept_by_objects(kept)
    assert rows == [
        {"objects": 0, "images": 2, "mean": 1.0, "sd": 0.0},
        {"objects": 2, "images": 4, "mean": 4.0, "sd": pytest.approx(3**0.5)},
    ]
    save_kept_slots(kept, tmp_path / "artifacts")
    assert sorted(os.listdir(tmp_path / "artifacts")) == ["kept_slots.json", "kept_slots.png"]
    content = json.loads((tmp_path / "artifacts" / "kept_slots.json").read_text())
    assert content["by_objects"] == rows
    assert {(pair["objects"], pair["kept"]): pair["images"] for pair in content["pairs"]} == kept
    with Image.open(tmp_path / "artifacts" / "kept_slots.png") as picture:
        assert picture.size == (600, 480)


def test_that_nothing_is_drawn_without_a_gate(tmp_path: Path) -> None:
    save_kept_slots({}, tmp_path / "artifacts")
    assert not (tmp_path / "artifacts").exists()
