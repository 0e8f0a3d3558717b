"""Pictures of masks: one row per image, columns image, true masks, predicted masks, reconstruction, then every slot."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.scoring import Look

GAP = 2
"""White pixels between tiles."""
LEAST_SIDE = 96
"""Small images are enlarged (nearest neighbour) to at least this many pixels a side."""


def palette(count: int) -> np.ndarray:
    """`count` well-separated colours, uint8 [count, 3]; the first is dark grey, for the background label."""
    colours = [(0.25, 0.25, 0.25)] + [colorsys.hsv_to_rgb((i * 0.381966) % 1.0, 0.75, 0.95) for i in range(max(0, count - 1))]
    return (np.array(colours[:count]) * 255).astype(np.uint8)


def _tiles(look: Look) -> list[np.ndarray]:
    slots = look.masks_KHW.shape[0]
    predicted = palette(slots + 1)[1 + look.masks_KHW.argmax(axis=0)]
    truth = palette(int(look.labels_HW.max()) + 1)[look.labels_HW]
    on_white = look.reconstruction_HWC[None] * look.masks_KHW[..., None] + 255.0 * (1.0 - look.masks_KHW[..., None])
    return [look.image_HWC, truth, predicted, look.reconstruction_HWC, *on_white.round().astype(np.uint8)]


def draw_panel(looks: Sequence[Look]) -> Image.Image:
    """The panel of some images (all of one size, with one number of slots)."""
    rows: list[np.ndarray] = []
    for look in looks:
        side = look.image_HWC.shape[0]
        scale = max(1, -(-LEAST_SIDE // side))
        tiles = [
            np.pad(
                np.kron(tile, np.ones((scale, scale, 1), dtype=np.uint8)), ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255
            )
            for tile in _tiles(look)
        ]
        rows.append(np.concatenate(tiles, axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0).astype(np.uint8))


def save_panel(looks: Sequence[Look], path: Path) -> None:
    """Write the panel as PNG, whole or absent; nothing when there are no images."""
    if not looks:
        return
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    draw_panel(looks).save(temporary, format="PNG")
    temporary.replace(path)
