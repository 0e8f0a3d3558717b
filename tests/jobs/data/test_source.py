"""What is found out about a data set on the login node, and where records come from."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.data.errors import DataError
from jobs.data.multi_dsprites import ORIGINAL_URL, Record, encode
from jobs.data.source import check_source, content_hash, dump_tfrecord, open_source
from jobs.data.sprites import generate
from jobs.data.tfrecord import read_records
from jobs.data_spec import MultiDSpritesSpec, RecordRange, SpriteGeneratorSpec


def from_file(path: Path, *, train: tuple[int, int] = (0, 10), test: tuple[int, int] = (20, 4)) -> MultiDSpritesSpec:
    ranges = {"train": RecordRange(first=train[0], count=train[1]), "test": RecordRange(first=test[0], count=test[1])}
    return MultiDSpritesSpec(path=str(path), generator=None, **ranges)  # type: ignore[arg-type]  # the ranges


def never() -> bool:
    return False


def test_that_a_good_file_is_described(tfrecord_path: Path) -> None:
    lines = check_source(from_file(tfrecord_path))
    assert "10 training and 4 test images of 64 px" in lines[0]
    assert str(tfrecord_path) in lines[0]
    assert lines[1] == "the store will take 0.2 MB"


def test_that_generated_data_is_described_without_a_file() -> None:
    lines = check_source(MultiDSpritesSpec())
    assert lines == ["60000 training and 320 test images of 64 px, generated", "the store will take 999.1 MB"]


def test_that_a_missing_file_is_told_with_its_origin_and_the_alternative(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        check_source(from_file(tmp_path / "absent.tfrecords"))
    assert str(tmp_path / "absent.tfrecords") in str(caught.value)
    assert ORIGINAL_URL in caught.value.hint
    assert "`data=mdsprites_generated`" in caught.value.hint


def test_that_a_directory_is_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        check_source(from_file(tmp_path))


def test_that_a_file_that_is_not_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f.tfrecords"
    path.write_bytes(b"plain")
    with pytest.raises(DataError, match="not a gzip stream"):
        check_source(from_file(path))


def test_that_an_empty_file_and_one_without_records_are_told(tmp_path: Path) -> None:
    path = tmp_path / "f.tfrecords"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        check_source(from_file(path))
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="the file ends after 0 records"):
        check_source(from_file(path))


def test_that_another_variant_is_told_from_its_first_record(
    tmp_path: Path, pack: Callable[[list[bytes]], bytes], records: list[Record]
) -> None:
    other = SpriteGeneratorSpec(max_sprites=5)
    path = tmp_path / "colored_on_grayscale.tfrecords"
    path.write_bytes(pack([encode(record) for record in generate(other, first=0, count=2)]))
    with pytest.raises(DataError, match=r"record 0 at byte 0 .* feature `mask`"):
        check_source(from_file(path))


def test_that_overlapping_ranges_are_refused(tfrecord_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.train is records 0-9, data.test is records 9-12"):
        check_source(from_file(tfrecord_path, test=(9, 4)))


def test_that_the_content_hash_is_the_sha256_of_the_file(tfrecord_path: Path, tmp_path: Path) -> None:
    assert content_hash(tfrecord_path) == hashlib.sha256(tfrecord_path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="no such file"):
        content_hash(tmp_path / "absent")


def test_that_a_dumped_file_holds_the_generator_s_records(tfrecord_path: Path, payloads: list[bytes], tmp_path: Path) -> None:
    with open(tfrecord_path, "rb") as stream:
        assert list(read_records(stream, name="f")) == payloads
    assert tfrecord_path.stat().st_size < 0.05 * sum(map(len, payloads))
    later = tmp_path / "later.tfrecords"
    dump_tfrecord(SpriteGeneratorSpec(seed=3), later, count=4, first=5)
    with open(later, "rb") as stream:
        assert list(read_records(stream, name="f")) == payloads[5:9]


def test_that_both_sources_give_the_same_records(tfrecord_path: Path, generator: SpriteGeneratorSpec) -> None:
    with open_source(from_file(tfrecord_path)) as file, open_source(MultiDSpritesSpec(generator=generator)) as generated:
        for first, count in ((0, 3), (3, 2), (11, 4)):
            for source in (file, generated):
                assert source.seek(first, should_stop=never)
            assert list(map(encode, file.read(count))) == list(map(encode, generated.read(count)))


def test_that_skipping_can_be_interrupted(tfrecord_path: Path) -> None:
    with open_source(from_file(tfrecord_path)) as source:
        assert not source.seek(5, should_stop=lambda: True)
        assert source.seek(5, should_stop=never)


def test_that_a_file_with_too_few_records_is_told(tfrecord_path: Path) -> None:
    with open_source(from_file(tfrecord_path)) as source, pytest.raises(DataError, match="ends after 24 records") as caught:
        source.seek(60000, should_stop=never)
    assert caught.value.expected == "at least 60001 records"
    with open_source(from_file(tfrecord_path)) as source, pytest.raises(DataError, match="ends after 24 records") as caught:
        source.read(30)
    assert caught.value.expected == "at least 30 records"
