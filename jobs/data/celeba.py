"""Owns unaligned CelebA as images with landmarks (Liu et al. 2015): one record per photograph, as a whole with black bars.

FOLDER/img_celeba/000001.jpg            or Img/img_celeba/000001.jpg; "In-The-Wild Images", not img_align_celeba
FOLDER/Anno/list_bbox_celeba.txt        number of images; "image_id x_1 y_1 width height"; "000001.jpg 95 71 226 313" ...
FOLDER/Anno/list_landmarks_celeba.txt   number of images; names of the columns; "000001.jpg 165 184 244 176 ..." ...
FOLDER/Eval/list_eval_partition.txt     "000001.jpg 0": 0 training, 1 validation (not used), 2 test
FOLDER/MAFL/training.txt, testing.txt   for protocol mafl: a name per line

From public descriptions and readers of these lists; no original file was read. Assumed: x and y of landmarks count from 0, and of
boxes from the left and upper edge of pixel 0; MAFL's lists hold CelebA's names.

Left out: images whose box covers less than `min_face` of them, and those whose eyes lie less than a pixel apart, because errors
are divided by that distance.

Legend: Q landmarks, S x S stored pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.data.errors import DataError, Place
from jobs.data.part_files import (
    Layout,
    bad_line,
    cut_image,
    cut_points,
    image_size,
    numbers,
    open_rgb,
    whole,
    window,
)
from jobs.data.part_store import VOID, PartManifest, PartRecord, PartSource, UInt8
from jobs.data.store import SPLITS, SplitName
from jobs.data_spec_parts import CelebaSpec

BOXES, LANDMARKS, PARTITION = "Anno/list_bbox_celeba.txt", "Anno/list_landmarks_celeba.txt", "Eval/list_eval_partition.txt"
MAFL: Mapping[SplitName, str] = {"train": "MAFL/training.txt", "test": "MAFL/testing.txt"}
IMAGE_FOLDERS = ("img_celeba", "Img/img_celeba")
ORIGINAL_SPLITS: Mapping[str, SplitName | None] = {"0": "train", "1": None, "2": "test"}
LANDMARK_NAMES = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
BOX_COLUMNS = ("x_1", "y_1", "width", "height")
LANDMARK_COLUMNS = tuple(f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy")
LAYOUT = Layout(
    expected=f"{' or '.join(IMAGE_FOLDERS)} with 000001.jpg ..., {BOXES}, {LANDMARKS}, {PARTITION}; for protocol mafl "
    + ", ".join(MAFL.values()),
    hint="`path` must be the folder CelebA of the original download, with img_celeba.7z unpacked "
    "(layout in jobs/data/README.md); data=toy_creatures needs no files",
)


@dataclass(frozen=True, kw_only=True)
class Face:
    """One image and what the lists say of it."""

    name: str
    box: tuple[float, float, float, float]
    """x, y, width, height, in pixels of the image."""
    landmarks: tuple[float, ...]
    """x and y of each landmark, in pixels of the image."""

    @property
    def eye_distance(self) -> float:
        """In pixels of the image."""
        return math.dist(self.landmarks[:2], self.landmarks[2:4])


@dataclass(frozen=True, kw_only=True)
class CelebaParts:
    """The faces of both splits, in the order of the lists; a `PartSource`."""

    spec: CelebaSpec
    images: Path
    faces: Mapping[SplitName, tuple[Face, ...]]
    fit_images: int | None = None
    """How many of the first training images are MAFL's; None with CelebA's own protocol."""

    @property
    def manifest(self) -> PartManifest:
        """As the protocol says."""
        return PartManifest(
            counts={split: len(self.faces[split]) for split in SPLITS},
            resolution=self.spec.resolution,
            part_names=(),
            keypoint_names=LANDMARK_NAMES,
            has_parts=False,
            has_foreground=False,
            fit_images=self.fit_images,
            source=self.spec.model_dump(mode="json", exclude={"path"}),
        )

    def read(self, split: SplitName, at: int, count: int) -> Sequence[PartRecord]:
        """As the protocol says; landmarks beyond the image are not visible.

        Raises:
            DataError: an image that is missing or damaged, or a box outside of it.
        """
        return [self._record(face) for face in self.faces[split][at : at + count]]

    def _record(self, face: Face) -> PartRecord:
        path = self.images / face.name
        image = open_rgb(path, hint=LAYOUT.hint)
        x, y, width, height = face.box
        if self.spec.min_face > 0:
            window((x, y, x + width, y + height), width=image.width, height=image.height, pad=0.0, place=Place(file=str(path)))
        side, cut = self.spec.resolution, whole(width=image.width, height=image.height)
        points_Q2 = np.array(face.landmarks, np.float32).reshape(-1, 2)
        inside_Q2 = (points_Q2 >= -0.5) & (points_Q2 <= np.array([image.width, image.height]) - 0.5)
        inside_Q: UInt8 = np.asarray(inside_Q2.all(axis=1), np.uint8)
        keypoints_Q2, visible_Q = cut_points(points_Q2, inside_Q, cut, side=side)
        return PartRecord(
            image_SS3=cut_image(image, cut, side=side),
            parts_SS=np.full((side, side), VOID, np.uint8),
            foreground_SS=np.ones((side, side), np.uint8),
            keypoints_Q2=keypoints_Q2,
            visible_Q=visible_Q,
            scale_2=np.full(2, face.eye_distance * side / cut.side, np.float32),
        )


def open_celeba(spec: CelebaSpec) -> PartSource:
    """Read the lists and, for the share that the face covers, the size of every image in them (from its head).

    Raises:
        DataError: another layout, a damaged list, lists of different images, a missing image, or a split without images.
    """
    folder = Path(spec.path).expanduser()
    images = _check_layout(folder)
    names = _splits(folder, spec)
    boxes = _by_name(folder / BOXES, BOX_COLUMNS)
    landmarks = _by_name(folder / LANDMARKS, LANDMARK_COLUMNS)
    for split in SPLITS:
        for path, known in ((folder / BOXES, boxes), (folder / LANDMARKS, landmarks)):
            if missing := [name for name in names[split] if name not in known]:
                raise DataError(
                    f"no line for {missing[0]} ({len(missing)} images have none)",
                    place=Place(file=str(path)),
                    expected=f"every image of {PARTITION}" + (" and of MAFL's lists" if spec.protocol == "mafl" else ""),
                    hint="the file was not copied whole, or is of another release: copy it again",
                )
        LAYOUT.check_files((images / name for name in names[split]), listed_in=folder / PARTITION)
    faces = {split: _taken(spec, folder, images, names[split], boxes, landmarks) for split in SPLITS}
    for split in SPLITS:
        if not faces[split]:
            raise DataError(
                f"no image of the {split} split has a face that covers {spec.min_face:g} of it",
                place=Place(file=str(folder / BOXES)),
                hint="give a smaller data.min_face; are these the images before alignment?",
            )
    mafl = set(_mafl(folder / MAFL["train"])) if spec.protocol == "mafl" else None
    fit_images = None if mafl is None else sum(face.name in mafl for face in faces["train"])
    return CelebaParts(spec=spec, images=images, faces=faces, fit_images=fit_images)


def check_celeba(spec: CelebaSpec) -> list[str]:
    """Look, on the login node, whether `prepare` can work: the lists, and the first image of each split.

    Returns what was found, line by line. Raises DataError as `open_celeba` and `read` do.
    """
    source = open_celeba(spec.model_copy(update={"max_images": 1}))
    for split in SPLITS:
        source.read(split, 0, 1)
    train, test = (len(names) for names in _splits(Path(spec.path).expanduser(), spec).values())
    share = f"those with a face that covers {spec.min_face:g} of them"
    return [f"{train} training and {test} test images ({spec.protocol}), of which {share} are taken, from {spec.path}"]


def celeba_content_hash(folder: Path) -> str:
    """sha256, in hex, over the lists, MAFL's too where they are; images are not looked at.

    Raises:
        DataError: another layout, or something that cannot be read.
    """
    _check_layout(folder)
    digest = hashlib.sha256()
    there = [name for name in MAFL.values() if (folder / name).is_file()]
    for name in (BOXES, LANDMARKS, PARTITION, *there):
        digest.update(f"{name} {hashlib.sha256(LAYOUT.content(folder / name)).hexdigest()}\n".encode())
    return digest.hexdigest()


def _check_layout(folder: Path) -> Path:
    """Returns the folder of images; raises DataError when it or a list is missing."""
    LAYOUT.check_folders(folder)
    found = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    if not found:
        raise LAYOUT.missing(folder / IMAGE_FOLDERS[0], "no such folder")
    for name in (BOXES, LANDMARKS, PARTITION):
        if not (folder / name).is_file():
            raise LAYOUT.missing(folder / name, "no such file")
    return found[0]


def _splits(folder: Path, spec: CelebaSpec) -> dict[SplitName, list[str]]:
    """Names of the images of each split, before any is left out."""
    path = folder / PARTITION
    names: dict[SplitName, list[str]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for line, row in enumerate(LAYOUT.rows(path), start=1):
        if len(row) != 2 or row[1] not in ORIGINAL_SPLITS or row[0] in seen:
            raise bad_line(path, line, row, expected="the name of an image, once, and 0, 1 or 2")
        seen.add(row[0])
        split = ORIGINAL_SPLITS[row[1]]
        if split is not None:
            names[split].append(row[0])
    if spec.protocol == "celeba":
        return names
    mafl = {split: _mafl(folder / MAFL[split]) for split in SPLITS}
    both = {*mafl["train"], *mafl["test"]}
    if len(both) < len(mafl["train"]) + len(mafl["test"]):
        twice = next(name for name in mafl["train"] + mafl["test"] if (mafl["train"] + mafl["test"]).count(name) > 1)
        raise DataError(f"{twice} stands there twice", place=Place(file=str(folder / MAFL["test"])), expected="each image once")
    return {"train": mafl["train"] + [name for name in names["train"] if name not in both], "test": mafl["test"]}


def _mafl(path: Path) -> list[str]:
    rows = LAYOUT.rows(path)
    for line, row in enumerate(rows, start=1):
        if len(row) != 1:
            raise bad_line(path, line, row, expected="the name of an image")
    return [row[0] for row in rows]


def _by_name(path: Path, columns: Sequence[str]) -> dict[str, tuple[int, list[str]]]:
    """Line number and words of each image of a list with a count and a line of column names before it."""
    rows = LAYOUT.rows(path)
    if len(rows) < 2 or len(rows[0]) != 1 or not rows[0][0].isdecimal():
        raise bad_line(path, 1, rows[0] if rows else [], expected="the number of images, and below it the names of the columns")
    if [word for word in rows[1] if word != "image_id"] != list(columns):
        raise bad_line(path, 2, rows[1], expected=" ".join(columns))
    if int(rows[0][0]) != len(rows) - 2:
        raise DataError(
            f"holds {len(rows) - 2} images",
            place=Place(file=str(path)),
            expected=f"{rows[0][0]}, as its first line says",
            hint="the file was not copied whole: copy it again",
        )
    found = {row[0]: (line, row[1:]) for line, row in enumerate(rows[2:], start=3) if row}
    if len(found) < len(rows) - 2:
        raise DataError("an image stands there twice", place=Place(file=str(path)), hint="the file is damaged: copy it again")
    return found


def _taken(
    spec: CelebaSpec,
    folder: Path,
    images: Path,
    names: Iterable[str],
    boxes: Mapping[str, tuple[int, list[str]]],
    landmarks: Mapping[str, tuple[int, list[str]]],
) -> tuple[Face, ...]:
    faces: list[Face] = []
    for name in names:
        x, y, width, height = _numbers(folder / BOXES, boxes[name], 4)
        face = Face(name=name, box=(x, y, width, height), landmarks=tuple(_numbers(folder / LANDMARKS, landmarks[name], 10)))
        if width < 0 or height < 0:
            line, words = boxes[name]
            raise bad_line(folder / BOXES, line, words, expected="a width and a height of at least 0")
        if face.eye_distance < 1:
            continue
        if spec.min_face > 0:
            size = image_size(images / name, hint=LAYOUT.hint)
            if width * height < spec.min_face * size[0] * size[1]:
                continue
        faces.append(face)
        if len(faces) == spec.max_images:
            break
    return tuple(faces)


def _numbers(path: Path, found: tuple[int, list[str]], count: int) -> list[float]:
    line, words = found
    return numbers(path, line, words, count=count, expected=f"{count} numbers")
