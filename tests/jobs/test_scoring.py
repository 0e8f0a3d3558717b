"""Scoring: what reaches the model, which images are scored, and the protocols' rules in the scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from jobs.protocols import WITHOUT_OBJECTS, LabelSet, ProtocolName, by_protocol, predicted_ids
from jobs.scoring import OF_CLASSES, class_scores, instance_scores, score_images
from models.slot_model import SlotModel, SlotOutput

SLOTS, GRID, SIDE = 3, 4, 8
PROTOCOLS: tuple[ProtocolName, ...] = ("own", "official", "gd", "covloss")


class Reader:
    """Samples whose tokens are their number."""

    count = 5

    def read(self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None) -> tuple[torch.Tensor, ...]:
        assert not mirrored.any()
        return (torch.from_numpy(indices).float()[:, None, None].expand(-1, GRID**2, 2).clone(),)

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        return stored[0], stored[0] + 1


class Columns(SlotModel):
    """Slot k owns column k of the grid (the last two: slot 2); keeps a slot where its gate's noise is not level."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.noise_shape = (SLOTS, 4)
        self.inputs: list[torch.Tensor] = []
        self.noise: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor, noise_BKZ: torch.Tensor) -> SlotOutput:
        self.inputs.append(inputs)
        self.noise.append(noise_BKZ)
        masks = torch.zeros(len(inputs), SLOTS, GRID, GRID)
        for column in range(GRID):
            masks[:, min(column, SLOTS - 1), :, column] = 1
        keep = (noise_BKZ[..., -1] > noise_BKZ[..., -2]).float() if self.gated else None
        return SlotOutput(inputs, masks, torch.zeros(len(inputs), SLOTS, 2), torch.zeros(len(inputs), SLOTS, GRID**2), keep)


def labels(**changes: Any) -> LabelSet:
    """Five images: two objects, none, void alone, one object, two of one class."""
    instances = np.zeros((5, SIDE, SIDE), dtype=np.uint8)
    instances[0, :, :2], instances[0, :, 2:4] = 1, 2
    instances[2] = 255
    instances[3, :, 4:] = 1
    instances[4, :, :2], instances[4, :, 2:4] = 1, 2
    classes = np.zeros_like(instances)
    classes[instances > 0] = 7
    return LabelSet(**({"instances_NHW": instances, "classes_NHW": classes} | changes))


def score(model: SlotModel, label_set: LabelSet, **changes: Any) -> Any:
    settings = {"noise_seed": 1, "batch_size": 2, "device": torch.device("cpu")} | changes
    return score_images(model, Reader(), label_set, **settings)  # type: ignore[arg-type]


def test_that_tokens_are_compared_with_their_targets() -> None:
    found = score(Columns(gated=False), labels())
    assert found.per_image["mse"].tolist() == [1.0] * 5
    assert "kept_slots" not in found.per_image
    assert found.objects_N.tolist() == [2, 0, 0, 1, 2]


def test_that_a_range_of_images_scores_as_in_the_whole() -> None:
    whole, model = score(Columns(gated=True), labels()), Columns(gated=True)
    parts = [score(model, labels(), first=first, count=3, batch_size=5) for first in (0, 3)]
    for name, values in whole.per_image.items():
        np.testing.assert_array_equal(np.concatenate([part.per_image[name] for part in parts]), values)
    assert torch.cat(model.inputs)[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_that_a_deterministic_gate_is_given_level_noise_and_the_slots_keep_theirs() -> None:
    noisy, level = Columns(gated=True), Columns(gated=True)
    kept = score(noisy, labels()).per_image["kept_slots"]
    assert 0 < kept.sum() < 5 * SLOTS
    assert score(level, labels(), gate_noise=False).per_image["kept_slots"].sum() == 0
    one, other = torch.cat(noisy.noise), torch.cat(level.noise)
    assert torch.equal(one[..., :2], other[..., :2])
    assert not other[..., 2:].any()
    assert one[..., 2:].all()


def test_that_pictures_stand_for_the_first_images() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), dtype=np.uint8)
    kept = score(Columns(gated=False), labels(), pictures_NHWC=pictures, keep=3).kept
    assert [int(look.image_HWC[0, 0, 0]) for look in kept] == [0, 1, 2]
    assert score(Columns(gated=False), labels(), pictures_NHWC=pictures).kept == []


EXPECTED: dict[str, dict[str, list[float]]] = {
    "own": {"fg_ari": [1, math.nan, math.nan, 1, 1], "mbo": [1, math.nan, math.nan, 1, 1]},
    "official": {
        "fg_ari": [1, 1, 1, 1, 1],
        "mbo": [1, math.nan, math.nan, 1, 1],
        "miou_gd": [2 / 3, math.nan, math.nan, 0.5, 2 / 3],
    },
    "gd": {
        "fg_ari": [1, 1, 1, 1, 1],
        "mbo": [1, 0, 0, 1, 1],
        "miou_gd": [2 / 3, 0, 0, 0.5, 2 / 3],
        "miou": [1, math.nan, math.nan, 1, 1],
        "recovery": [1, math.nan, math.nan, 1, 1],
        "corloc_mask": [1, math.nan, math.nan, 1, 1],
    },
}


@pytest.mark.parametrize("protocol", EXPECTED)
def test_that_images_without_objects_score_by_the_protocol(protocol: ProtocolName) -> None:
    found = score(Columns(gated=False), labels(protocol=protocol)).per_image
    for name, expected in EXPECTED[protocol].items():
        np.testing.assert_allclose(found[name], expected, err_msg=name)
    for name in ("purity", "ami", "nmi", "pair_f1", "pair_recall"):
        assert np.isnan(found[name][1:3]).all(), name


@pytest.mark.parametrize(("annotated", "expected"), [(None, [0, 2, 3, 4]), ([1, 1, 0, 1, 0], [0, 1, 3])])
def test_that_covloss_leaves_out_images_without_annotation(annotated: list[int] | None, expected: list[int]) -> None:
    chosen = labels(protocol="covloss", annotated_N=None if annotated is None else np.array(annotated, dtype=bool))
    assert chosen.scored().tolist() == expected
    model = Columns(gated=False)
    found = score(model, chosen)
    assert torch.cat(model.inputs)[:, 0, 0].tolist() == expected
    assert found.per_image["fg_ari"].tolist() == [1] * len(expected)
    assert np.isnan(found.per_image["mbo"][found.objects_N == 0]).all()


def test_that_every_nth_image_scores_as_in_the_whole() -> None:
    whole, some = Columns(gated=False), Columns(gated=False)
    everything, found = score(whole, labels()), score(some, labels(every=2))
    assert torch.cat(some.inputs)[:, 0, 0].tolist() == [0, 2, 4]
    assert torch.equal(torch.cat(whole.noise)[::2], torch.cat(some.noise))
    for name, values in everything.per_image.items():
        np.testing.assert_array_equal(values[::2], found.per_image[name])
    assert found.objects_N.tolist() == [2, 0, 2]


def test_that_every_nth_image_is_counted_before_those_without_annotation_are_left_out() -> None:
    annotated = np.array([0, 1, 1, 1, 1], dtype=bool)
    assert labels(protocol="covloss", annotated_N=annotated, every=2).scored().tolist() == [2, 4]
    assert labels(protocol="covloss", every=3).scored().tolist() == [0, 3]
    assert labels(every=7).scored().tolist() == [0]


def test_that_images_without_sentences_have_no_scores_of_them() -> None:
    found = score(Columns(gated=False), labels(), text_swap=True).per_image
    assert not any(part in name for name in found for part in ("named", "swap", "attention", "src_slot", "binding"))


def test_that_slot_noise_follows_the_image_when_others_are_left_out() -> None:
    whole, some = Columns(gated=False), Columns(gated=False)
    score(whole, labels())
    score(some, labels(protocol="covloss", annotated_N=np.array([0, 1, 0, 1, 0], dtype=bool)))
    assert torch.equal(torch.cat(whole.noise)[[1, 3]], torch.cat(some.noise))


def test_that_instances_of_one_class_are_one_object() -> None:
    found = score(Columns(gated=False), labels()).per_image
    assert {f"{name}_class" for name in OF_CLASSES} <= set(found)
    # image 0: columns 0-3 are one class; slots 0 and 1 own columns 0-1 and 2-3
    assert [found[f"{name}_class"][0] for name in ("fg_ari", "mbo", "miou", "recovery")] == [0, 0.5, 0.5, 0]
    assert not any(name.endswith("_class") for name in score(Columns(gated=False), labels(classes_NHW=None)).per_image)


def test_that_void_pixels_count_in_no_area() -> None:
    ids = torch.zeros(1, 4, 4, dtype=torch.int64)
    truth = torch.zeros(1, 4, 4, dtype=torch.uint8)
    truth[:, :2] = 1
    truth[:, 3] = 255
    for scorer, name in ((instance_scores, "mbo"), (class_scores, "mbo_class")):
        assert float(scorer(truth, ids, num_slots=2, protocol="official")[name]) == pytest.approx(8 / 12)


def test_that_soft_masks_are_enlarged_before_the_largest_wins() -> None:
    masks = torch.tensor([[0.9, 0.4], [0.1, 0.6]])[None, :, None, :]  # two slots, 1 x 2
    assert predicted_ids(masks, (1, 2), "own").tolist() == [[[0, 1]]]
    # bilinear, corners not aligned: 0.9, 0.775, 0.525, 0.4 for slot 0
    assert predicted_ids(masks, (1, 4), "official")[0, 0].tolist() == [0, 0, 0, 1]
    assert predicted_ids(masks, (1, 4), "gd")[0, 0].tolist() == [0, 0, 0, 1]
    assert predicted_ids(masks, (1, 4), "covloss")[0, 0].tolist() == [0, 0, 1, 1]


def test_that_enlarging_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = predicted_ids(masks, (9, 9), "own")
    monkeypatch.setattr("jobs.protocols.MASKS_AT_ONCE", 2 * 3 * 81)
    assert torch.equal(predicted_ids(masks, (9, 9), "own"), whole)


def test_that_the_first_of_equal_slots_wins() -> None:
    assert predicted_ids(torch.full((1, 3, 2, 2), 0.25), (2, 2), "own").tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_that_rules_leave_images_with_objects_alone(protocol: ProtocolName) -> None:
    given = {name: torch.tensor([0.25, math.nan]) for name in ("fg_ari", "mbo", "miou_gd", "miou")}
    found = by_protocol(given, torch.tensor([2, 0]), protocol)
    for name, values in found.items():
        assert values[0] == 0.25
        expected = WITHOUT_OBJECTS[protocol].get(name, math.nan)
        assert float(values[1]) == pytest.approx(expected, nan_ok=True)
