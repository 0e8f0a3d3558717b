"""The record schema: real layout of tf.Example, any order of features, clear refusals."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.errors import DataError, Place
from jobs.data.example import ListKind, floats, one_byte_strings, parse_example, serialise_example
from jobs.data.multi_dsprites import FACTORS, Record, RecordShape, decode, encode, label_map
from jobs.data.sprites import generate
from jobs.data.tfrecord import read_records, write_records
from jobs.data_spec import SpriteGeneratorSpec

PLACE = Place(file="some.tfrecords", record=7, offset=690000)
TINY = RecordShape(resolution=8, entities=3)


def tiny_record() -> Record:
    return generate(SpriteGeneratorSpec(seed=1, resolution=8, max_sprites=2), first=5, count=1)[0]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def entries(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Take an Example apart into (name, Feature bytes), by a reading of the wire format that is not the code's own."""
    stream = io.BytesIO(payload)

    def number() -> int:
        value = shift = 0
        while True:
            (byte,) = stream.read(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    assert number() == 0x0A
    end = number() + stream.tell()
    while stream.tell() < end:
        assert number() == 0x0A
        number()
        assert number() == 0x0A
        name = stream.read(number()).decode()
        assert number() == 0x12
        yield name, stream.read(number())


def build(features: dict[str, bytes]) -> bytes:
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, body)) for name, body in features.items()))


def same(one: Record, other: Record) -> bool:
    return (
        np.array_equal(one.image_HW3, other.image_HW3)
        and np.array_equal(one.masks_EHW, other.masks_EHW)
        and np.array_equal(one.factors_E9, other.factors_E9)
    )


def test_that_records_survive_encoding(records: list[Record], shape: RecordShape) -> None:
    for record in records:
        assert same(decode(encode(record), shape=shape, place=PLACE), record)


def test_that_a_payload_has_the_size_of_the_original(payloads: list[bytes]) -> None:
    lists = 3 * (64 * 64 * 3 + 64 * 64 * 5)
    assert lists == 36_864 + 61_440  # 98.3 kB
    assert {len(payload) for payload in payloads} == {98_633}
    assert lists < 98_633 < 98_750


def test_that_images_are_lists_of_one_byte_strings() -> None:
    record = tiny_record()
    features = dict(entries(encode(record)))
    assert sorted(features) == ["color", "image", "mask", "orientation", "scale", "shape", "visibility", "x", "y"]
    elements = b"".join(bytes([0x0A, 1, value]) for value in record.image_HW3.reshape(-1))
    assert features["image"] == field(1, elements)
    masks_HWE = record.masks_EHW.transpose(1, 2, 0)
    assert features["mask"] == field(1, b"".join(bytes([0x0A, 1, value]) for value in masks_HWE.reshape(-1)))
    assert features["x"] == field(2, field(1, record.factors_E9[:, 0].astype("<f4").tobytes()))


def test_that_the_order_of_features_does_not_matter() -> None:
    record = tiny_record()
    names = list(entries(encode(record)))
    for seed in range(5):
        random.Random(seed).shuffle(names)
        assert same(decode(build(dict(names)), shape=TINY, place=PLACE), record)


def test_that_float_lists_may_be_unpacked() -> None:
    record = tiny_record()
    features = dict(entries(encode(record)))
    for column, name in enumerate(("x", "y")):
        values = record.factors_E9[:, column].astype("<f4")
        features[name] = field(2, b"".join(b"\x0d" + value.tobytes() for value in values))
    assert same(decode(build(features), shape=TINY, place=PLACE), record)


def test_that_unknown_fields_and_features_are_passed_over() -> None:
    record = tiny_record()
    features = {"extra": field(3, field(1, b"\x05")), "none": b""} | dict(entries(encode(record)))
    payload = b"\x10\x05" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + build(features)
    assert same(decode(payload, shape=TINY, place=PLACE), record)


@pytest.mark.parametrize("name", ["image", "mask", "color", "visibility"])
def test_that_a_missing_feature_is_named(name: str) -> None:
    features = dict(entries(encode(tiny_record())))
    del features[name]
    with pytest.raises(DataError, match=f"record 7 at byte 690000 .*: no feature `{name}`") as caught:
        decode(build(features), shape=TINY, place=PLACE)
    assert "Multi-dSprites" in caught.value.hint


def test_that_another_number_of_entities_is_told(payloads: list[bytes]) -> None:
    with pytest.raises(DataError, match="feature `mask` has a list of 61440 bytes") as caught:
        decode(payloads[0], shape=RecordShape(resolution=64, entities=6), place=PLACE)
    assert "24576 one-byte strings" in caught.value.expected
    assert "another variant" in caught.value.hint


def test_that_another_resolution_is_told(payloads: list[bytes]) -> None:
    with pytest.raises(DataError, match="feature `image` has a list of 36864 bytes"):
        decode(payloads[0], shape=RecordShape(resolution=32, entities=5), place=PLACE)


def replace(name: str, body: bytes) -> bytes:
    return build(dict(entries(encode(tiny_record()))) | {name: body})


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("image", field(2, b""), "feature `image` is a list of floats"),
        ("x", field(1, b""), "feature `x` is a list of bytes"),
        ("x", field(2, field(1, bytes(8))), "feature `x` has 2 values"),
        ("color", field(2, field(1, bytes(33))), "feature `color` has 8.25 values"),
        ("image", field(1, bytes([0x0A, 2, 5]) * 192), "feature `image` holds strings that are not one byte long"),
        ("image", field(1, field(1, bytes(192))), "feature `image` has a list of 195 bytes"),
        ("mask", field(1, bytes([0x0A, 1, 7]) * 192), "the mask of entity 0 has other values than 0 and 255"),
        ("mask", field(1, bytes([0x0A, 1, 255]) * 192), "64 pixels belong to no entity or to several"),
        ("mask", field(1, bytes([0x0A, 1, 0]) * 192), "64 pixels belong to no entity or to several"),
        ("scale", field(2, b"\x0a\x20\x00"), "feature `scale` is not a float list"),
    ],
)
def test_that_a_wrong_feature_is_refused(name: str, body: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"record 7 .*{message}"):
        decode(replace(name, body), shape=TINY, place=PLACE)


@pytest.mark.parametrize(
    "payload", [b"\x0a", b"\x0a\x05abc", b"\xff" * 11, b"\x0b", b"\x09\x00", b"\x0a\xff\xff\xff\xff\xff\x01"]
)
def test_that_what_is_no_example_is_refused(payload: bytes) -> None:
    with pytest.raises(DataError, match=r"not a tf.Example message"):
        decode(payload, shape=TINY, place=PLACE)


def test_that_labels_number_the_entities(records: list[Record]) -> None:
    for record in records:
        labels_HW = label_map(record)
        for entity in range(5):
            assert np.array_equal(labels_HW == entity, record.masks_EHW[entity] == 255)


def test_that_features_come_back_one_by_one() -> None:
    payload = serialise_example({"a": np.arange(4, dtype=np.uint8), "b": np.array([1.5, -2], np.float32)})
    features = parse_example(payload, place=PLACE)
    assert features["a"].kind is ListKind.BYTES
    assert one_byte_strings(features["a"], name="a", count=4, place=PLACE).tolist() == [0, 1, 2, 3]
    assert floats(features["b"], name="b", count=2, place=PLACE).tolist() == [1.5, -2.0]


@given(st.binary(max_size=200))
def test_that_arbitrary_bytes_are_decoded_or_refused(payload: bytes) -> None:
    for content in (payload, field(1, payload), build({"image": payload, "x": field(2, payload)})):
        with pytest.raises(DataError):
            decode(content, shape=TINY, place=PLACE)


@settings(max_examples=300)
@given(st.data())
def test_that_a_damaged_payload_is_decoded_or_refused(data: st.DataObject) -> None:
    payload = bytearray(encode(tiny_record()))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    keep = data.draw(st.integers(0, len(payload)) | st.just(len(payload)))
    try:
        record = decode(bytes(payload[:keep]), shape=TINY, place=PLACE)
    except DataError:
        return
    assert record.image_HW3.shape == (8, 8, 3)
    assert record.factors_E9.shape == (3, len(FACTORS))


def test_that_a_whole_file_is_read_as_written(records: list[Record], shape: RecordShape) -> None:
    stream = io.BytesIO()
    write_records(stream, map(encode, itertools.islice(records, 5)), level=1)
    stream.seek(0)
    for record, payload in zip(records, read_records(stream, name="f"), strict=False):
        assert same(decode(payload, shape=shape, place=PLACE), record)
