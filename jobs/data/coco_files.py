"""Owns the original layout of COCO 2017 on disk: which folders and annotation files there are, and their hash.

    FOLDER/train2017/000000000009.jpg ...
    FOLDER/val2017/000000000139.jpg ...
    FOLDER/annotations/instances_train2017.json
    FOLDER/annotations/instances_val2017.json

Imports neither an image library nor pycocotools: the login node asks here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from jobs.data.errors import DataError, Place
from jobs.data.store import SplitName, file_sha256

SITE = "http://images.cocodataset.org"
ARCHIVES = (f"{SITE}/zips/train2017.zip", f"{SITE}/zips/val2017.zip", f"{SITE}/annotations/annotations_trainval2017.zip")
DOWNLOAD_HINT = f"unzip {', '.join(ARCHIVES)} into one folder and give that as data.path, or use `data=coco_mini`"

ORIGINAL_SPLITS: Mapping[SplitName, str] = {"train": "train2017", "test": "val2017"}
"""Our split -> the original's name of it."""


def image_folder(folder: Path, split: SplitName) -> Path:
    """Where the JPEGs of a split lie."""
    return folder / ORIGINAL_SPLITS[split]


def annotation_file(folder: Path, split: SplitName) -> Path:
    """Where the instance annotations of a split lie."""
    return folder / "annotations" / f"instances_{ORIGINAL_SPLITS[split]}.json"


def check_layout(folder: Path) -> None:
    """Raise DataError unless the folder, both image folders and both annotation files are there."""
    if not folder.is_dir():
        raise _missing(folder, "no such folder")
    for split in ORIGINAL_SPLITS:
        if not image_folder(folder, split).is_dir():
            raise _missing(image_folder(folder, split), "no such folder")
        if not annotation_file(folder, split).is_file():
            raise _missing(annotation_file(folder, split), "no such file")


def coco_content_hash(folder: Path) -> str:
    """Return a sha256, in hex, over the names and contents of both annotation files (about a second for the original).

    The JPEGs are not read: their names and sizes stand in the annotations, and the originals never change.

    Raises:
        DataError: the folder, an image folder or an annotation file is missing or cannot be read.
    """
    check_layout(folder)
    digest = hashlib.sha256()
    for split in ORIGINAL_SPLITS:
        path = annotation_file(folder, split)
        try:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
        except OSError as error:
            raise _unreadable(path, error) from error
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """Read an annotation file; raises DataError when it is missing, unreadable or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _missing(path, "no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file ({error})", place=Place(file=str(path)), hint=DOWNLOAD_HINT) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def names_in(path: Path) -> frozenset[str]:
    """Names of the files in an image folder; raises DataError when it is missing or cannot be listed."""
    try:
        return frozenset(os.listdir(path))
    except FileNotFoundError as error:
        raise _missing(path, "no such folder") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _missing(path: Path, what: str) -> DataError:
    expected = "the original layout of COCO 2017: train2017/, val2017/, annotations/instances_{train,val}2017.json"
    return DataError(what, place=Place(file=str(path)), expected=expected, hint=DOWNLOAD_HINT)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot be read ({error.strerror})", place=Place(file=str(path)), hint="data.path must be readable, with all below it"
    )
