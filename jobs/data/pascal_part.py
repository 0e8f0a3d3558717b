"""Owns PASCAL-Part as images with parts (Chen et al. 2014): one record per object of a category, cut out by its box.

FOLDER/Annotations_Part/2008_000008.mat         one per image of VOC2010's train and val lists
FOLDER/JPEGImages/2008_000008.jpg               VOC2010's images
FOLDER/ImageSets/Main/horse_train.txt           VOC2010's lists: "2008_000008  1" per line; ours: train
FOLDER/ImageSets/Main/horse_val.txt             ours: test

A .mat file holds a struct `anno` with `imname` and `objects`, each with `class`, `class_ind`, `mask` [H, W] and `parts`, each
with `part_name` and `mask` [H, W]. Later objects hide earlier ones, and later parts earlier ones. All this is from the data set's
own tools as published; no original file was read. The files have no boxes: an object's box is that of its visible pixels.

Legend: H x W pixels of the image, S x S stored pixels.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data.errors import DataError, Place
from jobs.data.mat_file import check_mat
from jobs.data.part_files import Layout, bad_line, cut_image, cut_labels, open_rgb, window
from jobs.data.part_store import VOID, PartManifest, PartRecord, PartSource, UInt8
from jobs.data.store import SPLITS, SplitName
from jobs.data_spec_parts import PascalPartSpec

ANNOTATIONS, IMAGES, LISTS = "Annotations_Part", "JPEGImages", "ImageSets/Main"
ORIGINAL_SPLITS: Mapping[SplitName, str] = {"train": "train", "test": "val"}
"""Our split -> the original's name of it."""
LAYOUT = Layout(
    expected=f"{ANNOTATIONS}/2008_000008.mat, {IMAGES}/2008_000008.jpg, {LISTS}/horse_train.txt, {LISTS}/horse_val.txt, ...",
    hint="`path` must be the folder VOC2010 of the VOC2010 development kit, with PASCAL-Part's Annotations_Part put into it "
    "(layout in jobs/data/README.md); data=toy_creatures needs no files",
)
SHOWN = "1"
"""A list's mark of an image with an object of its category; 0: only ones that are difficult to see; -1: none."""
MAT_HINT = "unpack the annotations again: the file is damaged, or not PASCAL-Part's"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedObject:
    """One object of an image."""

    category: str
    mask_HW: Mask
    """Where it would be seen if no later object hid it."""
    parts: tuple[tuple[str, Mask], ...]
    """Names, without numbers, and pixels [H, W]; none where the object has no parts."""


@dataclass(frozen=True, kw_only=True)
class PascalParts:
    """The objects of one category; a `PartSource`."""

    spec: PascalPartSpec
    folder: Path
    objects: Mapping[SplitName, tuple[tuple[str, int], ...]]
    """Name of the image, and place of the object in its annotation: in the order of the list."""

    @property
    def manifest(self) -> PartManifest:
        """As the protocol says."""
        return PartManifest(
            counts={split: len(self.objects[split]) for split in SPLITS},
            resolution=self.spec.resolution,
            part_names=tuple(part.name for part in self.spec.merged),
            keypoint_names=(),
            has_parts=True,
            has_foreground=True,
            source=self.spec.model_dump(mode="json", exclude={"path"}),
        )

    def read(self, split: SplitName, at: int, count: int) -> Sequence[PartRecord]:
        """As the protocol says; an annotation is read once for objects that follow each other.

        Raises:
            DataError: an image or annotation that is missing or damaged, masks that do not fit the image, or an unknown part.
        """
        wanted = self.objects[split][at : at + count]
        known: dict[str, tuple[AnnotatedObject, ...]] = {}
        records = []
        for name, number in wanted:
            if name not in known:
                known = {name: read_annotation(_annotation(self.folder, name))}
            records.append(self._record(name, known[name], number))
        return records

    def _record(self, name: str, objects: Sequence[AnnotatedObject], number: int) -> PartRecord:
        path = _annotation(self.folder, name)
        image = open_rgb(_image(self.folder, name), hint=LAYOUT.hint)
        height, width = objects[number].mask_HW.shape
        if image.size != (width, height):
            raise DataError(
                f"its masks are {width} x {height} pixels",
                place=Place(file=str(path)),
                expected=f"{image.width} x {image.height}, as the image in {IMAGES}",
                hint="are images and annotations of VOC2010? Images must not have been resized",
            )
        foreground_HW = visible(objects, number)
        cut = window(
            _box(foreground_HW), width=width, height=height, pad=self.spec.pad, place=Place(file=str(path), record=number)
        )
        side = self.spec.resolution
        return PartRecord(
            image_SS3=cut_image(image, cut, side=side),
            parts_SS=cut_labels(self._labels(path, objects, number), cut, side=side, outside=VOID),
            foreground_SS=cut_labels(foreground_HW.astype(np.uint8), cut, side=side, outside=0),
            keypoints_Q2=np.zeros((0, 2), np.float32),
            visible_Q=np.zeros(0, np.uint8),
            scale_2=np.full(2, side, np.float32),
        )

    def _labels(self, path: Path, objects: Sequence[AnnotatedObject], number: int) -> UInt8:
        """Labels [H, W] of the parts of one object; pixels of its own kind that are none of its parts are not annotated."""
        labels_HW: UInt8 = np.zeros(objects[number].mask_HW.shape, np.uint8)
        for place, one in enumerate(objects):
            labels_HW[one.mask_HW] = VOID if one.category == self.spec.category else 0
            if place != number:
                continue
            for name, mask_HW in one.parts:
                part = self.spec.number_of(name)
                if part is None:
                    raise DataError(
                        f"a {self.spec.category} has a part `{name}`",
                        place=Place(file=str(path), record=number),
                        expected=f"one of {', '.join(self.spec.known_names)}",
                        hint=MAT_HINT,
                    )
                labels_HW[mask_HW & one.mask_HW] = part or VOID
        return labels_HW


def open_pascal_part(spec: PascalPartSpec) -> PartSource:
    """Read both lists and, to count objects, the annotations of all images in them.

    Raises:
        DataError: another layout, a damaged list or annotation, a listed image without its files, or a split without objects.
    """
    folder = Path(spec.path).expanduser()
    _check_layout(folder)
    names = {split: _listed(folder, spec, split) for split in SPLITS}
    for split in SPLITS:
        for of in (_annotation, _image):
            LAYOUT.check_files((of(folder, name) for name in names[split]), listed_in=_list_file(folder, spec, split))
    objects = {split: tuple(_objects(folder, spec, names[split])) for split in SPLITS}
    for split in SPLITS:
        if not objects[split]:
            raise DataError(
                f"no {spec.category} of at least {spec.min_side} pixels in the {len(names[split])} images that should show one",
                place=Place(file=str(_list_file(folder, spec, split))),
                hint="give a smaller data.min_side, or another data.category",
            )
    return PascalParts(spec=spec, folder=folder, objects=objects)


def check_pascal_part(spec: PascalPartSpec) -> list[str]:
    """Look, on the login node, whether `prepare` can work: the lists, and the first object of each split.

    Returns what was found, line by line. Raises DataError as `open_pascal_part` and `read` do.
    """
    folder = Path(spec.path).expanduser()
    source = open_pascal_part(spec.model_copy(update={"max_images": 1}))
    for split in SPLITS:
        source.read(split, 0, 1)
    train, test = (len(_listed(folder, spec, split)) for split in SPLITS)
    parts = ", ".join(part.name for part in spec.merged)
    return [f"{train} training and {test} test images that show a {spec.category} (parts {parts}), from {spec.path}"]


def pascal_part_content_hash(folder: Path) -> str:
    """sha256, in hex, over the lists of all categories, and the names and sizes of all annotations; images are not looked at.

    Raises:
        DataError: another layout, or something that cannot be read.
    """
    _check_layout(folder)
    digest = hashlib.sha256()
    endings = tuple(f"_{name}.txt" for name in ORIGINAL_SPLITS.values())
    for name in sorted(LAYOUT.names_in(folder / LISTS)):
        if name.endswith(endings):
            digest.update(f"{name} {hashlib.sha256(LAYOUT.content(folder / LISTS / name)).hexdigest()}\n".encode())
    for fact in LAYOUT.sizes_in(folder / ANNOTATIONS, ".mat"):
        digest.update(f"{fact}\n".encode())
    return digest.hexdigest()


def read_annotation(path: Path) -> tuple[AnnotatedObject, ...]:
    """The objects of one .mat file, in its order.

    Raises:
        DataError: missing, damaged, or of another form.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]  # scipy ships no annotations

    place = Place(file=str(path))
    try:
        content = path.read_bytes()
        check_mat(content)
        found = loadmat(io.BytesIO(content), simplify_cells=True)
    except FileNotFoundError as error:
        raise LAYOUT.missing(path, "no such file") from error
    except Exception as error:  # scipy's parser raises whatever the damage makes it stumble over
        raise DataError(f"cannot be read ({error})", place=place, expected="a whole .mat file", hint=MAT_HINT) from error
    objects = tuple(
        _object(one, Place(file=str(path), record=number))
        for number, one in enumerate(_structs(_field(_field(found, "anno", place), "objects", place), place))
    )
    if len(sizes := {one.mask_HW.shape for one in objects}) > 1:
        raise DataError(f"masks differ in size: {sorted(sizes)}", place=place, expected="the image's size", hint=MAT_HINT)
    return objects


def visible(objects: Sequence[AnnotatedObject], number: int) -> Mask:
    """Pixels [H, W] of one object that no later one hides."""
    seen_HW = objects[number].mask_HW.copy()
    for later in objects[number + 1 :]:
        seen_HW &= ~later.mask_HW
    return seen_HW


def _objects(folder: Path, spec: PascalPartSpec, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    taken = 0
    for name in names:
        objects = read_annotation(_annotation(folder, name))
        for number, one in enumerate(objects):
            if one.category != spec.category or taken == spec.max_images:
                continue
            seen_HW = visible(objects, number)
            if seen_HW.any():
                left, top, right, bottom = _box(seen_HW)
                if max(right - left, bottom - top) >= spec.min_side:
                    taken += 1
                    yield name, number
        if taken == spec.max_images:
            return


def _box(mask_HW: Mask) -> tuple[float, float, float, float]:
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _object(found: Any, place: Place) -> AnnotatedObject:
    mask_HW = _mask(_field(found, "mask", place), place)
    parts = tuple(
        (re.sub(r"_\d+$", "", str(_field(part, "part_name", place))), _mask(_field(part, "mask", place), place))
        for part in _structs(_field(found, "parts", place), place)
    )
    if wrong := [name for name, part_HW in parts if part_HW.shape != mask_HW.shape]:
        raise DataError(f"the mask of part `{wrong[0]}` has another size than its object's", place=place, hint=MAT_HINT)
    return AnnotatedObject(category=str(_field(found, "class", place)), mask_HW=mask_HW, parts=parts)


def _field(found: Any, name: str, place: Place) -> Any:
    if not isinstance(found, dict) or name not in found:
        expected = "a struct `anno` with `objects`, each with `class`, `mask` and `parts`, each with `part_name` and `mask`"
        raise DataError(f"there is no `{name}`", place=place, expected=expected, hint=MAT_HINT)
    return found[name]


def _structs(found: Any, place: Place) -> list[Any]:
    """The elements of a struct array: scipy gives a list, the element itself where there is one, an empty array for none."""
    if isinstance(found, dict):
        return [found]
    if isinstance(found, list):
        return found
    if isinstance(found, np.ndarray) and found.size == 0:
        return []
    raise DataError("not an array of structs", place=place, hint=MAT_HINT)


def _mask(found: Any, place: Place) -> Mask:
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "buif":
        shape = list(np.shape(found))
        raise DataError(f"a mask is {shape}", place=place, expected="numbers, one per pixel of the image", hint=MAT_HINT)
    return found.astype(bool)


def _check_layout(folder: Path) -> None:
    LAYOUT.check_folders(folder, folder / ANNOTATIONS, folder / IMAGES, folder / LISTS)


def _listed(folder: Path, spec: PascalPartSpec, split: SplitName) -> tuple[str, ...]:
    """Names of the images that show the category, in the order of the list."""
    path = _list_file(folder, spec, split)
    rows = LAYOUT.rows(path)
    for line, row in enumerate(rows, start=1):
        if len(row) != 2 or row[1] not in ("-1", "0", SHOWN):
            raise bad_line(path, line, row, expected="the name of an image and -1, 0 or 1")
    return tuple(name for name, mark in rows if mark == SHOWN)


def _list_file(folder: Path, spec: PascalPartSpec, split: SplitName) -> Path:
    return folder / LISTS / f"{spec.category}_{ORIGINAL_SPLITS[split]}.txt"


def _annotation(folder: Path, name: str) -> Path:
    return folder / ANNOTATIONS / f"{name}.mat"


def _image(folder: Path, name: str) -> Path:
    return folder / IMAGES / f"{name}.jpg"
