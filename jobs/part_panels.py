"""Pictures of part maps: a row per image; image, true parts, the slot of each pixel by both rules, the slots' soft masks.

Slot k and label k have one colour, the background's is grey: a row whose colours mean other parts than the row above has lost
its identities. Keypoints are dots on the image.
Legend: S pixels of the square's side, K slots (0 = background), V visible keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from jobs.data.part_store import VOID
from jobs.panels import GAP, LEAST_SIDE, SLOT_COLUMNS, palette
from jobs.picture_file import Shown, save_png

UInt8 = npt.NDArray[np.uint8]

DOT = 2
"""Radius of a keypoint, in pixels of the picture."""


@dataclass(frozen=True, kw_only=True)
class PartLook:
    """What is shown of one image."""

    image_SS3: UInt8
    parts_SS: UInt8 | None
    """255 = not annotated; None when the data have no parts."""
    keypoints_V2: npt.NDArray[np.float32]
    """(x, y) in pixels of the image."""
    slots_SS: npt.NDArray[np.integer]
    """The slot that has most of each pixel."""
    hard_SS: npt.NDArray[np.integer]
    """The same by SCOPS' hard background rule."""
    masks_KSS: npt.NDArray[np.float32]
    """Sum to 1 over slots."""

    @property
    def shown_slots(self) -> npt.NDArray[np.integer]:
        """Those whose soft masks are shown, ascending: all, or the SLOT_COLUMNS that own most pixels."""
        slots = len(self.masks_KSS)
        owned_K = np.bincount(self.slots_SS.ravel(), minlength=slots)
        return np.sort(np.argsort(-owned_K, kind="stable")[:SLOT_COLUMNS])


def draw_part_panel(looks: Sequence[PartLook]) -> Image.Image:
    """The panel of some images of one size, all with or all without true parts."""
    rows = []
    for look in looks:
        tiles = [_photo(look), *(_enlarged(tile) for tile in _tiles(look))]
        padded = [np.pad(tile, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255) for tile in tiles]
        rows.append(np.concatenate(padded, axis=1))
    return Image.fromarray(np.concatenate(rows))


def save_part_panel(looks: Sequence[PartLook], path: Path) -> None:
    """Write the panel as PNG, whole or absent; nothing when there are no images."""
    if not looks:
        return
    row = _scale(looks[0]) * len(looks[0].image_SS3) + 2 * GAP
    truth = [] if looks[0].parts_SS is None else ["true parts"]
    slots = "each slot" if len(looks[0].masks_KSS) <= SLOT_COLUMNS else f"the {SLOT_COLUMNS} slots that own most"
    text = ", ".join(["image", *truth, "slots", "slots by the hard background rule", slots])
    ends = tuple(row * number for number in range(1, len(looks) + 1))
    save_png(draw_part_panel(looks), path, Shown(text=text, ends=ends))


def _tiles(look: PartLook) -> list[UInt8]:
    """All but the image, [S,S,3] each."""
    masks_KSS1 = look.masks_KSS[look.shown_slots, ..., None]
    on_white = (look.image_SS3 * masks_KSS1 + 255.0 * (1.0 - masks_KSS1)).clip(0, 255).round().astype(np.uint8)
    truth = [] if look.parts_SS is None else [_coloured(look.parts_SS)]
    return [*truth, _coloured(look.slots_SS), _coloured(look.hard_SS), *on_white]


def _coloured(ids_SS: npt.NDArray[np.integer]) -> UInt8:
    """Void is white."""
    void_SS1 = (ids_SS == VOID)[..., None]
    colours: UInt8 = palette(int(ids_SS.max()) + 1)[ids_SS]
    return np.where(void_SS1, np.uint8(255), colours)


def _photo(look: PartLook) -> UInt8:
    """The image with its keypoints."""
    scale = _scale(look)
    picture = Image.fromarray(_enlarged(look.image_SS3))
    draw = ImageDraw.Draw(picture)
    for x, y in ((look.keypoints_V2 + 0.5) * scale).tolist():
        draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill="white", outline="black")
    return np.asarray(picture)


def _scale(look: PartLook) -> int:
    """Small images are enlarged (nearest neighbour) to at least LEAST_SIDE pixels a side."""
    return max(1, -(-LEAST_SIDE // len(look.image_SS3)))


def _enlarged(tile_SS3: UInt8) -> UInt8:
    scale = max(1, -(-LEAST_SIDE // len(tile_SS3)))
    return tile_SS3.repeat(scale, axis=0).repeat(scale, axis=1)
