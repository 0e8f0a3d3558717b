"""Scores of parts through a model: against sklearn, with identities that change, with keypoints alone, and of damaged data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted_parts import KEYPOINTS, SIDE, SLOTS, Painted, blocks, mistaken, record, write_store
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from jobs.data.errors import DataError
from jobs.data.part_store import PartRecord, PartStore
from jobs.scoring import Scored
from jobs.scoring_parts import FIT, PartTruth, pooled_means, regression_means, score_parts
from models.part_types import PartInputs, PartOutput

CPU = torch.device("cpu")
RULED = {"nmi", "ari", "fg_nmi", "fg_ari"}
OF_PIXELS = {"part_miou", "part_miou_by_image", "identity_gap"}


def scored(store: PartStore, model: Painted | None = None, *, batch_size: int = 4, keep: int = 0) -> Scored:
    truth = PartTruth.of(store, "test")
    images = np.arange(len(truth.split))
    model = Painted() if model is None else model
    return score_parts(model, truth, images, noise_seed=0, batch_size=batch_size, device=CPU, keep=keep)


def means(store: PartStore, model: Painted | None = None) -> dict[str, float]:
    return pooled_means(scored(store, model).per_image)


def ruled(names: set[str]) -> set[str]:
    return names | {f"{name}_hard" for name in names}


def test_that_batches_change_no_column(tmp_path: Path) -> None:
    store = write_store(tmp_path, mistaken(7))
    whole = scored(store, batch_size=7).per_image
    for batch_size in (1, 3):
        cut = scored(store, batch_size=batch_size).per_image
        assert list(cut) == list(whole)
        for name in whole:
            np.testing.assert_array_equal(cut[name], whole[name], err_msg=name)


def test_that_pooled_scores_are_those_of_all_pixels_at_once(tmp_path: Path) -> None:
    records = mistaken(6)
    found = means(write_store(tmp_path, records), Painted(noise=0))
    truth, slots = (np.stack([getattr(one, name) for one in records]) for name in ("parts_SS", "image_SS3"))
    labels, ids = truth.ravel(), slots[..., 0].ravel()
    things = labels > 0
    either, both = ((labels > 0) | (ids > 0)).reshape(6, -1).sum(1), ((labels > 0) & (ids > 0)).reshape(6, -1).sum(1)
    expected = {
        "nmi": normalized_mutual_info_score(labels, ids),
        "ari": adjusted_rand_score(labels, ids),
        "fg_nmi": normalized_mutual_info_score(labels[things], ids[things]),
        "fg_ari": adjusted_rand_score(labels[things], ids[things]),
        "foreground_iou": (both / either).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) == ruled(RULED | OF_PIXELS | {"foreground_iou", "parts_used"}) | {"mask_vectors"}


def test_that_perfect_parts_score_one_by_both_rules(tmp_path: Path) -> None:
    found = means(write_store(tmp_path, [record(blocks(n), n) for n in range(5)]))
    perfect = ruled(RULED | OF_PIXELS - {"identity_gap"} | {"foreground_iou"})
    assert {name: found[name] for name in perfect} == pytest.approx(dict.fromkeys(perfect, 1.0))
    assert {name: found[name] for name in ruled({"identity_gap"})} == {"identity_gap": 0.0, "identity_gap_hard": 0.0}
    assert found["parts_used"] == SLOTS - 1
    assert found["mask_vectors"] == SLOTS


def test_that_identities_that_change_by_image_cost_all_but_the_matching_by_image(tmp_path: Path) -> None:
    records = [record(np.random.default_rng(n).permutation(SLOTS)[blocks(n)], n, blocks(n)) for n in range(30)]
    found = means(write_store(tmp_path, records))
    assert found["part_miou_by_image"] == 1.0
    assert found["part_miou"] < 0.6
    assert found["identity_gap"] == pytest.approx(1 - found["part_miou"])
    assert found["nmi"] < 0.1


def test_that_the_rules_differ_where_the_background_is_strong(tmp_path: Path) -> None:
    class Faint(Painted):
        def forward(self, inputs: PartInputs, noise: torch.Tensor) -> PartOutput:
            output = super().forward(inputs, noise)
            masks = output.masks_BKHW * torch.tensor([1.0, 1e-3, 1e-3])[:, None, None]
            return output._replace(masks_BKHW=masks / masks.sum(dim=1, keepdim=True))

    found = means(write_store(tmp_path, [record(blocks(n), n) for n in range(3)]), Faint())
    assert found["foreground_iou"] == 0.0
    assert found["foreground_iou_hard"] == 1.0
    assert (found["parts_used"], found["parts_used_hard"]) == (0.0, 2.0)
    assert found["part_miou"] < found["part_miou_hard"] == 1.0
    assert found["nmi"] == 0.0


def test_that_pixels_that_nobody_has_annotated_count_nowhere(tmp_path: Path) -> None:
    def half_known(n: int) -> PartRecord:
        slots, parts = blocks(n), blocks(n)
        slots[:, SIDE // 2 :] = blocks(n + 1000)[:, SIDE // 2 :]
        parts[:, SIDE // 2 :] = 255
        return record(slots, n, parts)

    found = means(write_store(tmp_path, [half_known(n) for n in range(4)]))
    assert {name: found[name] for name in RULED} == pytest.approx(dict.fromkeys(RULED, 1.0))
    assert found["part_miou"] == 1.0
    assert found["foreground_iou"] < 1  # the object's mask knows these pixels


def test_that_neither_part_nor_object_is_no_mistake_of_the_foreground(tmp_path: Path) -> None:
    slots, parts = blocks(0), blocks(0)
    slots[:3], parts[:3] = 1, 255  # as outside a photograph
    one = record(slots, 0, parts)
    outside, object_there = (
        means(write_store(tmp_path / str(k), [replace(one, foreground_SS=(parts % 255 > 0) | ((parts == 255) & k))]))
        for k in (np.uint8(0), np.uint8(1))
    )
    assert outside["foreground_iou"] == object_there["foreground_iou"] == 1.0
    missed = record(np.where(parts == 255, 0, slots), 0, parts, foreground_SS=(parts > 0).astype(np.uint8))
    assert means(write_store(tmp_path / "missed", [missed]))["foreground_iou"] < 1


def of_points(folder: Path, records: list[PartRecord], **changes: object) -> PartStore:
    void = np.full((SIDE, SIDE), 255, np.uint8)
    there = np.ones((SIDE, SIDE), np.uint8)
    records = [replace(one, parts_SS=void, foreground_SS=there) for one in records]
    return write_store(folder, records, records, part_names=(), has_parts=False, has_foreground=False, **changes)


def test_that_keypoints_stand_for_parts_where_these_are_not_known(tmp_path: Path) -> None:
    records = [record(blocks(n), n) for n in range(12)]
    found = means(of_points(tmp_path, records), Painted(noise=0))
    points = [
        (q, one.image_SS3[round(float(y)), round(float(x)), 0])
        for one in records
        for q, (x, y) in enumerate(one.keypoints_Q2)
        if one.visible_Q[q]
    ]
    labels, ids = (np.array(column) for column in zip(*points, strict=True))
    among = np.where(ids == 0, 1, ids)  # both parts have the same of the background's pixels: the first of equals
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, ids))
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels, ids))
    assert found["fg_nmi"] == pytest.approx(normalized_mutual_info_score(labels, among))
    assert found["fg_ari"] == pytest.approx(adjusted_rand_score(labels, among))
    assert set(found) == ruled(RULED | {"parts_used"}) | {"mask_vectors"}


def with_linear_keypoints(n: int) -> PartRecord:
    """An image whose second part's centre of mass (and the first's plus one) are its keypoints."""
    ids = blocks(n)
    middle = [np.argwhere(ids == k).mean(axis=0)[::-1] for k in (1, 2)]
    keypoints = np.array([middle[1], middle[0] + 1], np.float32)
    return record(ids, n, keypoints_Q2=keypoints, visible_Q=np.ones(KEYPOINTS, np.uint8))


@pytest.mark.parametrize("kind", ["painted", "celeba"])
def test_that_keypoints_are_regressed_from_the_centres_of_the_training_images(tmp_path: Path, kind: str) -> None:
    train, test = ([with_linear_keypoints(n) for n in numbers] for numbers in (range(20), range(20, 26)))
    store = write_store(tmp_path, test, train, source={"kind": kind})
    places = []
    for name, count, purpose in (("train", 20, FIT), ("test", 6, "evaluation")):
        truth = PartTruth.of(store, name)
        found = score_parts(Painted(0), truth, np.arange(count), noise_seed=0, batch_size=8, device=CPU, purpose=purpose)
        places.append(truth.places(np.arange(count), found.per_image))
    errors = regression_means(*places, eye_distance=truth.eye_distance)
    if kind == "celeba":
        assert errors == {"landmark_nme": pytest.approx(0, abs=0.1)}
    else:
        assert set(errors) == {"keypoint_error"}
        assert 0.1 < errors["keypoint_error"] < 5  # the second keypoint lies a pixel from any linear map


def test_that_images_to_fit_on_give_centres_alone_under_other_noise(tmp_path: Path) -> None:
    truth = PartTruth.of(write_store(tmp_path, mistaken(5)), "test")
    found = [
        score_parts(Painted(), truth, np.arange(5), noise_seed=0, batch_size=2, device=CPU, purpose=purpose, keep=2)
        for purpose in ("evaluation", "fit")
    ]
    assert set(found[1].per_image) == set(found[0].per_image)
    for name, values_N in found[1].per_image.items():
        assert np.isnan(values_N).all() != name.startswith("centre/"), name
    assert (found[1].per_image["centre/1/x"] != found[0].per_image["centre/1/x"]).all()
    assert (len(found[0].parts), len(found[1].parts)) == (2, 0)


def test_that_noise_is_the_images_own(tmp_path: Path) -> None:
    truth = PartTruth.of(write_store(tmp_path, mistaken(1) * 3), "test")
    first, last = (
        score_parts(Painted(), truth, np.array(images), noise_seed=0, batch_size=2, device=CPU).per_image["centre/1/x"]
        for images in ([0, 1, 2], [1, 2])
    )
    assert len(set(first.tolist())) == 3
    assert first.tolist()[1:] == last.tolist()


def test_that_centres_are_columns_by_part_and_axis(tmp_path: Path) -> None:
    slots = np.zeros((SIDE, SIDE), int)
    slots[1:3, 10:14], slots[12:14, 4:6] = 1, 2
    found = scored(write_store(tmp_path, [record(slots, 0)]), Painted(noise=0)).per_image
    places = {name: float(values_N[0]) for name, values_N in found.items() if name.startswith("centre/")}
    expected = {"centre/1/x": 11.5, "centre/1/y": 1.5, "centre/2/x": 4.5, "centre/2/y": 12.5}
    assert places == pytest.approx(expected, abs=1.5)  # soft masks lie everywhere a little


def test_that_looks_show_the_images_maps(tmp_path: Path) -> None:
    records = mistaken(5)
    looks = scored(write_store(tmp_path, records), batch_size=2, keep=3).parts
    assert len(looks) == 3
    for look, one in zip(looks, records, strict=False):
        np.testing.assert_array_equal(look.image_SS3, one.image_SS3)
        np.testing.assert_array_equal(look.parts_SS, one.parts_SS)
        np.testing.assert_array_equal(look.slots_SS, one.image_SS3[..., 0])
        np.testing.assert_array_equal(look.keypoints_V2, one.keypoints_Q2[one.visible_Q > 0])
        np.testing.assert_allclose(look.masks_KSS.sum(axis=0), 1, rtol=1e-6)


def test_that_no_images_have_no_columns(tmp_path: Path) -> None:
    truth = PartTruth.of(write_store(tmp_path, mistaken(2)), "test")
    assert score_parts(Painted(), truth, np.arange(0), noise_seed=0, batch_size=4, device=CPU).per_image == {}


def test_that_data_without_parts_and_keypoints_are_refused(tmp_path: Path) -> None:
    nothing = [replace(one, keypoints_Q2=np.zeros((0, 2), np.float32), visible_Q=np.zeros(0, np.uint8)) for one in mistaken(2)]
    store = of_points(tmp_path, nothing)
    with pytest.raises(DataError, match="neither parts nor keypoints"):
        PartTruth.of(store, "test")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"parts_SS": np.full((SIDE, SIDE), 7, np.uint8)}, r"test/parts.npy.*label 7"),
        ({"keypoints_Q2": np.full((KEYPOINTS, 2), np.nan, np.float32)}, r"test/keypoints.npy.*not a number"),
        ({"scale_2": np.zeros(2, np.float32)}, r"test/scale.npy.*not above 0"),
    ],
)
def test_that_what_cannot_be_is_an_error_that_names_the_file(tmp_path: Path, wrong: dict[str, np.ndarray], told: str) -> None:
    store = write_store(tmp_path, [*mistaken(2), replace(record(blocks(2), 3), **wrong)])
    with pytest.raises(DataError, match=told):
        scored(store)
