"""Owns the check that a MAT-file (level 5) is whole, before scipy's reader, which damage can make crash the process.

Header of 128 bytes, then elements: a tag (type, bytes), data, padded to 8 bytes; or both in 8 bytes when the data have at most 4.
A compressed element (15) inflates to one element. An array (14) holds flags, dimensions, name, and what its class says.
(MathWorks, MAT-File Format, 2016.) Only what annotations are made of is let through: cells, structs, text, numbers.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

HEADER_BYTES = 128
COMPRESSED, ARRAY = 15, 14
CELL, STRUCT, TEXT = 1, 2, 4
NUMBERS = range(6, 16)
"""Classes: double, single, and the integers."""
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""By type of element that holds numbers."""
TEXT_UNITS = {1: 1, 2: 1, 4: 2}
"""By type of element that holds text in units of one width."""
ENCODINGS = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
COMPLEX = 0x0800
MOST_BYTES = 1 << 28
"""A longer element, inflated, is taken for damage."""
MAX_DEPTH = 20
MAX_DIMENSIONS = 8

Element = tuple[int, memoryview]
"""Type and data."""


class NotWholeError(ValueError):
    """The bytes are no such file."""


def check_mat(content: bytes) -> None:
    """Walk over all of a file; raises NotWholeError where a size, a type or a count is not what it must be."""
    if len(content) < HEADER_BYTES or content[126:128] not in (b"IM", b"MI"):
        raise NotWholeError("no MAT-file of level 5")
    order = "<" if content[126:128] == b"IM" else ">"
    for kind, data in _elements(memoryview(content)[HEADER_BYTES:], order):
        if kind == COMPRESSED:
            inner = list(_elements(memoryview(_inflated(data)), order))
            if len(inner) != 1:
                raise NotWholeError(f"a compressed element holds {len(inner)} elements")
            kind, data = inner[0]
        if kind != ARRAY:
            raise NotWholeError(f"an element of type {kind}")
        _check_array(data, order, depth=0)


def _inflated(data: memoryview) -> bytes:
    engine = zlib.decompressobj()
    try:
        content = engine.decompress(data, MOST_BYTES)
    except zlib.error as error:
        raise NotWholeError(str(error)) from error
    if not engine.eof:
        raise NotWholeError("a compressed element is cut off or too long")
    return content


def _elements(data: memoryview, order: str) -> Iterator[Element]:
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise NotWholeError("a tag is cut off")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise NotWholeError(f"a small element of {size} bytes")
            start, following = at + 4, at + 8
        else:
            start = at + 8
            following = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(data):
            raise NotWholeError(f"an element of {size} bytes ends behind what holds it")
        yield kind, data[start : start + size]
        at = following


def _check_array(data: memoryview, order: str, *, depth: int) -> None:
    if not data:
        return  # an empty one, without flags
    if depth > MAX_DEPTH:
        raise NotWholeError("arrays in arrays in arrays")
    parts = list(_elements(data, order))
    if [kind for kind, _ in parts[:3]] != [6, 5, 1] or len(parts[0][1]) != 8:
        raise NotWholeError("an array without flags, dimensions and name")
    (flags, _), sizes = struct.unpack(f"{order}II", parts[0][1]), parts[1][1]
    if len(sizes) % 4 or not 2 <= len(sizes) // 4 <= MAX_DIMENSIONS:
        raise NotWholeError(f"dimensions in {len(sizes)} bytes")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if min(shape) < 0:
        raise NotWholeError(f"dimensions {shape}")
    _check_content(flags, math.prod(shape), parts[3:], order, depth=depth)


def _check_content(flags: int, count: int, rest: list[Element], order: str, *, depth: int) -> None:
    kind = flags & 0xFF
    if kind == STRUCT:
        count *= _fields(rest[:2], order)
        rest = rest[2:]
    if kind in (CELL, STRUCT):
        if len(rest) != count or any(type_ != ARRAY for type_, _ in rest):
            raise NotWholeError(f"{len(rest)} elements where {count} arrays should be")
        for _, inner in rest:
            _check_array(inner, order, depth=depth + 1)
    elif kind == TEXT or kind in NUMBERS:
        if len(rest) != (2 if flags & COMPLEX else 1):
            raise NotWholeError(f"{len(rest)} parts of an array of class {kind}")
        for type_, data in rest:
            found = _text_length(type_, data, order) if kind == TEXT else len(data) / ITEM_BYTES.get(type_, math.inf)
            if found != count or type_ not in (TEXT_UNITS | ENCODINGS if kind == TEXT else ITEM_BYTES):
                raise NotWholeError(f"{len(data)} bytes of type {type_} where {count} values of class {kind} should be")
    else:
        raise NotWholeError(f"an array of class {kind}")


def _fields(parts: list[Element], order: str) -> int:
    """How many fields a struct has: the length of a name, and the names one behind the other."""
    if [kind for kind, _ in parts] != [5, 1] or len(parts[0][1]) != 4:
        raise NotWholeError("a struct without names of fields")
    (length,) = struct.unpack(f"{order}i", parts[0][1])
    names = bytes(parts[1][1])
    if not 1 <= length <= 64 or len(names) % length:
        raise NotWholeError(f"names of fields of {length} bytes in {len(names)}")
    if any(b"\0" not in names[at : at + length] for at in range(0, len(names), length)):
        raise NotWholeError("a name of a field without its end")
    return len(names) // int(length)


def _text_length(type_: int, data: memoryview, order: str) -> float:
    if type_ in TEXT_UNITS:
        return len(data) / TEXT_UNITS[type_]
    if type_ not in ENCODINGS:
        return math.inf
    coding = ENCODINGS[type_] + ("" if type_ == 16 else "-le" if order == "<" else "-be")
    try:
        return len(bytes(data).decode(coding))
    except UnicodeDecodeError as error:
        raise NotWholeError(f"text that is not {coding}") from error
