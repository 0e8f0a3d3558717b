"""Seeded changes to bytes: what an interrupted copy, a bad disk, another version or an enemy makes of a file. Replayable."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

WORDS: tuple[bytes, ...] = (
    b"", b"\0", b"\n", b"\r\n", b"\x1f", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3\xa9", "٣".encode(), b"NaN",
    b"Infinity", b"-Infinity", b"1e999", b"-1", b"0", b"1e-400", b"18446744073709551616", b"9" * 400, b"9" * 5000, b"null",
    b"true", b"{}", b"[]", b'""', b"[" * 300, b'{"a":' * 300, b"[" * 60_000, b"../../etc/passwd", b"/etc/passwd",
    b"$(touch /tmp/x)", b"`id`", b"'", b'"', b"\\", b"!!python/object/apply:os.system", b"&a [*a, *a]", b"*a", b"<<: *a",
    b"%YAML 9.9", b"---", b"0-3999999", b"[0-3999999]", b"[0-3999999,0-3999999,0-3999999]", b"x" * 300, b"\xff\xff\xff\xff",
    b"\0\0\0\0\1\0\0\0", b"\xff" * 8, b"\xff" * 12, b"${oc.env:HOME}",
)  # fmt: skip
"""Pieces that readers stumble over: bounds of numbers, encodings, nesting, aliases, places of another file, shell."""
TOKEN = re.compile(rb"[A-Za-z_]+|[0-9.]+|[^A-Za-z0-9_.]")


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 16, 256))]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice((1, 4, 16, 256))]
    data[at:at] = piece * rng.choice((1, 1, 2, 50))


def _put(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.choice((0, 0, 1, 4, 8))] = rng.choice(WORDS)


def _bytes(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    count = rng.choice((1, 2, 4, 8))
    data[at : at + count] = rng.choice((bytes(count), b"\xff" * count, rng.randbytes(count)))


def _token(rng: random.Random, data: bytearray) -> None:
    """Replace one word, number or mark by a stumbling block or by another of the same file."""
    begin = rng.randrange(len(data))
    found = list(TOKEN.finditer(bytes(data[begin : begin + 400])))
    if found:
        chosen, other = rng.choice(found), rng.choice(found)
        data[begin + chosen.start() : begin + chosen.end()] = rng.choice((rng.choice(WORDS), other[0]))


def _splice(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    other = rng.choice(corpus)
    if other:
        at, first = rng.randrange(len(data) + 1), rng.randrange(len(other))
        data[at : at + rng.choice((0, 16, 10**9))] = other[first : first + rng.choice((16, 64, 10**9))]


def mutated(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """One of the corpus, changed at one to four places; the same for the same state of `rng`."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            break
        change = rng.choice((_flip, _cut, _drop, _repeat, _put, _bytes, _token, _token, None))
        if change is None:
            _splice(rng, data, corpus)
        else:
            change(rng, data)
    return bytes(data)
