"""Pictures of masks: a row per image; image, true masks, predicted masks, reconstruction (of tokens: target, too), slots.

A row has no true masks where none are known; below it stands what was said with its image.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jobs.looks import Look
from jobs.picture_file import Shown, save_png
from jobs.protocols import VOID

GAP = 2
"""White pixels between tiles."""
SLOT_COLUMNS = 11
"""Of more slots than these, the ones that own most pixels are shown."""
LEAST_SIDE = 96
"""Small images are enlarged (nearest neighbour) to at least this many pixels a side."""
CAPTION = 18
"""Height of a sentence's strip, in pixels."""


def palette(count: int) -> np.ndarray:
    """`count` well-separated colours, uint8 [count, 3]; the first is dark grey, for the background label."""
    colours = [(0.25, 0.25, 0.25)] + [colorsys.hsv_to_rgb((i * 0.381966) % 1.0, 0.75, 0.95) for i in range(max(0, count - 1))]
    return (np.array(colours[:count]) * 255).astype(np.uint8)


def _resized(values: np.ndarray, side: int, *, smooth: bool = False) -> np.ndarray:
    """Square array [S,S] or [S,S,3] at another side."""
    if values.shape[0] == side:
        return values
    way = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(values).resize((side, side), way))


def _truth(labels_HW: np.ndarray) -> np.ndarray:
    """Colours of labels; void is white."""
    void_HW = labels_HW == VOID
    shown_HW = np.where(void_HW, 0, labels_HW)
    colours: np.ndarray = np.where(void_HW[..., None], np.uint8(255), palette(int(shown_HW.max()) + 1)[shown_HW])
    return colours


def _tiles(look: Look) -> list[np.ndarray]:
    side = look.image_HWC.shape[0]
    masks_KHW = np.stack([_resized(mask, side, smooth=True) for mask in look.masks_KHW])
    slots = masks_KHW.shape[0]
    owner_HW = masks_KHW.argmax(axis=0)
    predicted = palette(slots + 1)[1 + owner_HW]
    reconstruction = _resized(look.reconstruction_HWC, side)
    tokens = [] if look.target_HWC is None else [_resized(look.target_HWC, side)]
    shown = np.arange(slots)
    if slots > SLOT_COLUMNS:
        shown = np.sort(np.argsort(-np.bincount(owner_HW.ravel(), minlength=slots), kind="stable")[:SLOT_COLUMNS])
    inside = reconstruction if look.target_HWC is None else look.image_HWC
    on_white = inside[None] * masks_KHW[shown, ..., None] + 255.0 * (1.0 - masks_KHW[shown, ..., None])
    truth = [] if look.labels_HW is None else [_resized(_truth(look.labels_HW), side)]
    return [look.image_HWC, *truth, predicted, *tokens, reconstruction, *on_white.clip(0, 255).round().astype(np.uint8)]


def _caption(sentence: str, width: int) -> np.ndarray:
    """A sentence in black on white [CAPTION, width, 3]; cut off at the right when it is longer."""
    strip = Image.new("RGB", (width, CAPTION), "white")
    ImageDraw.Draw(strip).text((GAP, 0), sentence, fill="black", font=ImageFont.load_default(CAPTION - 6))
    return np.asarray(strip)


def draw_panel(looks: Sequence[Look]) -> Image.Image:
    """The panel of some images (all of one size, with one number of slots). Tiles are as large as the image."""
    rows: list[np.ndarray] = []
    for look in looks:
        scale = _scale(look)
        tiles = [
            np.pad(
                np.kron(tile, np.ones((scale, scale, 1), dtype=np.uint8)), ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255
            )
            for tile in _tiles(look)
        ]
        rows.append(np.concatenate(tiles, axis=1))
        if look.sentence is not None:
            rows.append(_caption(look.sentence, rows[-1].shape[1]))
    return Image.fromarray(np.concatenate(rows, axis=0).astype(np.uint8))


def _scale(look: Look) -> int:
    side: int = look.image_HWC.shape[0]
    return max(1, -(-LEAST_SIDE // side))


def save_panel(looks: Sequence[Look], path: Path) -> None:
    """Write the panel as PNG, whole or absent; nothing when there are no images."""
    if not looks:
        return
    rows = [look.image_HWC.shape[0] * _scale(look) + 2 * GAP + (0 if look.sentence is None else CAPTION) for look in looks]
    truth = ["true masks"] if any(look.labels_HW is not None for look in looks) else []
    target = [] if looks[0].target_HWC is None else ["target tokens"]
    slots = "each slot" if len(looks[0].masks_KHW) <= SLOT_COLUMNS else f"the {SLOT_COLUMNS} slots that own most"
    text = ", ".join(["image", *truth, "predicted masks", *target, "reconstruction", slots])
    save_png(draw_panel(looks), path, Shown(text=text, ends=tuple(np.cumsum(rows).tolist())))
