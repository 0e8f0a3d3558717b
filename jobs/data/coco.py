"""Owns the way from COCO's original files to rows of the store: which images, their pixels, the test images' masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data.coco_annotations import CocoImage, read_annotations, read_images
from jobs.data.coco_files import DOWNLOAD_HINT, annotation_file, check_layout, image_folder, names_in
from jobs.data.coco_images import open_jpeg, squares
from jobs.data.coco_masks import instance_masks, label_maps
from jobs.data.coco_store import MASK_SIDES, CocoManifest
from jobs.data.errors import DataError, Place
from jobs.data.store import SPLITS, SplitName
from jobs.data_spec import CocoSpec

Rows = Mapping[str, npt.NDArray[Any]]
"""Path of an array below the store -> rows of it."""


@dataclass(frozen=True, kw_only=True)
class CocoSource:
    """The images that a configuration asks for, by place in the store: ascending image id."""

    data: CocoSpec
    folder: Path
    images: Mapping[SplitName, tuple[CocoImage, ...]]
    """Test images with their annotations."""
    pool: ThreadPoolExecutor | None
    """Decodes several images at a time; the result is the same."""

    def rows(self, split: SplitName, *, at: int, count: int) -> Rows:
        """Return rows `at` .. `at + count - 1` of every array of a split.

        Raises:
            DataError: a JPEG that is missing or damaged, or a broken segmentation; names the image or the annotation.
        """
        wanted = self.images[split][at : at + count]
        made = list(
            map(self._one, [split] * count, wanted) if self.pool is None else self.pool.map(self._one, [split] * count, wanted)
        )
        return {name: np.stack([rows[name] for rows in made]) for name in made[0]}

    def _one(self, split: SplitName, listed: CocoImage) -> dict[str, npt.NDArray[Any]]:
        data = self.data
        image = open_jpeg(image_folder(self.folder, split) / listed.file_name, listed)
        sides = (data.resolution,) if data.target_resolution is None else (data.resolution, data.target_resolution)
        names = ("images", "targets")[: len(sides)]
        arrays = squares(image, data.preprocessing, sides)
        rows: dict[str, npt.NDArray[Any]] = {f"{split}/{name}.npy": array for name, array in zip(names, arrays, strict=True)}
        rows[f"{split}/image_ids.npy"] = np.array(listed.id, dtype=np.int64)
        if split == "test":
            masks = instance_masks(listed, annotation_file(self.folder, split))
            rows["test/annotated.npy"] = np.array(bool(masks))
            for protocol in dict.fromkeys(data.protocols):
                instances, classes = label_maps(protocol, masks, height=listed.height, width=listed.width)
                rows[f"test/{protocol}/instances.npy"], rows[f"test/{protocol}/classes.npy"] = instances, classes
        return rows


@contextmanager
def open_coco(data: CocoSpec, folder: Path, *, workers: int = 0) -> Iterator[CocoSource]:
    """Read the lists of images, and the annotations as far as they are needed: those of the training images only to leave
    out images without one (450 MB of JSON then: about 20 s and some gigabytes of memory at every start).

    Args:
        data: what to read.
        folder: holds train2017/, val2017/ and annotations/.
        workers: threads that decode; 0 decodes on the calling one.

    Raises:
        DataError: missing or damaged annotation files, no image left, or a listed image whose file is missing.
    """
    images = {split: _selected(data, folder, split) for split in SPLITS}
    for split in SPLITS:
        _check_files(folder, split, images[split])
    if workers < 2:
        yield CocoSource(data=data, folder=folder, images=images, pool=None)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield CocoSource(data=data, folder=folder, images=images, pool=pool)


def coco_manifest(data: CocoSpec, counts: Mapping[SplitName, int]) -> CocoManifest:
    """Return the manifest of the store to be, without the facts of its files. It says nothing of places on this disk."""
    return CocoManifest(
        counts=counts,
        resolution=data.resolution,
        target_resolution=data.target_resolution,
        preprocessing=data.preprocessing,
        protocols={protocol: MASK_SIDES[protocol] for protocol in data.protocols},
        source=data.model_dump(mode="json", exclude={"path"}),
    )


def check_coco(data: CocoSpec) -> list[str]:
    """Look, on the login node, whether `prepare` can work, decoding one image of each split; returns what was found.

    Reads the lists of images, lists the image folders, and reads the (small) annotations of the test images.

    Raises:
        DataError: see `open_coco`; or the first image of a split cannot be decoded.
    """
    if data.generator is not None:
        counts: dict[SplitName, int] = {
            "train": _at_most(data.max_train, data.generator.train_images),
            "test": _at_most(data.max_val, data.generator.val_images),
        }
        return _described(data, counts, exactly=data.train_images == "all", origin="generated")
    assert data.path is not None  # the spec has either a path or a generator
    folder = Path(data.path).expanduser()
    check_layout(folder)
    lenient = data.model_copy(update={"train_images": "all"})
    with open_coco(lenient, folder) as source:
        for split in SPLITS:
            source.rows(split, at=0, count=1)
        counts = {split: len(source.images[split]) for split in SPLITS}
    return _described(data, counts, exactly=data.train_images == "all", origin=f"from {data.path}")


def _described(data: CocoSpec, counts: Mapping[SplitName, int], *, exactly: bool, origin: str) -> list[str]:
    arrays = coco_manifest(data, counts).arrays().values()
    store_bytes = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in arrays)
    most = "" if exactly else "at most "
    images = f"{most}{counts['train']} training and {counts['test']} test images of {data.resolution} px"
    return [
        f"{images}, preprocessing {data.preprocessing}, masks by {', '.join(data.protocols)}, {origin}",
        f"the store will take {most}{store_bytes / 1e6:.1f} MB",
    ]


def _selected(data: CocoSpec, folder: Path, split: SplitName) -> tuple[CocoImage, ...]:
    path = annotation_file(folder, split)
    if split == "test":
        images = read_annotations(path)[: data.max_val]
    elif data.train_images == "annotated":
        annotated = (image for image in read_annotations(path) if any(not one.crowd for one in image.instances))
        images = [
            CocoImage(id=image.id, file_name=image.file_name, height=image.height, width=image.width) for image in annotated
        ][: data.max_train]
    else:
        images = read_images(path)[: data.max_train]
    if not images:
        raise DataError("no image to prepare", place=Place(file=str(path)), expected="at least one image in each split")
    return tuple(images)


def _check_files(folder: Path, split: SplitName, images: tuple[CocoImage, ...]) -> None:
    """Raise DataError when the file of a listed image is missing: at once, and not hours later."""
    there = names_in(image_folder(folder, split))
    missing = [image for image in images if image.file_name not in there]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"image {missing[0].id}: no such file{more}",
            place=Place(file=str(image_folder(folder, split) / missing[0].file_name)),
            expected=f"the files of all {len(images)} images listed in {annotation_file(folder, split)}",
            hint=f"was the archive unpacked to its end? {DOWNLOAD_HINT}",
        )


def _at_most(limit: int | None, count: int) -> int:
    return count if limit is None else min(limit, count)
