"""One picture per table row from the runs' own artifacts, on one sheet. Imports Pillow, never torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from orchestrator.tracking.record import SweepRecord
from orchestrator.workspace import Root

PANEL = "masks.png"
LABEL_PX = 22
MOST_PX = 480
"""Height that one row's picture may take; the rest of it is cut off."""


def row_panels(root: Root, record: SweepRecord) -> dict[str, Path]:
    """Row label -> the panel of the first cell of that row that has one, in the table's order; none without rows."""
    if record.table is None or record.table.rows is None:
        return {}
    found: dict[str, Path] = {}
    options = record.axes[record.table.rows].options
    for name, option in options.items():
        for cell in record.cells:
            if cell.coordinates[record.table.rows] != name:
                continue
            panels = [root.run_dir(run).artifacts / PANEL for run in cell.runs.values()]
            panel = next((path for path in panels if path.is_file()), None)
            if panel is not None:
                found.setdefault(option.label, panel)
    return found


def contact_sheet(panels: Mapping[str, Path]) -> Image.Image:
    """The panels below each other, each under its row's label."""
    pictures: dict[str, Image.Image] = {}
    for label, path in panels.items():
        with Image.open(path) as opened:
            pictures[label] = opened.convert("RGB").crop((0, 0, opened.width, min(opened.height, MOST_PX)))
    width = max(picture.width for picture in pictures.values())
    height = sum(picture.height + LABEL_PX for picture in pictures.values())
    sheet, top = Image.new("RGB", (width, height), "white"), 0
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for label, picture in pictures.items():
        draw.text(
            (4, top + 3), f"{label}: image, true masks, predicted masks, reconstruction, each slot", fill="black", font=font
        )
        sheet.paste(picture, (0, top + LABEL_PX))
        top += picture.height + LABEL_PX
    return sheet
