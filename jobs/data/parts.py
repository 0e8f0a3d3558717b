"""Owns which data sets have parts, and how each is opened, hashed and looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_never

from jobs.data.celeba import celeba_content_hash, check_celeba, open_celeba
from jobs.data.cub import check_cub, cub_content_hash, open_cub
from jobs.data.part_store import PartSource
from jobs.data.pascal_part import check_pascal_part, open_pascal_part, pascal_part_content_hash
from jobs.data.toy_creatures import open_toy_creatures
from jobs.data_spec_parts import (
    CelebaSpec,
    CubSpec,
    PartDataSpec,
    PartFilesSpec,
    PascalPartSpec,
    ToyCreaturesSpec,
)


def open_parts(data: PartDataSpec) -> PartSource:
    """The images of a configuration; raises DataError when its files are not what they should be."""
    match data:
        case ToyCreaturesSpec():
            return open_toy_creatures(data)
        case PascalPartSpec():
            return open_pascal_part(data)
        case CubSpec():
            return open_cub(data)
        case CelebaSpec():
            return open_celeba(data)
        case _:
            assert_never(data)


CONTENT_HASHES: Mapping[str, Callable[[Path], str]] = {
    "pascal_part": pascal_part_content_hash,
    "cub": cub_content_hash,
    "celeba": celeba_content_hash,
}


def parts_content_hash(kind: str, folder: Path) -> str:
    """sha256, in hex, of what makes a folder of one of PART_FILES what it is; raises DataError when it is not one."""
    return CONTENT_HASHES[kind](folder)


def check_parts(data: PartFilesSpec) -> list[str]:
    """Look, on the login node, whether `prepare` can work; returns what was found, line by line, and raises DataError."""
    match data:
        case PascalPartSpec():
            return check_pascal_part(data)
        case CubSpec():
            return check_cub(data)
        case CelebaSpec():
            return check_celeba(data)
        case _:
            assert_never(data)
