"""Owns CUB-200-2011 as images with keypoints (Wah et al. 2011): one record per bird.

FOLDER/images.txt                  "1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg" per line: number, name
FOLDER/train_test_split.txt        "1 0": number, 1 for training
FOLDER/image_class_labels.txt      "1 1": number, number of the class
FOLDER/bounding_boxes.txt          "1 60.0 27.0 325.0 304.0": number, x, y, width, height in pixels
FOLDER/parts/parts.txt             "1 back": number and name of a keypoint
FOLDER/parts/part_locs.txt         "1 1 0.0 0.0 0": image, keypoint, x, y, 1 where it is visible
FOLDER/images/CLASS/NAME.jpg
FOLDER/segmentations/CLASS/NAME.png   optional, for all images: grey, 255 where all annotators saw the bird

The lists are as the data set's own README says; no original image was read. Assumed: x and y of keypoints count from 0, and of
boxes from the left and upper edge of pixel 0 (a count from 1 would move them by one pixel); a mask's pixel is bird from 128 on,
half of the annotators.

Legend: H x W pixels of the image, S x S stored pixels, Q keypoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.data.errors import DataError, Place
from jobs.data.part_files import (
    Box,
    Layout,
    bad_line,
    cut_image,
    cut_labels,
    cut_points,
    numbers,
    open_grey,
    open_rgb,
    whole,
    window,
)
from jobs.data.part_store import VOID, Float32, PartManifest, PartRecord, PartSource, UInt8
from jobs.data.store import SPLITS, SplitName
from jobs.data_spec_parts import CUB_MASKS, CubSpec

NAMES, SPLIT, CLASSES, BOXES = "images.txt", "train_test_split.txt", "image_class_labels.txt", "bounding_boxes.txt"
PARTS, PLACES = "parts/parts.txt", "parts/part_locs.txt"
LISTS = (NAMES, SPLIT, CLASSES, BOXES, PARTS, PLACES)
IMAGES, MASKS = "images", CUB_MASKS
ORIGINAL_SPLITS: Mapping[str, SplitName] = {"1": "train", "0": "test"}
LAYOUT = Layout(
    expected=f"{', '.join(LISTS)}, {IMAGES}/CLASS/NAME.jpg; masks in {MASKS}/CLASS/NAME.png",
    hint="`path` must be the folder CUB_200_2011 of the archive CUB_200_2011.tgz, with the folder of segmentations.tgz put into "
    "it for masks (layout in jobs/data/README.md); data=toy_creatures needs no files",
)
BIRD = 128
"""Lowest grey of a mask that counts as bird."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bird:
    """One image and what the lists say of it."""

    name: str
    """Path below images/."""
    box: Box
    keypoints_Q2: Float32
    """(x, y) in pixels of the image, pixel centres at integers."""
    visible_Q: UInt8


@dataclass(frozen=True, kw_only=True)
class CubParts:
    """The birds of the classes asked for, in the order of images.txt; a `PartSource`."""

    spec: CubSpec
    folder: Path
    birds: Mapping[SplitName, tuple[Bird, ...]]
    keypoint_names: tuple[str, ...]
    has_masks: bool

    @property
    def manifest(self) -> PartManifest:
        """As the protocol says."""
        return PartManifest(
            counts={split: len(self.birds[split]) for split in SPLITS},
            resolution=self.spec.resolution,
            part_names=(),
            keypoint_names=self.keypoint_names,
            has_parts=False,
            has_foreground=self.has_masks,
            source=self.spec.model_dump(mode="json", exclude={"path"}),
        )

    def read(self, split: SplitName, at: int, count: int) -> Sequence[PartRecord]:
        """As the protocol says; keypoints beyond the square that is cut out are not visible.

        Raises:
            DataError: an image or mask that is missing or damaged, a mask of another size, or a box outside the image.
        """
        return [self._record(bird) for bird in self.birds[split][at : at + count]]

    def _record(self, bird: Bird) -> PartRecord:
        path = self.folder / IMAGES / bird.name
        image = open_rgb(path, hint=LAYOUT.hint)
        about = window(bird.box, width=image.width, height=image.height, pad=0.0, place=Place(file=str(path)))
        cut = about if self.spec.crop == "box" else whole(width=image.width, height=image.height)
        side = self.spec.resolution
        foreground_SS: UInt8 = np.ones((side, side), np.uint8)
        if self.has_masks:
            mask_path = _mask_path(self.folder, bird)
            mask_HW = open_grey(mask_path, hint=LAYOUT.hint)
            if mask_HW.shape != (image.height, image.width):
                raise DataError(
                    f"the mask is {mask_HW.shape[1]} x {mask_HW.shape[0]} pixels",
                    place=Place(file=str(mask_path)),
                    expected=f"{image.width} x {image.height}, as its image",
                    hint="images and masks must not have been resized",
                )
            foreground_SS = cut_labels((mask_HW >= BIRD).astype(np.uint8), cut, side=side, outside=0)
        keypoints_Q2, visible_Q = cut_points(bird.keypoints_Q2, bird.visible_Q, cut, side=side)
        left, top, right, bottom = bird.box
        return PartRecord(
            image_SS3=cut_image(image, cut, side=side),
            parts_SS=np.full((side, side), VOID, np.uint8),
            foreground_SS=foreground_SS,
            keypoints_Q2=keypoints_Q2,
            visible_Q=visible_Q,
            scale_2=(np.array([right - left, bottom - top]) * (side / cut.side)).astype(np.float32),
        )


def open_cub(spec: CubSpec) -> PartSource:
    """Read all lists and see that the images, and the masks if there are any, are there.

    Raises:
        DataError: another layout, a damaged list, lists of different images, a missing image or mask, or a split without images.
    """
    folder = Path(spec.path).expanduser()
    _check_layout(folder)
    keypoint_names = _keypoint_names(folder)
    names = _by_image(folder, NAMES, words=1, expected="the number of an image and its name")
    splits = _by_image(folder, SPLIT, words=1, expected="the number of an image and 1 (training) or 0 (test)", like=names)
    classes = _by_image(folder, CLASSES, words=1, expected="the number of an image and that of its class", like=names)
    boxes = _by_image(folder, BOXES, words=4, expected="the number of an image, x, y, width and height", like=names)
    places = _places(folder, names, len(keypoint_names))
    found: dict[SplitName, list[Bird]] = {split: [] for split in SPLITS}
    for image, (line, [name]) in names.items():
        split_line, [mark] = splits[image]
        if mark not in ORIGINAL_SPLITS:
            raise bad_line(folder / SPLIT, split_line, [image, mark], expected="1 (training) or 0 (test)")
        split = ORIGINAL_SPLITS[mark]
        if not name.lower().endswith(".jpg"):
            raise bad_line(folder / NAMES, line, [image, name], expected="the name of a JPEG")
        class_line, words = classes[image]
        [number] = numbers(folder / CLASSES, class_line, words, count=1, expected="the number of a class")
        if (spec.classes and number not in spec.classes) or len(found[split]) == spec.max_images:
            continue
        keypoints_Q2, visible_Q = places[image]
        found[split].append(Bird(name=name, box=_box(folder, *boxes[image]), keypoints_Q2=keypoints_Q2, visible_Q=visible_Q))
    birds = {split: tuple(found[split]) for split in SPLITS}
    has_masks = (folder / MASKS).is_dir()
    for split in SPLITS:
        if not birds[split]:
            what = f"no image of classes {list(spec.classes)}" if spec.classes else "no image"
            raise DataError(f"{what} in the {split} split", place=Place(file=str(folder / SPLIT)), hint=LAYOUT.hint)
        LAYOUT.check_files((folder / IMAGES / bird.name for bird in birds[split]), listed_in=folder / NAMES)
        if has_masks:
            LAYOUT.check_files((_mask_path(folder, bird) for bird in birds[split]), listed_in=folder / NAMES)
    return CubParts(spec=spec, folder=folder, birds=birds, keypoint_names=keypoint_names, has_masks=has_masks)


def check_cub(spec: CubSpec) -> list[str]:
    """Look, on the login node, whether `prepare` can work: the lists, and the first image of each split.

    Returns what was found, line by line. Raises DataError as `open_cub` and `read` do.
    """
    source = open_cub(spec)
    for split in SPLITS:
        source.read(split, 0, 1)
    counts = source.manifest.counts
    masks = "with masks" if source.manifest.has_foreground else "without masks (objective.foreground=truth needs them)"
    return [f"{counts['train']} training and {counts['test']} test images of birds, {masks}, from {spec.path}"]


def cub_content_hash(folder: Path) -> str:
    """sha256, in hex, over the lists, and the names and sizes of masks if there are any; images are not looked at.

    Raises:
        DataError: another layout, or something that cannot be read.
    """
    _check_layout(folder)
    digest = hashlib.sha256()
    for name in LISTS:
        digest.update(f"{name} {hashlib.sha256(LAYOUT.content(folder / name)).hexdigest()}\n".encode())
    if (folder / MASKS).is_dir():
        for name in sorted(LAYOUT.names_in(folder / MASKS)):
            if (folder / MASKS / name).is_dir():
                for fact in LAYOUT.sizes_in(folder / MASKS / name, ".png"):
                    digest.update(f"{name}/{fact}\n".encode())
    return digest.hexdigest()


def _check_layout(folder: Path) -> None:
    LAYOUT.check_folders(folder, folder / IMAGES)
    for name in LISTS:
        if not (folder / name).is_file():
            raise LAYOUT.missing(folder / name, "no such file")


def _mask_path(folder: Path, bird: Bird) -> Path:
    return (folder / MASKS / bird.name).with_suffix(".png")


Line = tuple[int, list[str]]
"""Number of a line, from 1, and its words after the image's number."""


def _by_image(folder: Path, file: str, *, words: int, expected: str, like: Mapping[str, Line] | None = None) -> dict[str, Line]:
    """A list with one line per image, by the image's number; the images must be those of `like`."""
    path = folder / file
    found: dict[str, Line] = {}
    for line, row in enumerate(LAYOUT.rows(path), start=1):
        if len(row) != words + 1 or row[0] in found:
            raise bad_line(path, line, row, expected=f"{expected}; each image once")
        found[row[0]] = line, row[1:]
    if like is not None and found.keys() != like.keys():
        wrong = next(iter(like.keys() ^ found.keys()))
        raise DataError(
            f"holds {len(found)} images; image {wrong} is " + ("missing" if wrong in like else f"not in {NAMES}"),
            place=Place(file=str(path)),
            expected=f"the {len(like)} images of {NAMES}",
            hint="the file was not copied whole, or is of another release: copy it again",
        )
    return found


def _keypoint_names(folder: Path) -> tuple[str, ...]:
    """Names in the order of their numbers, which are 1, 2 ..."""
    path = folder / PARTS
    names = []
    for line, row in enumerate(LAYOUT.rows(path), start=1):
        if len(row) < 2 or row[0] != str(line):
            raise bad_line(path, line, row, expected=f"{line} and the name of a keypoint")
        names.append("_".join(row[1:]))
    if not names:
        raise DataError("holds no keypoints", place=Place(file=str(path)), hint=LAYOUT.hint)
    return tuple(names)


def _places(folder: Path, names: Mapping[str, Line], keypoints: int) -> dict[str, tuple[Float32, UInt8]]:
    """Places [Q, 2] and visibility [Q] of the keypoints of each image."""
    path, expected = folder / PLACES, f"image, keypoint (1 .. {keypoints}), x, y, and 1 or 0 for visible"
    places = {image: (np.zeros((keypoints, 2), np.float32), np.zeros(keypoints, np.uint8)) for image in names}
    there = dict.fromkeys(names, 0)
    known = {str(number): number - 1 for number in range(1, keypoints + 1)}
    seen: set[tuple[str, str]] = set()
    for line, row in enumerate(LAYOUT.rows(path), start=1):
        key = row[0] if row else "", row[1] if len(row) > 1 else ""
        if key[0] not in places or key[1] not in known or key in seen or len(row) != 5 or row[4] not in ("0", "1"):
            raise bad_line(path, line, row, expected=f"{expected}; each once, of an image in {NAMES}")
        seen.add(key)
        there[key[0]] += 1
        points_Q2, visible_Q = places[key[0]]
        points_Q2[known[key[1]]] = numbers(path, line, row[2:4], count=2, expected=expected)
        visible_Q[known[key[1]]] = row[4] == "1"
    if short := [image for image, count in there.items() if count != keypoints]:
        raise DataError(
            f"image {short[0]} has {there[short[0]]} keypoints ({len(short)} images have too few)",
            place=Place(file=str(path)),
            expected=f"{keypoints} per image, visible or not",
            hint="the file was not copied whole: copy it again",
        )
    return places


def _box(folder: Path, line: int, words: list[str]) -> Box:
    path, expected = folder / BOXES, "x, y, width and height in pixels, both above 0"
    x, y, width, height = numbers(path, line, words, count=4, expected=expected)
    if width <= 0 or height <= 0:
        raise bad_line(path, line, words, expected=expected)
    return x, y, x + width, y + height
