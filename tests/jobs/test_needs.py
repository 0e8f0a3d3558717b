"""What must hold between runs: told from their configurations alone, in words that name both sides."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.data_spec import CocoGeneratorSpec, CocoSpec, MultiDSpritesSpec, RecordRange, ToyClevrSpec, ToyVideoSpec, VideoFilesSpec
from jobs.needs import check_needs
from jobs.spec import EmbedSpec, EvaluateSpec, PrepareSpec, TrainSpec, WindowSpec
from models.spec import BackboneSpec, DinosaurSpec, SlotAutoencoderSpec, UntrainedScoreSpec
from models.spec_language import ClipSpec, LanguageSlotsSpec, TransformerText2Slot
from models.spec_video import MlpPredictor, Recurrence, VideoObjective, VideoSlotsSpec

CLIPS = PrepareSpec(data=ToyClevrSpec())
TEXTS = EmbedSpec(backbone=ClipSpec(), images="none", flips=False)
NEEDS = {"prepare": CLIPS, "embed": TEXTS}


def language(**changes: Any) -> TrainSpec:
    return TrainSpec(**({"model": LanguageSlotsSpec(), "online": ClipSpec()} | changes))


def test_that_a_language_model_fits_its_clips_and_towers() -> None:
    assert check_needs(TEXTS, {"prepare": CLIPS}) == []
    assert check_needs(language(), NEEDS) == []
    assert check_needs(EvaluateSpec(), {**NEEDS, "train": language()}) == []
    stored = EmbedSpec(backbone=ClipSpec(), flips=False)
    assert check_needs(language(online=None), {**NEEDS, "embed": stored}) == []
    assert check_needs(language(model=UntrainedScoreSpec(resolution=224), online=None, steps=0), {"prepare": CLIPS}) == []


def test_that_a_model_of_sentences_is_refused_on_data_without_them() -> None:
    problems = check_needs(language(), {**NEEDS, "prepare": PrepareSpec(data=MultiDSpritesSpec())})
    assert problems == [
        "model.kind language_slots needs frames with sentences (kind `toy_clevr` or `clips`), and `mdsprites` has none"
    ]


@pytest.mark.parametrize(
    ("spec", "needs", "problem"),
    [
        (language(), {"prepare": CLIPS}, "needs a step of kind `embed` with a backbone of kind `clip`"),
        (language(online=None), NEEDS, "stores no vision tokens (images=none)"),
        (
            language(online=BackboneSpec()),
            NEEDS,
            "online is a backbone of kind `timm`, a language model takes one of kind `clip`",
        ),
        (language(online=ClipSpec(name="ViT-B-32")), NEEDS, "online.name is ViT-B-32, the `embed` step's sentences come from"),
        (language(online=ClipSpec(weights="random")), NEEDS, "online.weights is random"),
        (language(model=LanguageSlotsSpec(tokens=196)), NEEDS, "model.tokens 196 differs from the backbone's 49"),
        (language(model=LanguageSlotsSpec(text_size=768)), NEEDS, "model.text_size 768 differs from the backbone's 512"),
        (language(model=LanguageSlotsSpec(text2slot=TransformerText2Slot())), NEEDS, "an `embed` step with text=tokens"),
        (language(flip=True), NEEDS, "would contradict left and right in its sentence"),
        (
            language(),
            {**NEEDS, "prepare": PrepareSpec(data=ToyClevrSpec(resolution=64))},
            "model.resolution 224 differs from the data's 64 x 64 frames",
        ),
        (
            TrainSpec(model=SlotAutoencoderSpec()),
            {"prepare": CLIPS},
            "model.kind slot_autoencoder is not for clips with sentences",
        ),
        (TrainSpec(model=DinosaurSpec(), online=ClipSpec()), {"prepare": CLIPS}, "which is for model.kind language_slots"),
        (EmbedSpec(), {"prepare": CLIPS}, "backbone of kind `timm` needs data of kind `coco`, not `toy_clevr`"),
        (EmbedSpec(backbone=ClipSpec()), {"prepare": CLIPS}, "set flips to false"),
        (
            EmbedSpec(backbone=ClipSpec(), flips=False),
            {"prepare": PrepareSpec(data=ToyClevrSpec(resolution=64))},
            "data.resolution is 64, and ViT-B-32-quickgelu with 49 tokens takes 224",
        ),
        (
            EmbedSpec(backbone=ClipSpec(), flips=False),
            {"prepare": PrepareSpec(data=MultiDSpritesSpec())},
            "backbone of kind `clip` needs data of kind `toy_clevr` or `clips`, not `mdsprites`",
        ),
        (EvaluateSpec(), {"prepare": CLIPS, "train": language()}, "evaluating a language model needs the `embed` step too"),
    ],
)
def test_that_what_does_not_fit_is_named(spec: Any, needs: dict[str, Any], problem: str) -> None:
    assert any(problem in found for found in check_needs(spec, needs)), check_needs(spec, needs)


VIDEOS = PrepareSpec(data=ToyVideoSpec())
LEARNED = VideoSlotsSpec(recurrence=Recurrence(predictor=MlpPredictor()))


def video(**changes: Any) -> TrainSpec:
    return TrainSpec(**({"model": VideoSlotsSpec(), "objective": VideoObjective(), "clip": WindowSpec()} | changes))


def test_that_a_video_model_fits_its_videos() -> None:
    for data in (ToyVideoSpec(), VideoFilesSpec(path="videos")):
        assert check_needs(video(), {"prepare": PrepareSpec(data=data)}) == []
    assert check_needs(video(clip=WindowSpec(frames=24)), {"prepare": VIDEOS}) == []
    assert check_needs(EvaluateSpec(), {"prepare": VIDEOS, "train": video()}) == []


@pytest.mark.parametrize(
    ("spec", "data", "problem"),
    [
        (video(), MultiDSpritesSpec(), "video_slots needs data of kind `toy_video` or `video_files`, not `mdsprites`"),
        (video(), CocoSpec(generator=CocoGeneratorSpec()), "needs data of kind `toy_video` or `video_files`, not `coco`"),
        (video(), ToyClevrSpec(resolution=64), "needs data of kind `toy_video` or `video_files`, not `toy_clevr`"),
        (TrainSpec(model=SlotAutoencoderSpec()), ToyVideoSpec(), "model.kind slot_autoencoder is not for videos"),
        (TrainSpec(model=UntrainedScoreSpec()), ToyVideoSpec(), "model.kind random_masks is not for videos"),
        (video(), ToyVideoSpec(resolution=128), "model.resolution 64 differs from the data's 128 x 128 frames"),
        (
            video(clip=WindowSpec(frames=13, step=2)),
            ToyVideoSpec(),
            "clip.frames 13 with clip.step 2 spans 25 frames, data.video_frames is 24",
        ),
        (
            video(drop_last=True, batch_size=9),
            ToyVideoSpec(train=RecordRange(first=0, count=8), test=RecordRange(first=8, count=1)),
            "batch_size 9 is larger than the training set of 8",
        ),
    ],
)
def test_that_what_does_not_fit_videos_is_said(spec: TrainSpec, data: Any, problem: str) -> None:
    (found,) = check_needs(spec, {"prepare": PrepareSpec(data=data)})
    assert problem in found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"clip": None}, "model.kind video_slots needs clip, for example"),
        ({"objective": {"kind": "reconstruction"}}, "go together, not video_slots and reconstruction"),
        ({"model": SlotAutoencoderSpec()}, "go together, not slot_autoencoder and video"),
        ({"model": SlotAutoencoderSpec(), "objective": {"kind": "reconstruction"}}, "clip is for model.kind video_slots"),
        ({"flip": True}, "clips are not mirrored"),
        ({"clip": WindowSpec(frames=1), "model": LEARNED}, "model.recurrence.predictor works between frames"),
        (
            {"clip": WindowSpec(frames=1), "model": VideoSlotsSpec(encoder_time="conv3d")},
            "model.encoder_time conv3d works between frames",
        ),
        ({"clip": WindowSpec(frames=1), "objective": VideoObjective(future_masks=1)}, "the objective's terms compare frames"),
        ({"model": VideoSlotsSpec(resolution=16), "objective": VideoObjective(perceptual=1)}, "lpips.net alex takes 31 pixels"),
    ],
)
def test_that_what_contradicts_itself_in_training_on_clips_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        video(**changes)
    video(clip=WindowSpec(frames=1))
