"""The framing of GZIP TFRecord files: what is read back, and what is said of every kind of damage."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.data import inflate
from jobs.data.errors import DataError
from jobs.data.tfrecord import RecordReader, frame, masked_crc, read_records, write_records

Pack = Callable[[list[bytes]], bytes]
SMALL = [b"first", b"", b"third record", bytes(range(256)) * 40]


def read_all(content: bytes, *, skip: int = 0) -> list[bytes]:
    return list(read_records(io.BytesIO(content), name="some.tfrecords", skip=skip))


def damage(payloads: list[bytes], *, at: int, mask: int = 0x10) -> bytes:
    """Return a file whose uncompressed byte `at` is changed, with a valid gzip layer around."""
    raw = bytearray(b"".join(map(frame, payloads)))
    raw[at] ^= mask
    return gzip.compress(bytes(raw))


def test_that_the_checksum_is_that_of_tensorflow() -> None:
    # RFC 3720 B.4: CRC32C of 32 zero bytes is 0x8a9136aa; masked as in TensorFlow's core/lib/hash/crc32c.h.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_that_a_record_is_length_payload_and_two_checksums() -> None:
    head = struct.pack("<Q", 1)
    assert frame(b"x") == head + struct.pack("<I", masked_crc(head)) + b"x" + struct.pack("<I", masked_crc(b"x"))


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_that_records_come_back_at_every_compression_level(level: int) -> None:
    stream = io.BytesIO()
    assert write_records(stream, SMALL, level=level) == len(SMALL)
    assert read_all(stream.getvalue()) == SMALL


def test_that_the_same_records_give_the_same_file(pack: Pack) -> None:
    assert pack(SMALL) == pack(SMALL)
    assert pack(SMALL)[4:8] == bytes(4)  # no time stamp


@pytest.mark.parametrize("skip", range(5))
def test_that_skipping_arrives_at_the_record_asked_for(pack: Pack, skip: int) -> None:
    assert read_all(pack(SMALL), skip=skip) == SMALL[skip:]


def test_that_skipping_does_not_look_at_payloads() -> None:
    content = damage(SMALL, at=12)
    assert read_all(content, skip=1) == SMALL[1:]
    with pytest.raises(DataError, match="payload: wrong checksum"):
        read_all(content)


def test_that_several_gzip_members_and_zero_padding_are_one_file(pack: Pack) -> None:
    assert read_all(pack(SMALL[:2]) + pack(SMALL[2:]) + bytes(600)) == SMALL


def test_that_records_larger_than_a_block_come_back(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "BLOCK_BYTES", 100)
    monkeypatch.setattr(inflate, "READ_BYTES", 7)
    assert read_all(pack(SMALL)) == SMALL
    assert read_all(pack(SMALL), skip=3) == SMALL[3:]


def test_that_a_flipped_payload_bit_is_told_with_record_and_offset() -> None:
    second = len(frame(SMALL[0])) + len(frame(SMALL[1]))
    with pytest.raises(DataError) as caught:
        read_all(damage(SMALL, at=second + 12))
    assert str(caught.value).startswith(f"some.tfrecords: record 2 at byte {second} (uncompressed): payload: wrong checksum")
    assert "masked CRC32C 0x" in caught.value.expected
    assert "hint: " in str(caught.value)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (0, "length: wrong checksum"),
        (7, "length: wrong checksum"),
        (8, "length: wrong checksum"),
        (12, "payload: wrong checksum"),
        (12 + len(SMALL[0]), "payload: wrong checksum"),
    ],
)
def test_that_each_part_of_a_record_is_protected(at: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_all(damage(SMALL, at=at))
    assert caught.value.place.record == 0


def test_that_a_flipped_length_is_noticed_while_skipping() -> None:
    with pytest.raises(DataError, match="length: wrong checksum"):
        read_all(damage(SMALL, at=1), skip=2)


@pytest.mark.parametrize(
    ("keep", "part", "found"),
    [(3, "length and its checksum", 3), (12, "payload and its checksum", 0), (15, "payload and its checksum", 3)],
)
def test_that_a_stream_cut_inside_a_record_says_what_is_missing(keep: int, part: str, found: int) -> None:
    first = frame(SMALL[0])
    content = gzip.compress(first + frame(SMALL[2])[:keep])
    for skip in (0, 2):
        with pytest.raises(DataError, match=f"{part}: truncated") as caught:
            read_all(content, skip=skip)
        assert (caught.value.place.record, caught.value.place.offset) == (1, len(first))
        assert f"found {found}" in caught.value.expected


def test_that_every_truncation_of_the_compressed_file_is_noticed(pack: Pack) -> None:
    content = pack(SMALL)
    for length in range(len(content)):
        with pytest.raises(DataError):
            read_all(content[:length])


def test_that_a_truncated_download_is_called_that(pack: Pack) -> None:
    with pytest.raises(DataError, match=r"the gzip stream is truncated after .* uncompressed bytes") as caught:
        read_all(pack(SMALL)[:-3])
    assert "interrupted download" in caught.value.hint


def test_that_an_empty_file_is_called_empty() -> None:
    with pytest.raises(DataError, match=r"some.tfrecords: the file is empty"):
        read_all(b"")


def test_that_an_unpacked_file_is_told_to_stay_packed() -> None:
    with pytest.raises(DataError, match="not a gzip stream") as caught:
        read_all(frame(b"payload"))
    assert "do not unpack" in caught.value.hint


def test_that_what_follows_the_stream_is_not_ignored(pack: Pack) -> None:
    with pytest.raises(DataError, match="something else follows"):
        read_all(pack(SMALL) + b"trailing")


def test_that_a_wrong_gzip_checksum_is_noticed(pack: Pack) -> None:
    content = bytearray(pack(SMALL))
    content[-6] ^= 1
    with pytest.raises(DataError, match="the gzip stream is damaged"):
        read_all(bytes(content))


def test_that_too_few_records_to_skip_is_an_error_of_its_own(pack: Pack) -> None:
    with pytest.raises(DataError, match="the file ends after 4 records") as caught:
        read_all(pack(SMALL), skip=5)
    assert caught.value.expected == "at least 5 records"


def test_that_an_absurd_length_is_not_read_into_memory() -> None:
    head = struct.pack("<Q", 2**62)
    with pytest.raises(DataError, match=f"says that it is {2**62} bytes long"):
        read_all(gzip.compress(head + struct.pack("<I", masked_crc(head))))


def test_that_a_reader_knows_where_it_stands(pack: Pack) -> None:
    reader = RecordReader(io.BytesIO(pack(SMALL)), name="f")
    assert str(reader.place) == "f: record 0 at byte 0 (uncompressed)"
    reader.read()
    reader.skip()
    assert (reader.place.record, reader.place.offset) == (2, len(frame(SMALL[0])) + len(frame(SMALL[1])))


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(0, 9))
def test_that_any_records_come_back(payloads: list[bytes], level: int) -> None:
    stream = io.BytesIO()
    write_records(stream, payloads, level=level)
    assert read_all(stream.getvalue()) == payloads


@given(st.binary(max_size=400))
@example(b"\x1f")
@example(b"\x1f\x8b")
@example(gzip.compress(b""))
def test_that_arbitrary_bytes_are_read_or_refused(content: bytes) -> None:
    for stream in (content, b"\x1f\x8b\x08" + content, gzip.compress(content), gzip.compress(frame(content) + content)):
        for skip in (0, 1):
            with contextlib.suppress(DataError):
                read_all(stream, skip=skip)


@settings(max_examples=200)
@given(st.data())
def test_that_damage_never_changes_a_record_silently(data: st.DataObject) -> None:
    stream = io.BytesIO()
    write_records(stream, SMALL, level=6)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read_all(bytes(content))
    except DataError:
        return
    assert found == SMALL
