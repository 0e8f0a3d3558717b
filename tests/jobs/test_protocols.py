"""Label sets of the stores: which masks a protocol takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.data.coco_store import MASK_SIDES, CocoManifest, CocoStore
from jobs.data.errors import DataError
from jobs.data.store import ImageStore, write_manifest
from jobs.protocols import label_set


@pytest.fixture
def coco(tmp_path: Path) -> CocoStore:
    """Two test images; masks of `gd` filled with 1 and 11, of `official` with 2 and 12."""
    protocols = {"gd": MASK_SIDES["gd"], "official": MASK_SIDES["official"]}
    manifest = CocoManifest.model_validate(
        {
            "counts": {"train": 1, "test": 2},
            "resolution": 16,
            "target_resolution": None,
            "preprocessing": "official",
            "protocols": protocols,
            "source": {},
        }
    )
    for name, (dtype, shape) in manifest.arrays().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        number = {"gd": 1, "official": 2}.get(Path(name).parent.name, 0) + 10 * name.endswith("classes.npy")
        np.save(tmp_path / name, np.full(shape, number, dtype=dtype))
    write_manifest(tmp_path, manifest)
    return CocoStore.open(tmp_path)


def test_that_own_takes_the_first_stored_masks_and_the_others_theirs(coco: CocoStore) -> None:
    for protocol, number in (("own", 1), ("official", 2), ("gd", 1)):
        found = label_set(coco, protocol)  # type: ignore[arg-type]
        assert found.classes_NHW is not None
        assert (int(found.instances_NHW[0, 0, 0]), int(found.classes_NHW[0, 0, 0])) == (number, 10 + number)
        assert found.protocol == protocol
        assert found.scored().tolist() == [0, 1]


def test_that_masks_that_are_not_stored_are_named(coco: CocoStore) -> None:
    with pytest.raises(DataError, match="covloss"):
        label_set(coco, "covloss")


def test_that_sprites_have_no_classes(data: Path) -> None:
    store = ImageStore.open(data / "data" / "output" / "store")
    found = label_set(store, "own")
    assert found.classes_NHW is None
    np.testing.assert_array_equal(found.instances_NHW, store.split("test").labels)
