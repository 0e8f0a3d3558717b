"""GZIP TFRecord files: the framing of records, both ways; what is inside a record is none of its business.

A record is `uint64 length, uint32 masked CRC32C of the length, payload, uint32 masked CRC32C of the payload`, little
endian, and the whole stream is gzipped (TensorFlow core/lib/io/record_writer.h).
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import google_crc32c

from jobs.data.errors import DataError, Place
from jobs.data.inflate import TRUNCATED_HINT, GzipReader

LENGTH = struct.Struct("<Q")
CRC = struct.Struct("<I")
HEAD_BYTES = LENGTH.size + CRC.size
MAX_RECORD_BYTES = 1 << 28
"""A longer record is taken for damage rather than read into memory."""
CORRUPT_HINT = "the file is damaged; fetch it again (or restore it) and compare its sha256"


def masked_crc(data: bytes) -> int:
    """CRC32C of `data`, rotated and offset as TFRecord stores it."""
    crc = int(google_crc32c.value(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class RecordReader:
    """Walks over the records of a GZIP TFRecord stream, reading or skipping them."""

    def __init__(self, stream: BinaryIO, *, name: str) -> None:
        self._gzip = GzipReader(stream, name=name)
        self._name = name
        self.position = 0
        """Number of the record that comes next."""

    @property
    def place(self) -> Place:
        """Where the next record starts."""
        return Place(file=self._name, record=self.position, offset=self._gzip.offset)

    def read(self) -> bytes | None:
        """Return the next payload, both checksums verified, or None at the end of the file.

        Raises:
            DataError: truncated or corrupt; names the record and its byte offset.
        """
        place = self.place
        length = self._length(place)
        if length is None:
            return None
        body = self._gzip.read(length + CRC.size)
        if len(body) < length + CRC.size:
            raise _truncated(place, part="payload and its checksum", wanted=length + CRC.size, found=len(body))
        payload = body[:length]
        (stored,) = CRC.unpack_from(body, length)
        if stored != (computed := masked_crc(payload)):
            raise _bad_crc(place, part="payload", stored=stored, computed=computed)
        self.position += 1
        return payload

    def skip(self) -> bool:
        """Pass over one record without looking at its payload; False at the end of the file.

        Raises:
            DataError: truncated, or a length whose checksum is wrong.
        """
        place = self.place
        length = self._length(place)
        if length is None:
            return False
        found = self._gzip.skip(length + CRC.size)
        if found < length + CRC.size:
            raise _truncated(place, part="payload and its checksum", wanted=length + CRC.size, found=found)
        self.position += 1
        return True

    def _length(self, place: Place) -> int | None:
        head = self._gzip.read(HEAD_BYTES)
        if not head:
            return None
        if len(head) < HEAD_BYTES:
            raise _truncated(place, part="length and its checksum", wanted=HEAD_BYTES, found=len(head))
        (stored,) = CRC.unpack_from(head, LENGTH.size)
        if stored != (computed := masked_crc(head[: LENGTH.size])):
            raise _bad_crc(place, part="length", stored=stored, computed=computed)
        (length,) = LENGTH.unpack_from(head)
        if length > MAX_RECORD_BYTES:
            raise DataError(
                f"the record says that it is {length} bytes long",
                place=place,
                expected=f"at most {MAX_RECORD_BYTES} bytes",
                hint=CORRUPT_HINT,
            )
        return int(length)


def read_records(stream: BinaryIO, *, name: str, skip: int = 0) -> Iterator[bytes]:
    """Yield payloads from record number `skip` to the end of the file.

    Skipped records are inflated, but neither their checksums (the length's excepted) nor their content are looked at.

    Raises:
        DataError: truncated or corrupt, or fewer than `skip` records.
    """
    reader = RecordReader(stream, name=name)
    while reader.position < skip:
        if not reader.skip():
            raise too_few_records(reader.place, needed=skip)
    while (payload := reader.read()) is not None:
        yield payload


def too_few_records(place: Place, *, needed: int) -> DataError:
    """The error of a file that ends, properly, at `place`, before `needed` records."""
    return DataError(
        f"the file ends after {place.record} records",
        place=Place(file=place.file),
        expected=f"at least {needed} records",
        hint="ask for a smaller range (data.train, data.test), or use the whole file",
    )


def frame(payload: bytes) -> bytes:
    """Return one record's bytes, not yet compressed."""
    length = LENGTH.pack(len(payload))
    return b"".join((length, CRC.pack(masked_crc(length)), payload, CRC.pack(masked_crc(payload))))


def write_records(stream: BinaryIO, payloads: Iterable[bytes], *, level: int) -> int:
    """Write a GZIP TFRecord stream and return the number of records.

    Args:
        stream: receives one gzip member; neither flushed nor closed.
        payloads: one per record.
        level: gzip's compression level, 0 (stored) to 9. The member's time stamp is 0: same records, same bytes.
    """
    count = 0
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=level, mtime=0, filename="") as packed:
        for payload in payloads:
            packed.write(frame(payload))
            count += 1
    return count


def _truncated(place: Place, *, part: str, wanted: int, found: int) -> DataError:
    return DataError(f"{part}: truncated", place=place, expected=f"{wanted} bytes, found {found}", hint=TRUNCATED_HINT)


def _bad_crc(place: Place, *, part: str, stored: int, computed: int) -> DataError:
    return DataError(
        f"{part}: wrong checksum",
        place=place,
        expected=f"masked CRC32C 0x{stored:08x} as stored, computed 0x{computed:08x}",
        hint=CORRUPT_HINT,
    )
