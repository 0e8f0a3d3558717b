"""A checkpoint is a directory that a manifest makes valid. Torch-free: what is inside is the caller's business.

`save`: everything into a uniquely named temporary directory, each file fsynced, the manifest last, one rename.
Killed at any line, either the old newest is still the newest or the new one is whole. The last good one is never deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import fsync_directory

MANIFEST = "manifest.json"
_PREFIX, _TEMPORARY = "step-", ".saving-"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One valid checkpoint."""

    step: int
    path: Path
    world_size: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A directory that looked like a checkpoint and is none, with the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What one save cost."""

    step: int
    bytes: int
    seconds: float


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


@dataclass(frozen=True, kw_only=True)
class CheckpointStore:
    """The checkpoints of one run."""

    directory: Path
    config_hash: str
    """The run's id: a checkpoint of another run is never restored."""
    keep: int = 2

    def save(
        self, step: int, write: Callable[[Path], None], *, world_size: int, threads: int, may_commit: Callable[[], bool]
    ) -> Saved | None:
        """Save the state after `step`; `write(folder)` puts the files there.

        Returns None when `may_commit` says, right before the rename, that a newer attempt owns the run.
        """
        begun = time.monotonic()
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / f"{_TEMPORARY}{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            write(temporary)
            files: dict[str, dict[str, Any]] = {}
            for file in sorted(temporary.iterdir()):
                _fsync(file)
                files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            manifest = {"step": step, "config": self.config_hash, "world_size": world_size, "threads": threads, "files": files}
            with open(temporary / MANIFEST, "x", encoding="utf-8") as handle:
                json.dump(manifest, handle, indent=1, sort_keys=True)
                handle.flush()
                os.fsync(handle.fileno())
            fsync_directory(temporary)
            if not may_commit():
                return None
            final = self._of(step)
            if final.exists():  # an invalid one of the same step, or a twin attempt's equal one
                if isinstance(self._check(final), Checkpoint):
                    return Saved(step=step, bytes=0, seconds=time.monotonic() - begun)
                os.rename(final, self.directory / f"{_TEMPORARY}{uuid.uuid4().hex}")
            os.rename(temporary, final)
            fsync_directory(self.directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        size = sum(entry["bytes"] for entry in files.values())
        self._prune(below=step)
        return Saved(step=step, bytes=size, seconds=time.monotonic() - begun)

    def newest(self, also: Iterable[int] = ()) -> tuple[Checkpoint | None, list[Skipped]]:
        """The newest valid checkpoint (checksums verified), and what was passed over on the way to it.

        `also`: steps to look for by name, whether or not the directory's listing has them.
        """
        skipped: list[Skipped] = []
        named = {self._of(step) for step in also}
        for path in sorted(named.union(self._candidates()), reverse=True):
            found = self._check(path)
            if isinstance(found, Checkpoint):
                return found, skipped
            if path not in named or path.exists():  # not one that was deleted since it was named
                skipped.append(found)
        return None, skipped

    def clear_leftovers(self) -> None:
        """Remove what dead attempts left half-written. For the run's owner, before it saves."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name.startswith(_TEMPORARY):
                    shutil.rmtree(path, ignore_errors=True)

    def _of(self, step: int) -> Path:
        return self.directory / f"{_PREFIX}{step:010d}"

    def _candidates(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted((path for path in self.directory.iterdir() if path.name.startswith(_PREFIX)), reverse=True)

    def _check(self, path: Path) -> Checkpoint | Skipped:
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            facts = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in manifest["files"].items()}
            checkpoint = Checkpoint(
                step=int(manifest["step"]),
                path=path,
                world_size=int(manifest["world_size"]),
                threads=int(manifest["threads"]),
            )
            config = manifest["config"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return Skipped(path=path, reason=f"its manifest cannot be read ({type(error).__name__})")
        if config != self.config_hash:
            return Skipped(path=path, reason=f"it belongs to {config}, not to {self.config_hash}")
        if path != self._of(checkpoint.step):
            return Skipped(path=path, reason=f"its manifest says step {checkpoint.step}")
        for name, (expected_bytes, expected_sha256) in facts.items():
            try:
                size = (path / name).stat().st_size
                if size != expected_bytes:
                    return Skipped(path=path, reason=f"{name} has {size} bytes, not {expected_bytes}")
                if sha256(path / name) != expected_sha256:
                    return Skipped(path=path, reason=f"{name} does not match its checksum")
            except FileNotFoundError:
                return Skipped(path=path, reason=f"{name} is missing")
            except (OSError, ValueError) as error:
                return Skipped(path=path, reason=f"{name} cannot be read ({type(error).__name__})")
        return checkpoint

    def _prune(self, *, below: int) -> None:
        """Delete older ones beyond `keep`; the one of step `below` was just made whole and is never touched."""
        older = [path for path in self._candidates() if path < self._of(below)]
        for path in older[self.keep - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
