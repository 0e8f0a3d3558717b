"""The `prepare` job on COCO: the same store however often it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.attempt import Left
from jobs.data.coco_generator import write_miniature
from jobs.data.coco_store import CocoStore
from jobs.data.errors import DataError
from jobs.data.source import content_hash
from jobs.data_spec import CocoGeneratorSpec, CocoSpec
from jobs.prepare import run_prepare
from jobs.spec import PrepareSpec, RuntimeSpec
from tests.jobs.preparing import FlagAfter, attempt, below_output, generated, interrupted, killed_in, run, tree

pytestmark = pytest.mark.usefixtures("small_chunks")

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
        assert tree(copy) == below_output(untouched_coco)

    run(COCO_SPEC, tmp_path / "first", on_progress=restart)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 24), max_size=5), forgotten=st.integers(0, 12))
def test_that_coco_interruptions_leave_no_trace(
    stops: list[int], forgotten: int, tmp_path: Path, untouched_coco: dict[str, str]
) -> None:
    """Looks number 1 to 19 are between the images of the generator, then one per chunk."""
    folder = tmp_path / "run"
    assert interrupted(COCO_SPEC, folder, stops, forgotten) == COCO_TOTAL
    assert tree(folder) == below_output(untouched_coco)


@pytest.mark.parametrize("victim", ["write_manifest", "os.rename", "fsync_directory", "shutil.rmtree"])
def test_that_a_death_at_the_end_of_coco_is_mended(victim: str, tmp_path: Path, untouched_coco: dict[str, str]) -> None:
    killed_in(victim, COCO_SPEC, tmp_path)
    assert (tmp_path / "output").exists() == (victim in ("fsync_directory", "shutil.rmtree"))
    for start in (COCO_TOTAL, 0):
        assert run(COCO_SPEC, tmp_path, start=start) == COCO_TOTAL
        assert tree(tmp_path) == below_output(untouched_coco)


@pytest.mark.parametrize("meet_at", [5, 12, 19])
def test_that_a_superseded_coco_attempt_does_no_harm(meet_at: int, tmp_path: Path, untouched_coco: dict[str, str]) -> None:
    """The newer attempt clears the generated images while the older one still reads them."""

    def newer(done: int) -> None:
        if done == meet_at:
            assert run(COCO_SPEC, tmp_path) == COCO_TOTAL

    assert run(COCO_SPEC, tmp_path, on_progress=newer) == COCO_TOTAL
    assert tree(tmp_path) == below_output(untouched_coco)


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
