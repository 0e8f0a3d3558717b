"""One picture per row of a table: which one, where it is cut, and a film of the rows' videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.picture_file import Shown, save_gif, save_png
from orchestrator.cli.table import command, write_pictures
from orchestrator.errors import UserError
from orchestrator.lifecycle import RunState
from orchestrator.pictures import BETWEEN_PX, FILM, LABEL_PX, MOST_PX, PANEL, contact_sheet, film, row_pictures
from orchestrator.sweep.model import Axis, Option, Table, Value
from orchestrator.tracking.record import CellEntry, RunSummary, SweepRecord
from orchestrator.workspace import Root

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = (RED, GREEN, BLUE)
WIDTH = 300


def panel(path: Path, *, each: int, count: int, says: bool = True) -> Path:
    """Images of `each` pixels below each other, red, green, blue, red ..."""
    picture = Image.new("RGB", (WIDTH, each * count))
    for i in range(count):
        picture.paste(COLOURS[i % 3], (0, i * each, WIDTH, (i + 1) * each))
    ends = tuple(each * (i + 1) for i in range(count))
    path.parent.mkdir(parents=True, exist_ok=True)
    if says:
        save_png(picture, path, Shown(text="image, true masks", ends=ends))
    else:
        picture.save(path)
    return path


def clip(path: Path, frames: int, colours: tuple[tuple[int, int, int], ...] = COLOURS, *, ends: tuple[int, ...] = (40,)) -> Path:
    """All of one colour in each frame; 60 pixels high, of which the first video has 40."""
    drawn = [Image.new("RGB", (WIDTH, 60), colours[i % 3]).quantize(8) for i in range(frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_gif(drawn, path, Shown(text="frames", ends=ends), frame_ms=50)
    return path


def shares(picture: Image.Image) -> dict[tuple[int, int, int], int]:
    """Pixels of each of the three colours."""
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return {colour: int((pixels == colour).all(axis=1).sum()) for colour in COLOURS}


@pytest.mark.parametrize(("each", "count", "shown"), [(100, 3, 3), (100, 9, 4), (400, 2, 1), (MOST_PX, 2, 1), (700, 2, 1)])
def test_that_a_sheet_shows_whole_images_or_videos_and_at_least_one(tmp_path: Path, each: int, count: int, shown: int):
    sheet = contact_sheet({"A": panel(tmp_path / "a.png", each=each, count=count)})
    assert sheet.height == LABEL_PX + shown * each + BETWEEN_PX
    found = shares(sheet)
    expected = [sum(each * WIDTH for i in range(shown) if i % 3 == j) for j in range(3)]
    assert list(found.values()) == expected


def test_that_a_picture_that_says_nothing_is_cut_at_the_limit(tmp_path: Path):
    sheet = contact_sheet({"A": panel(tmp_path / "a.png", each=400, count=2, says=False)})
    assert shares(sheet)[GREEN] == (MOST_PX - 400) * WIDTH


def head(sheet: Image.Image) -> bytes:
    return np.asarray(sheet.convert("L"))[:LABEL_PX, :WIDTH].tobytes()


def test_that_a_title_has_the_rows_label_and_what_its_picture_says(tmp_path: Path):
    speaking = panel(tmp_path / "a.png", each=100, count=1)
    silent = panel(tmp_path / "b.png", each=100, count=1, says=False)
    assert head(contact_sheet({"A: image, true masks": silent})) == head(contact_sheet({"A": speaking}))
    assert head(contact_sheet({"A": silent})) != head(contact_sheet({"A": speaking}))
    long = "a label that is much longer than the picture below it is wide"
    drawn = np.asarray(contact_sheet({long: silent}).convert("L"))[:LABEL_PX]
    assert drawn.shape[1] > WIDTH + BETWEEN_PX
    assert (drawn[:, -BETWEEN_PX:] == 255).all()


def test_that_many_rows_stand_in_columns_and_none_is_lost(tmp_path: Path):
    one = panel(tmp_path / "a.png", each=100, count=1)
    for rows in (1, 2, 5, 12, 33):
        sheet = contact_sheet({f"R{i}": one for i in range(rows)})
        assert shares(sheet)[RED] == rows * 100 * WIDTH
        assert rows < 5 or 0.7 < sheet.height / sheet.width < 3


def test_that_a_film_plays_every_rows_first_video_together(tmp_path: Path):
    frames = film({"A": clip(tmp_path / "a.gif", 3), "B": clip(tmp_path / "b.gif", 2, (BLUE, RED, GREEN))})
    assert len(frames) == 3
    found = [shares(frame) for frame in frames]
    one = 40 * WIDTH
    assert found == [
        {RED: one, GREEN: 0, BLUE: one},
        {RED: one, GREEN: one, BLUE: 0},
        {RED: one, GREEN: 0, BLUE: one},  # B stands still after its end
    ]
    numbers = {np.asarray(frame.convert("L"))[:LABEL_PX].tobytes() for frame in frames}
    assert len(numbers) == 3  # frame 0 of 3, frame 1 of 3, ...


def recorded(*rows: str, seeds: int = 2) -> SweepRecord:
    cells = [
        CellEntry(coordinates={"method": row, "seed": str(seed)}, runs={"train": f"t-{row}", "evaluate": f"e-{row}-{seed}"})
        for row in rows
        for seed in range(seeds)
    ]
    return SweepRecord(
        name="s",
        title="t",
        axes={"method": Axis(name="method", options={row: Option(name=row, label=row.upper()) for row in rows})},
        cells=tuple(cells),
        table=Table(rows="method", columns=None, value=Value(metric="eval/fg_ari", step="evaluate", over="seed")),
        runs={run: RunSummary(kind=step, state=RunState.DONE, reason="done") for one in cells for step, run in one.runs.items()},
    )


def test_that_a_row_has_the_picture_of_its_first_cell_that_has_one(tmp_path: Path):
    root = Root(tmp_path)
    second = panel(root.run_dir("e-b-1").artifacts / PANEL, each=10, count=1)
    panel(root.run_dir("e-c-1").artifacts / PANEL, each=10, count=1)
    first = panel(root.run_dir("e-c-0").artifacts / PANEL, each=10, count=1)
    moving = clip(root.run_dir("e-c-0").artifacts / FILM, 2)
    assert list(row_pictures(root, recorded("a", "c", "b")).items()) == [("C", first), ("B", second)]
    assert row_pictures(root, recorded("a", "c", "b"), FILM) == {"C": moving}


def test_that_the_film_lies_beside_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = Root(tmp_path)
    panel(root.run_dir("e-a-0").artifacts / PANEL, each=10, count=1)
    write_pictures(root, recorded("a"), tmp_path / "masks.png")
    assert capsys.readouterr().err == f"wrote {tmp_path / 'masks.png'}\n"
    assert not (tmp_path / "masks.gif").exists()
    clip(root.run_dir("e-a-0").artifacts / FILM, 3)
    write_pictures(root, recorded("a"), tmp_path / "masks.png")
    assert capsys.readouterr().err == f"wrote {tmp_path / 'masks.png'} and {tmp_path / 'masks.gif'}\n"
    with Image.open(tmp_path / "masks.gif") as opened:
        assert opened.n_frames == 3


def test_that_pictures_are_png_before_anything_is_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"is no format of a picture") as told:
        command.main(["s", "--pictures", "masks.gif"], obj=tmp_path, standalone_mode=False)
    assert told.value.problems[0].where == "--pictures"
