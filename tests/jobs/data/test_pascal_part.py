"""PASCAL-Part: objects and parts come out of files in the original's layout pixel by pixel, and what is wrong is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.io import loadmat, savemat

from jobs.data.errors import DataError
from jobs.data.part_store import VOID, PartRecord, part_rows
from jobs.data.pascal_part import check_pascal_part, open_pascal_part, pascal_part_content_hash, read_annotation
from jobs.data_spec_parts import PASCAL_PARTS, PascalPartSpec

WIDTH, HEIGHT = 60, 50
HEAD, NECK, TORSO, LEG, TAIL = 1, 2, 3, 4, 5
"""Numbers of a horse's merged parts."""


def structs(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> np.ndarray:
    """A MATLAB struct array [1, n], as the original files hold them."""
    made = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for place, row in enumerate(rows):
        for field in fields:
            made[0, place][field] = row[field]
    return made


def mask(left: int, top: int, right: int, bottom: int, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    made = np.zeros((height, width), dtype=bool)
    made[top:bottom, left:right] = True
    return made


def an_object(category: str, silhouette: np.ndarray, parts: Sequence[tuple[str, np.ndarray]]) -> dict[str, Any]:
    rows = [{"part_name": name, "mask": part} for name, part in parts]
    return {
        "class": category,
        "class_ind": 13.0,
        "mask": silhouette,
        "parts": structs(rows, ("part_name", "mask")) if rows else np.zeros((0, 0)),
    }


def write_mat(path: Path, objects: Sequence[dict[str, Any]]) -> None:
    fields = ("class", "class_ind", "mask", "parts")
    savemat(path, {"anno": {"imname": path.stem, "objects": structs(objects, fields)}}, do_compression=True)


HORSE = an_object(
    "horse",
    mask(10, 10, 30, 30),
    [
        ("torso", mask(12, 12, 30, 22)),
        ("head", mask(10, 10, 16, 16)),
        ("lear", mask(10, 10, 12, 12)),
        ("lfuleg", mask(14, 22, 16, 30)),
        ("rbho", mask(26, 28, 28, 30)),
    ],
)
RIDER = an_object("person", mask(20, 10, 24, 20), [("head", mask(20, 10, 24, 12))])
OTHER = an_object("horse", mask(36, 20, 58, 42), [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training images, one of them with a rider and two horses, and one test image; and one image that shows no horse."""
    for name in ("Annotations_Part", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    images = {"2008_000001": [OTHER, HORSE, RIDER], "2008_000002": [HORSE], "2008_000003": [RIDER], "2008_000004": [HORSE, OTHER]}
    ramp = np.indices((HEIGHT, WIDTH)).transpose(1, 2, 0) * 4
    for name, objects in images.items():
        write_mat(tmp_path / "Annotations_Part" / f"{name}.mat", objects)
        pixels = np.dstack([ramp, np.full((HEIGHT, WIDTH), 90)]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.jpg", quality=98)
    lists = tmp_path / "ImageSets/Main"
    (lists / "horse_train.txt").write_text("2008_000001  1\n2008_000002  1\n2008_000003 -1\n")
    (lists / "horse_val.txt").write_text("2008_000003  0\n2008_000004  1\n")
    return tmp_path


def spec(folder: Path, **changes: object) -> PascalPartSpec:
    return PascalPartSpec.model_validate({"path": str(folder), "resolution": 24, "pad": 0.1, "min_side": 8, **changes})


def everything(folder: Path, **changes: object) -> list[PartRecord]:
    source = open_pascal_part(spec(folder, **changes))
    return [record for split in ("train", "test") for record in source.read(split, 0, source.manifest.counts[split])]  # type: ignore[arg-type]


def expected_labels() -> np.ndarray:
    """Of the horse with the rider, of the whole image, by hand."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[20:42, 36:58] = VOID
    labels[10:30, 10:30] = VOID
    labels[12:22, 12:30] = TORSO
    labels[10:16, 10:16] = HEAD
    labels[22:30, 14:16] = LEG
    labels[28:30, 26:28] = LEG
    labels[10:20, 20:24] = 0
    return labels


def test_that_an_object_is_cut_out_with_its_parts_at_their_pixels(folder: Path) -> None:
    source = open_pascal_part(spec(folder))
    assert source.manifest.counts == {"train": 3, "test": 2}
    assert source.manifest.part_names == ("head", "neck", "torso", "leg", "tail")
    assert (source.manifest.has_parts, source.manifest.has_foreground, source.manifest.keypoint_names) == (True, True, ())
    assert "path" not in source.manifest.source
    other, horse, alone = source.read("train", 0, 3)
    # a box of 20 pixels with a margin of 2 on each side is 24 pixels: nothing is resized
    assert np.array_equal(horse.parts_SS, expected_labels()[8:32, 8:32])
    seen = mask(10, 10, 30, 30) & ~mask(20, 10, 24, 20)
    assert np.array_equal(horse.foreground_SS, seen[8:32, 8:32])
    with Image.open(folder / "JPEGImages/2008_000001.jpg") as image:
        assert np.array_equal(horse.image_SS3, np.asarray(image)[8:32, 8:32])
    assert horse.scale_2.tolist() == [24, 24]
    assert (horse.keypoints_Q2.shape, horse.visible_Q.shape) == ((0, 2), (0,))
    assert alone.foreground_SS.sum() == 400
    assert set(np.unique(other.parts_SS)) == {0, VOID}, "an object without parts is not annotated"
    rows = part_rows("train", [other, horse])
    layout = source.manifest.arrays()
    assert all(rows[name].dtype == layout[name][0] and rows[name].shape[1:] == layout[name][1][1:] for name in rows)


def test_that_reading_does_not_depend_on_how_records_are_asked_for(folder: Path) -> None:
    source = open_pascal_part(spec(folder))
    together = source.read("train", 0, 3)
    for at, record in enumerate(together):
        [alone] = source.read("train", at, 1)
        for field in ("image_SS3", "parts_SS", "foreground_SS"):
            assert np.array_equal(getattr(record, field), getattr(alone, field))


def test_that_parts_are_merged_as_the_configuration_says_and_the_longest_prefix_counts(folder: Path) -> None:
    parts = [{"name": "ear", "prefixes": ["lear", "rear"]}, {"name": "front", "prefixes": ["l", "head"]}]
    source = open_pascal_part(spec(folder, parts=parts))
    assert source.manifest.part_names == ("ear", "front")
    horse = source.read("train", 1, 1)[0]
    labels = np.full((HEIGHT, WIDTH), 0, np.uint8)
    labels[20:42, 36:58] = VOID
    labels[10:30, 10:30] = VOID
    labels[10:16, 10:16] = 2
    labels[10:12, 10:12] = 1
    labels[22:30, 14:16] = 2
    labels[10:20, 20:24] = 0
    assert np.array_equal(horse.parts_SS, labels[8:32, 8:32])


def test_that_small_hidden_and_surplus_objects_are_left_out(folder: Path) -> None:
    assert open_pascal_part(spec(folder, min_side=20)).manifest.counts == {"train": 3, "test": 2}
    assert open_pascal_part(spec(folder, min_side=21)).manifest.counts == {"train": 1, "test": 1}
    assert open_pascal_part(spec(folder, max_images=2)).manifest.counts == {"train": 2, "test": 2}
    hidden = an_object("horse", mask(21, 11, 23, 19), [])
    write_mat(folder / "Annotations_Part/2008_000002.mat", [hidden, HORSE, RIDER])
    assert open_pascal_part(spec(folder, min_side=1)).manifest.counts == {"train": 3, "test": 2}


def test_that_one_object_and_numbered_parts_are_read(folder: Path) -> None:
    path = folder / "Annotations_Part/2008_000003.mat"
    write_mat(path, [an_object("bus", mask(1, 1, 9, 9), [("wheel_1", mask(1, 1, 3, 3)), ("window_12", mask(4, 4, 6, 6))])])
    [bus] = read_annotation(path)
    assert [name for name, _ in bus.parts] == ["wheel", "window"]
    assert np.array_equal(bus.parts[1][1], mask(4, 4, 6, 6))
    write_mat(path, [])
    assert read_annotation(path) == ()


def test_that_what_lies_beyond_the_image_is_black_and_not_annotated(folder: Path) -> None:
    tall = an_object("horse", mask(20, 0, 30, HEIGHT), [("torso", mask(20, 0, 30, HEIGHT))])
    write_mat(folder / "Annotations_Part/2008_000002.mat", [tall])
    [record] = open_pascal_part(spec(folder, resolution=60)).read("train", 2, 1)
    # the square has 60 pixels: 5 rows too many above and below, and all 60 columns
    assert (record.parts_SS[:5] == VOID).all()
    assert (record.parts_SS[-5:] == VOID).all()
    assert (record.image_SS3[:5] == 0).all()
    assert (record.foreground_SS[:5] == 0).all()
    assert (record.parts_SS[5:-5, 20:30] == TORSO).all()
    assert (record.parts_SS[5:-5, :20] == 0).all()


def test_that_the_box_ends_with_the_last_pixel_and_images_are_resized_bicubically(folder: Path) -> None:
    silhouette = mask(11, 20, 32, 30).astype(float)
    write_mat(folder / "Annotations_Part/2008_000002.mat", [an_object("horse", silhouette, [])])
    [record] = open_pascal_part(spec(folder, resolution=18, pad=0.0)).read("train", 2, 1)
    # 21 columns and 10 rows: the square of 21 pixels is all of the columns
    assert (record.foreground_SS.any(axis=0)).all()
    with Image.open(folder / "JPEGImages/2008_000002.jpg") as image:
        square = image.crop((11, 14, 32, 35)).resize((18, 18), Image.Resampling.BICUBIC)
    assert np.array_equal(record.image_SS3, np.asarray(square))


def test_that_every_default_merge_takes_every_known_name() -> None:
    for category, parts in PASCAL_PARTS.items():
        made = PascalPartSpec(path="somewhere", category=category)
        assert [part.name for part in made.merged] == list(parts)
        for number, names in enumerate(parts.values(), start=1):
            assert {made.number_of(name) for name in names.split()} == {number}
        assert len(set(made.known_names)) == len(made.known_names)
        assert made.number_of("antenna") is None
        assert hash(made) is not None


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_images(folder: Path) -> None:
    shutil.rmtree(folder / "JPEGImages")


def no_list(folder: Path) -> None:
    (folder / "ImageSets/Main/horse_val.txt").unlink()


def bad_list(folder: Path) -> None:
    (folder / "ImageSets/Main/horse_train.txt").write_text("2008_000001  1\n2008_000002 yes\n")


def no_annotation(folder: Path) -> None:
    (folder / "Annotations_Part/2008_000002.mat").unlink()


def no_image(folder: Path) -> None:
    (folder / "JPEGImages/2008_000004.jpg").unlink()


def truncated(folder: Path) -> None:
    path = folder / "Annotations_Part/2008_000002.mat"
    path.write_bytes(path.read_bytes()[:-40])


def other_struct(folder: Path) -> None:
    savemat(folder / "Annotations_Part/2008_000002.mat", {"annotation": {"objects": 1}})


def no_field(folder: Path) -> None:
    rows = [{"class": "horse", "mask": mask(10, 10, 30, 30)}]
    savemat(folder / "Annotations_Part/2008_000002.mat", {"anno": {"imname": "x", "objects": structs(rows, ("class", "mask"))}})


def number_for_objects(folder: Path) -> None:
    savemat(folder / "Annotations_Part/2008_000002.mat", {"anno": {"imname": "x", "objects": 7.0}})


def no_mask(folder: Path) -> None:
    write_mat(folder / "Annotations_Part/2008_000002.mat", [an_object("horse", np.zeros((0, 0), bool), [])])


def cell_mask(folder: Path) -> None:
    cells = np.full((HEIGHT, WIDTH), "x", dtype=object)
    write_mat(folder / "Annotations_Part/2008_000002.mat", [an_object("horse", cells, [])])


def other_part_size(folder: Path) -> None:
    parts = [("head", mask(1, 1, 2, 2, width=9))]
    write_mat(folder / "Annotations_Part/2008_000002.mat", [an_object("horse", mask(10, 10, 30, 30), parts)])


def other_sizes(folder: Path) -> None:
    write_mat(folder / "Annotations_Part/2008_000002.mat", [HORSE, an_object("horse", mask(1, 1, 30, 30, width=99), [])])


def other_image_size(folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(folder / "JPEGImages/2008_000002.jpg")


def unknown_part(folder: Path) -> None:
    parts = [("wheel_1", mask(10, 10, 12, 12))]
    write_mat(folder / "Annotations_Part/2008_000002.mat", [an_object("horse", mask(10, 10, 30, 30), parts)])


def broken_image(folder: Path) -> None:
    path = folder / "JPEGImages/2008_000002.jpg"
    path.write_bytes(path.read_bytes()[:200])


def no_horse(folder: Path) -> None:
    write_mat(folder / "Annotations_Part/2008_000004.mat", [RIDER])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            no_folder,
            r"no such folder\n  expected: Annotations_Part/2008_000008.mat, JPEGImages/.*ImageSets/Main.*\n  hint: .*VOC2010",
        ),
        (no_images, r"JPEGImages: no such folder\n  expected: Annotations_Part"),
        (no_list, r"horse_val.txt: no such file or folder\n  expected: Annotations_Part"),
        (bad_list, r"horse_train.txt: line 2 is `2008_000002 yes`\n  expected: .*-1, 0 or 1"),
        (no_annotation, r"2008_000002.mat: no such file\n  expected: .*horse_train.txt"),
        (no_image, r"2008_000004.jpg: no such file\n  expected: .*horse_val.txt"),
        (truncated, r"2008_000002.mat: cannot be read \(.*\)\n  expected: a whole .mat file"),
        (other_struct, r"2008_000002.mat: there is no `anno`"),
        (no_field, r"2008_000002.mat: record 0: there is no `parts`\n  expected: a struct `anno`"),
        (number_for_objects, "2008_000002.mat: not an array of structs"),
        (no_mask, r"2008_000002.mat: record 0: a mask is \[.*\]\n  expected: numbers, one per pixel"),
        (cell_mask, r"2008_000002.mat: record 0: a mask is \[.*\]\n  expected: numbers, one per pixel"),
        (other_part_size, "2008_000002.mat: record 0: the mask of part `head` has another size"),
        (other_sizes, r"2008_000002.mat: masks differ in size: \[\(50, 60\), \(50, 99\)\]"),
        (other_image_size, r"2008_000002.mat: its masks are 60 x 50 pixels\n  expected: 60 x 51"),
        (unknown_part, r"2008_000002.mat: record 0: a horse has a part `wheel`\n  expected: one of head, leye"),
        (broken_image, r"2008_000002.jpg: cannot be decoded"),
        (no_horse, r"horse_val.txt: no horse of at least 8 pixels in the 1 images"),
    ],
)
def test_that_what_is_wrong_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    everything(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        everything(folder)


def test_that_damage_inside_an_annotation_raises_nothing_but_data_errors(folder: Path) -> None:
    path = folder / "Annotations_Part/2008_000001.mat"
    whole, errors = path.read_bytes(), 0
    for at in range(0, len(whole), 9):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            try:
                read_annotation(path)
            except DataError:
                errors += 1
    assert errors > len(whole) / 9


def test_that_the_files_are_written_as_the_original_holds_them(folder: Path) -> None:
    """What MATLAB calls anno.objects(2).parts(1).part_name."""
    found = loadmat(folder / "Annotations_Part/2008_000001.mat")["anno"]
    assert found.shape == (1, 1)
    assert found[0, 0]["objects"].shape == (1, 3)
    assert found[0, 0]["objects"][0, 1]["parts"][0, 1]["part_name"][0] == "head"


def test_that_the_check_says_what_is_there(folder: Path) -> None:
    [found] = check_pascal_part(spec(folder))
    assert found == f"2 training and 1 test images that show a horse (parts head, neck, torso, leg, tail), from {folder}"
    no_annotation(folder)
    with pytest.raises(DataError, match="2008_000002"):
        check_pascal_part(spec(folder))


def test_that_content_follows_lists_and_annotations_and_not_the_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen = {pascal_part_content_hash(folder)}
    moved = tmp_path_factory.mktemp("moved") / "there"
    shutil.copytree(folder, moved)
    assert {pascal_part_content_hash(moved)} == seen
    for damage in (bad_list, truncated, no_annotation):
        damage(moved)
        seen.add(pascal_part_content_hash(moved))
    assert len(seen) == 4
    no_images(moved)
    with pytest.raises(DataError, match="no such folder"):
        pascal_part_content_hash(moved)


def test_that_the_login_node_needs_no_heavy_library(folder: Path) -> None:
    code = (
        "import sys; from jobs.data_spec_parts import PascalPartSpec; assert not {'numpy', 'torch'} & set(sys.modules)\n"
        "from pathlib import Path\n"
        "from jobs.data import celeba, cub, pascal_part\n"
        "pascal_part.pascal_part_content_hash(Path(sys.argv[1]))\n"
        "assert not {'torch', 'scipy', 'PIL', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=120)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": " "}, "path is empty"),
        ({"category": "boat"}, "category"),
        ({"parts": [{"name": "arm", "prefixes": ["larm"]}]}, "no part of a horse begins with `larm`; there are head, leye"),
        (
            {"parts": [{"name": "a", "prefixes": ["head"]}, {"name": "b", "prefixes": ["head"]}]},
            "prefix `head` stands there twice",
        ),
        ({"parts": [{"name": "a", "prefixes": ["head"]}, {"name": "a", "prefixes": ["tail"]}]}, "part `a` stands there twice"),
        ({"parts": [{"name": "a", "prefixes": []}]}, "at least 1 item"),
    ],
)
def test_that_impossible_settings_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(tmp_path, **change)
