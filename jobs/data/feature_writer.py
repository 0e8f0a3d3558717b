"""Writes a feature store shard by shard, from several processes at once; may be killed anywhere and run again.

    WORK/features/train/00000.npy   a shard: whole once its name is there
    WORK/facts/train/00000.json     what it is: size, checksum, what it was made with, its rounding error
    WORK/new/                       shards being written
    WORK/ended/0003-1               rank 1 of attempt 3 has done its share, or left

What is on disk if we die
    while a shard is written     a file in new/, which the next attempt removes
    before its facts             a shard without facts; the next attempt writes it again
    after the last facts         all shards, no manifest; the next attempt checks them and renames
    after the manifest           the same
    after the rename             the output; the next attempt compares its manifest and has nothing to do
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jobs.contract import fsync_directory, write_atomically
from jobs.data.errors import DataError, Place
from jobs.data.feature_manifest import STORED, FeatureManifest, Layout, Shard, manifest_path
from jobs.data.features import FeatureStore
from jobs.data.store import FileFacts, file_sha256


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What is known of a whole shard."""

    bytes: int
    sha256: str
    squared_error: float
    """Sum over its values of the squared difference between fp32 and stored tokens."""
    made_with: str
    """Digest of everything that its content depends on, but batch size and device."""


class FeatureWriter:
    """The scratch directory of one feature store to be."""

    def __init__(self, work: Path, layout: Layout, *, made_with: str) -> None:
        self.layout = layout
        self._made_with = made_with
        self._work, self._shards, self._facts = work, work / "features", work / "facts"
        self._new, self._ended = work / "new", work / "ended"
        self._known: dict[str, ShardFacts] = {}
        for folder in (self._new, self._ended):
            folder.mkdir(parents=True, exist_ok=True)
        for part in layout.parts:
            (self._shards / part).mkdir(parents=True, exist_ok=True)
            (self._facts / part).mkdir(parents=True, exist_ok=True)

    def facts(self, shard: Shard) -> ShardFacts | None:
        """The facts of a shard that is there in its size, made with the same; None otherwise."""
        try:
            facts = ShardFacts(**json.loads(self._facts_path(shard).read_text(encoding="utf-8")))
            size = (self._shards / shard.name).stat().st_size
        except (OSError, ValueError, TypeError):
            return None
        return facts if facts.made_with == self._made_with and facts.bytes == size else None

    def is_intact(self, shard: Shard) -> bool:
        """Whether a shard is there with the content that was written (reads it)."""
        facts = self.facts(shard)
        return facts is not None and file_sha256(self._shards / shard.name) == facts.sha256

    def images_done(self) -> int:
        """Images in shards that are there, by whichever process; cheap (only what is new is read)."""
        done = 0
        listed = {part: {path.name for path in (self._facts / part).glob("*.json")} for part in self.layout.parts}
        for shard in self.layout.shards():
            if f"{shard.number:05d}.json" not in listed[shard.part]:
                self._known.pop(shard.name, None)
                continue
            if shard.name not in self._known and (facts := self.facts(shard)) is not None:
                self._known[shard.name] = facts
            done += shard.count if shard.name in self._known else 0
        return done

    def discard(self, shard: Shard) -> None:
        """Remove what earlier attempts left of a shard. Only its owner may."""
        self._facts_path(shard).unlink(missing_ok=True)
        for path in self._new.glob(f"{shard.part}-{shard.number:05d}.*"):
            path.unlink(missing_ok=True)

    def commit(self, shard: Shard, rows_NTC: np.ndarray, *, squared_error: float, may_commit: Callable[[], bool]) -> bool:
        """Write a shard and its facts; False when `may_commit` says, right before the rename, that another attempt owns the run.

        Raises:
            OSError: the disk is full or went away.
        """
        assert rows_NTC.shape == self.layout.shape(shard)
        assert rows_NTC.dtype == STORED[self.layout.dtype]
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(rows_NTC))
        digest = hashlib.sha256()
        temporary = self._new / f"{shard.part}-{shard.number:05d}.{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                for piece in (head.getbuffer(), np.ascontiguousarray(rows_NTC).reshape(-1).view(np.uint8).data):
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if not may_commit():
                return False
            os.rename(temporary, self._shards / shard.name)
            fsync_directory(self._shards / shard.part)
            facts = ShardFacts(bytes=size, sha256=digest.hexdigest(), squared_error=squared_error, made_with=self._made_with)
            write_atomically(self._facts_path(shard), json.dumps(asdict(facts), sort_keys=True) + "\n")
        except FileNotFoundError:
            if may_commit():
                raise
            return False  # the newer attempt has cleared our scratch away
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def end(self, *, attempt: int, rank: int, done: bool) -> None:
        """Say that a rank has done its share of an attempt, or has left without."""
        if self._ended.is_dir():
            say_ended(self._work, attempt=attempt, rank=rank, done=done)

    def ended(self, *, attempt: int) -> dict[int, bool]:
        """rank -> whether its share is done, of the ranks of an attempt that have ended."""
        return ended_ranks(self._work, attempt=attempt)

    def is_complete(self) -> bool:
        """Whether every shard is there in its size."""
        return all(self.facts(shard) is not None for shard in self.layout.shards())

    def finish(self, manifest: FeatureManifest, output: Path) -> FeatureStore:
        """Write the manifest over all shards and rename the store to `output`.

        Raises:
            DataError: a shard is missing, or something else lies at `output`.
        """
        whole = manifest.model_copy(update=self._totals())
        content = json.dumps(whole.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        try:
            write_atomically(manifest_path(self._shards), content)
            output.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self._shards, output)
        except OSError:
            # Another attempt of this run may have renamed the scratch directory under our hands.
            if finished_store(output, manifest) is None:
                raise
        fsync_directory(output.parent)
        self.remove()
        return FeatureStore.open(output)

    def remove(self) -> None:
        """Remove the scratch directory, once the output is there."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _totals(self) -> dict[str, object]:
        files: dict[str, FileFacts] = {}
        squared: dict[str, float] = dict.fromkeys(self.layout.parts, 0.0)
        for shard in self.layout.shards():
            facts = self.facts(shard)
            if facts is None:
                raise DataError("is missing or has lost its facts", place=Place(file=str(self._shards / shard.name)))
            files[shard.name] = FileFacts(bytes=facts.bytes, sha256=facts.sha256)
            squared[shard.part] += facts.squared_error
        values = self.layout.tokens * self.layout.feature_size
        floors = {part: squared[part] / (count * values) for part, count in self.layout.parts.items() if count}
        return {"files": files, "error_floor": floors}

    def _facts_path(self, shard: Shard) -> Path:
        return self._facts / shard.part / f"{shard.number:05d}.json"


def say_ended(work: Path, *, attempt: int, rank: int, done: bool) -> None:
    """Say below a scratch directory that a rank has done its share of an attempt, or has left without."""
    (work / "ended").mkdir(parents=True, exist_ok=True)
    write_atomically(work / "ended" / f"{attempt:04d}-{rank}", "done\n" if done else "left\n")


def ended_ranks(work: Path, *, attempt: int) -> dict[int, bool]:
    """rank -> whether its share is done, of the ranks that have ended, told from a scratch directory that others write to."""
    found: dict[int, bool] = {}
    for path in (work / "ended").glob(f"{attempt:04d}-*"):
        found[int(path.name.partition("-")[2])] = path.read_text(encoding="utf-8") == "done\n"
    return found


def pooled_error_floor(manifest: FeatureManifest, parts: Iterable[str] = ("train", "train_mirrored")) -> float:
    """Mean squared difference over several parts of a store; 0 when there is none of them."""
    counts = {part: count for part, count in manifest.layout.parts.items() if part in parts and count}
    total = sum(counts.values())
    return sum(manifest.error_floor[part] * count for part, count in counts.items()) / total if total else 0.0


def finished_store(output: Path, manifest: FeatureManifest) -> FeatureStore | None:
    """The store at `output`, or None when nothing is there.

    Raises:
        DataError: something else is there.
    """
    if not output.is_dir() or not any(output.iterdir()):
        return None
    store = FeatureStore.open(output)
    results = {"files": {}, "error_floor": {}, "weights": ""}
    if store.manifest.model_copy(update=results) != manifest.model_copy(update=results):
        raise DataError(
            "already holds a store of something else",
            place=Place(file=str(output)),
            expected=f"{dict(manifest.backbone)}; found {dict(store.manifest.backbone)}",
            hint="remove it and run `embed` again",
        )
    return store
