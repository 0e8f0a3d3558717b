"""The `prepare` job: turns a data set's records into an image store, chunk by chunk; may be killed anywhere and run again.

Arrays of their final size lie in a scratch directory, and a chunk of records is written at its fixed place. The manifest
comes last, then one rename: the output is whole or not there. What is on disk if we die
    within a chunk            its place half written; the restart writes the whole chunk again
    after the last chunk      all arrays whole, no manifest; the restart hashes and renames
    after the manifest        the same
    after the rename          the output; the restart compares its manifest and has nothing to do
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.attempt import Finished, Run, Superseded
from jobs.contract import fsync_directory
from jobs.data.errors import DataError, Place
from jobs.data.source import check_ranges, content_hash, open_source
from jobs.data.store import MANIFEST, ImageStore, Manifest, SplitName, write_manifest
from jobs.data.writer import StoreWriter
from jobs.spec import MultiDSpritesSpec, PrepareSpec, RecordRange

CHUNK_RECORDS = 500
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


def run_prepare(run: Run) -> Finished:
    """Prepare `run.frozen.config.data` into `output/store`; a step is one record."""
    spec = run.frozen.config
    assert isinstance(spec, PrepareSpec)
    restored = run.restore_point()
    journal = run.journal
    assert journal is not None
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

    total = spec.data.train.count + spec.data.test.count
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
        if done == total:
            break
        if done > saved:
            save(done)
        run.leave(done)
    files = (MANIFEST, *ImageStore.open(store).manifest.files)
    return Finished(step=total, values={"prepare/records": float(total)}, files=tuple(store / name for name in files))


def prepare(
    spec: PrepareSpec,
    *,
    work: Path,
    output: Path,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int], None],
    start: int = 0,
) -> int:
    """Write the image store of `spec.data` to `output`; returns the number of records done.

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
        DataError: bad input (see jobs.data.source), a scratch directory that lost earlier work, or another output.
        OSError: the disk is full or went away.
    """
    data = spec.data
    check_ranges(data)
    manifest = expected_manifest(data)
    total = sum(manifest.counts.values())
    if _is_finished(output, manifest):
        if work.exists():
            shutil.rmtree(work)
        return total
    _check_content(data)
    done = start
    with StoreWriter(work, manifest, may_create=start == 0) as writer, open_source(data) as source:
        for chunk in chunks(data):
            if chunk.done_before + chunk.count <= start:
                continue
            if should_stop() or not source.seek(chunk.record, should_stop=should_stop):
                return done
            writer.write(chunk.split, at=chunk.at, records=source.read(chunk.count))
            done = chunk.done_before + chunk.count
            on_progress(done)
    try:
        write_manifest(work, manifest)
        output.parent.mkdir(parents=True, exist_ok=True)
        os.rename(work, output)
    except OSError:
        # Another attempt of this run may have renamed the scratch directory under our hands.
        if not _is_finished(output, manifest):
            raise
    fsync_directory(output.parent)
    return total


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


def _is_finished(output: Path, manifest: Manifest) -> bool:
    """Whether the store is there; raises DataError when something else is."""
    if not output.is_dir() or not any(output.iterdir()):
        return False
    found = ImageStore.open(output).manifest
    if found.model_copy(update={"files": {}}) != manifest:
        raise DataError(
            "already holds a store of something else",
            place=Place(file=str(output)),
            expected=f"{dict(manifest.source)}; found {dict(found.source)}",
            hint="remove it, or prepare into another directory",
        )
    return True


def _check_content(data: MultiDSpritesSpec) -> None:
    """Refuse a file that is not the one the run was planned with."""
    if data.path is None or data.content is None:
        return
    path = Path(data.path).expanduser()
    if (found := content_hash(path)) != data.content:
        raise DataError(
            f"sha256 is {found}",
            place=Place(file=str(path)),
            expected=f"{data.content}, as when the run was planned",
            hint="the file was changed or replaced since: put it back, or plan again",
        )
