"""Owns known mistakes: what a campaign that proves anything must find. Each is a change of one place of the code."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("orchestrator", "jobs", "models")


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One line of code made wrong."""

    file: str
    right: str
    wrong: str


MISTAKES: dict[str, Mistake] = {}


def broken_copy(repository: Path, folder: Path, name: str) -> Path:
    """A copy of the packages with the mistake in it; raises ValueError when the code no longer has that place."""
    mistake = MISTAKES[name]
    for package in PACKAGES:
        shutil.copytree(repository / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / mistake.file
    text = path.read_text(encoding="utf-8")
    if text.count(mistake.right) != 1:
        raise ValueError(f"{mistake.file} holds {text.count(mistake.right)} times what {name} would change")
    path.write_text(text.replace(mistake.right, mistake.wrong), encoding="utf-8")
    return folder
