"""What a run reads of the runs that it needs: their configurations, the prepared store, and a model's samples from it."""

from __future__ import annotations

from typing import assert_never

import torch

from jobs.attempt import Refused, Run
from jobs.contract import RunDir
from jobs.data.clip_store import ClipStore
from jobs.data.coco_store import CocoStore
from jobs.data.features import FeatureStore, StoredFeatures
from jobs.data.part_store import PartStore
from jobs.data.store import ImageStore, SplitName
from jobs.data.text_features import TextStore
from jobs.data.video import ClipWindows
from jobs.data.video_store import VideoStore
from jobs.data_spec import ClipsSpec, CocoSpec, MultiDSpritesSpec, ToyClevrSpec, ToyVideoSpec, VideoFilesSpec
from jobs.data_spec_parts import CelebaSpec, CubSpec, PascalPartSpec, ToyCreaturesSpec
from jobs.samples import ImageSamples, LanguageSamples, OnlineSamples, Pixels, Samples, TokenSamples, Towers, VideoSamples
from jobs.samples_parts import PartSamples
from jobs.spec import AnyJob, EmbedSpec, FrozenRun, PrepareSpec, TrainSpec, WindowSpec
from models.part_objective import feature_layers
from models.spec import BackboneSpec, CocoAdaptiveDecoder, DinosaurSpec
from models.spec_language import ClipSpec, LanguageSlotsSpec, NoText2Slot, SemanticObjective, TransformerText2Slot
from models.spec_parts import PartsObjective

Store = ImageStore | CocoStore | ClipStore | VideoStore | PartStore


def needed_run(run: Run, kind: str) -> tuple[RunDir, AnyJob]:
    """Directory and configuration of the needed run of a kind; raises Refused when it is of another kind."""
    needed = run.run_dir.needed(run.frozen.needs[kind])
    config = FrozenRun.model_validate_json(needed.spec.read_text(encoding="utf-8")).config
    if config.kind != kind:
        raise Refused(f"run {needed.id} is of kind {config.kind!r}, not {kind!r}")
    return needed, config


def open_store(run: Run) -> Store:
    """The prepared data; raises DataError when it is not whole."""
    needed, prepared = needed_run(run, "prepare")
    assert isinstance(prepared, PrepareSpec)
    path = needed.output / "store"
    match prepared.data:
        case MultiDSpritesSpec():
            return ImageStore.open(path)
        case CocoSpec():
            return CocoStore.open(path)
        case ToyClevrSpec() | ClipsSpec():
            return ClipStore.open(path, prepared.data)
        case ToyVideoSpec() | VideoFilesSpec():
            return VideoStore.open(path, prepared.data)
        case ToyCreaturesSpec() | PascalPartSpec() | CubSpec() | CelebaSpec():
            return PartStore.open(path)
        case _:
            assert_never(prepared.data)


def images_of(store: Store, split: SplitName) -> Pixels:
    """The images of a split, uint8 [N,S,S,3]; of videos their first frames."""
    return store.split(split).images if isinstance(store, ImageStore | PartStore) else store.images(split)


def open_samples(
    run: Run, spec: TrainSpec, store: Store, split: SplitName, device: torch.device, *, like: Samples | None = None
) -> Samples:
    """Inputs and targets of the training configuration `spec` on one split; raises DataError, Refused.

    `like`: samples of another split of the same run, whose backbone is used again.
    """
    if isinstance(store, VideoStore):
        assert spec.clip is not None  # a model of videos has it
        return video_samples(store, split, spec.clip, seed=spec.seed)
    if isinstance(store, PartStore):
        assert isinstance(spec.objective, PartsObjective)  # as above
        return _part_samples(store, split, spec.objective, seed=spec.seed, device=device)
    if isinstance(store, ClipStore) and isinstance(spec.model, LanguageSlotsSpec):
        return _language_samples(run, spec, spec.model, store, split, device, like=like)
    if not isinstance(store, CocoStore) or not isinstance(spec.model, DinosaurSpec):
        return ImageSamples(images_NHWC=images_of(store, split))
    targets = store.targets(split) if isinstance(spec.model.decoder, CocoAdaptiveDecoder) else None
    if isinstance(like, OnlineSamples):
        return OnlineSamples(images_NHWC=images_of(store, split), backbone=like.backbone, targets_NTTC=targets)
    if isinstance(spec.online, BackboneSpec):
        from jobs.weights import load_backbone  # timm takes seconds to import, and no other training needs it

        backbone = load_backbone(spec.online, device)
        return OnlineSamples(images_NHWC=images_of(store, split), backbone=backbone, targets_NTTC=targets)
    needed, embedded = needed_run(run, "embed")
    assert isinstance(embedded, EmbedSpec)
    found = FeatureStore.open(needed.output / "features")
    found.check_backbone(embedded.backbone, resolution=store.manifest.resolution)
    features = found.split(split)
    if features.count != store.count(split):
        raise Refused(f"run {needed.id} holds {features.count} images of {split}, the prepared data {store.count(split)}")
    return TokenSamples(features=features, targets_NTTC=targets)


def video_samples(store: VideoStore, split: SplitName, clip: WindowSpec, *, seed: int) -> VideoSamples:
    """Clips of a split's videos, from places that `seed` names."""
    videos = store.videos(split)
    windows = ClipWindows(seed=seed, video_frames=videos.video_frames, clip_frames=clip.frames, frame_step=clip.step)
    return VideoSamples(videos=videos, windows=windows)


def _part_samples(
    store: PartStore, split: SplitName, objective: PartsObjective, *, seed: int, device: torch.device
) -> PartSamples:
    """Training samples: with foregrounds, features and second views as far as the objective needs them."""
    truth = objective.foreground == "truth"
    if truth and not store.manifest.has_foreground:
        raise Refused("objective.foreground is truth, and the data have no masks of the object: set it to none")
    net = None
    if layers := feature_layers(objective):
        from jobs.weights import load_feature_net  # brings timm and open_clip, which take seconds to import

        net = load_feature_net(objective.features, layers, device)
    found = store.split(split)
    return PartSamples(
        images_NSS3=found.images,
        foreground_NSS=found.foreground if truth else None,
        net=net,
        warp_seed=seed if objective.warps else None,
    )


def _language_samples(
    run: Run,
    spec: TrainSpec,
    model: LanguageSlotsSpec,
    store: ClipStore,
    split: SplitName,
    device: torch.device,
    *,
    like: Samples | None,
) -> LanguageSamples:
    needed, embedded = needed_run(run, "embed")
    assert isinstance(embedded, EmbedSpec)
    assert isinstance(embedded.backbone, ClipSpec)
    texts, text_tokens = None, None
    if not isinstance(model.text2slot, NoText2Slot) or isinstance(spec.objective, SemanticObjective):
        texts = TextStore.open(needed.output / "texts")
        texts.check(store.texts, embedded.backbone)
        if isinstance(model.text2slot, TransformerText2Slot):
            text_tokens = model.text2slot.text_tokens
            longest = 0 if texts.tokens_SLT is None else texts.tokens_SLT.shape[1]
            if longest > text_tokens:
                raise Refused(f"model.text2slot.text_tokens is {text_tokens}, the longest sentence has {longest}")
    vision: Towers | StoredFeatures
    if isinstance(like, LanguageSamples) and not isinstance(like.vision, StoredFeatures):
        vision = like.vision
    elif isinstance(spec.online, ClipSpec):
        from jobs.weights import load_clip  # open_clip takes seconds to import, and no other training needs it

        vision = load_clip(spec.online, device).vision_tokens
    else:
        found = FeatureStore.open(needed.output / "features")
        found.check_backbone(embedded.backbone, resolution=store.manifest.resolution)
        vision = found.split(split)
    return LanguageSamples(frames=store.frames(split), vision=vision, texts=texts, text_tokens=text_tokens)
