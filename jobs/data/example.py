"""The protobuf message tf.Example, both ways, as far as image data sets need it: a map from names to lists.

    Example { Features features = 1 }        Features { map<string, Feature> feature = 1 }
    Feature { oneof { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3 } }
    BytesList { repeated bytes value = 1 }   FloatList { repeated float value = 1 [packed] }

(tensorflow/core/example/feature.proto.) The order of a map's entries is not fixed, and a float list may come packed or
not. A list of one-byte strings takes 3 bytes per element, `0A 01 value`, and is read and written as a whole.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.data.errors import DataError, Place

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

ELEMENT_TAG = 0x0A
"""Field 1, length-delimited: the tag before every element of a bytes list."""
ELEMENT_STRIDE = 3


class WireType(enum.IntEnum):
    """How a protobuf field's value is laid out."""

    VARINT = 0
    FIXED64 = 1
    DELIMITED = 2
    FIXED32 = 5


class ListKind(enum.IntEnum):
    """Which of a Feature's lists is set: its field number."""

    BYTES = 1
    FLOATS = 2
    INT64S = 3


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One entry of the map, its list not decoded yet."""

    kind: ListKind
    content: memoryview


class _MalformedError(ValueError):
    """The bytes are not a protobuf message."""


def parse_example(payload: bytes, *, place: Place) -> Mapping[str, Feature]:
    """Return the features of a serialised tf.Example; unknown fields are ignored, of equal names the last counts.

    Raises:
        DataError: not a protobuf message of that layout.
    """
    features: dict[str, Feature] = {}
    try:
        for number, _, message in _fields(memoryview(payload)):
            if number != 1:
                continue
            for inner, wire, entry in _fields(message):
                if inner == 1 and wire is WireType.DELIMITED:
                    name, feature = _entry(entry)
                    if feature is not None:
                        features[name] = feature
    except _MalformedError as error:
        raise DataError(
            f"not a tf.Example message ({error})",
            place=place,
            expected="the records of a multi_object_datasets TFRecord file",
            hint="is this the file of another data set?",
        ) from error
    return features


def one_byte_strings(feature: Feature, *, name: str, count: int, place: Place) -> UInt8:
    """Decode a bytes list of `count` one-byte strings to uint8 [count] (a view on the payload, stride 3).

    Raises:
        DataError: another kind of list, another count, or elements that are not one byte long.
    """
    _check_kind(feature, name=name, kind=ListKind.BYTES, place=place)
    raw = np.frombuffer(feature.content, dtype=np.uint8)
    if raw.size != ELEMENT_STRIDE * count:
        raise DataError(
            f"feature `{name}` has a list of {raw.size} bytes",
            place=place,
            expected=f"{count} one-byte strings ({ELEMENT_STRIDE * count} bytes)",
            hint="is this another variant of the data set (another number of entities) or another resolution?",
        )
    elements = raw.reshape(count, ELEMENT_STRIDE)
    if not ((elements[:, 0] == ELEMENT_TAG).all() and (elements[:, 1] == 1).all()):
        raise DataError(f"feature `{name}` holds strings that are not one byte long", place=place, expected="one byte each")
    return elements[:, 2]


def byte_strings(feature: Feature, *, name: str, place: Place) -> list[bytes]:
    """Decode a bytes list, its elements of any length.

    Raises:
        DataError: another kind of list.
    """
    _check_kind(feature, name=name, kind=ListKind.BYTES, place=place)
    try:
        return [bytes(value) for number, wire, value in _fields(feature.content) if number == 1 and wire is WireType.DELIMITED]
    except _MalformedError as error:
        raise DataError(f"feature `{name}` is not a bytes list ({error})", place=place) from error


def floats(feature: Feature, *, name: str, count: int, place: Place) -> Float32:
    """Decode a float list, packed or not, to float32 [count].

    Raises:
        DataError: another kind of list, or another count.
    """
    _check_kind(feature, name=name, kind=ListKind.FLOATS, place=place)
    try:
        pieces = [
            bytes(value)
            for number, wire, value in _fields(feature.content)
            if number == 1 and wire in (WireType.DELIMITED, WireType.FIXED32)
        ]
    except _MalformedError as error:
        raise DataError(f"feature `{name}` is not a float list ({error})", place=place) from error
    raw = b"".join(pieces)
    if len(raw) != 4 * count:
        raise DataError(f"feature `{name}` has {len(raw) / 4:g} values", place=place, expected=f"{count} values")
    return np.frombuffer(raw, dtype="<f4").astype(np.float32)


def serialise_example(features: Mapping[str, UInt8 | Float32]) -> bytes:
    """Serialise a tf.Example: a uint8 array becomes a list of one-byte strings, a float32 array a packed float list.

    The entries are written in the mapping's order.
    """
    entries = []
    for name, values in features.items():
        if values.dtype == np.uint8:
            list_field = _delimited(ListKind.BYTES, _one_byte_list(values.astype(np.uint8, copy=False)))
        else:
            list_field = _delimited(ListKind.FLOATS, _delimited(1, values.astype("<f4").tobytes()))
        entries.append(_delimited(1, _delimited(1, name.encode()) + _delimited(2, list_field)))
    return _delimited(1, b"".join(entries))


def _one_byte_list(values: UInt8) -> bytes:
    elements = np.empty((values.size, ELEMENT_STRIDE), np.uint8)
    elements[:, 0] = ELEMENT_TAG
    elements[:, 1] = 1
    elements[:, 2] = values.reshape(-1)
    return elements.tobytes()


def _delimited(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | WireType.DELIMITED]) + _write_varint(len(content)) + content


def _write_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _check_kind(feature: Feature, *, name: str, kind: ListKind, place: Place) -> None:
    if feature.kind is not kind:
        raise DataError(
            f"feature `{name}` is a list of {feature.kind.name.lower()}", place=place, expected=f"a list of {kind.name.lower()}"
        )


def _entry(message: memoryview) -> tuple[str, Feature | None]:
    """Decode one map entry; a feature without any list is None."""
    name, feature = "", None
    for number, wire, value in _fields(message):
        if wire is not WireType.DELIMITED:
            continue
        if number == 1:
            name = bytes(value).decode("utf-8", errors="replace")
        elif number == 2:
            for inner, inner_wire, content in _fields(value):
                if inner_wire is WireType.DELIMITED and inner in (1, 2, 3):
                    feature = Feature(kind=ListKind(inner), content=content)
    return name, feature


def _fields(message: memoryview) -> Iterator[tuple[int, WireType, memoryview]]:
    """Walk over the fields of one message; a varint's value comes as its bytes."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        try:
            wire = WireType(tag & 7)
        except ValueError:
            raise _MalformedError(f"wire type {tag & 7} at byte {at}") from None
        start = at
        match wire:
            case WireType.VARINT:
                _, at = _read_varint(message, at)
            case WireType.FIXED64:
                at += 8
            case WireType.FIXED32:
                at += 4
            case WireType.DELIMITED:
                length, start = _read_varint(message, at)
                at = start + length
        if at > len(message):
            raise _MalformedError(f"a field ends {at - len(message)} bytes after its message")
        yield tag >> 3, wire, message[start:at]


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _MalformedError("a number is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _MalformedError("a number is longer than 10 bytes")
