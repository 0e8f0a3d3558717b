"""The `prepare` job: turns a data set's records into a store of arrays, chunk by chunk; may be killed anywhere and run again.

Arrays of their final size lie in a scratch directory, and a chunk of records is written at its fixed place. The manifest
comes last, then one rename: the output is whole or not there. What is on disk if we die
    within a chunk            its place half written; the restart writes the whole chunk again
    after the last chunk      all arrays whole, no manifest; the restart hashes and renames
    after the manifest        the same
    after the rename          the output; the restart compares its manifest, removes the scratch directory, and is done

Scratch files: `work/store`, which becomes the output, and `work/coco`, a generated COCO folder. Clips and videos are not copied:
their manifest is the whole store (jobs.data.manifest_store).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy.typing as npt

from jobs.attempt import Finished, Run, Superseded
from jobs.contract import fsync_directory
from jobs.data.clip_store import ClipManifest, prepare_clips
from jobs.data.coco import CocoSource, coco_manifest, open_coco
from jobs.data.coco_generator import write_miniature
from jobs.data.coco_store import CocoManifest, CocoStore
from jobs.data.errors import DataError, Place
from jobs.data.part_store import PartManifest, PartSource, PartStore, part_rows
from jobs.data.parts import open_parts, parts_content_hash
from jobs.data.source import RecordSource, check_ranges, content_hash, open_source
from jobs.data.store import MANIFEST, SPLITS, ImageStore, Manifest, SplitName, StoreManifest, write_manifest
from jobs.data.video_store import VideoManifest, prepare_videos
from jobs.data.writer import StoreWriter, sprite_rows
from jobs.data_spec import ClipsSpec, CocoSpec, MultiDSpritesSpec, RecordRange, ToyClevrSpec, ToyVideoSpec, VideoFilesSpec
from jobs.data_spec_parts import PartDataSpec, PartFilesSpec, ToyCreaturesSpec
from jobs.journal import JournalWriter
from jobs.spec import PrepareSpec

StoredSpec = MultiDSpritesSpec | CocoSpec | PartDataSpec
"""Data that become arrays."""
SourceSpec = ToyClevrSpec | ClipsSpec | ToyVideoSpec | VideoFilesSpec
"""Data of which only a manifest is written."""
CHUNK_RECORDS = 500
CHUNK_IMAGES = 100
"""Of COCO and of data with parts: one or two seconds of decoding on one core."""
STORE_NAME = "store"
"""The store's place below a run's output."""
CHECKPOINT_EVERY_S = 5.0
"""Most seconds between checkpoints of a `prepare` run: it lasts minutes, and a checkpoint is one number."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Records that are read and written together."""

    done_before: int
    """Records of all earlier chunks."""
    split: SplitName
    at: int
    """Place of the first one within its split."""
    record: int
    """Its number in the source."""
    count: int


class Input(Protocol):
    """An opened data set, on its way into a store."""

    @property
    def manifest(self) -> StoreManifest:
        """Of the store to be, without the facts of its files."""
        ...

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks, in the order in which they are read."""
        ...

    def read(self, chunk: Chunk, *, should_stop: Callable[[], bool]) -> Mapping[str, npt.NDArray[Any]] | None:
        """Path of an array below the store -> the chunk's rows; None when told to stop on the way."""
        ...


def run_prepare(run: Run) -> Finished:
    """Prepare `run.frozen.config.data` into `output/store`; a step is one record."""
    spec = run.frozen.config
    assert isinstance(spec, PrepareSpec)
    restored = run.restore_point()
    journal = run.journal
    assert journal is not None
    run.at_work(0 if restored is None else restored.step)
    if not isinstance(spec.data, StoredSpec):
        return _prepare_manifest(run, journal, spec.data)
    done = saved = 0 if restored is None else restored.step
    saved_at = time.monotonic()

    def save(step: int) -> None:
        nonlocal saved, saved_at
        run.checkpoint(step, lambda folder: _write_state(folder, step))
        saved, saved_at = step, time.monotonic()

    def on_progress(step: int) -> None:
        journal.metrics(step, {"prepare/records": float(step)})
        journal.flush()
        if time.monotonic() - saved_at >= min(CHECKPOINT_EVERY_S, spec.runtime.checkpoint_every_s):
            save(step)

    store = run.run_dir.output / STORE_NAME
    while True:
        done = prepare(
            spec,
            work=run.run_dir.path / "work",
            output=store,
            should_stop=lambda: bool(run.flag) or not run.owns(),
            on_progress=on_progress,
            start=done,
        )
        if not run.owns():
            raise Superseded
        if (store / MANIFEST).exists():
            break
        if done > saved:
            save(done)
        run.leave(done)
    files = (MANIFEST, *_store_manifest(spec.data, store).files)
    return Finished(step=done, values={"prepare/records": float(done)}, files=tuple(store / name for name in files))


def _prepare_manifest(run: Run, journal: JournalWriter, data: SourceSpec) -> Finished:
    """Write the manifest of clips or videos; one step, of seconds."""
    output = run.run_dir.output / STORE_NAME
    match data:
        case ToyClevrSpec() | ClipsSpec():
            manifest: ClipManifest | VideoManifest | None = prepare_clips(data, output, may_commit=run.owns)
        case ToyVideoSpec() | VideoFilesSpec():
            manifest = prepare_videos(data, output, may_commit=run.owns)
        case _:
            assert_never(data)
    if manifest is None:
        raise Superseded
    records = sum(manifest.counts.values())
    journal.metrics(records, {"prepare/records": float(records)})
    return Finished(step=records, values={"prepare/records": float(records)}, files=(output / MANIFEST,))


def prepare(
    spec: PrepareSpec,
    *,
    work: Path,
    output: Path,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int], None],
    start: int = 0,
) -> int:
    """Write the store of `spec.data` to `output`; returns the number of records done.

    Args:
        spec: what to prepare.
        work: scratch directory on the file system of `output`, kept between attempts.
        output: the store's place; must not hold anything unless an earlier attempt finished.
        should_stop: asked between chunks (and while skipping in a file); True ends the call early.
        on_progress: told the number of records done after each chunk, which by then is on disk to stay.
        start: records done by earlier attempts, as returned or told to `on_progress`.

    Returns:
        Records done. Equal to the number of all records if and only if `output` is there, whole.

    Raises:
        DataError: bad input (see jobs.data.source, jobs.data.coco and jobs.data.parts), a scratch directory that lost earlier
            work, or another output.
        OSError: the disk is full or went away.
    """
    data = spec.data
    assert isinstance(data, StoredSpec), "clips and videos have no arrays"
    if isinstance(data, MultiDSpritesSpec):
        check_ranges(data)
    done = start
    if (finished := _finished(data, output)) is None:
        _check_content(data)
        try:
            with _open_input(data, work, workers=spec.runtime.workers, should_stop=should_stop) as source:
                if source is None:
                    return done
                done = _fill(work / STORE_NAME, source, start=start, should_stop=should_stop, on_progress=on_progress)
                if done < sum(chunk.count for chunk in source.chunks):
                    return done
                write_manifest(work / STORE_NAME, source.manifest)
            output.parent.mkdir(parents=True, exist_ok=True)
            os.rename(work / STORE_NAME, output)
        except (OSError, DataError):
            # Another attempt of this run may have finished, and cleared the scratch directory, under our hands.
            if (finished := _finished(data, output)) is None:
                raise
        fsync_directory(output.parent)
    shutil.rmtree(work, ignore_errors=True)
    return done if finished is None else finished


def _fill(
    store: Path,
    source: Input,
    *,
    start: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int], None],
) -> int:
    """Write the chunks after the first `start` records into the arrays below `store`; returns the records done."""
    done = start
    with StoreWriter(store, source.manifest, may_create=start == 0) as writer:
        for chunk in source.chunks:
            if chunk.done_before + chunk.count <= start:
                continue
            rows = None if should_stop() else source.read(chunk, should_stop=should_stop)
            if rows is None:
                return done
            writer.put(rows, at=chunk.at)
            done = chunk.done_before + chunk.count
            on_progress(done)
    return done


@contextmanager
def _open_input(data: StoredSpec, work: Path, *, workers: int, should_stop: Callable[[], bool]) -> Iterator[Input | None]:
    """Open a data set; None when told to stop while generating its files."""
    if isinstance(data, MultiDSpritesSpec):
        with open_source(data) as source:
            yield SpriteInput(manifest=expected_manifest(data), chunks=tuple(chunks(data)), source=source)
        return
    if isinstance(data, PartDataSpec):
        parts = open_parts(data)
        yield PartInput(manifest=parts.manifest, chunks=tuple(image_chunks(parts.manifest.counts)), source=parts)
        return
    folder = work / "coco" if data.path is None else Path(data.path).expanduser()
    if data.generator is not None and not write_miniature(data.generator, folder, should_stop=should_stop):
        yield None
        return
    with open_coco(data, folder, workers=workers) as coco:
        counts = {split: len(coco.images[split]) for split in SPLITS}
        yield CocoInput(manifest=coco_manifest(data, counts), chunks=tuple(image_chunks(counts)), source=coco)


@dataclass(frozen=True, kw_only=True)
class SpriteInput:
    """Multi-dSprites as an `Input`."""

    manifest: Manifest
    chunks: tuple[Chunk, ...]
    source: RecordSource

    def read(self, chunk: Chunk, *, should_stop: Callable[[], bool]) -> Mapping[str, npt.NDArray[Any]] | None:
        """As the protocol says."""
        if not self.source.seek(chunk.record, should_stop=should_stop):
            return None
        return sprite_rows(chunk.split, self.source.read(chunk.count))


@dataclass(frozen=True, kw_only=True)
class CocoInput:
    """COCO as an `Input`."""

    manifest: CocoManifest
    chunks: tuple[Chunk, ...]
    source: CocoSource

    def read(self, chunk: Chunk, *, should_stop: Callable[[], bool]) -> Mapping[str, npt.NDArray[Any]] | None:
        """As the protocol says; does not look at `should_stop`: a chunk takes a second or two."""
        return self.source.rows(chunk.split, at=chunk.at, count=chunk.count)


@dataclass(frozen=True, kw_only=True)
class PartInput:
    """Images with parts as an `Input`."""

    manifest: PartManifest
    chunks: tuple[Chunk, ...]
    source: PartSource

    def read(self, chunk: Chunk, *, should_stop: Callable[[], bool]) -> Mapping[str, npt.NDArray[Any]] | None:
        """As the protocol says; does not look at `should_stop`: a chunk takes a second or two."""
        return part_rows(chunk.split, self.source.read(chunk.split, chunk.at, chunk.count))


def image_chunks(counts: Mapping[SplitName, int]) -> Iterator[Chunk]:
    """Cut both splits into chunks, the training images first."""
    done = 0
    for split in SPLITS:
        for at in range(0, counts[split], CHUNK_IMAGES):
            count = min(CHUNK_IMAGES, counts[split] - at)
            yield Chunk(done_before=done, split=split, at=at, record=at, count=count)
            done += count


def chunks(data: MultiDSpritesSpec) -> Iterator[Chunk]:
    """Cut the two ranges into chunks, in the order of the source's records."""
    ranges: list[tuple[SplitName, RecordRange]] = [("train", data.train), ("test", data.test)]
    done = 0
    for split, records in sorted(ranges, key=lambda entry: entry[1].first):
        for at in range(0, records.count, CHUNK_RECORDS):
            count = min(CHUNK_RECORDS, records.count - at)
            yield Chunk(done_before=done, split=split, at=at, record=records.first + at, count=count)
            done += count


def expected_manifest(data: MultiDSpritesSpec) -> Manifest:
    """Return the manifest of the store to be, without the facts of its files. It says nothing of places on this disk."""
    return Manifest(
        resolution=data.resolution,
        entities=data.max_entities,
        counts={"train": data.train.count, "test": data.test.count},
        source=data.model_dump(mode="json", exclude={"path"}),
    )


def _write_state(folder: Path, done: int) -> None:
    (folder / "state.json").write_text(json.dumps({"records": done}), encoding="utf-8")


def _store_manifest(data: StoredSpec, path: Path) -> Manifest | CocoManifest | PartManifest:
    """The manifest of a store of the kind that `data` becomes; raises DataError when it is damaged or of another kind."""
    match data:
        case MultiDSpritesSpec():
            return ImageStore.open(path).manifest
        case CocoSpec():
            return CocoStore.open(path).manifest
        case _:
            return PartStore.open(path).manifest


def _finished(data: StoredSpec, output: Path) -> int | None:
    """Records of the store that is there already, or None; raises DataError when something else is there."""
    if not output.is_dir() or not any(output.iterdir()):
        return None
    found = _store_manifest(data, output)
    source = data.model_dump(mode="json", exclude={"path"})
    if dict(found.source) != source:
        raise DataError(
            "already holds a store of something else",
            place=Place(file=str(output)),
            expected=f"{source}; found {dict(found.source)}",
            hint="remove it, or prepare into another directory",
        )
    return sum(found.counts.values())


def _check_content(data: StoredSpec) -> None:
    """Refuse files that are not those that the run was planned with."""
    if isinstance(data, ToyCreaturesSpec) or data.path is None or data.content is None:
        return
    path = Path(data.path).expanduser()
    found = parts_content_hash(data.kind, path) if isinstance(data, PartFilesSpec) else content_hash(path)
    if found != data.content:
        raise DataError(
            f"sha256 is {found}",
            place=Place(file=str(path)),
            expected=f"{data.content}, as when the run was planned",
            hint="the data were changed or replaced since: put them back, or plan again",
        )
