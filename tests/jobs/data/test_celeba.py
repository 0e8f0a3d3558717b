"""Unaligned CelebA: landmarks and both protocols come out of files in the original's layout, and what is wrong is named."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jobs.data.celeba import LANDMARK_NAMES, celeba_content_hash, check_celeba, open_celeba
from jobs.data.errors import DataError
from jobs.data.part_store import VOID, PartRecord, part_rows
from jobs.data_spec_parts import CelebaSpec

BOXES, LANDMARKS, PARTITION = "Anno/list_bbox_celeba.txt", "Anno/list_landmarks_celeba.txt", "Eval/list_eval_partition.txt"
SIZE = (60, 40)
FACE = "10 5 40 30"
"""Half of the image."""
SMALL = "10 5 20 10"
"""A twelfth."""
POINTS = "20 15 32 20 25 22 21 30 30 31"
PARTS = {1: 0, 2: 0, 3: 1, 4: 2, 5: 0, 6: 2, 7: 0, 8: 0}
"""Image -> partition."""


def name(image: int) -> str:
    return f"{image:06d}.jpg"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images: 5 training images, of which number 2 has a small face, 1 for validation, 2 test images; MAFL's lists."""
    points = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    boxes = "".join(f"{name(image)}    {SMALL if image == 2 else FACE}\n" for image in PARTS)
    write(tmp_path / BOXES, f"{len(PARTS)}\nimage_id x_1 y_1 width height\n{boxes}")
    write(tmp_path / LANDMARKS, f"{len(PARTS)}\n{points}\n" + "".join(f"{name(image)} {POINTS}\n" for image in PARTS))
    write(tmp_path / PARTITION, "".join(f"{name(image)} {part}\n" for image, part in PARTS.items()))
    write(tmp_path / "MAFL/training.txt", f"{name(7)}\n{name(2)}\n{name(3)}\n")
    write(tmp_path / "MAFL/testing.txt", f"{name(5)}\n")
    (tmp_path / "img_celeba").mkdir()
    for image in PARTS:
        Image.new("RGB", SIZE, (20 * image, 100, 5)).save(tmp_path / "img_celeba" / name(image), quality=98)
    return tmp_path


def spec(folder: Path, **changes: object) -> CelebaSpec:
    return CelebaSpec.model_validate({"path": str(folder), "resolution": 60, **changes})


def everything(folder: Path, **changes: object) -> list[PartRecord]:
    source = open_celeba(spec(folder, **changes))
    return [record for split in ("train", "test") for record in source.read(split, 0, source.manifest.counts[split])]  # type: ignore[arg-type]


def order(folder: Path, split: str, **changes: object) -> list[int]:
    """Images of a split, by their colour."""
    source = open_celeba(spec(folder, **changes))
    records = source.read(split, 0, source.manifest.counts[split])  # type: ignore[arg-type, index]
    return [round(float(record.image_SS3[30, 30, 0]) / 20) for record in records]


def test_that_a_photograph_is_stored_whole_with_its_landmarks(folder: Path) -> None:
    source = open_celeba(spec(folder))
    manifest = source.manifest
    assert manifest.counts == {"train": 4, "test": 2}
    assert manifest.keypoint_names == LANDMARK_NAMES
    assert (manifest.has_parts, manifest.has_foreground, manifest.part_names) == (False, False, ())
    assert "path" not in manifest.source
    face = source.read("train", 0, 1)[0]
    assert (face.image_SS3[:10] == 0).all()
    assert (face.image_SS3[50:] == 0).all()
    with Image.open(folder / "img_celeba" / name(1)) as image:
        assert np.array_equal(face.image_SS3[10:50], np.asarray(image))
    assert face.keypoints_Q2.tolist() == [[20, 25], [32, 30], [25, 32], [21, 40], [30, 41]]
    assert face.visible_Q.tolist() == [1] * 5
    assert face.scale_2.tolist() == [13.0, 13.0], "between the eyes: (12, 5)"
    assert (face.parts_SS == VOID).all()
    assert (face.foreground_SS == 1).all()
    rows = part_rows("train", [face])
    layout = manifest.arrays()
    assert all(rows[key].dtype == layout[key][0] and rows[key].shape[1:] == layout[key][1][1:] for key in rows)


def test_that_errors_over_scale_do_not_depend_on_the_resolution(folder: Path) -> None:
    large, small = (open_celeba(spec(folder, resolution=side)).read("train", 0, 1)[0] for side in (60, 30))
    assert small.scale_2.tolist() == [6.5, 6.5]
    apart = [math.dist(*face.keypoints_Q2[[0, 2]]) / face.scale_2[0] for face in (large, small)]
    assert apart[0] == pytest.approx(apart[1])
    assert small.keypoints_Q2[0].tolist() == [9.75, 12.25]


def test_that_each_protocol_takes_its_own_images_in_its_own_order(folder: Path) -> None:
    assert order(folder, "train") == [1, 5, 7, 8]
    assert order(folder, "test") == [4, 6]
    assert order(folder, "train", protocol="mafl") == [7, 3, 1, 8]
    assert order(folder, "test", protocol="mafl") == [5]
    assert order(folder, "train", max_images=2) == [1, 5]


def test_that_landmarks_are_regressed_on_the_training_images_of_mafl_that_are_taken(folder: Path) -> None:
    def fitted(**changes: object) -> int | None:
        return open_celeba(spec(folder, **changes)).manifest.fit_images

    assert fitted() is None
    assert fitted(protocol="mafl") == 2  # of three, one with a small face
    assert fitted(protocol="mafl", min_face=0) == 3
    assert fitted(protocol="mafl", max_images=1) == 1


def test_that_images_with_a_small_face_are_left_out(folder: Path) -> None:
    assert order(folder, "train", min_face=0.08) == [1, 2, 5, 7, 8]
    assert order(folder, "train", min_face=0.5) == [1, 5, 7, 8]
    with pytest.raises(DataError, match=r"no image of the train split has a face that covers 0.51 of it"):
        open_celeba(spec(folder, min_face=0.51))


def test_that_images_whose_eyes_coincide_are_left_out(folder: Path) -> None:
    replaced(LANDMARKS, f"{name(5)} 20 15 32 20", f"{name(5)} 20 15 20 15")(folder)
    assert order(folder, "train") == [1, 7, 8]


def test_that_landmarks_beyond_the_image_are_not_visible(folder: Path) -> None:
    replaced(LANDMARKS, f"{name(1)} 20 15 32 20 25 22 21 30 30 31", f"{name(1)} 20 15 32 20 25 22 -1 30 30 40")(folder)
    face = open_celeba(spec(folder)).read("train", 0, 1)[0]
    assert face.visible_Q.tolist() == [1, 1, 1, 0, 0]
    assert face.keypoints_Q2[3:].tolist() == [[0, 0], [0, 0]]


def test_that_images_may_lie_in_the_folder_of_the_download(folder: Path) -> None:
    before = order(folder, "train")
    (folder / "Img").mkdir()
    (folder / "img_celeba").rename(folder / "Img/img_celeba")
    assert order(folder, "train") == before


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return damage


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def aligned_alone(folder: Path) -> None:
    (folder / "img_celeba").rename(folder / "img_align_celeba")


def no_landmarks(folder: Path) -> None:
    (folder / LANDMARKS).unlink()


def empty_list(folder: Path) -> None:
    (folder / BOXES).write_text("")


def no_image(folder: Path) -> None:
    (folder / "img_celeba" / name(7)).unlink()


def broken_head(folder: Path) -> None:
    (folder / "img_celeba" / name(7)).write_bytes(b"nothing of the kind")


def cut_off(folder: Path) -> None:
    path = folder / "img_celeba" / name(7)
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            no_folder,
            r"no such folder\n  expected: img_celeba or Img/img_celeba.*list_bbox.*MAFL/training.txt.*\n  hint: .*img_celeba.7z",
        ),
        (aligned_alone, r"img_celeba: no such folder\n  expected: img_celeba or"),
        (no_landmarks, r"list_landmarks_celeba.txt: no such file"),
        (empty_list, r"list_bbox_celeba.txt: line 1 is ``\n  expected: the number of images"),
        (replaced(BOXES, "8\n", ""), r"list_bbox_celeba.txt: line 1 is `image_id x_1 y_1 width height`"),
        (replaced(BOXES, "x_1 y_1", "x_1 x_2"), r"list_bbox_celeba.txt: line 2 .*\n  expected: x_1 y_1 width height"),
        (replaced(LANDMARKS, "lefteye_x", "righteye_x"), r"list_landmarks_celeba.txt: line 2 .*\n  expected: lefteye_x"),
        (
            replaced(LANDMARKS, f"{name(8)} {POINTS}\n", ""),
            r"list_landmarks_celeba.txt: holds 7 images\n  expected: 8, as its first",
        ),
        (replaced(BOXES, name(8), name(7)), r"list_bbox_celeba.txt: an image stands there twice"),
        (replaced(BOXES, name(8), name(9)), r"list_bbox_celeba.txt: no line for 000008.jpg \(1 images have none\)"),
        (replaced(BOXES, f"{name(7)}    10", f"{name(7)}    ten"), r"list_bbox_celeba.txt: line 9 is `ten 5 40 30`"),
        (
            replaced(BOXES, f"{name(7)}    10 5 40", f"{name(7)}    10 5 -40"),
            r"list_bbox_celeba.txt: line 9 .*\n  expected: a width",
        ),
        (
            replaced(BOXES, f"{name(7)}    10", f"{name(7)}    60"),
            r"000007.jpg: its box, x 60 .. 100 .* has no area within the image",
        ),
        (replaced(LANDMARKS, f"{name(7)} 20", name(7)), r"list_landmarks_celeba.txt: line 9 .*\n  expected: 10 numbers"),
        (replaced(PARTITION, f"{name(7)} 0", f"{name(7)} 3"), r"list_eval_partition.txt: line 7 .*\n  expected: .*0, 1 or 2"),
        (replaced(PARTITION, name(7), name(5)), r"list_eval_partition.txt: line 7 is `000005.jpg 0`\n  expected: .*once"),
        (no_image, r"000007.jpg: no such file\n  expected: the files of all images listed in .*list_eval_partition"),
        (broken_head, r"000007.jpg: cannot be decoded"),
        (cut_off, r"000007.jpg: cannot be decoded"),
    ],
)
def test_that_what_is_wrong_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    everything(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        everything(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "MAFL/training.txt").unlink(),
            r"MAFL/training.txt: no such file or folder\n  expected: .*for protocol mafl",
        ),
        (replaced("MAFL/testing.txt", name(5), f"{name(5)} 1"), r"testing.txt: line 1 is `000005.jpg 1`"),
        (replaced("MAFL/testing.txt", name(5), name(7)), r"testing.txt: 000007.jpg stands there twice"),
        (
            replaced("MAFL/training.txt", name(7), "0.jpg"),
            r"list_bbox_celeba.txt: no line for 0.jpg .*\n  expected: .*MAFL's lists",
        ),
    ],
)
def test_that_what_is_wrong_with_mafl_is_named_where_it_is_used(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    everything(folder, protocol="mafl")
    damage(folder)
    everything(folder)
    with pytest.raises(DataError, match=message):
        everything(folder, protocol="mafl")


def test_that_the_check_says_what_is_there(folder: Path) -> None:
    [found] = check_celeba(spec(folder))
    assert found == (
        f"5 training and 2 test images (celeba), of which those with a face that covers 0.3 of them are taken, from {folder}"
    )
    [found] = check_celeba(spec(folder, protocol="mafl"))
    assert found.startswith("5 training and 1 test images (mafl)")
    no_image(folder)
    with pytest.raises(DataError, match="000007"):
        check_celeba(spec(folder))


def test_that_content_follows_the_lists_and_not_the_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    seen = {celeba_content_hash(folder)}
    moved = tmp_path_factory.mktemp("moved") / "there"
    shutil.copytree(folder, moved)
    assert {celeba_content_hash(moved)} == seen
    for damage in (
        replaced(BOXES, "10 5", "11 5"),
        replaced(LANDMARKS, "20 15", "21 15"),
        replaced(PARTITION, " 1", " 0"),
        replaced("MAFL/testing.txt", name(5), name(8)),
    ):
        damage(moved)
        seen.add(celeba_content_hash(moved))
    shutil.rmtree(moved / "MAFL")
    assert len({*seen, celeba_content_hash(moved)}) == 6
    no_landmarks(moved)
    with pytest.raises(DataError, match="no such file"):
        celeba_content_hash(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"path": " "}, "path is empty"), ({"min_face": 1.5}, "less than or equal to 1"), ({"protocol": "aligned"}, "protocol")],
)
def test_that_impossible_settings_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(tmp_path, **change)
