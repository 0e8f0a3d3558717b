"""CUB-200-2011: boxes, keypoints and masks come out of files in the original's layout, and what is wrong is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jobs.data.cub import check_cub, cub_content_hash, open_cub
from jobs.data.errors import DataError
from jobs.data.part_store import VOID, PartRecord, part_rows
from jobs.data_spec_parts import CubSpec

NAMES = {
    "1": "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
    "2": "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
    "3": "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
    "4": "002.Laysan_Albatross/Laysan_Albatross_0003_1033.jpg",
}
SIZES = {"1": (80, 60), "2": (50, 70), "3": (64, 64), "4": (90, 40)}
KEYPOINTS = ("back", "beak", "left_eye")


def bird_mask(image: str) -> np.ndarray:
    """Grey as the annotators' votes: a disc in three steps."""
    width, height = SIZES[image]
    rows, columns = np.indices((height, width))
    distance = np.hypot(rows - 25, columns - 30)
    return np.select([distance < 8, distance < 12, distance < 15], [255, 128, 127], 0).astype(np.uint8)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of each of two classes, one for training and one for testing each, with masks."""
    write(tmp_path / "images.txt", "".join(f"{image} {name}\n" for image, name in NAMES.items()))
    write(tmp_path / "train_test_split.txt", "1 0\n2 1\n3 1\n4 0\n")
    write(tmp_path / "image_class_labels.txt", "1 1\n2 1\n3 2\n4 2\n")
    write(
        tmp_path / "bounding_boxes.txt",
        "1 20.0 10.0 40.0 20.0\n2 10.0 10.0 30.0 40.0\n3 0.0 0.0 64.0 64.0\n4 5.0 5.0 20.0 20.0\n",
    )
    write(tmp_path / "parts/parts.txt", "1 back\n2 beak\n3 left eye\n")
    places = [f"{image} 1 21.0 11.0 1\n{image} 2 45.5 27.0 1\n{image} 3 0.0 0.0 0\n" for image in NAMES]
    write(tmp_path / "parts/part_locs.txt", "".join(places))
    for image, name in NAMES.items():
        width, height = SIZES[image]
        for kind in ("images", "segmentations"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        rows, columns = np.indices((height, width))
        pixels = np.stack([rows * 2, columns * 2, np.full_like(rows, 7)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name, quality=98)
        Image.fromarray(bird_mask(image)).save((tmp_path / "segmentations" / name).with_suffix(".png"))
    return tmp_path


def spec(folder: Path, **changes: object) -> CubSpec:
    return CubSpec.model_validate({"path": str(folder), "resolution": 40, **changes})


def everything(folder: Path, **changes: object) -> list[PartRecord]:
    source = open_cub(spec(folder, **changes))
    return [record for split in ("train", "test") for record in source.read(split, 0, source.manifest.counts[split])]  # type: ignore[arg-type]


def test_that_a_bird_is_cut_out_by_its_box(folder: Path) -> None:
    source = open_cub(spec(folder))
    manifest = source.manifest
    assert manifest.counts == {"train": 2, "test": 2}
    assert manifest.keypoint_names == KEYPOINTS
    assert (manifest.has_parts, manifest.part_names, manifest.has_foreground) == (False, (), True)
    assert "path" not in manifest.source
    bird = source.read("test", 0, 1)[0]
    # image 1: a box of 40 x 20 pixels about (40, 20); the square of 40 starts at (20, 0), and nothing is resized
    with Image.open(folder / "images" / NAMES["1"]) as image:
        assert np.array_equal(bird.image_SS3, np.asarray(image)[0:40, 20:60])
    assert np.array_equal(bird.foreground_SS, (bird_mask("1") >= 128)[0:40, 20:60])
    assert (bird.parts_SS == VOID).all()
    assert bird.keypoints_Q2.tolist() == [[1.0, 11.0], [25.5, 27.0], [0.0, 0.0]]
    assert bird.visible_Q.tolist() == [1, 1, 0]
    assert bird.scale_2.tolist() == [40.0, 20.0]
    rows = part_rows("test", [bird])
    layout = manifest.arrays()
    assert all(rows[name].dtype == layout[name][0] and rows[name].shape[1:] == layout[name][1][1:] for name in rows)


def test_that_points_and_scale_follow_the_pixels_when_resized(folder: Path) -> None:
    bird = open_cub(spec(folder, resolution=80)).read("test", 0, 1)[0]
    # the centre of pixel 1 lies between pixels 2 and 3 of twice as many
    assert bird.keypoints_Q2.tolist() == [[2.5, 22.5], [51.5, 54.5], [0.0, 0.0]]
    assert bird.scale_2.tolist() == [80.0, 40.0]
    half = open_cub(spec(folder, resolution=20)).read("test", 0, 1)[0]
    assert half.keypoints_Q2.tolist() == [[0.25, 5.25], [12.5, 13.25], [0.0, 0.0]]
    assert half.scale_2.tolist() == [20.0, 10.0]
    assert np.array_equal(half.foreground_SS, (bird_mask("1") >= 128)[1:40:2, 21:60:2])


def test_that_a_whole_image_has_black_bars_and_the_same_points(folder: Path) -> None:
    bird = open_cub(spec(folder, crop="image", resolution=80)).read("test", 0, 1)[0]
    assert (bird.image_SS3[:10] == 0).all()
    assert (bird.image_SS3[70:] == 0).all()
    with Image.open(folder / "images" / NAMES["1"]) as image:
        assert np.array_equal(bird.image_SS3[10:70], np.asarray(image))
    assert bird.keypoints_Q2.tolist() == [[21.0, 21.0], [45.5, 37.0], [0.0, 0.0]]
    assert bird.scale_2.tolist() == [40.0, 20.0]
    assert (bird.foreground_SS[:10] == 0).all()


def test_that_keypoints_beyond_the_square_are_not_visible(folder: Path) -> None:
    bird = open_cub(spec(folder)).read("test", 1, 1)[0]
    # image 4: the square of 20 pixels starts at (5, 5), and the beak at (45.5, 27) lies to its right
    assert bird.visible_Q.tolist() == [1, 0, 0]
    assert bird.keypoints_Q2.tolist() == [[32.5, 12.5], [0.0, 0.0], [0.0, 0.0]]


def test_that_without_masks_everything_is_foreground(folder: Path) -> None:
    shutil.rmtree(folder / "segmentations")
    source = open_cub(spec(folder))
    assert not source.manifest.has_foreground
    assert (source.read("train", 0, 1)[0].foreground_SS == 1).all()


def test_that_a_missing_mask_is_named_before_anything_is_decoded(folder: Path) -> None:
    no_mask(folder)
    with pytest.raises(DataError, match="no such file\n  expected: the files of all images listed in"):
        open_cub(spec(folder))


def test_that_classes_and_splits_are_those_of_the_lists(folder: Path) -> None:
    source = open_cub(spec(folder, classes=[2]))
    assert source.manifest.counts == {"train": 1, "test": 1}
    assert source.read("train", 0, 5)[0].scale_2.tolist() == [40.0, 40.0]
    assert open_cub(spec(folder, max_images=1)).manifest.counts == {"train": 1, "test": 1}
    with pytest.raises(DataError, match=r"no image of classes \[7\] in the train split"):
        open_cub(spec(folder, classes=[7]))


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return damage


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_list(folder: Path) -> None:
    (folder / "parts/part_locs.txt").unlink()


def no_keypoints(folder: Path) -> None:
    (folder / "parts/parts.txt").write_text("")


def binary_list(folder: Path) -> None:
    (folder / "images.txt").write_bytes(b"\xff\xfe\x00")


def no_image(folder: Path) -> None:
    (folder / "images" / NAMES["3"]).unlink()


def no_mask(folder: Path) -> None:
    (folder / "segmentations" / NAMES["3"]).with_suffix(".png").unlink()


def no_class_folder(folder: Path) -> None:
    shutil.rmtree(folder / "images/002.Laysan_Albatross")


def other_mask_size(folder: Path) -> None:
    Image.new("L", (64, 63)).save((folder / "segmentations" / NAMES["3"]).with_suffix(".png"))


def broken_image(folder: Path) -> None:
    path = folder / "images" / NAMES["3"]
    path.write_bytes(path.read_bytes()[:300])


def broken_mask(folder: Path) -> None:
    (folder / "segmentations" / NAMES["3"]).with_suffix(".png").write_bytes(b"\x89PNG no more")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            no_folder,
            r"no such folder\n  expected: images.txt, train_test_split.txt, .*images/CLASS.*\n  hint: .*CUB_200_2011.tgz",
        ),
        (no_list, r"parts/part_locs.txt: no such file\n  expected: images.txt"),
        (no_keypoints, "parts/parts.txt: holds no keypoints"),
        (binary_list, "images.txt: not a text file"),
        (no_image, rf"{NAMES['3']}: no such file\n  expected: the files of all images listed in .*images.txt"),
        (no_class_folder, r"no such file \(and 1 more\)|no such file\n"),
        (no_mask, "Laysan_Albatross_0002_1027.png: no such file"),
        (other_mask_size, r"0002_1027.png: the mask is 64 x 63 pixels\n  expected: 64 x 64"),
        (broken_image, r"0002_1027.jpg: cannot be decoded"),
        (broken_mask, r"0002_1027.png: cannot be decoded"),
        (replaced("images.txt", "3 002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg", "3"), "images.txt: line 3 is `3`"),
        (replaced("images.txt", "0002_1027.jpg", "0002_1027.txt"), "images.txt: line 3 .*\n  expected: the name of a JPEG"),
        (replaced("train_test_split.txt", "3 1", "3 2"), r"train_test_split.txt: line 3 is `3 2`\n  expected: 1 \(training\)"),
        (
            replaced("train_test_split.txt", "3 1\n", "2 1\n"),
            r"train_test_split.txt: line 3 is `2 1`\n  expected: .*each image once",
        ),
        (
            replaced("train_test_split.txt", "4 0\n", ""),
            r"train_test_split.txt: holds 3 images; image 4 is missing\n  expected: the 4",
        ),
        (replaced("image_class_labels.txt", "4 2\n", "4 2\n5 2\n"), "holds 5 images; image 5 is not in images.txt"),
        (replaced("image_class_labels.txt", "3 2", "3 two"), "image_class_labels.txt: line 3 is `two`"),
        (replaced("bounding_boxes.txt", "64.0 64.0", "64.0"), "bounding_boxes.txt: line 3 is `3 0.0 0.0 64.0`"),
        (
            replaced("bounding_boxes.txt", "64.0 64.0", "64.0 nan"),
            r"bounding_boxes.txt: line 3 .*\n  expected: x, y, width and height",
        ),
        (replaced("bounding_boxes.txt", "64.0 64.0", "0.0 64.0"), r"bounding_boxes.txt: line 3 .*\n  expected: .*above 0"),
        (
            replaced("bounding_boxes.txt", "3 0.0 0.0", "3 70.0 0.0"),
            r"0002_1027.jpg: its box, x 70 .. 134 and y 0 .. 64, has no area within the image\n  expected: a box within 64 x 64",
        ),
        (replaced("parts/parts.txt", "2 beak", "7 beak"), r"parts.txt: line 2 is `7 beak`\n  expected: 2 and the name"),
        (
            replaced("parts/part_locs.txt", "3 2 45.5 27.0 1\n", ""),
            r"image 3 has 2 keypoints \(1 images have too few\)\n  expected: 3",
        ),
        (
            replaced("parts/part_locs.txt", "3 2 45.5", "3 4 45.5"),
            r"part_locs.txt: line 8 is `3 4 45.5 27.0 1`\n  expected: image, keypoint",
        ),
        (
            replaced("parts/part_locs.txt", "3 2 45.5", "3 1 45.5"),
            r"part_locs.txt: line 8 is `3 1 45.5 27.0 1`\n  expected: .*each once",
        ),
        (replaced("parts/part_locs.txt", "3 2 45.5", "9 2 45.5"), r"part_locs.txt: line 8 is `9 2 45.5 27.0 1`"),
        (replaced("parts/part_locs.txt", "3 2 45.5", "3 2 inf"), r"part_locs.txt: line 8 is `inf 27.0`"),
    ],
)
def test_that_what_is_wrong_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    everything(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        everything(folder)


def test_that_the_check_says_what_is_there(folder: Path) -> None:
    assert check_cub(spec(folder)) == [f"2 training and 2 test images of birds, with masks, from {folder}"]
    shutil.rmtree(folder / "segmentations")
    [found] = check_cub(spec(folder))
    assert "without masks (objective.foreground=truth needs them)" in found
    no_image(folder)
    with pytest.raises(DataError, match="0002_1027"):
        check_cub(spec(folder))


def test_that_content_follows_lists_and_masks_and_not_the_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    seen = {cub_content_hash(folder)}
    moved = tmp_path_factory.mktemp("moved") / "there"
    shutil.copytree(folder, moved)
    assert {cub_content_hash(moved)} == seen
    for damage in (replaced("bounding_boxes.txt", "64.0", "63.0"), no_keypoints, broken_mask, no_mask):
        damage(moved)
        seen.add(cub_content_hash(moved))
    shutil.rmtree(moved / "segmentations")
    assert len({*seen, cub_content_hash(moved)}) == 6
    no_list(moved)
    with pytest.raises(DataError, match="no such file"):
        cub_content_hash(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": ""}, "path is empty"),
        ({"classes": [2, 1]}, "ascending numbers"),
        ({"classes": [0]}, "from 1 to 200"),
        ({"classes": [201]}, "from 1 to 200"),
    ],
)
def test_that_impossible_settings_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(tmp_path, **change)
