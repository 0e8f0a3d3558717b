"""Scores of models that are told sentences: named objects, attention, another scene's sentence, binding over a whole set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch.nn.functional import interpolate

from jobs.data.clips_actions import FRAMES
from jobs.data.clips_frames import FrameBatch
from jobs.data.clips_texts import TextTable
from jobs.frame_labels import FrameLabels
from jobs.grounding import attention_scores, binding, other_scene
from jobs.protocols import LabelSet
from jobs.scoring import mean_scores, score_images
from models.clip_pixels import normalised
from models.slot_model import ConditionedInputs, SlotModel, SlotOutput

SIDE, OBJECTS = 8, 3
TEXTS = TextTable(texts=("the first", "the second", "the third"))


class Clips:
    """Frames on which object k has columns 2k - 2 and 2k - 1; clip c has sentence c (modulo 3), which names object c + 1."""

    resolution = SIDE

    def __init__(self, clips: int, *, has_labels: bool = True) -> None:
        self.count = clips * FRAMES
        self.has_labels = has_labels
        self.readings: list[list[int]] = []

    def sentences(self, indices_B: np.ndarray) -> np.ndarray:
        return indices_B // FRAMES % OBJECTS

    def read(self, indices_B: np.ndarray) -> FrameBatch:
        self.readings.append(indices_B.tolist())
        labels = np.zeros((len(indices_B), SIDE, SIDE), np.uint8)
        for one in range(OBJECTS):
            labels[:, :, 2 * one : 2 * one + 2] = one + 1
        named = np.stack([self.sentences(indices_B) + 1, np.full(len(indices_B), -1)], axis=1)
        return FrameBatch(
            images_BSS3=np.zeros((len(indices_B), SIDE, SIDE, 3), np.uint8),
            labels_BSS=labels if self.has_labels else None,
            sentences_B=self.sentences(indices_B),
            named_B2=named,
            names_B22=np.zeros((len(indices_B), 2, 2), np.int64),
        )


class Reader:
    """Samples whose tokens are their number, and whose text is the number of a sentence (`words` tokens of it)."""

    def __init__(self, frames: Clips, *, speaks: bool = True, words: int = 0) -> None:
        self.frames, self.speaks, self.words = frames, speaks, words
        self.count = frames.count
        self.told: list[list[int]] = []

    def read(self, indices: np.ndarray, mirrored: np.ndarray, told: np.ndarray | None = None) -> tuple[torch.Tensor, ...]:
        assert not mirrored.any()
        if told is not None:
            self.told.append(told.tolist())
        return torch.from_numpy(indices), torch.from_numpy(self.frames.sentences(indices if told is None else told))

    def convert(self, stored: tuple[torch.Tensor, ...]) -> tuple[ConditionedInputs, torch.Tensor]:
        tokens = stored[0].float()[:, None, None].expand(-1, 4, 2).clone()
        text = stored[1].float()[:, None]
        if self.words:
            text = text[:, :, None].expand(-1, self.words, 1)
        return ConditionedInputs(tokens, text if self.speaks else None), torch.ones(len(tokens), 3, SIDE, SIDE)


class Model(SlotModel):
    """Listening, slot 0 has the object that the sentence names and slot 1 the rest; else slot k has object k + 1."""

    noise_shape = (OBJECTS, 2)

    def __init__(self, *, listens: bool, tokens: int = 4) -> None:
        super().__init__()
        self.listens, self.tokens = listens, tokens
        self.noise: list[torch.Tensor] = []

    def forward(self, inputs: ConditionedInputs, noise_BKZ: torch.Tensor) -> SlotOutput:
        self.noise.append(noise_BKZ)
        images = len(inputs.tokens_BNC)
        masks = torch.zeros(images, OBJECTS, SIDE, SIDE)
        told = torch.zeros(images, dtype=torch.int64) if inputs.text is None else inputs.text.flatten(1)[:, 0].long()
        for image in range(images):
            owners = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
            if self.listens:
                owners = torch.ones(SIDE, dtype=torch.int64)
                owners[2 * told[image] : 2 * told[image] + 2] = 0
            masks[image, owners, :, torch.arange(SIDE)] = 1
        level = told.float() if self.listens else torch.zeros(images)
        attention = torch.zeros(images, OBJECTS, self.tokens)
        attention[:, 0, ::2] = attention[:, 1, 1::2] = 1
        reconstruction = level[:, None, None, None].expand(-1, 3, SIDE, SIDE)
        return SlotOutput(reconstruction, masks, torch.zeros(images, OBJECTS, 2), attention)


def score(model: Model, frames: Clips, reader: Reader | None = None, **changes: Any) -> Any:
    labels = LabelSet(instances_NHW=FrameLabels(frames=frames, texts=TEXTS), every=changes.pop("every", 1))
    settings = {"noise_seed": 1, "batch_size": 25, "device": torch.device("cpu"), "text_swap": True} | changes
    return score_images(model, reader or Reader(frames), labels, **settings)


def test_that_a_model_that_listens_finds_what_is_named_and_loses_it_under_another_sentence() -> None:
    found = score(Model(listens=True), Clips(3))
    means = found.means()
    assert means["named_iou"] == means["named_recall"] == 1
    assert means["unnamed_iou"] == pytest.approx(1 / 3)  # 16 pixels of the 48 that are slot 1's
    assert means["unnamed_recall"] == 0
    assert means["swap_named_iou"] == pytest.approx(1 / 3)
    assert means["swap_masks"] == 0.5  # two objects of 16 pixels, of 64
    # told 0, 1, 2 makes errors 1, 0, 1; the next clip's 0, 1, 1
    np.testing.assert_array_equal(found.per_image["swap_mse"][::FRAMES], [-1, 1, 0])
    assert means["binding_accuracy"] == 1
    assert means["binding_chance"] == pytest.approx(1 / 3)
    assert "src_slot" not in means


def test_that_a_model_that_does_not_listen_is_unmoved_by_another_sentence() -> None:
    found = score(Model(listens=False), Clips(3))
    assert not found.per_image["swap_masks"].any()
    assert not found.per_image["swap_mse"].any()
    np.testing.assert_array_equal(found.per_image["swap_named_iou"], found.per_image["named_iou"])
    assert found.means()["binding_accuracy"] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(found.per_image["src_slot"][::FRAMES], [0, 1, 2])


def test_that_the_other_sentence_is_the_next_clips_whatever_the_batches_and_the_share() -> None:
    model, reader = Model(listens=True), Reader(Clips(3))
    score(model, reader.frames, reader, first=70, count=32, batch_size=10)
    assert [number for batch in reader.told for number in batch] == list(range(2, 34))  # 70 + 34 is 2 of 102
    assert [len(noise) for noise in model.noise] == [10, 10, 10, 10, 10, 10, 2, 2]
    assert all(torch.equal(own, other) for own, other in zip(model.noise[::2], model.noise[1::2], strict=True))
    whole = score(Model(listens=True), Clips(3)).per_image
    part = score(Model(listens=True), Clips(3), first=30, count=40, batch_size=7).per_image
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][30:70])


@pytest.mark.parametrize("words", [0, 5])
def test_that_the_same_sentence_is_no_other_one(words: int) -> None:
    frames = Clips(4)  # the last clip's sentence is the first one's
    found = score(Model(listens=True), frames, Reader(frames, words=words)).per_image
    for name in ("swap_masks", "swap_mse", "swap_named_iou"):
        assert np.isnan(found[name]).tolist() == [False] * (3 * FRAMES) + [True] * FRAMES


def test_that_there_is_no_other_sentence_in_a_single_clip() -> None:
    assert other_scene(np.arange(3), FRAMES) is None
    assert not any(name.startswith("swap") for name in score(Model(listens=True), Clips(1)).per_image)


def test_that_a_second_pass_is_made_only_when_asked_for_and_only_of_models_that_are_told_something() -> None:
    for model, settings in ((Model(listens=True), {"text_swap": False}), (Model(listens=False), {})):
        frames = Clips(2)
        found = score(model, frames, Reader(frames, speaks="text_swap" in settings), batch_size=FRAMES, **settings).per_image
        assert len(model.noise) == 2
        assert not any(name.startswith("swap") for name in found)
        assert {"named_iou", "src_slot", "fg_ari_attention"} <= set(found)


def test_that_clips_without_masks_have_no_scores_of_masks() -> None:
    found = score(Model(listens=True), Clips(3, has_labels=False), keep=1, pictures_NHWC=np.zeros((102, SIDE, SIDE, 3), np.uint8))
    assert set(found.per_image) == {"mse", "stripe", "swap_masks", "swap_mse"}
    assert not any(np.isnan(values).any() for values in found.per_image.values())
    assert found.objects_N.tolist() == []
    assert found.kept[0].labels_HW is None
    assert set(found.means()) == set(found.per_image)


def test_that_a_batch_of_frames_is_read_once_for_all_that_is_known_of_it() -> None:
    frames = Clips(1)
    score(Model(listens=True), frames, batch_size=17)
    assert frames.readings == [list(range(17)), list(range(17, 34))]


def test_that_a_look_shows_the_sentence_and_pixels_instead_of_clips_units() -> None:
    pictures = np.zeros((102, SIDE, SIDE, 3), np.uint8)
    found = score(Model(listens=True), Clips(3), every=40, pictures_NHWC=pictures, keep=2).kept
    assert [look.sentence for look in found] == ["the first", "the second"]
    expected = (normalised(torch.full((1, 3, 1, 1), 0.25)) * 0).new_tensor([0.48145466, 0.4578275, 0.40821073])
    np.testing.assert_allclose(found[0].reconstruction_HWC[0, 0], (expected * 255).round())  # zero in CLIP's units is its mean


def test_that_binding_is_taken_from_the_whole_set() -> None:
    slots = np.array([2.0, 2.0, 1.0, math.nan, 1.0, 0.0, 1.0])
    assert binding(slots) == 0.5
    assert np.mean([binding(slots[:3]), binding(slots[3:])]) == pytest.approx(2 / 3)  # another number
    assert mean_scores({"src_slot": slots, "mse": slots}) == {"mse": pytest.approx(7 / 6), "binding_accuracy": 0.5}
    assert math.isnan(binding(np.array([math.nan])))
    assert math.isnan(mean_scores({"src_slot": np.array([math.nan])})["binding_accuracy"])


def test_that_attention_scores_as_masks_that_are_enlarged_before_the_largest_wins() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 3, 16, generator=generator)
    labels = torch.zeros(2, 9, 9, dtype=torch.uint8)
    labels[:, 1:5, 1:5], labels[:, 5:8, 3:9] = 1, 2
    found = attention_scores(attention, labels, "own")
    ids = interpolate(attention.view(2, 3, 4, 4), size=(9, 9), mode="bilinear", align_corners=False).argmax(dim=1)
    for image in range(2):
        objects = labels[image] > 0
        expected = adjusted_rand_score(labels[image][objects], ids[image][objects])
        assert float(found["fg_ari_attention"][image]) == pytest.approx(expected)
        best = []
        for label in (1, 2):
            truth = labels[image] == label
            ious = [float((truth & (ids[image] == k)).sum() / (truth | (ids[image] == k)).sum()) for k in range(3)]
            best.append(ious)
        assert float(found["mbo_attention"][image]) == pytest.approx(np.mean([max(ious) for ious in best]))
        pairs = [best[0][a] + best[1][b] for a in range(3) for b in range(3) if a != b]
        assert float(found["miou_attention"][image]) == pytest.approx(max(pairs) / 2)


def test_that_one_global_token_makes_no_masks() -> None:
    assert attention_scores(torch.ones(2, 3, 1), torch.zeros(2, 4, 4, dtype=torch.uint8), "own") == {}
    found = score(Model(listens=True, tokens=1), Clips(2)).per_image
    assert not any(name.endswith("_attention") for name in found)
    assert "named_iou" in found
