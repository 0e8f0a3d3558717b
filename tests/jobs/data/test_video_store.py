"""What a `prepare` run leaves of videos, and what a run that reads them checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.data.errors import DataError
from jobs.data.source import content_hash
from jobs.data.video_store import VideoStore, prepare_videos
from jobs.data_spec import ToyVideoSpec, VideoFilesSpec

TOY = ToyVideoSpec.model_validate(
    {"resolution": 32, "video_frames": 4, "train": {"first": 0, "count": 3}, "test": {"first": 3, "count": 2}}
)


def may() -> bool:
    return True


def files(folder: Path) -> VideoFilesSpec:
    """Two training videos and one test video, folders of two frames."""
    for split, names in (("train", "ab"), ("test", "c")):
        for name in names:
            (folder / split / "images" / name).mkdir(parents=True, exist_ok=True)
            for frame in range(2):
                Image.new("RGB", (16, 16), (ord(name), frame, 0)).save(folder / split / "images" / name / f"{frame}.png")
    return VideoFilesSpec(path=str(folder), resolution=16, video_frames=2, content=content_hash(folder, kind="video_files media"))


def test_that_toy_videos_are_read_back_through_their_manifest(tmp_path: Path) -> None:
    manifest = prepare_videos(TOY, tmp_path / "store", may_commit=may)
    store = VideoStore.open(tmp_path / "store", TOY)
    assert store.manifest == manifest
    assert (store.manifest.counts, store.manifest.video_frames) == ({"train": 3, "test": 2}, 4)
    assert store.manifest.has_labels
    assert (store.videos("train").count, store.videos("test").count) == (3, 2)


def test_that_first_frames_stand_for_their_videos(tmp_path: Path) -> None:
    prepare_videos(TOY, tmp_path / "store", may_commit=may)
    store = VideoStore.open(tmp_path / "store", TOY)
    pictures = store.images("train")
    expected = store.videos("train").read(np.arange(3), np.zeros((3, 1), np.int64)).images_BTSS3[:, 0]
    assert (len(pictures), pictures.shape, pictures.dtype) == (3, expected.shape, expected.dtype)
    assert np.array_equal(pictures[np.array([2, 0])], expected[[2, 0]])
    assert np.array_equal(pictures[1:], expected[1:])


def test_that_a_manifest_is_written_by_its_owner_alone(tmp_path: Path) -> None:
    assert prepare_videos(TOY, tmp_path / "store", may_commit=lambda: False) is None
    assert not (tmp_path / "store").exists()
    with pytest.raises(DataError, match="no image store here"):
        VideoStore.open(tmp_path / "store", TOY)
    prepare_videos(TOY, tmp_path / "store", may_commit=may)
    prepare_videos(TOY, tmp_path / "store", may_commit=may)  # again
    other = TOY.model_copy(update={"seed": 1})
    with pytest.raises(DataError, match="already holds a store of something else"):
        prepare_videos(other, tmp_path / "store", may_commit=may)
    with pytest.raises(DataError, match=r"describes 3 \+ 2 videos of 4 frames, with masks"):
        VideoStore.open(tmp_path / "store", other)


def test_that_files_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    spec = files(tmp_path / "videos")
    prepare_videos(spec, tmp_path / "store", may_commit=may)
    store = VideoStore.open(tmp_path / "store", spec)
    assert store.manifest.counts == {"train": 2, "test": 1}
    assert str(tmp_path) not in str(store.manifest.source)
    (tmp_path / "videos" / "train" / "images" / "b").rename(tmp_path / "b")
    with pytest.raises(DataError, match="as when the run was planned") as caught:
        prepare_videos(spec, tmp_path / "other", may_commit=may)
    assert "videos were changed, added or removed since" in str(caught.value)
    with pytest.raises(DataError, match=r"describes 2 \+ 1 videos of 2 frames, without masks"):
        VideoStore.open(tmp_path / "store", spec)


def test_that_trials_take_the_first_videos_of_each_split(tmp_path: Path) -> None:
    whole = files(tmp_path / "videos")
    prepare_videos(whole.model_copy(update={"max_videos": 1}), tmp_path / "store", may_commit=may)
    store = VideoStore.open(tmp_path / "store", whole.model_copy(update={"max_videos": 1}))
    assert store.manifest.counts == {"train": 1, "test": 1}
    assert store.images("train")[np.array([0])][0, 0, 0].tolist() == [ord("a"), 0, 0]
