"""The `prepare` job: the same store however often it was interrupted, and whole or absent."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import prepare as job
from jobs.attempt import Left, Superseded
from jobs.data.errors import DataError
from jobs.data.source import content_hash, dump_tfrecord
from jobs.data.store import ImageStore
from jobs.data_spec import MultiDSpritesSpec, RecordRange, SpriteGeneratorSpec
from jobs.prepare import chunks, run_prepare
from jobs.spec import PrepareSpec
from tests.jobs.preparing import RANGES, SMALL, FlagAfter, Killed, attempt, below_output, generated, killed_in, run, tree

pytestmark = pytest.mark.usefixtures("small_chunks")

GENERATOR = SpriteGeneratorSpec(seed=9)
TOTAL = 30


def from_file(path: Path, content: str | None = None) -> PrepareSpec:
    return PrepareSpec(data=MultiDSpritesSpec(path=str(path), content=content, generator=None, **RANGES))  # type: ignore[arg-type]  # the ranges


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "multi_dsprites.tfrecords"
    dump_tfrecord(GENERATOR, path, count=47)
    return path


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The store of `generated()` when nobody interrupts."""
    folder = tmp_path_factory.mktemp("untouched")
    assert run(generated(), folder) == TOTAL
    return tree(folder / "output")


def test_that_a_store_is_made(tmp_path: Path) -> None:
    told: list[int] = []
    assert run(generated(), tmp_path, on_progress=told.append) == TOTAL
    assert told == [5, 10, 15, 20, 23, 28, 30]
    assert os.listdir(tmp_path) == ["output"]
    store = ImageStore.open(tmp_path / "output")
    store.verify()
    assert store.split("train").images.shape == (23, 16, 16, 3)
    assert store.split("test").labels.shape == (7, 16, 16)
    assert store.split("train").labels.max() == 3


def test_that_the_file_and_the_generator_give_the_same_arrays(original: Path, tmp_path: Path) -> None:
    run(generated(GENERATOR), tmp_path / "generated")
    run(from_file(original, content_hash(original)), tmp_path / "file")
    one, other = (ImageStore.open(tmp_path / name / "output") for name in ("generated", "file"))
    assert one.manifest.files == other.manifest.files
    assert {**tree(one.path), "manifest.json": ""} == {**tree(other.path), "manifest.json": ""}


def test_that_a_store_says_where_it_comes_from_but_not_where_that_lay(original: Path, tmp_path: Path) -> None:
    run(from_file(original, content_hash(original)), tmp_path)
    source = ImageStore.open(tmp_path / "output").manifest.source
    assert source["content"] == content_hash(original)
    assert "path" not in source


def test_that_progress_is_true_when_it_is_told(tmp_path: Path, untouched: dict[str, str]) -> None:
    """A checkpoint made inside `on_progress` may be all that is left: go on from each with what was on disk then."""

    def restart(done: int) -> None:
        copy = tmp_path / f"copy{done}"
        shutil.copytree(tmp_path / "first" / "work", copy / "work")
        assert run(generated(), copy, start=done) == TOTAL
        assert tree(copy / "output") == untouched

    run(generated(), tmp_path / "first", on_progress=restart)


def test_that_it_stops_at_a_chunk_boundary(tmp_path: Path) -> None:
    assert run(generated(), tmp_path, stop_after=2) == 10
    assert not (tmp_path / "output").exists()
    assert run(generated(), tmp_path, start=10, stop_after=0) == 10


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 3), max_size=6), forgotten=st.integers(0, 12))
def test_that_interruptions_leave_no_trace(stops: list[int], forgotten: int, tmp_path: Path, untouched: dict[str, str]) -> None:
    """`forgotten`: the last checkpoint may be older than what was done."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    done = 0
    for stop_after in stops:
        done = max(0, run(generated(), folder, start=done, stop_after=stop_after) - forgotten)
    assert run(generated(), folder, start=done) == TOTAL
    assert tree(folder) == below_output(untouched)


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_that_a_file_is_resumed_by_skipping(stop_after: int, original: Path, tmp_path: Path) -> None:
    run(from_file(original), tmp_path / "whole")
    done = run(from_file(original), tmp_path / "parts", stop_after=stop_after)
    assert 0 < done < TOTAL
    assert run(from_file(original), tmp_path / "parts", start=done) == TOTAL
    assert tree(tmp_path / "parts" / "output") == tree(tmp_path / "whole" / "output")


@pytest.mark.parametrize("victim", ["write_manifest", "os.rename", "fsync_directory"])
def test_that_a_death_at_the_end_is_mended(victim: str, tmp_path: Path, untouched: dict[str, str]) -> None:
    killed_in(victim, generated(), tmp_path)
    assert (tmp_path / "output").exists() == (victim == "fsync_directory")
    for start in (TOTAL, TOTAL, 0):
        assert run(generated(), tmp_path, start=start) == TOTAL
        assert tree(tmp_path) == below_output(untouched)


def test_that_a_death_within_a_chunk_is_mended(
    tmp_path: Path, untouched: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    pwrite = os.pwrite

    def half(handle: int, content: memoryview, offset: int) -> int:
        if next(calls) == 7:
            pwrite(handle, content[: len(content) // 2], offset)
            raise Killed
        return pwrite(handle, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", half)
        with pytest.raises(Killed):
            run(generated(), tmp_path)
    run(generated(), tmp_path, start=10)
    assert tree(tmp_path / "output") == untouched


def test_that_short_writes_are_completed(tmp_path: Path, untouched: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda handle, content, offset: pwrite(handle, content[:1000], offset))
    run(generated(), tmp_path)
    assert tree(tmp_path / "output") == untouched


@pytest.mark.parametrize("meet_at", [5, 15, 28, 30])
def test_that_a_superseded_attempt_still_writing_does_no_harm(meet_at: int, tmp_path: Path, untouched: dict[str, str]) -> None:
    """A newer attempt starts over and finishes in the middle of an older one, in the same directories."""

    def newer(done: int) -> None:
        if done == meet_at:
            assert run(generated(), tmp_path) == TOTAL

    assert run(generated(), tmp_path, on_progress=newer) == TOTAL
    assert tree(tmp_path) == below_output(untouched)


def test_that_lost_scratch_files_are_told_and_not_replaced_by_zeros(tmp_path: Path) -> None:
    run(generated(), tmp_path, stop_after=2)
    (tmp_path / "work" / "store" / "train" / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"work/store/train/labels.npy: not a .npy array"):
        run(generated(), tmp_path, start=10)


def test_that_scratch_files_of_another_shape_are_told(tmp_path: Path) -> None:
    run(generated(), tmp_path, stop_after=2)
    with pytest.raises(DataError, match=r"work/store/train/images.npy: holds uint8 \[23, 16, 16, 3\]"):
        run(generated(GENERATOR), tmp_path)


def test_that_a_finished_output_of_something_else_is_not_touched(tmp_path: Path) -> None:
    run(generated(), tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match="already holds a store of something else"):
        run(generated(GENERATOR), tmp_path)
    assert tree(tmp_path) == before


def test_that_an_empty_output_directory_is_filled(tmp_path: Path, untouched: dict[str, str]) -> None:
    (tmp_path / "output").mkdir()
    assert run(generated(), tmp_path) == TOTAL
    assert tree(tmp_path / "output") == untouched


def test_that_a_changed_file_is_noticed(original: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sha256 is") as caught:
        run(from_file(original, "0" * 64), tmp_path)
    assert "changed or replaced" in caught.value.hint
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_that_a_truncated_file_leaves_no_output(keep: float, original: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.tfrecords"
    content = original.read_bytes()
    short.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=r"short.tfrecords.*truncated"):
        run(from_file(short), tmp_path)
    assert not (tmp_path / "output").exists()


def test_that_a_full_disk_is_an_error_and_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        run(generated(), tmp_path)
    assert not (tmp_path / "output").exists()


def test_that_test_records_may_come_first(tmp_path: Path) -> None:
    data = MultiDSpritesSpec(generator=SMALL, train=RecordRange(first=10, count=6), test=RecordRange(first=2, count=6))
    assert [(chunk.split, chunk.record, chunk.count) for chunk in chunks(data)] == [
        ("test", 2, 5),
        ("test", 7, 1),
        ("train", 10, 5),
        ("train", 15, 1),
    ]


def test_that_overlapping_ranges_are_refused(tmp_path: Path) -> None:
    data = MultiDSpritesSpec(generator=SMALL, train=RecordRange(first=0, count=6), test=RecordRange(first=5, count=6))
    with pytest.raises(DataError, match="without a record in common"):
        run(PrepareSpec(data=data), tmp_path)


def test_that_a_run_leaves_its_store_and_names_its_files(tmp_path: Path, untouched: dict[str, str]) -> None:
    finished = run_prepare(attempt(tmp_path / "r1"))
    store = tmp_path / "r1" / "output" / "store"
    assert finished.step == TOTAL
    assert sorted(str(path.relative_to(store)) for path in finished.files) == sorted(untouched)
    assert tree(store) == untouched
    assert not (tmp_path / "r1" / "work").exists()


def test_that_an_evicted_run_goes_on_where_it_stopped(tmp_path: Path, untouched: dict[str, str]) -> None:
    with pytest.raises(Left) as left:
        run_prepare(attempt(tmp_path / "r1", flag=FlagAfter(3)))
    assert left.value.step == 15
    again = attempt(tmp_path / "r1", claimant="two")
    finished = run_prepare(again)
    assert again.journal is not None
    again.journal.close()
    lines = (tmp_path / "r1" / "journal" / "0002.jsonl").read_text().splitlines()
    told = [json.loads(line)["s"] for line in lines if "prepare/records" in line]
    assert told == [20, 23, 28, 30]
    assert json.loads(lines[1])["e"] == "at_work"  # before the first chunk
    assert finished.step == TOTAL
    assert tree(tmp_path / "r1" / "output" / "store") == untouched


def test_that_a_run_told_to_leave_at_once_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Left) as left:
        run_prepare(attempt(tmp_path / "r1", flag=FlagAfter(0)))
    assert left.value.step == 0
    assert list((tmp_path / "r1" / "checkpoints").glob("step-*")) == []


def test_that_a_superseded_run_ends_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "CHECKPOINT_EVERY_S", 1e9)
    older = attempt(tmp_path / "r1")
    attempt(tmp_path / "r1", claimant="two")
    with pytest.raises(Superseded):
        run_prepare(older)
    assert list((tmp_path / "r1" / "checkpoints").glob("step-*")) == []
    assert not (tmp_path / "r1" / "output").exists()


def test_that_a_killed_run_resumes_from_its_last_checkpoint(
    tmp_path: Path, untouched: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "CHECKPOINT_EVERY_S", 0.0)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("jobs.prepare.write_manifest", die)
        with pytest.raises(Killed):
            run_prepare(attempt(tmp_path / "r1"))
    assert not (tmp_path / "r1" / "output").exists()
    assert run_prepare(attempt(tmp_path / "r1", claimant="two")).step == TOTAL
    assert tree(tmp_path / "r1" / "output" / "store") == untouched
