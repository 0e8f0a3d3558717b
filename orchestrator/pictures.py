"""One picture per table row from the runs' own artifacts, on one sheet or in one film. Imports Pillow, never torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from jobs.picture_file import shown
from orchestrator.tracking.record import SweepRecord
from orchestrator.workspace import Root

PANEL, FILM = "masks.png", "masks.gif"
LABEL_PX = 22
BETWEEN_PX = 12
"""White below and to the right of each row's picture."""
MOST_PX = 480
"""Height that one row's picture may take; more images or videos than fit are left out, the first is always there."""
SHAPE = 1.5
"""Height of a whole sheet to its width, about: many rows stand in several columns, one below the other in each."""
FRAME_MS = 100
PALETTE = 256


def row_pictures(root: Root, record: SweepRecord, name: str = PANEL) -> dict[str, Path]:
    """Row label -> the picture of the first cell of that row that has one, in the table's order; none without rows."""
    if record.table is None or record.table.rows is None:
        return {}
    found: dict[str, Path] = {}
    for option, told in record.axes[record.table.rows].options.items():
        for cell in record.cells:
            if cell.coordinates[record.table.rows] != option:
                continue
            pictures = [root.run_dir(run).artifacts / name for run in cell.runs.values()]
            picture = next((path for path in pictures if path.is_file()), None)
            if picture is not None:
                found.setdefault(told.label or option, picture)
    return found


def contact_sheet(panels: Mapping[str, Path]) -> Image.Image:
    """The panels (at least one), each under its row's label and what it says of itself; never cut within an image or a video."""
    titles, pictures = [], []
    for label, path in panels.items():
        with Image.open(path) as opened:
            says = shown(opened)
            until = min(opened.height, MOST_PX if says is None else says.whole_until(MOST_PX))
            titles.append(f"{label}: {says.text}" if says is not None and says.text else label)
            pictures.append(opened.convert("RGB").crop((0, 0, opened.width, until)))
    return _laid_out(titles, pictures)


def film(films: Mapping[str, Path]) -> list[Image.Image]:
    """The frames of a film (at least one) of each row's first video, played together; one that ends stands still."""
    with ExitStack() as stack:
        opened = [stack.enter_context(Image.open(path)) for path in films.values()]
        says = [shown(one) for one in opened]
        untils = [one.height if told is None else told.ends[0] for one, told in zip(opened, says, strict=True)]
        lengths = [int(getattr(one, "n_frames", 1)) for one in opened]

        def drawn(number: int) -> Image.Image:
            pictures = []
            for one, length, until in zip(opened, lengths, untils, strict=True):
                one.seek(min(number, length - 1))
                pictures.append(one.convert("RGB").crop((0, 0, one.width, until)))
            return _laid_out(list(films), pictures, head=f"frame {number} of {max(lengths)}")

        colours = _palette([drawn(number) for number in sorted({0, max(lengths) // 2, max(lengths) - 1})])
        return [drawn(number).quantize(palette=colours, dither=Image.Dither.NONE) for number in range(max(lengths))]


def save_film(frames: Sequence[Image.Image], path: Path) -> None:
    """An endless film."""
    first, *others = frames
    first.save(path, format="GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0, optimize=False)


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """The colours that some frames have in common, by median cut."""
    tall = Image.new("RGB", (frames[0].width, sum(frame.height for frame in frames)))
    for i, frame in enumerate(frames):
        tall.paste(frame, (0, i * frame.height))
    return tall.quantize(PALETTE, Image.Quantize.MEDIANCUT)


def _laid_out(titles: Sequence[str], pictures: Sequence[Image.Image], *, head: str = "") -> Image.Image:
    """Each picture under its title, in reading order down the columns; `head` above everything."""
    font = ImageFont.load_default(size=14)
    widths = [
        max(picture.width, math.ceil(font.getlength(title)) + 8) + BETWEEN_PX
        for title, picture in zip(titles, pictures, strict=True)
    ]
    heights = [picture.height + LABEL_PX + BETWEEN_PX for picture in pictures]
    columns = max(1, round(math.sqrt(sum(heights) / max(widths) / SHAPE)))
    parts = list(_split(len(pictures), columns))
    top = LABEL_PX if head else 0
    size = (sum(max(widths[part]) for part in parts), top + max(sum(heights[part]) for part in parts))
    sheet = Image.new("RGB", size, "white")
    draw, left = ImageDraw.Draw(sheet), 0
    draw.text((4, 3), head, fill="black", font=font)
    for part in parts:
        below = top
        for title, picture, height in zip(titles[part], pictures[part], heights[part], strict=True):
            draw.text((left + 4, below + 3), title, fill="black", font=font)
            sheet.paste(picture, (left, below + LABEL_PX))
            below += height
        left += max(widths[part])
    return sheet


def _split(count: int, columns: int) -> Iterator[slice]:
    """Columns of as many rows, the last of fewer."""
    each = -(-count // columns)
    for start in range(0, count, each):
        yield slice(start, min(start + each, count))
