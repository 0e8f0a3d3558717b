"""Owns the layout of pick-and-place clips on disk, and the hash of what lies there; reads no pixels.

FOLDER/train_annos.json                 names of scene files: ["CLEVR_new_000000.json", ...]
FOLDER/val_annos.json                   the same for the test split
FOLDER/scenes/CLEVR_new_000000.json     one clip each (jobs.data.clips_scene)
FOLDER/images/CLEVR_new_000000.avi      its video, or a folder CLEVR_new_000000/ of frames in the order of their names
FOLDER/masks/CLEVR_new_000000/0000.png  optional, for all clips or none: 8-bit grey, 0 background, k the k-th object
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.data.errors import DataError, Place
from jobs.data.store import SPLITS, SplitName

SPLIT_LISTS: Mapping[SplitName, str] = {"train": "train_annos.json", "test": "val_annos.json"}
SCENES, IMAGES, MASKS = "scenes", "images", "masks"
VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "train_annos.json, val_annos.json, scenes/NAME.json, images/NAME.avi or images/NAME/*.png"
LAYOUT_HINT = "`path` must be the folder that holds these (layout in jobs/data/README.md); kind toy_clevr needs no files"


def read_json(path: Path) -> Any:
    """Content of a JSON file; raises DataError when it is missing, unreadable or broken."""
    return _parse(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _parse(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets in brackets
        raise DataError(
            f"not JSON ({error})", place=Place(file=str(path)), hint="the file is damaged or was not copied whole; copy it again"
        ) from error


def scene_names(folder: Path, split: SplitName) -> tuple[str, ...]:
    """Names of a split's scene files, in alphabetical order as the original reads them.

    Raises:
        DataError: no list, or one that is empty, of another form, or names a file twice.
    """
    path = folder / SPLIT_LISTS[split]
    names = read_json(path)
    expected = 'a list of names of scene files: ["CLEVR_new_000000.json", ...]'
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and _is_name(name) for name in names):
        raise DataError("not a list of names", place=Place(file=str(path)), expected=expected)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"`{twice}` stands there twice", place=Place(file=str(path)), expected=expected)
    return tuple(sorted(names))


def _is_name(text: str) -> bool:
    """Whether this is the name of a file in a folder, and not a way out of it."""
    return text not in ("", ".", "..") and "/" not in text and "\0" not in text


def media_names(folder: Path) -> Mapping[str, Path]:
    """What stands in images/: name of a clip -> its video or folder of frames. Raises DataError when it cannot be listed."""
    found: dict[str, Path] = {}
    for path in sorted(list_folder(folder / IMAGES)):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found[path.stem] = path
        elif not path.suffix:
            found.setdefault(path.name, path)
    return found


def frame_files(folder: Path) -> tuple[Path, ...]:
    """The frames in a folder, by name, numbers in it by their value. Raises DataError when it cannot be listed."""
    return tuple(sorted((path for path in list_folder(folder) if path.suffix.lower() in FRAME_SUFFIXES), key=_by_number))


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    """`frame_2` before `frame_10`."""
    parts = re.split(r"(\d+)", path.stem)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], path.name


def check_pairs(masks: Sequence[Path], frames: Sequence[Path] | None, wanted: Sequence[int]) -> None:
    """Raise DataError unless the wanted masks are called as their frames, or by consecutive numbers where frames have no names.

    `masks` and `frames`: all files of a clip, in order.
    """
    numbers = [int(found.group()) if (found := re.search(r"\d+(?=\D*$)", mask.stem)) else None for mask in masks]
    for frame in wanted:
        mask, first = masks[frame], numbers[0]
        if frames is not None:
            fits, expected = mask.stem == frames[frame].stem, f"the name of its frame, {frames[frame].stem}"
        else:
            fits = first is None or numbers[frame] == first + frame
            expected = "" if first is None else f"number {first + frame}: consecutive numbers, one for each frame of the video"
        if not fits:
            raise DataError(
                f"mask {mask.name} stands where that of frame {frame} should",
                place=Place(file=str(mask.parent)),
                expected=expected,
                hint="a mask is missing, or one is too many",
            )


def list_folder(path: Path) -> list[Path]:
    """What a folder holds; raises DataError when it is missing or cannot be listed."""
    try:
        return [path / name for name in os.listdir(path)]
    except OSError as error:
        raise _unreadable(path, error) from error


def clips_content_hash(folder: Path) -> str:
    """sha256, in hex, over both lists, every scene file that they name, and the names and bytes of videos and masks.

    Pixels are not read: of a video and of a mask its size counts, of a folder of frames the names in it.

    Raises:
        DataError: a list, a scene file or a clip's images are missing or unreadable.
    """
    digest = hashlib.sha256()
    media = media_names(folder)
    for split in SPLITS:
        for name in scene_names(folder, split):
            path = folder / SCENES / name
            text = _read(path)
            scene = _parse(text, path)
            clip = scene.get("image_filename") if isinstance(scene, dict) else None
            found = media.get(str(clip))
            if found is None:
                raise missing_media(folder, str(clip), path)
            facts = f"{_media_facts(found)} {_mask_facts(folder / MASKS / str(clip))}".rstrip()
            digest.update(f"{split} {name} {hashlib.sha256(text).hexdigest()} {facts}\n".encode())
    return digest.hexdigest()


def missing_media(folder: Path, clip: str, scene: Path) -> DataError:
    """The error for a scene without images."""
    return DataError(
        f"no images: neither {clip}.avi nor a folder {clip}",
        place=Place(file=str(folder / IMAGES)),
        expected=f"the clip that {scene} names as its image_filename ({', '.join(VIDEO_SUFFIXES)} or a folder of frames)",
        hint="copy the clip there, or take its scene out of the split's list",
    )


def _mask_facts(folder: Path) -> str:
    """Names and sizes of a clip's masks; nothing where it has none."""
    return " ".join(f"{mask.name}:{mask.stat().st_size}" for mask in frame_files(folder)) if folder.is_dir() else ""


def _media_facts(path: Path) -> str:
    if path.suffix:
        return f"{path.name} {path.stat().st_size}"
    return f"{path.name} {' '.join(frame.name for frame in frame_files(path))}"


def _unreadable(path: Path, error: OSError) -> DataError:
    missing = isinstance(error, FileNotFoundError)
    what = "no such file or folder" if missing else f"cannot be read ({error.strerror})"
    return DataError(what, place=Place(file=str(path)), expected=LAYOUT, hint=LAYOUT_HINT)
