"""Owns how a store that is a manifest alone comes about and is found again: data that are drawn, or decoded, on demand.

    STORE/manifest.json    what a `prepare` run saw of the data; written last and atomically

A run that reads the data opens its source again and compares it with the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from jobs.contract import write_atomically
from jobs.data.errors import DataError, Place
from jobs.data.store import MANIFEST, REBUILD_HINT, read_manifest

M = TypeVar("M", bound=BaseModel)


def check_unchanged(path: Path, found: M, *, told: Callable[[M], str], what: str) -> M:
    """The manifest below `path`, which must be what the data are today.

    Args:
        path: the store.
        found: the manifest that a `prepare` run would write today.
        told: a manifest's facts in words.
        what: the data, in one word.

    Raises:
        DataError: no manifest, or another one.
    """
    manifest = read_manifest(path / MANIFEST, type(found))
    if found != manifest:
        raise DataError(
            f"describes {told(manifest)}",
            place=Place(file=str(path / MANIFEST)),
            expected=f"{told(found)}, as today",
            hint=f"put the {what} back as they were, or {REBUILD_HINT}",
        )
    return manifest


def check_planned(folder: Path, content: str, *, found: str, what: str) -> None:
    """Raise DataError when the hash of a folder's content, `found`, is not the one that the run was planned with."""
    if found != content:
        raise DataError(
            f"sha256 is {found}",
            place=Place(file=str(folder)),
            expected=f"{content}, as when the run was planned",
            hint=f"{what} were changed, added or removed since: put them back, or plan again",
        )


def commit(manifest: M, output: Path, *, may_commit: Callable[[], bool]) -> M | None:
    """Write the manifest below `output`; None, and nothing written, when told not to commit.

    Raises DataError when another store is there.
    """
    path = output / MANIFEST
    if path.exists() and read_manifest(path, type(manifest)) != manifest:
        raise DataError("already holds a store of something else", place=Place(file=str(output)), hint="remove it")
    if not may_commit():
        return None
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
    return manifest
