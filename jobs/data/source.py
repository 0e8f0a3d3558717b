"""Where sprite records come from: the original file or the generator, both through the same TFRecord bytes and reader.

For COCO see jobs.data.coco, for clips jobs.data.clips, for videos jobs.data.video_files, for parts jobs.data.parts; the two
questions of the login node, `check_source` and `content_hash`, are answered here for all.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.data.clips_files import clips_content_hash
from jobs.data.coco_files import coco_content_hash
from jobs.data.errors import DataError, Place
from jobs.data.multi_dsprites import ORIGINAL_URL, Record, RecordShape, decode, encode
from jobs.data.sprites import generate
from jobs.data.store import file_sha256
from jobs.data.tfrecord import RecordReader, too_few_records, write_records
from jobs.data_spec import ClipsSpec, CocoSpec, MultiDSpritesSpec, SpriteGeneratorSpec, VideoFilesSpec
from jobs.data_spec_parts import PART_FILES, PartFilesSpec

GENERATE_AT_ONCE = 500
"""Records held in memory by the generator: 16 MB at 64 px."""
SKIPS_BETWEEN_LOOKS = 256
"""Records skipped before asking again whether to stop: about 15 ms."""
FILE_LEVEL = 6
STORED = 0
"""Compression levels: of a file for keeping, and of bytes that are read back at once."""


class RecordSource(Protocol):
    """Records by number, forwards."""

    def seek(self, record: int, *, should_stop: Callable[[], bool]) -> bool:
        """Make `record` the next one; False when told to stop on the way. Only forwards."""
        ...

    def read(self, count: int) -> list[Record]:
        """Return the next `count` records."""
        ...


class GeneratedSource:
    """The generator's records, each encoded to TFRecord bytes and read back."""

    def __init__(self, spec: SpriteGeneratorSpec, *, shape: RecordShape) -> None:
        self._spec = spec
        self._shape = shape
        self._next = 0

    def seek(self, record: int, *, should_stop: Callable[[], bool]) -> bool:
        self._next = record
        return True

    def read(self, count: int) -> list[Record]:
        stream = io.BytesIO()
        write_records(stream, map(encode, generate(self._spec, first=self._next, count=count)), level=STORED)
        stream.seek(0)
        reader = RecordReader(stream, name=f"generated from {self._next}")
        records = _read(reader, count=count, shape=self._shape)
        self._next += count
        return records


class FileSource:
    """The records of a GZIP TFRecord file, streamed once."""

    def __init__(self, stream: BinaryIO, *, name: str, shape: RecordShape) -> None:
        self._reader = RecordReader(stream, name=name)
        self._shape = shape

    def seek(self, record: int, *, should_stop: Callable[[], bool]) -> bool:
        """As the protocol says; inflates what lies between (about 20 000 records a second).

        Raises:
            DataError: damage on the way, or the file ends before `record`.
        """
        while self._reader.position < record:
            if self._reader.position % SKIPS_BETWEEN_LOOKS == 0 and should_stop():
                return False
            if not self._reader.skip():
                raise too_few_records(self._reader.place, needed=record + 1)
        return True

    def read(self, count: int) -> list[Record]:
        """As the protocol says.

        Raises:
            DataError: truncated, corrupt, of another schema, or the file ends too early.
        """
        return _read(self._reader, count=count, shape=self._shape)


def _read(reader: RecordReader, *, count: int, shape: RecordShape) -> list[Record]:
    records = []
    needed = reader.position + count
    for _ in range(count):
        place = reader.place
        payload = reader.read()
        if payload is None:
            raise too_few_records(reader.place, needed=needed)
        records.append(decode(payload, shape=shape, place=place))
    return records


def record_shape(spec: MultiDSpritesSpec) -> RecordShape:
    """Return what the records of a data set measure."""
    return RecordShape(resolution=spec.resolution, entities=spec.max_entities)


@contextmanager
def open_source(spec: MultiDSpritesSpec) -> Iterator[RecordSource]:
    """Open the records of a data set.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    shape = record_shape(spec)
    if spec.generator is not None:
        yield GeneratedSource(spec.generator, shape=shape)
        return
    path = _path(spec)
    with _open_file(path) as stream:
        yield FileSource(stream, name=str(path), shape=shape)


def check_source(spec: MultiDSpritesSpec | CocoSpec | ClipsSpec | VideoFilesSpec | PartFilesSpec) -> list[str]:
    """Look, on the login node, whether `prepare` can work, reading one record; returns what was found, line by line.

    COCO is looked at by `jobs.data.coco.check_coco`, clips by `jobs.data.clips.check_clips`, videos by
    `jobs.data.video_files.check_videos`, images with parts by `jobs.data.parts.check_parts`.

    Raises:
        DataError: ranges that overlap; a file that is missing, unreadable, not gzip, or whose first record is of
            another schema. Nothing is said of what comes later in the file: it would have to be inflated.
    """
    if isinstance(spec, CocoSpec):
        from jobs.data.coco import check_coco  # loads image and mask libraries

        return check_coco(spec)
    if isinstance(spec, ClipsSpec):
        from jobs.data.clips import check_clips  # loads image and video libraries

        return check_clips(spec)
    if isinstance(spec, VideoFilesSpec):
        from jobs.data.video_files import check_videos  # as above

        return check_videos(spec)
    if isinstance(spec, PartFilesSpec):
        from jobs.data.parts import check_parts  # as above

        return check_parts(spec)
    check_ranges(spec)
    total = spec.train.count + spec.test.count
    with open_source(spec) as source:
        source.read(1)
    records = f"{spec.train.count} training and {spec.test.count} test images of {spec.resolution} px"
    store_bytes = total * (spec.resolution**2 * 4 + spec.max_entities * 36)
    origin = "generated" if spec.generator is not None else f"from {spec.path} ({os.path.getsize(_path(spec))} bytes)"
    return [f"{records}, {origin}", f"the store will take {store_bytes / 1e6:.1f} MB"]


def check_ranges(spec: MultiDSpritesSpec) -> None:
    """Raise DataError when test images are training images too."""
    first, second = sorted((spec.train, spec.test), key=lambda records: records.first)
    if first.first + first.count > second.first:
        raise DataError(
            f"data.train is records {_ends(spec.train.first, spec.train.count)}, "
            f"data.test is records {_ends(spec.test.first, spec.test.count)}",
            place=Place(file=spec.path or "generated data"),
            expected="ranges without a record in common",
            hint="the reference uses records 0-59999 to train and 60000-60319 to test",
        )


def content_hash(path: Path, *, kind: str = "") -> str:
    """Return the sha256 of a data file, or of COCO's annotation files where `path` is a folder, in hex.

    `kind`: `clips`, one of PART_FILES, or `video_files` and the format behind a space, for the hash of those folders.

    Raises:
        DataError: the file is missing or cannot be read; the folder is not COCO's, or not one of that kind.
    """
    if kind == "clips":
        return clips_content_hash(path)
    if kind.startswith("video_files"):
        from jobs.data.video_files import videos_content_hash  # loads image and video libraries

        return videos_content_hash(VideoFilesSpec.model_validate({"path": str(path), "format": kind.partition(" ")[2]}))
    if kind in PART_FILES:
        from jobs.data.parts import parts_content_hash  # as above

        return parts_content_hash(kind, path)
    if path.is_dir():
        return coco_content_hash(path)
    _open_file(path).close()
    return file_sha256(path)


def dump_tfrecord(spec: SpriteGeneratorSpec, path: Path, *, count: int, first: int = 0) -> int:
    """Write generated records to a GZIP TFRecord file of the original's schema; returns its size in bytes.

    Written beside its place and renamed: `path` is whole or not there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb") as file:
        write_records(file, _payloads(spec, first=first, count=count), level=FILE_LEVEL)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path.stat().st_size


def _payloads(spec: SpriteGeneratorSpec, *, first: int, count: int) -> Iterator[bytes]:
    for start in range(0, count, GENERATE_AT_ONCE):
        yield from map(encode, generate(spec, first=first + start, count=min(GENERATE_AT_ONCE, count - start)))


def _ends(first: int, count: int) -> str:
    return f"{first}-{first + count - 1}"


def _path(spec: MultiDSpritesSpec) -> Path:
    assert spec.path is not None  # the spec has either a path or a generator
    return Path(spec.path).expanduser()


def _open_file(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(
            "no such file",
            place=Place(file=str(path)),
            expected="the original GZIP TFRecord file of Multi-dSprites, colored_on_colored",
            hint=f"download it with `wget {ORIGINAL_URL}`, or use generated images with `data=mdsprites_generated`",
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", place=Place(file=str(path)), hint="data.path must be a readable file"
        ) from error
