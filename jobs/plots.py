"""Owns the plot of kept slots against objects, and its numbers as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.contract import write_atomically

LARGEST_DOT = 220.0
"""Points squared: the area of the most frequent pair's dot."""


def kept_by_objects(kept: Mapping[tuple[int, int], int]) -> list[dict[str, float]]:
    """(objects, kept slots) -> images, as one row per number of objects: images, mean and sd of the kept slots."""
    rows = []
    for objects in sorted({objects for objects, _ in kept}):
        slots = {slot: images for (some, slot), images in kept.items() if some == objects}
        total = sum(slots.values())
        mean = sum(slot * images for slot, images in slots.items()) / total
        variance = sum((slot - mean) ** 2 * images for slot, images in slots.items()) / total
        rows.append({"objects": objects, "images": total, "mean": mean, "sd": variance**0.5})
    return rows


def save_kept_slots(kept: Mapping[tuple[int, int], int], folder: Path) -> None:
    """Write `kept_slots.png` and `kept_slots.json`, each whole or absent; nothing without a gate (no counts)."""
    if not kept:
        return
    folder.mkdir(exist_ok=True)
    rows = kept_by_objects(kept)
    pairs = [{"objects": objects, "kept": slots, "images": images} for (objects, slots), images in sorted(kept.items())]
    write_atomically(folder / "kept_slots.json", json.dumps({"by_objects": rows, "pairs": pairs}, indent=1) + "\n")
    temporary = folder / ".kept_slots.png"
    _draw(kept, rows).savefig(temporary, format="png", dpi=120)
    temporary.replace(folder / "kept_slots.png")


def _draw(kept: Mapping[tuple[int, int], int], rows: list[dict[str, float]]) -> Any:
    from matplotlib.figure import Figure  # loads fonts: only where there is something to draw

    figure = Figure(figsize=(5.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    most = max(kept.values())
    axes.scatter(
        [objects for objects, _ in kept],
        [slots for _, slots in kept],
        s=[LARGEST_DOT * images / most for images in kept.values()],
        color="tab:blue",
        alpha=0.35,
        linewidths=0,
        label="images (area)",
    )
    objects, means = [row["objects"] for row in rows], [row["mean"] for row in rows]
    axes.errorbar(objects, means, yerr=[row["sd"] for row in rows], color="tab:red", marker="o", capsize=3, label="mean, sd")
    reach = [0, max(objects)]
    axes.plot(reach, reach, color="0.6", linestyle="--", linewidth=1, label="one slot per object")
    axes.set_xlabel("objects in the image")
    axes.set_ylabel("kept slots")
    axes.legend(frameon=False)
    return figure
