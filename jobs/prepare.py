"""Turns a data set's records into an image store, chunk by chunk; may be killed anywhere and run again.

Arrays of their final size lie in a scratch directory, and a chunk of records is written at its fixed place: to write it
again changes nothing. The manifest comes last, then one rename: the output is whole or not there.
What is on disk if we die
    within a chunk            its place half written; the restart writes the whole chunk again
    after the last chunk      all arrays whole, no manifest; the restart hashes and renames
    after the manifest        the same
    after the rename          the output; the restart sees it, compares its manifest and has nothing to do
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data.errors import DataError, Place
from jobs.data.multi_dsprites import Record, label_map
from jobs.data.source import check_ranges, content_hash, open_source
from jobs.data.store import ImageStore, Manifest, SplitName, sync_directory, write_manifest
from jobs.spec import MultiDSpritesSpec, PrepareSpec, RecordRange

CHUNK_RECORDS = 500


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
        output: the store's place; must not exist unless an earlier attempt finished.
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
    if output.exists():
        _check_output(output, manifest)
        _remove(work)
        return total
    _check_content(data)
    if start == 0:
        _remove(work)
    done = start
    with _Arrays(work, manifest, create=start == 0) as arrays, open_source(data) as source:
        for chunk in chunks(data):
            if chunk.done_before + chunk.count <= start:
                continue
            if should_stop() or not source.seek(chunk.record, should_stop=should_stop):
                return done
            arrays.write(chunk, source.read(chunk.count))
            done = chunk.done_before + chunk.count
            on_progress(done)
    write_manifest(work, manifest)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.rename(work, output)
    sync_directory(output.parent)
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


class _Arrays:
    """The arrays of a store under construction, written at fixed places.

    Plain writes rather than memory maps: a full disk is then an OSError and not a SIGBUS.
    """

    def __init__(self, work: Path, manifest: Manifest, *, create: bool) -> None:
        self._files: dict[str, tuple[int, int]] = {}
        try:
            for name, (dtype, shape) in manifest.arrays().items():
                path = work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if create:
                    _create_npy(path, dtype=dtype, shape=shape)
                self._files[name] = _open_npy(path, dtype=dtype, shape=shape)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._files:
            _, (handle, _) = self._files.popitem()
            os.close(handle)

    def write(self, chunk: Chunk, records: list[Record]) -> None:
        """Write one chunk and wait until it is on disk."""
        arrays: Mapping[str, npt.NDArray[Any]] = {
            "images": np.stack([record.image_HW3 for record in records]),
            "labels": np.stack([label_map(record) for record in records]),
            "factors": np.stack([record.factors_E9 for record in records]),
        }
        for kind, array in arrays.items():
            handle, header_bytes = self._files[f"{chunk.split}/{kind}.npy"]
            content = memoryview(array.tobytes())
            offset = header_bytes + chunk.at * (content.nbytes // len(records))
            while content.nbytes:
                written = os.pwrite(handle, content, offset)
                content, offset = content[written:], offset + written
            os.fsync(handle)


def _create_npy(path: Path, *, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Make a .npy file of its final size, all zero."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + dtype.itemsize * int(np.prod(shape)))
        file.flush()
        os.fsync(file.fileno())


def _open_npy(path: Path, *, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, int]:
    """Open a .npy file for writing in place; returns its handle and the size of its header.

    Raises:
        DataError: it is not the array that an earlier attempt must have left.
    """
    hint = "an earlier attempt's scratch files are gone or damaged: cancel the run, remove its directory and submit it again"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"not a .npy array ({error})", place=Place(file=str(path)), hint=hint) from error
    if array.dtype != dtype or array.shape != shape:
        raise DataError(
            f"holds {array.dtype} {list(array.shape)}",
            place=Place(file=str(path)),
            expected=f"{dtype} {list(shape)}",
            hint=hint,
        )
    return os.open(path, os.O_WRONLY), path.stat().st_size - array.nbytes


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _check_output(output: Path, manifest: Manifest) -> None:
    """Accept only what this very preparation would have written."""
    found = ImageStore.open(output).manifest
    if found.model_copy(update={"files": {}}) != manifest:
        raise DataError(
            "already holds a store of something else",
            place=Place(file=str(output)),
            expected=f"{dict(manifest.source)}; found {dict(found.source)}",
            hint="remove it, or prepare into another directory",
        )


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
