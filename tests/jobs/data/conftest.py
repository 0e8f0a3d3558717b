"""Small generated files of the original's schema, shared by the tests of data files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.data.multi_dsprites import Record, RecordShape, encode
from jobs.data.source import dump_tfrecord
from jobs.data.sprites import generate
from jobs.data.tfrecord import write_records
from jobs.data_spec import SpriteGeneratorSpec

FILE_RECORDS = 24


@pytest.fixture(scope="session")
def generator() -> SpriteGeneratorSpec:
    """The original's settings: 64 px, five entities."""
    return SpriteGeneratorSpec(seed=3)


@pytest.fixture(scope="session")
def shape() -> RecordShape:
    return RecordShape(resolution=64, entities=5)


@pytest.fixture(scope="session")
def records(generator: SpriteGeneratorSpec) -> list[Record]:
    return generate(generator, first=0, count=FILE_RECORDS)


@pytest.fixture(scope="session")
def payloads(records: list[Record]) -> list[bytes]:
    return [encode(record) for record in records]


@pytest.fixture(scope="session")
def tfrecord_path(generator: SpriteGeneratorSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GZIP TFRecord file with the records of `records`."""
    path = tmp_path_factory.mktemp("original") / "multi_dsprites.tfrecords"
    dump_tfrecord(generator, path, count=FILE_RECORDS)
    return path


@pytest.fixture(scope="session")
def pack() -> Callable[[list[bytes]], bytes]:
    """Payloads to the bytes of a GZIP TFRecord file."""

    def pack_payloads(payloads: list[bytes]) -> bytes:
        stream = io.BytesIO()
        write_records(stream, payloads, level=6)
        return stream.getvalue()

    return pack_payloads
