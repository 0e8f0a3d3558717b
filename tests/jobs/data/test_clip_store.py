"""The store of clips: a manifest that the clips of later runs are compared with, and frames on demand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.data.clip_store import ClipStore, prepare_clips
from jobs.data.clips_files import clips_content_hash
from jobs.data.clips_writer import write_clips
from jobs.data.errors import DataError
from jobs.data.store import MANIFEST
from jobs.data_spec import ClipsSpec, RecordRange, ToyClevrSpec

TOY = ToyClevrSpec(seed=1, resolution=32, train=RecordRange(first=0, count=3), test=RecordRange(first=3, count=1))


def yes() -> bool:
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "made"
    write_clips(TOY, path, form="ffv1")
    return path


def test_that_a_prepared_store_opens_and_gives_its_frames(tmp_path: Path) -> None:
    manifest = prepare_clips(TOY, tmp_path / "store", may_commit=yes)
    store = ClipStore.open(tmp_path / "store", TOY)
    assert store.manifest == manifest
    assert store.manifest.counts == {"train": 102, "test": 34}
    images = store.images("test")
    assert (len(images), images.shape, images.dtype) == (34, (34, 32, 32, 3), np.uint8)
    assert np.array_equal(images[3:6], images[np.array([3, 4, 5])])
    assert np.array_equal(images[np.array([7])], store.frames("test").read(np.array([7])).images_BSS3)


def test_that_preparing_again_changes_nothing_and_other_clips_are_refused(tmp_path: Path) -> None:
    prepare_clips(TOY, tmp_path / "store", may_commit=yes)
    before = (tmp_path / "store" / MANIFEST).read_bytes()
    prepare_clips(TOY, tmp_path / "store", may_commit=yes)
    assert (tmp_path / "store" / MANIFEST).read_bytes() == before
    with pytest.raises(DataError, match="already holds a store of something else"):
        prepare_clips(TOY.model_copy(update={"seed": 2}), tmp_path / "store", may_commit=yes)


def test_that_nothing_is_written_by_an_attempt_that_has_lost_its_run(tmp_path: Path) -> None:
    assert prepare_clips(TOY, tmp_path / "store", may_commit=lambda: False) is None
    assert not (tmp_path / "store").exists()


def test_that_clips_which_changed_since_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spec = ClipsSpec(path=str(copy), resolution=32, content=clips_content_hash(copy))
    prepare_clips(spec, tmp_path / "store", may_commit=yes)
    assert ClipStore.open(tmp_path / "store", spec).frames("train").count == 102
    names = json.loads((copy / "train_annos.json").read_text())
    (copy / "train_annos.json").write_text(json.dumps(names[:-1]))
    with pytest.raises(DataError, match=r"describes 102 \+ 34 frames"):
        ClipStore.open(tmp_path / "store", spec)
    with pytest.raises(DataError, match="as when the run was planned"):
        prepare_clips(spec, tmp_path / "again", may_commit=yes)
