"""Reads a gzip stream forwards in bounded memory and turns every kind of damage into a DataError.

The standard `gzip` module of Python 3.11 reads 8 KiB at a time; records here are 98 kB and a file inflates to gigabytes.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO

from jobs.data.errors import DataError, Place

READ_BYTES = 1 << 18
"""Compressed bytes asked of the file at a time."""
BLOCK_BYTES = 1 << 22
"""Most uncompressed bytes held at a time."""
GZIP_MAGIC = b"\x1f\x8b"
TRUNCATED_HINT = "the file was cut short, most likely by an interrupted download: compare its size and fetch it again"


class GzipReader:
    """Sequential access to the content of a gzip stream of one or more members; zlib verifies its checksums."""

    def __init__(self, stream: BinaryIO, *, name: str) -> None:
        self._stream = stream
        self._place = Place(file=name)
        self._engine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._in_member = False
        self._members = 0
        self._compressed = b""
        self._block = b""
        self._at = 0
        self.offset = 0
        """Uncompressed bytes handed out or skipped so far."""

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end of the stream.

        Raises:
            DataError: not gzip, truncated, or damaged.
        """
        end = self._at + size
        if end <= len(self._block):
            piece = self._block[self._at : end]
            self._at = end
            self.offset += size
            return piece
        pieces = []
        wanted = size
        while wanted > 0 and (self._at < len(self._block) or self._refill()):
            piece = self._block[self._at : self._at + wanted]
            pieces.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        self.offset += size - wanted
        return b"".join(pieces)

    def skip(self, size: int) -> int:
        """Pass over `size` bytes without copying them; returns how many there were. Raises as `read`."""
        wanted = size
        while wanted > 0 and (self._at < len(self._block) or self._refill()):
            step = min(wanted, len(self._block) - self._at)
            self._at += step
            wanted -= step
        self.offset += size - wanted
        return size - wanted

    def _refill(self) -> bool:
        """Inflate the next block; False at a proper end of the stream."""
        self._block, self._at = b"", 0
        while not self._block:
            if not self._in_member and not self._open_member():
                return False
            source = self._compressed or self._stream.read(READ_BYTES)
            try:
                self._block = self._engine.decompress(source, BLOCK_BYTES)
            except zlib.error as error:
                raise DataError(
                    f"the gzip stream is damaged after {self.offset} uncompressed bytes ({error})",
                    place=self._place,
                    hint="`gzip -t FILE` tells the same; fetch the file again",
                ) from error
            if self._engine.eof:
                self._in_member = False
                self._compressed = self._engine.unused_data
            else:
                self._compressed = self._engine.unconsumed_tail
                if not source and not self._block:
                    raise DataError(
                        f"the gzip stream is truncated after {self.offset} uncompressed bytes",
                        place=self._place,
                        expected="an end-of-stream mark with a checksum",
                        hint=TRUNCATED_HINT,
                    )
        return True

    def _open_member(self) -> bool:
        """Stand at the head of the next gzip member; False when only zero padding is left."""
        head = self._compressed
        while True:
            if self._members:
                head = head.lstrip(b"\0")
            more = b"" if len(head) >= len(GZIP_MAGIC) else self._stream.read(READ_BYTES)
            head += more
            if not more:
                break
        if not head and self._members:
            return False
        if not head.startswith(GZIP_MAGIC):
            what = "the file is empty" if not head else "not a gzip stream"
            if self._members:
                what = f"{what}: something else follows after {self.offset} uncompressed bytes"
            raise DataError(
                what,
                place=self._place,
                expected=f"a GZIP-compressed TFRecord file, first bytes {GZIP_MAGIC.hex(' ')}"
                + (f"; found {head[:8].hex(' ')}" if head else ""),
                hint="do not unpack the download: the original file is compressed although its name ends in .tfrecords",
            )
        self._compressed = head
        self._engine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._in_member = True
        self._members += 1
        return True
