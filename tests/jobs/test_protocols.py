"""Label sets of the stores: which masks a protocol takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.data.clip_store import ClipStore, clip_manifest, open_source
from jobs.data.clips_frames import FrameBatch
from jobs.data.clips_texts import TextTable
from jobs.data.coco import coco_manifest, open_coco
from jobs.data.coco_files import annotation_file
from jobs.data.coco_generator import write_miniature
from jobs.data.coco_store import MASK_SIDES, CocoManifest, CocoStore
from jobs.data.errors import DataError
from jobs.data.store import SPLITS, ImageStore, write_manifest
from jobs.data.writer import StoreWriter
from jobs.data_spec import CocoGeneratorSpec, CocoSpec, RecordRange, ToyClevrSpec
from jobs.frame_labels import FrameLabels
from jobs.protocols import LabelSet, label_set
from jobs.scoring import instance_scores


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


@pytest.fixture(scope="module")
def squashed(tmp_path_factory: pytest.TempPathFactory) -> CocoStore:
    """Four test images: one object; two that cover each other, so that nothing is left; a crowd alone; no annotation."""
    folder, path = (tmp_path_factory.mktemp("coco") / name for name in ("original", "store"))
    write_miniature(CocoGeneratorSpec(train_images=1, val_images=4, largest_side=64), folder, should_stop=lambda: False)
    file = annotation_file(folder, "test")
    content = json.loads(file.read_text())
    first, second, third, _ = sorted(image["id"] for image in content["images"])
    square = {"category_id": content["categories"][0]["id"], "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]], "iscrowd": 0}
    listed = {image["id"]: image for image in content["images"]}
    pixels = listed[third]["height"] * listed[third]["width"]
    size = [listed[third]["height"], listed[third]["width"]]
    crowd = {"iscrowd": 1, "segmentation": {"size": size, "counts": [0, pixels]}}
    annotations = [(first, {}), (second, {}), (second, {}), (third, crowd)]
    template = content["annotations"][0]
    content["annotations"] = [
        template | square | changes | {"id": number, "image_id": image} for number, (image, changes) in enumerate(annotations)
    ]
    file.write_text(json.dumps(content))
    data = CocoSpec(path=str(folder), preprocessing="covloss", resolution=32, protocols=("covloss",))
    with open_coco(data, folder) as source:
        manifest = coco_manifest(data, {split: len(source.images[split]) for split in SPLITS})
        with StoreWriter(path, manifest, may_create=True) as writer:
            for split in SPLITS:
                writer.put(source.rows(split, at=0, count=manifest.counts[split]), at=0)
    write_manifest(path, manifest)
    return CocoStore.open(path)


def test_that_covloss_scores_a_vanished_mask_1_and_an_image_without_annotation_not_at_all(squashed: CocoStore) -> None:
    assert squashed.annotated().tolist() == [True, True, False, False]
    found = label_set(squashed, "covloss")
    assert [bool(labels_HW.any()) for labels_HW in found.instances_NHW] == [True, False, False, False]
    assert found.scored().tolist() == [0, 1]
    truth_BHW = torch.from_numpy(found.instances_NHW[found.scored()])
    halves_BHW = (torch.arange(128) % 2).expand(2, 128, 128)  # cuts the object, so that its own score is 0
    scored = instance_scores(truth_BHW, halves_BHW, num_slots=2, protocol="covloss")
    assert scored["fg_ari"].tolist() == [0, 1]
    assert scored["mbo"].isnan().tolist() == [False, True]


def test_that_other_protocols_score_every_image(squashed: CocoStore) -> None:
    assert label_set(squashed, "own").scored().tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def clips() -> ClipStore:
    """Two procedural test clips."""
    spec = ToyClevrSpec(resolution=32, train=RecordRange(first=0, count=1), test=RecordRange(first=1, count=2))
    data = open_source(spec)
    return ClipStore(path=Path("store"), manifest=clip_manifest(spec, data), data=data)


def test_that_the_labels_of_clips_are_those_of_their_frames(clips: ClipStore) -> None:
    found, images = label_set(clips, "own", every=9), np.array([0, 45, 9, 66])
    expected = clips.frames("test").read(images)
    assert found.has_masks
    assert found.scored().tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    assert len(found.instances_NHW) == 68
    np.testing.assert_array_equal(found.instances_NHW[images], expected.labels_BSS)
    named = found.named(images)
    assert named is not None
    assert named.dtype == np.int64
    np.testing.assert_array_equal(named, expected.named_B2)
    np.testing.assert_array_equal(found.named(images[1:]), expected.named_B2[1:])  # not what was asked for before
    assert found.sentences(images) == [clips.texts.text(number) for number in expected.sentences_B.tolist()]
    truth = found.truth(images, torch.device("cpu"))
    assert truth.instances_BHW is not None
    assert truth.named_B2 is not None
    assert (truth.instances_BHW.dtype, truth.named_B2.dtype, truth.classes_BHW) == (torch.uint8, torch.int64, None)


def test_that_clips_know_no_protocol_but_their_own(clips: ClipStore) -> None:
    for protocol in ("official", "gd", "covloss"):
        with pytest.raises(DataError, match=f"no masks of protocol {protocol}"):
            label_set(clips, protocol)  # type: ignore[arg-type]


class Unmasked:
    """Frames of clips on disk without masks."""

    has_labels, count, resolution = False, 34, 8

    def sentences(self, indices_B: np.ndarray) -> np.ndarray:
        return np.zeros(len(indices_B), np.int64)

    def read(self, indices_B: np.ndarray) -> FrameBatch:
        images, numbers = np.zeros((len(indices_B), 8, 8, 3), np.uint8), np.zeros((len(indices_B), 2), np.int64)
        names = np.zeros((len(indices_B), 2, 2), np.int64)
        return FrameBatch(images_BSS3=images, labels_BSS=None, sentences_B=numbers[:, 0], named_B2=numbers, names_B22=names)


def test_that_clips_without_masks_have_images_to_score_and_no_truth() -> None:
    found = LabelSet(instances_NHW=FrameLabels(frames=Unmasked(), texts=TextTable(texts=("a",))))
    assert not found.has_masks
    assert len(found.scored()) == 34
    assert found.truth(np.arange(3), torch.device("cpu")) == (None, None, None)
    with pytest.raises(ValueError, match="no masks"):
        found.instances_NHW[np.arange(3)]


def test_that_sprites_have_no_classes(data: Path) -> None:
    store = ImageStore.open(data / "data" / "output" / "store")
    found = label_set(store, "own")
    assert found.classes_NHW is None
    assert found.named(np.arange(2)) is None
    assert found.sentences(np.arange(2)) is None
    np.testing.assert_array_equal(found.instances_NHW, store.split("test").labels)
