"""What must hold between a run and the runs that it needs, told from their configurations alone; torch-free."""

from __future__ import annotations

import math
import re
from typing import Any

from jobs.data.clips_actions import FRAMES
from jobs.data_spec import ClipsSpec, CocoSpec, MultiDSpritesSpec, ToyClevrSpec, ToyVideoSpec, VideoFilesSpec
from jobs.data_spec_parts import CelebaSpec, CubSpec, PascalPartSpec, ToyCreaturesSpec
from jobs.spec import AnyJob, EmbedSpec, EvaluateSpec, PrepareSpec, TrainSpec
from models.spec import AnyBackbone, BackboneSpec, CocoAdaptiveDecoder, DinosaurSpec, SlotAutoencoderSpec, UntrainedScoreSpec
from models.spec_language import ClipSpec, LanguageSlotsSpec, NoText2Slot, SemanticObjective, TransformerText2Slot
from models.spec_parts import PartSlotsSpec, PartsObjective
from models.spec_video import VideoSlotsSpec

CLIP_KINDS = "kind `toy_clevr` or `clips`"
VIDEO_KINDS = "kind `toy_video` or `video_files`"
PART_KINDS = "kind `toy_creatures`, `pascal_part`, `cub` or `celeba`"
PartData = ToyCreaturesSpec | PascalPartSpec | CubSpec | CelebaSpec

NEEDS: dict[str, frozenset[str]] = {
    "count": frozenset(),
    "prepare": frozenset(),
    "embed": frozenset({"prepare"}),
    "train": frozenset({"prepare"}),
    "evaluate": frozenset({"prepare", "train"}),
}
"""The kinds of run that each kind cannot do without. (A `count` run accepts any need, and only checks its outcome.)"""


def check_needs(spec: AnyJob, needs: dict[str, Any]) -> list[str]:
    """What is wrong between a run and the runs that it needs (kind -> spec); one sentence per problem, none if fine."""
    problems: list[str] = []
    missing = NEEDS[spec.kind] - set(needs)
    if missing:
        problems.append(f"a `{spec.kind}` step needs a step of kind {', '.join(f'`{kind}`' for kind in sorted(missing))}")
    prepared, embedded, earlier = needs.get("prepare"), needs.get("embed"), needs.get("train")
    if isinstance(spec, EmbedSpec) and isinstance(prepared, PrepareSpec):
        problems += _embed_problems(spec, prepared)
    if isinstance(spec, TrainSpec):
        if isinstance(prepared, PrepareSpec):
            problems += _data_problems(spec, prepared)
        problems += _token_problems(spec, embedded)
        problems += _warm_start_problems(spec, earlier)
    if isinstance(spec, EvaluateSpec) and isinstance(earlier, TrainSpec):
        problems += _evaluation_problems(spec, prepared, embedded, earlier)
    return problems


def _embed_problems(spec: EmbedSpec, prepared: PrepareSpec) -> list[str]:
    data = prepared.data
    match spec.backbone:
        case BackboneSpec() as backbone:
            if not isinstance(data, CocoSpec):
                return [f"an `embed` step with a backbone of kind `timm` needs data of kind `coco`, not `{data.kind}`"]
            problems = _patch_problems(backbone, data)
            return problems + (["images=none is for a backbone of kind `clip`"] if spec.images == "none" else [])
        case ClipSpec() as towers:
            if not isinstance(data, ToyClevrSpec | ClipsSpec):
                return [f"an `embed` step with a backbone of kind `clip` needs data of {CLIP_KINDS}, not `{data.kind}`"]
            problems = _frame_problems(towers, data)
            flips = "flips=true: a mirrored frame would contradict left and right in its sentence; set flips to false"
            return problems + ([flips] if spec.flips else [])


def _patch_problems(backbone: BackboneSpec, data: CocoSpec) -> list[str]:
    """Whether the images' side is that of the backbone's grid of patches, as far as its name tells the patches' side."""
    named = re.search(r"_patch(\d+)(?:_|$)", backbone.name)
    side, grid = data.resolution, math.isqrt(backbone.tokens)
    if named is not None and side != grid * int(named[1]):
        needed = (
            f"{grid} x {grid} patches of {named[1]} pixels: data.resolution {grid * int(named[1])}, or another backbone.tokens"
        )
    elif side % grid:
        needed = f"a grid of {grid} x {grid}, which does not divide it: set data.resolution or backbone.tokens"
    else:
        return []
    return [f"data.resolution is {side}, and {backbone.name} with {backbone.tokens} tokens takes {needed}"]


def _frame_problems(towers: ClipSpec, data: ToyClevrSpec | ClipsSpec) -> list[str]:
    """Whether the frames' side is what the vision tower takes, as far as its name tells the patches' side."""
    named = re.search(r"-(14|16|32)(?:-|$)", towers.name)
    stride = 32 if towers.name.startswith("RN") else int(named[1]) if named is not None else None
    if stride is None or towers.global_features or data.resolution == stride * math.isqrt(towers.tokens):
        return []
    needed = stride * math.isqrt(towers.tokens)
    return [f"data.resolution is {data.resolution}, and {towers.name} with {towers.tokens} tokens takes {needed}"]


def _data_problems(spec: TrainSpec, prepared: PrepareSpec) -> list[str]:
    problems: list[str] = []
    data = prepared.data
    if isinstance(data, ToyVideoSpec | VideoFilesSpec):
        return _video_data_problems(spec, data)
    if isinstance(spec.model, VideoSlotsSpec):
        return [f"model.kind video_slots needs data of {VIDEO_KINDS}, not `{data.kind}`"]
    if isinstance(data, PartData):
        return _part_data_problems(spec, data)
    if isinstance(spec.model, PartSlotsSpec):
        return [f"model.kind part_slots needs data of {PART_KINDS}, not `{data.kind}`"]
    if isinstance(data, ToyClevrSpec | ClipsSpec):
        return _clip_data_problems(spec, data)
    if isinstance(spec.model, LanguageSlotsSpec):
        return [f"model.kind language_slots needs frames with sentences ({CLIP_KINDS}), and `{data.kind}` has none"]
    if isinstance(data, MultiDSpritesSpec):
        if isinstance(spec.model, DinosaurSpec):
            return [f"model.kind dinosaur needs data of kind `coco`, not `{data.kind}`"]
        if spec.model.resolution != data.resolution:
            side = data.resolution
            problems.append(f"model.resolution {spec.model.resolution} differs from the data's {side} x {side} images")
        return problems + [problem for problem in [_too_few(spec, data.train.count)] if problem]
    if isinstance(spec.model, SlotAutoencoderSpec):
        return [f"model.kind slot_autoencoder needs data of kind `mdsprites`, not `{data.kind}`"]
    bounds = [data.max_train, None if data.generator is None else data.generator.train_images]
    most = min((bound for bound in bounds if bound is not None), default=spec.batch_size)
    problems += [problem for problem in [_too_few(spec, most)] if problem]
    if isinstance(spec.online, BackboneSpec):
        problems += _patch_problems(spec.online, data)
    if isinstance(spec.model, DinosaurSpec) and isinstance(spec.model.decoder, CocoAdaptiveDecoder):
        side = spec.model.decoder.resolution
        if data.target_resolution != side:
            problems.append(f"the decoder makes {side} x {side} images, data.target_resolution is {data.target_resolution}")
        if spec.flip:
            problems.append("flip=true needs a decoder of features: the stored target images are not mirrored")
    return problems


def _clip_data_problems(spec: TrainSpec, data: ToyClevrSpec | ClipsSpec) -> list[str]:
    problems = [_too_few(spec, data.train.count * FRAMES)] if isinstance(data, ToyClevrSpec) else []
    match spec.model:
        case LanguageSlotsSpec() | UntrainedScoreSpec() as model:
            if model.resolution != data.resolution:
                side = data.resolution
                problems.append(f"model.resolution {model.resolution} differs from the data's {side} x {side} frames")
        case other:
            problems.append(f"model.kind {other.kind} is not for clips with sentences: data of kind `{data.kind}`")
    if spec.flip:
        problems.append("flip=true: a mirrored frame would contradict left and right in its sentence")
    return [problem for problem in problems if problem]


def _video_data_problems(spec: TrainSpec, data: ToyVideoSpec | VideoFilesSpec) -> list[str]:
    model, clip = spec.model, spec.clip
    if not isinstance(model, VideoSlotsSpec):
        return [f"model.kind {model.kind} is not for videos: data of kind `{data.kind}`"]
    problems = [_too_few(spec, data.train.count)] if isinstance(data, ToyVideoSpec) else []
    if model.resolution != data.resolution:
        side = data.resolution
        problems.append(f"model.resolution {model.resolution} differs from the data's {side} x {side} frames")
    if clip is not None and clip.span > data.video_frames:
        spans = f"clip.frames {clip.frames} with clip.step {clip.step} spans {clip.span} frames"
        problems.append(f"{spans}, data.video_frames is {data.video_frames}")
    return [problem for problem in problems if problem]


def _part_data_problems(spec: TrainSpec, data: PartData) -> list[str]:
    model, objective = spec.model, spec.objective
    if not isinstance(model, PartSlotsSpec):
        return [f"model.kind {model.kind} is not for images with parts: data of kind `{data.kind}`"]
    problems = [_too_few(spec, data.train_images)] if isinstance(data, ToyCreaturesSpec) else []
    if model.resolution != data.resolution:
        side = data.resolution
        problems.append(f"model.resolution {model.resolution} differs from the data's {side} x {side} images")
    if isinstance(data, CelebaSpec) and isinstance(objective, PartsObjective) and objective.foreground == "truth":
        problems.append("objective.foreground is truth, and data of kind `celeba` have no masks of the face: set it to none")
    return [problem for problem in problems if problem]


def _too_few(spec: TrainSpec, samples: int) -> str:
    """Words for a batch that is larger than the training set; empty if it is not."""
    if spec.drop_last and spec.batch_size > samples:
        return f"batch_size {spec.batch_size} is larger than the training set of {samples} with drop_last"
    return ""


def _language_problems(spec: TrainSpec, model: LanguageSlotsSpec, embedded: Any) -> list[str]:
    """Between a language model, the towers in its loop, and the step that has computed the sentences' features."""
    if not isinstance(embedded, EmbedSpec) or not isinstance(embedded.backbone, ClipSpec):
        return ["model.kind language_slots needs a step of kind `embed` with a backbone of kind `clip`"]
    problems: list[str] = []
    stored = embedded.backbone
    towers = spec.online if isinstance(spec.online, ClipSpec) else stored
    if isinstance(spec.online, BackboneSpec):
        problems.append("online is a backbone of kind `timm`, a language model takes one of kind `clip`")
    if spec.online is None and embedded.images == "none":
        problems.append("the `embed` step stores no vision tokens (images=none): set features=online, or images=all there")
    for key in ("name", "pretrained", "weights", "content"):
        if getattr(towers, key) != getattr(stored, key):
            mine, theirs = getattr(towers, key), getattr(stored, key)
            problems.append(f"online.{key} is {mine}, the `embed` step's sentences come from {theirs}")
    for name in ("tokens", "feature_size", "global_features"):
        if getattr(model, name) != getattr(towers, name):
            problems.append(f"model.{name} {getattr(model, name)} differs from the backbone's {getattr(towers, name)}")
    goal = spec.objective
    told = not isinstance(model.text2slot, NoText2Slot)
    taught = isinstance(goal, SemanticObjective) and (goal.contrastive > 0 or goal.text > 0)
    if (told or taught) and model.text_size != stored.text_size:
        problems.append(f"model.text_size {model.text_size} differs from the backbone's {stored.text_size}")
    if isinstance(model.text2slot, TransformerText2Slot) and embedded.text != "tokens":
        problems.append("text2slot=transformer needs the features of a sentence's tokens: an `embed` step with text=tokens")
    return problems


def _token_problems(spec: TrainSpec, embedded: Any) -> list[str]:
    if isinstance(spec.model, LanguageSlotsSpec):
        return _language_problems(spec, spec.model, embedded)
    if isinstance(spec.online, ClipSpec):
        return ["online is a backbone of kind `clip`, which is for model.kind language_slots"]
    if not isinstance(spec.model, DinosaurSpec):
        return ["online is for models on tokens (model.kind dinosaur)"] if spec.online is not None else []
    if spec.online is not None:
        backbone: AnyBackbone = spec.online
        problems = ["a step with online features must not need an `embed` step too"] if embedded is not None else []
    elif not isinstance(embedded, EmbedSpec):
        return ["model.kind dinosaur needs a step of kind `embed` (features=cached), or features=online"]
    else:
        backbone, problems = embedded.backbone, []
        if spec.flip and not embedded.flips:
            problems.append("flip=true needs an embed step with flips=true: mirrored tokens are not stored")
    for name in ("tokens", "feature_size"):
        mine, theirs = getattr(spec.model, name), getattr(backbone, name)
        if mine != theirs:
            problems.append(f"model.{name} {mine} differs from the backbone's {theirs}")
    return problems


def _warm_start_problems(spec: TrainSpec, earlier: Any) -> list[str]:
    if (spec.warm_start is None) != (earlier is None):
        return ["warm_start and a need of kind `train` go together"]
    if spec.warm_start is None or not isinstance(earlier, TrainSpec):
        return []
    if spec.model.kind != earlier.model.kind:
        return [f"a model of kind {spec.model.kind} cannot start from one of kind {earlier.model.kind}"]
    if not isinstance(spec.model, DinosaurSpec) or not isinstance(earlier.model, DinosaurSpec):
        return []
    mine, theirs = spec.model.shapes(), earlier.model.shapes()
    problems = [
        f"cannot start from the earlier weights: model.{name} is {mine.get(name)}, the earlier model's {theirs.get(name)}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    declared = any(name.split(".")[0] == "gate" for name in spec.warm_start.fresh)
    match spec.model.gate is not None, earlier.model.gate is not None:
        case True, False if not declared:
            problems.append("the earlier model has no gate, and warm_start.fresh does not declare it: set warm_start=gate")
        case False, True:
            problems.append("the earlier model has a gate, for which this one has no place")
        case False, False if declared:
            problems.append("warm_start.fresh names a gate, and the model has none")
    return problems


def _evaluation_problems(spec: EvaluateSpec, prepared: Any, embedded: Any, trained: TrainSpec) -> list[str]:
    problems: list[str] = []
    if isinstance(trained.model, DinosaurSpec) and trained.online is None and not isinstance(embedded, EmbedSpec):
        problems.append("evaluating a model on stored tokens needs the `embed` step too")
    if isinstance(trained.model, LanguageSlotsSpec) and not isinstance(embedded, EmbedSpec):
        problems.append("evaluating a language model needs the `embed` step too: the sentences' features")
    gated = isinstance(trained.model, DinosaurSpec) and trained.model.gate is not None
    if spec.gate == "deterministic" and not gated:
        problems.append("gate=deterministic is for models with a gate (model.gate)")
    if spec.noise != "fresh" and not isinstance(trained.model, VideoSlotsSpec):
        problems.append(f"noise={spec.noise} is for model.kind video_slots, not {trained.model.kind}: leave it at fresh")
    if spec.protocol != "own" and isinstance(prepared, PrepareSpec):
        stored = prepared.data.protocols if isinstance(prepared.data, CocoSpec) else ()
        if spec.protocol not in stored:
            problems.append(f"protocol {spec.protocol} is not among the stored masks ({', '.join(stored) or 'none'})")
    return problems
