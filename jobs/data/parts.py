"""Owns which data sets have parts, and how each is opened, hashed and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

from jobs.data.celeba import celeba_content_hash, check_celeba, open_celeba
from jobs.data.cub import check_cub, cub_content_hash, open_cub
from jobs.data.part_store import PartSource
from jobs.data.pascal_part import check_pascal_part, open_pascal_part, pascal_part_content_hash
from jobs.data.toy_creatures import open_toy_creatures
from jobs.data_spec_parts import CelebaSpec, CubSpec, PascalPartSpec, ToyCreaturesSpec

PartFilesSpec = PascalPartSpec | CubSpec | CelebaSpec
"""Folders of the user's."""
PartDataSpec = ToyCreaturesSpec | PartFilesSpec
PartFilesKind = Literal["pascal_part", "cub", "celeba"]


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


def parts_content_hash(kind: PartFilesKind, folder: Path) -> str:
    """sha256, in hex, of what makes a folder of one kind what it is; raises DataError when it is not one."""
    match kind:
        case "pascal_part":
            return pascal_part_content_hash(folder)
        case "cub":
            return cub_content_hash(folder)
        case "celeba":
            return celeba_content_hash(folder)
        case _:
            assert_never(kind)


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
