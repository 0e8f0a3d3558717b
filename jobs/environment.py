"""What this process runs on: fingerprint of the installed packages, kind of CPU, origin of the imported code. Torch-free."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from pathlib import Path


@cache
def packages() -> tuple[str, ...]:
    """`name-version.dist-info` of all installed distributions, sorted (from their metadata folders' names)."""
    names: set[str] = set()
    for folder in sys.path:
        if folder.endswith("site-packages"):
            try:
                names.update(name for name in os.listdir(folder) if name.endswith(".dist-info"))
            except OSError:
                continue
    mine = ("orch-",)  # the project itself is recorded by its code tree
    return tuple(sorted(name for name in names if not name.startswith(mine)))


@cache
def fingerprint() -> str:
    """Short hash of `packages()`."""
    return hashlib.sha256("\n".join(packages()).encode()).hexdigest()[:16]


def cpu_model() -> str:
    """The CPU's name: bit-for-bit equality holds between machines of one kind only."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return "unknown"
    return "unknown"


def foreign_packages(code: Path) -> list[str]:
    """Which of `jobs` and `models` would not be imported from below `code`, with where they come from."""
    import importlib.util

    expected = code.resolve()
    foreign: list[str] = []
    for package in ("jobs", "models"):
        found = importlib.util.find_spec(package)
        origin = "nowhere" if found is None or found.origin is None else str(Path(found.origin).resolve())
        if not origin.startswith(f"{expected}{os.sep}"):
            foreign.append(f"{package} from {origin}")
    return foreign
