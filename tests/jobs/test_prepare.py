"""The `prepare` job: the same store however often it was interrupted, and whole or absent."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs import prepare as job
from jobs.attempt import Left, Run, Superseded
from jobs.contract import Attempt, RunDir, claim
from jobs.data.coco_generator import write_miniature
from jobs.data.coco_store import CocoStore
from jobs.data.errors import DataError
from jobs.data.part_store import PartStore
from jobs.data.parts import open_parts, parts_content_hash
from jobs.data.source import content_hash, dump_tfrecord
from jobs.data.store import ImageStore
from jobs.data.toy_creatures import open_toy_creatures
from jobs.data_spec import CocoGeneratorSpec, CocoSpec, MultiDSpritesSpec, RecordRange, SpriteGeneratorSpec
from jobs.data_spec_parts import CubSpec, PartDataSpec, ToyCreaturesSpec
from jobs.preemption import Flag
from jobs.prepare import chunks, prepare, run_prepare
from jobs.ranks import Ranks
from jobs.spec import FrozenRun, PrepareSpec, RuntimeSpec

GENERATOR = SpriteGeneratorSpec(seed=9)
SMALL = SpriteGeneratorSpec(seed=9, resolution=16, min_sprites=3, max_sprites=3, palette="saturated")
RANGES = {"train": RecordRange(first=0, count=23), "test": RecordRange(first=40, count=7)}
TOTAL = 30


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "CHUNK_RECORDS", 5)
    monkeypatch.setattr(job, "CHUNK_IMAGES", 5)


def generated(generator: SpriteGeneratorSpec = SMALL) -> PrepareSpec:
    return PrepareSpec(data=MultiDSpritesSpec(generator=generator, **RANGES))  # type: ignore[arg-type]  # the ranges


def from_file(path: Path, content: str | None = None) -> PrepareSpec:
    return PrepareSpec(data=MultiDSpritesSpec(path=str(path), content=content, generator=None, **RANGES))  # type: ignore[arg-type]  # the ranges


def run(
    spec: PrepareSpec,
    folder: Path,
    *,
    start: int = 0,
    stop_after: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Prepare into folder/output; `stop_after` chunks the flag is up."""
    looks = itertools.count()
    return prepare(
        spec,
        work=folder / "work",
        output=folder / "output",
        should_stop=lambda: stop_after is not None and next(looks) >= stop_after,
        on_progress=on_progress or (lambda done: None),
        start=start,
    )


def tree(path: Path) -> dict[str, str]:
    """Every file below a directory with its checksum."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


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
    assert tree(folder) == {f"output/{name}": checksum for name, checksum in untouched.items()}


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_that_a_file_is_resumed_by_skipping(stop_after: int, original: Path, tmp_path: Path) -> None:
    run(from_file(original), tmp_path / "whole")
    done = run(from_file(original), tmp_path / "parts", stop_after=stop_after)
    assert 0 < done < TOTAL
    assert run(from_file(original), tmp_path / "parts", start=done) == TOTAL
    assert tree(tmp_path / "parts" / "output") == tree(tmp_path / "whole" / "output")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the code's own clean-up may matter."""


@pytest.mark.parametrize("victim", ["write_manifest", "os.rename", "fsync_directory"])
def test_that_a_death_at_the_end_is_mended(
    victim: str, tmp_path: Path, untouched: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"jobs.prepare.{victim}", die)
        with pytest.raises(Killed):
            run(generated(), tmp_path)
    assert (tmp_path / "output").exists() == (victim == "fsync_directory")
    for start in (TOTAL, TOTAL, 0):
        assert run(generated(), tmp_path, start=start) == TOTAL
        assert tree(tmp_path) == {f"output/{name}": checksum for name, checksum in untouched.items()}


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
    assert tree(tmp_path) == {f"output/{name}": checksum for name, checksum in untouched.items()}


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


def attempt(path: Path, *, config: PrepareSpec | None = None, flag: Flag | None = None, claimant: str = "one") -> Run:
    """A new attempt of the `prepare` run in directory `path`, outside Slurm."""
    run_dir = RunDir(path)
    return Run(
        run_dir=run_dir,
        frozen=FrozenRun(id=path.name, config=config or generated()),
        attempt=claim(run_dir, Attempt(number=0, claimant=claimant)),
        ranks=Ranks(rank=0, world_size=1, local_rank=0, launch="", address=""),
        flag=Flag() if flag is None else flag,
        slurm=None,
    )


class FlagAfter(Flag):
    """Up from the n-th look on."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = itertools.count()
        self._after = looks

    def __bool__(self) -> bool:
        return next(self._looks) >= self._after


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


COCO = CocoSpec(
    generator=CocoGeneratorSpec(seed=4, train_images=12, val_images=7, largest_side=64), resolution=16, target_resolution=16
)
COCO_SPEC = PrepareSpec(data=COCO)
COCO_TOTAL = 19


@pytest.fixture(scope="module")
def untouched_coco(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The store of `COCO_SPEC` when nobody interrupts."""
    folder = tmp_path_factory.mktemp("untouched")
    assert run(COCO_SPEC, folder) == COCO_TOTAL
    return tree(folder / "output")


def test_that_a_coco_store_is_made(tmp_path: Path, untouched_coco: dict[str, str]) -> None:
    told: list[int] = []
    assert run(COCO_SPEC, tmp_path, on_progress=told.append) == COCO_TOTAL
    assert told == [5, 10, 12, 17, 19]
    assert os.listdir(tmp_path) == ["output"]
    assert tree(tmp_path / "output") == untouched_coco
    store = CocoStore.open(tmp_path / "output")
    store.verify()
    assert store.images("train").shape == (12, 16, 16, 3)
    assert store.masks("official")[0].shape == (7, 320, 320)
    assert store.manifest.source["generator"]["seed"] == 4


def test_that_a_coco_folder_and_the_generator_give_the_same_arrays(tmp_path: Path, untouched_coco: dict[str, str]) -> None:
    assert COCO.generator is not None
    write_miniature(COCO.generator, tmp_path / "coco", should_stop=lambda: False)
    content = content_hash(tmp_path / "coco")
    data = COCO.model_copy(update={"generator": None, "path": str(tmp_path / "coco"), "content": content})
    threads = RuntimeSpec(workers=3)
    assert run(PrepareSpec(data=data, runtime=threads), tmp_path / "file") == COCO_TOTAL
    assert {**tree(tmp_path / "file" / "output"), "manifest.json": ""} == {**untouched_coco, "manifest.json": ""}
    source = CocoStore.open(tmp_path / "file" / "output").manifest.source
    assert source["content"] == content
    assert "path" not in source
    changed = PrepareSpec(data=data.model_copy(update={"content": "0" * 64}))
    with pytest.raises(DataError, match="sha256 is"):
        run(changed, tmp_path / "changed")


def test_that_coco_progress_is_true_when_it_is_told(tmp_path: Path, untouched_coco: dict[str, str]) -> None:
    def restart(done: int) -> None:
        copy = tmp_path / f"copy{done}"
        shutil.copytree(tmp_path / "first" / "work", copy / "work")
        assert run(COCO_SPEC, copy, start=done) == COCO_TOTAL
        assert tree(copy) == {f"output/{name}": checksum for name, checksum in untouched_coco.items()}

    run(COCO_SPEC, tmp_path / "first", on_progress=restart)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 24), max_size=5), forgotten=st.integers(0, 12))
def test_that_coco_interruptions_leave_no_trace(
    stops: list[int], forgotten: int, tmp_path: Path, untouched_coco: dict[str, str]
) -> None:
    """Looks number 1 to 19 are between the images of the generator, then one per chunk."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    done = 0
    for stop_after in stops:
        done = run(COCO_SPEC, folder, start=done, stop_after=stop_after)
        done = done if (folder / "output").exists() else max(0, done - forgotten)
    assert run(COCO_SPEC, folder, start=done) == COCO_TOTAL
    assert tree(folder) == {f"output/{name}": checksum for name, checksum in untouched_coco.items()}


@pytest.mark.parametrize("victim", ["write_manifest", "os.rename", "fsync_directory", "shutil.rmtree"])
def test_that_a_death_at_the_end_of_coco_is_mended(
    victim: str, tmp_path: Path, untouched_coco: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"jobs.prepare.{victim}", die)
        with pytest.raises(Killed):
            run(COCO_SPEC, tmp_path)
    assert (tmp_path / "output").exists() == (victim in ("fsync_directory", "shutil.rmtree"))
    for start in (COCO_TOTAL, 0):
        assert run(COCO_SPEC, tmp_path, start=start) == COCO_TOTAL
        assert tree(tmp_path) == {f"output/{name}": checksum for name, checksum in untouched_coco.items()}


@pytest.mark.parametrize("meet_at", [5, 12, 19])
def test_that_a_superseded_coco_attempt_does_no_harm(meet_at: int, tmp_path: Path, untouched_coco: dict[str, str]) -> None:
    """The newer attempt clears the generated images while the older one still reads them."""

    def newer(done: int) -> None:
        if done == meet_at:
            assert run(COCO_SPEC, tmp_path) == COCO_TOTAL

    assert run(COCO_SPEC, tmp_path, on_progress=newer) == COCO_TOTAL
    assert tree(tmp_path) == {f"output/{name}": checksum for name, checksum in untouched_coco.items()}


def test_that_a_finished_store_of_another_configuration_is_not_touched(tmp_path: Path) -> None:
    run(COCO_SPEC, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match="already holds a store of something else"):
        run(PrepareSpec(data=COCO.model_copy(update={"max_val": 3})), tmp_path)
    with pytest.raises(DataError, match="not a manifest of an image store"):
        run(generated(), tmp_path)
    assert tree(tmp_path) == before


def test_that_an_evicted_coco_run_goes_on_where_it_stopped(tmp_path: Path, untouched_coco: dict[str, str]) -> None:
    with pytest.raises(Left) as left:
        run_prepare(attempt(tmp_path / "r1", config=COCO_SPEC, flag=FlagAfter(COCO_TOTAL + 2)))
    assert left.value.step == 10
    again = attempt(tmp_path / "r1", config=COCO_SPEC, claimant="two")
    finished = run_prepare(again)
    assert again.journal is not None
    again.journal.close()
    lines = (tmp_path / "r1" / "journal" / "0002.jsonl").read_text().splitlines()
    assert [json.loads(line)["s"] for line in lines if "prepare/records" in line] == [12, 17, 19]
    assert finished.step == COCO_TOTAL
    store = tmp_path / "r1" / "output" / "store"
    assert tree(store) == untouched_coco
    assert sorted(str(path.relative_to(store)) for path in finished.files) == sorted(untouched_coco)


CREATURES = ToyCreaturesSpec(seed=2, resolution=32, train_images=12, test_images=7)
CREATURES_TOTAL = 19


def with_parts(data: PartDataSpec = CREATURES) -> PrepareSpec:
    return PrepareSpec(data=data)


@pytest.fixture(scope="module")
def untouched_creatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The store of `with_parts()` when nobody interrupts."""
    folder = tmp_path_factory.mktemp("untouched")
    assert run(with_parts(), folder) == CREATURES_TOTAL
    return tree(folder / "output")


def test_that_a_store_of_parts_is_made(tmp_path: Path) -> None:
    told: list[int] = []
    assert run(with_parts(), tmp_path, on_progress=told.append) == CREATURES_TOTAL
    assert told == [5, 10, 12, 17, 19]
    assert os.listdir(tmp_path) == ["output"]
    store = PartStore.open(tmp_path / "output")
    store.verify()
    source = open_toy_creatures(CREATURES)
    assert store.manifest.with_files({}) == source.manifest
    for split, count in (("train", 12), ("test", 7)):
        found, expected = store.split(split), source.read(split, 0, count)  # type: ignore[arg-type]  # a split
        assert np.array_equal(found.images, np.stack([record.image_SS3 for record in expected]))
        assert np.array_equal(found.parts, np.stack([record.parts_SS for record in expected]))
        assert np.array_equal(found.foreground, np.stack([record.foreground_SS for record in expected]))
        assert np.array_equal(found.keypoints, np.stack([record.keypoints_Q2 for record in expected]))
        assert np.array_equal(found.visible, np.stack([record.visible_Q for record in expected]))
        assert np.array_equal(found.scale, np.stack([record.scale_2 for record in expected]))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 4), max_size=5), forgotten=st.integers(0, 12))
def test_that_interruptions_of_parts_leave_no_trace(
    stops: list[int], forgotten: int, tmp_path: Path, untouched_creatures: dict[str, str]
) -> None:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    done = 0
    for stop_after in stops:
        done = run(with_parts(), folder, start=done, stop_after=stop_after)
        done = done if (folder / "output").exists() else max(0, done - forgotten)
    assert run(with_parts(), folder, start=done) == CREATURES_TOTAL
    assert tree(folder) == {f"output/{name}": checksum for name, checksum in untouched_creatures.items()}


@pytest.mark.parametrize("victim", ["write_manifest", "os.rename", "fsync_directory", "shutil.rmtree"])
def test_that_a_death_at_the_end_of_parts_is_mended(
    victim: str, tmp_path: Path, untouched_creatures: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"jobs.prepare.{victim}", die)
        with pytest.raises(Killed):
            run(with_parts(), tmp_path)
    for start in (CREATURES_TOTAL, 0):
        assert run(with_parts(), tmp_path, start=start) == CREATURES_TOTAL
        assert tree(tmp_path) == {f"output/{name}": checksum for name, checksum in untouched_creatures.items()}


def test_that_a_finished_store_of_other_parts_is_not_touched(tmp_path: Path) -> None:
    run(with_parts(), tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match="already holds a store of something else"):
        run(with_parts(CREATURES.model_copy(update={"seed": 3})), tmp_path)
    with pytest.raises(DataError, match="not a manifest of an image store"):
        run(generated(), tmp_path)
    assert tree(tmp_path) == before


def test_that_an_evicted_run_of_parts_goes_on_where_it_stopped(tmp_path: Path, untouched_creatures: dict[str, str]) -> None:
    with pytest.raises(Left) as left:
        run_prepare(attempt(tmp_path / "r1", config=with_parts(), flag=FlagAfter(2)))
    assert left.value.step == 10
    finished = run_prepare(attempt(tmp_path / "r1", config=with_parts(), claimant="two"))
    assert finished.step == CREATURES_TOTAL
    store = tmp_path / "r1" / "output" / "store"
    assert tree(store) == untouched_creatures
    assert sorted(str(path.relative_to(store)) for path in finished.files) == sorted(untouched_creatures)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """CUB's layout with one image in each split."""
    folder = tmp_path / "birds"
    (folder / "parts").mkdir(parents=True)
    texts = {
        "images.txt": "1 1.One/a.jpg\n2 1.One/b.jpg\n",
        "train_test_split.txt": "1 1\n2 0\n",
        "image_class_labels.txt": "1 1\n2 1\n",
        "bounding_boxes.txt": "1 4 4 40 30\n2 2 2 30 40\n",
        "parts/parts.txt": "1 beak\n",
        "parts/part_locs.txt": "1 1 9 9 1\n2 1 0 0 0\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    for kind, ending in (("images", "jpg"), ("segmentations", "png")):
        (folder / kind / "1.One").mkdir(parents=True)
        for number, name in enumerate("ab"):
            image = Image.fromarray(np.full((50, 50), 200 + 10 * number, np.uint8))
            (image.convert("RGB") if kind == "images" else image).save(folder / kind / "1.One" / f"{name}.{ending}")
    return folder


def test_that_a_folder_with_parts_is_prepared_and_a_changed_one_noticed(birds: Path, tmp_path: Path) -> None:
    content = parts_content_hash("cub", birds)
    data = CubSpec(path=str(birds), content=content, resolution=16)
    assert run(with_parts(data), tmp_path / "run") == 2
    store = PartStore.open(tmp_path / "run" / "output")
    assert store.manifest.counts == {"train": 1, "test": 1}
    assert store.manifest.source == data.model_dump(mode="json", exclude={"path"})
    assert np.array_equal(store.split("test").images, open_parts(data).read("test", 0, 1)[0].image_SS3[None])
    assert run(with_parts(data), tmp_path / "run") == 2
    with (birds / "bounding_boxes.txt").open("a") as file:
        file.write("3 1 1 1 1\n")
    with pytest.raises(DataError, match="sha256 is") as caught:
        run(with_parts(data), tmp_path / "changed")
    assert content in caught.value.expected
