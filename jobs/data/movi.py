"""Owns MOVi's TFRecord shards as videos by number (Greff et al. 2022, Kubric); reads `video` and `segmentations`, nothing else.

FOLDER/movi_a-train.tfrecord-00000-of-00512 ...         the training videos
FOLDER/movi_a-validation.tfrecord-00000-of-00064 ...    the test split; any variant, any number of shards, all of them there

Published: the features' names and shapes (`video` uint8 [24, h, w, 3], `segmentations` uint8 [24, h, w, 1], ids constant over
a video, 0 background) in the data set's own definition. Assumed, from how TensorFlow Datasets stores such features and from
public readers of these shards: records are framed as in jobs.data.tfrecord but not compressed, each is one tf.Example, and both
features are lists of one PNG per frame. No original shard was read.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.data.errors import DataError, Place
from jobs.data.example import Feature, byte_strings, parse_example
from jobs.data.inflate import TRUNCATED_HINT
from jobs.data.store import SplitName
from jobs.data.tfrecord import CORRUPT_HINT, CRC, HEAD_BYTES, LENGTH, masked_crc
from jobs.data.video import Int64, VideoBatch, check_numbers
from jobs.data.video_media import fitted, too_few
from jobs.data_spec import VideoFilesSpec

UInt8 = npt.NDArray[np.uint8]

SPLIT_NAMES: Mapping[SplitName, str] = {"train": "train", "test": "validation"}
SHARD = re.compile(r"(?P<name>.+)-(?P<split>[a-z]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
IMAGES, MASKS = "video", "segmentations"
LAYOUT = "movi_a-train.tfrecord-00000-of-00512, movi_a-validation.tfrecord-... and so on, all shards of one variant"
LAYOUT_HINT = "`path` must be the folder of one variant and size, for example movi_a/128x128/1.0.0 (see jobs/data/README.md)"


@dataclass(frozen=True, kw_only=True)
class _Record:
    shard: Path
    number: int
    """In its shard, counted from 0."""
    offset: int
    """Bytes before the payload."""
    length: int

    @property
    def place(self) -> Place:
        return Place(file=str(self.shard), record=self.number, offset=self.offset - HEAD_BYTES)


@dataclass(frozen=True, kw_only=True)
class MoviVideos:
    """The videos of one split; see jobs.data.video.Videos."""

    spec: VideoFilesSpec
    records: tuple[_Record, ...]

    @property
    def count(self) -> int:
        """Records of all shards, or as many as the specification takes."""
        return len(self.records)

    @property
    def video_frames(self) -> int:
        """As the specification says; MOVi's videos have 24."""
        return self.spec.video_frames

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        return self.spec.resolution

    @property
    def num_labels(self) -> int:
        """As the specification says, background included."""
        return self.spec.max_objects + 1

    @property
    def has_labels(self) -> bool:
        """Always."""
        return True

    def read(self, videos_B: Int64, frames_BT: Int64) -> VideoBatch:
        """Read frames: one record per row as a whole, of which the wanted frames are decoded.

        Raises:
            IndexError: a number out of range.
            DataError: a record that is damaged, of another form, or too short.
        """
        check_numbers(videos_B, frames_BT, count=self.count, video_frames=self.video_frames)
        side = self.resolution
        images_BTSS3 = np.empty((*frames_BT.shape, side, side, 3), np.uint8)
        labels_BTSS = np.empty((*frames_BT.shape, side, side), np.uint8)
        for row, (video, wanted) in enumerate(zip(videos_B.tolist(), frames_BT.tolist(), strict=True)):
            record = self.records[video]
            features = parse_example(_payload(record), place=record.place)
            images, masks = (self._pixels(features, name, wanted, record.place) for name in (IMAGES, MASKS))
            images_BTSS3[row], labels_TSS = fitted(
                images, masks, side=side, max_objects=self.spec.max_objects, place=record.place
            )
            if labels_TSS is not None:
                labels_BTSS[row] = labels_TSS
        return VideoBatch(images_BTSS3=images_BTSS3, labels_BTSS=labels_BTSS)

    def _pixels(self, features: Mapping[str, Feature], name: str, wanted: list[int], place: Place) -> list[UInt8]:
        if name not in features:
            raise DataError(f"no feature `{name}`", place=place, expected=f"`{IMAGES}` and `{MASKS}`", hint=LAYOUT_HINT)
        coded = byte_strings(features[name], name=name, place=place)
        if len(coded) < self.video_frames:
            raise too_few(place, found=len(coded), video_frames=self.video_frames)
        return [_decoded(coded[frame], "RGB" if name == IMAGES else "L", name=name, place=place) for frame in wanted]


def open_movi(spec: VideoFilesSpec, split: SplitName) -> MoviVideos:
    """Read where every record of a split lies: 12 bytes of each.

    Raises:
        DataError: no shards, a missing one, or one that is no uncompressed TFRecord file.
    """
    records = [record for shard in movi_shards(Path(spec.path).expanduser(), split) for record in _records(shard)]
    return MoviVideos(spec=spec, records=tuple(records)[: spec.max_videos])


def movi_shards(folder: Path, split: SplitName) -> tuple[Path, ...]:
    """The shards of a split by number; raises DataError when there are none, not all, or those of two variants."""
    place = Place(file=str(folder))
    if not folder.is_dir():
        raise DataError("no such folder", place=place, expected=LAYOUT, hint=LAYOUT_HINT)
    found: dict[int, Path] = {}
    series = set()
    for path in sorted(folder.iterdir()):
        parts = SHARD.fullmatch(path.name)
        if parts is not None and parts["split"] == SPLIT_NAMES[split]:
            found[int(parts["number"])] = path
            series.add((parts["name"], int(parts["count"])))
    if not series:
        raise DataError(f"no shards of the split `{SPLIT_NAMES[split]}`", place=place, expected=LAYOUT, hint=LAYOUT_HINT)
    if len(series) > 1:
        raise DataError(f"shards of different series: {sorted(series)}", place=place, expected=LAYOUT, hint=LAYOUT_HINT)
    ((_, count),) = series
    if missing := [number for number in range(count) if number not in found]:
        raise DataError(
            f"{len(missing)} of {count} shards of the split `{SPLIT_NAMES[split]}` are missing, first number {missing[0]:05d}",
            place=place,
            hint="copy the missing ones",
        )
    return tuple(found[number] for number in range(count))


def _records(shard: Path) -> list[_Record]:
    made: list[_Record] = []
    size = shard.stat().st_size
    with shard.open("rb") as stream:
        at = 0
        while at < size:
            record = _Record(shard=shard, number=len(made), offset=at + HEAD_BYTES, length=_length(stream, shard, len(made), at))
            at = record.offset + record.length + CRC.size
            if at > size:
                raise DataError("payload: truncated", place=record.place, hint=TRUNCATED_HINT)
            stream.seek(at)
            made.append(record)
    return made


def _length(stream: BinaryIO, shard: Path, number: int, at: int) -> int:
    head = stream.read(HEAD_BYTES)
    place = Place(file=str(shard), record=number, offset=at)
    if len(head) < HEAD_BYTES:
        raise DataError("length and its checksum: truncated", place=place, hint=TRUNCATED_HINT)
    (stored,) = CRC.unpack_from(head, LENGTH.size)
    if stored != masked_crc(head[: LENGTH.size]):
        raise DataError("length: wrong checksum", place=place, expected="an uncompressed TFRecord file", hint=CORRUPT_HINT)
    (length,) = LENGTH.unpack_from(head)
    return int(length)


def _payload(record: _Record) -> bytes:
    try:
        with record.shard.open("rb") as stream:
            body = os.pread(stream.fileno(), record.length + CRC.size, record.offset)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", place=record.place) from error
    payload = body[: record.length]
    if len(body) < record.length + CRC.size or CRC.unpack_from(body, record.length)[0] != masked_crc(payload):
        raise DataError("payload: wrong checksum", place=record.place, hint=CORRUPT_HINT)
    return payload


def _decoded(coded: bytes, mode: Literal["RGB", "L"], *, name: str, place: Place) -> UInt8:
    try:
        with Image.open(io.BytesIO(coded)) as image:
            if image.mode != mode:
                raise DataError(f"a frame of `{name}` has pixels of mode {image.mode}", place=place, expected=mode)
            pixels: UInt8 = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"a frame of `{name}` is no image ({error})", place=place, hint=CORRUPT_HINT) from error
    return pixels
