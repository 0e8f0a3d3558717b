"""The `prepare` job on images with parts: the same store however often it was interrupted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.attempt import Left
from jobs.data.errors import DataError
from jobs.data.part_store import PartStore
from jobs.data.parts import open_parts, parts_content_hash
from jobs.data.toy_creatures import open_toy_creatures
from jobs.data_spec_parts import CubSpec, PartDataSpec, ToyCreaturesSpec
from jobs.prepare import run_prepare
from jobs.spec import PrepareSpec
from tests.jobs.preparing import FlagAfter, attempt, below_output, generated, interrupted, killed_in, run, tree

pytestmark = pytest.mark.usefixtures("small_chunks")

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
    assert interrupted(with_parts(), folder, stops, forgotten) == CREATURES_TOTAL
    assert tree(folder) == below_output(untouched_creatures)


@pytest.mark.parametrize("victim", ["write_manifest", "os.rename", "fsync_directory", "shutil.rmtree"])
def test_that_a_death_at_the_end_of_parts_is_mended(victim: str, tmp_path: Path, untouched_creatures: dict[str, str]) -> None:
    killed_in(victim, with_parts(), tmp_path)
    for start in (CREATURES_TOTAL, 0):
        assert run(with_parts(), tmp_path, start=start) == CREATURES_TOTAL
        assert tree(tmp_path) == below_output(untouched_creatures)


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
