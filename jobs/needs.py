"""What must hold between a run and the runs that it needs, told from their configurations alone; torch-free."""

from __future__ import annotations

import math
import re
from typing import Any

from jobs.spec import AnyJob, CocoSpec, EmbedSpec, EvaluateSpec, MultiDSpritesSpec, PrepareSpec, TrainSpec
from models.spec import BackboneSpec, CocoAdaptiveDecoder, DinosaurSpec, LanguageSlotsSpec, SlotAutoencoderSpec

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
    if isinstance(prepared.data, CocoSpec):
        return _patch_problems(spec.backbone, prepared.data)
    return [f"an `embed` step needs data of kind `coco`, not `{prepared.data.kind}`"]


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


def _data_problems(spec: TrainSpec, prepared: PrepareSpec) -> list[str]:
    if isinstance(spec.model, LanguageSlotsSpec):
        return [f"model.kind language_slots needs frames with sentences, and `{prepared.data.kind}` has none"]
    problems: list[str] = []
    data = prepared.data
    if isinstance(data, MultiDSpritesSpec):
        if isinstance(spec.model, DinosaurSpec):
            return [f"model.kind dinosaur needs data of kind `coco`, not `{data.kind}`"]
        if spec.model.resolution != data.resolution:
            side = data.resolution
            problems.append(f"model.resolution {spec.model.resolution} differs from the data's {side} x {side} images")
        if spec.drop_last and spec.batch_size > data.train.count:
            problems.append(f"batch_size {spec.batch_size} is larger than the training set of {data.train.count} with drop_last")
        return problems
    if isinstance(spec.model, SlotAutoencoderSpec):
        return [f"model.kind slot_autoencoder needs data of kind `mdsprites`, not `{data.kind}`"]
    bounds = [data.max_train, None if data.generator is None else data.generator.train_images]
    most = min((bound for bound in bounds if bound is not None), default=spec.batch_size)
    if spec.drop_last and spec.batch_size > most:
        problems.append(f"batch_size {spec.batch_size} is larger than the training set of {most} with drop_last")
    if spec.online is not None:
        problems += _patch_problems(spec.online, data)
    if isinstance(spec.model, DinosaurSpec) and isinstance(spec.model.decoder, CocoAdaptiveDecoder):
        side = spec.model.decoder.resolution
        if data.target_resolution != side:
            problems.append(f"the decoder makes {side} x {side} images, data.target_resolution is {data.target_resolution}")
        if spec.flip:
            problems.append("flip=true needs a decoder of features: the stored target images are not mirrored")
    return problems


def _token_problems(spec: TrainSpec, embedded: Any) -> list[str]:
    if not isinstance(spec.model, DinosaurSpec):
        return ["online is for models on tokens (model.kind dinosaur)"] if spec.online is not None else []
    if spec.online is not None:
        backbone = spec.online
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
    gated = isinstance(trained.model, DinosaurSpec) and trained.model.gate is not None
    if spec.gate == "deterministic" and not gated:
        problems.append("gate=deterministic is for models with a gate (model.gate)")
    if spec.protocol != "own" and isinstance(prepared, PrepareSpec):
        stored = prepared.data.protocols if isinstance(prepared.data, CocoSpec) else ()
        if spec.protocol not in stored:
            problems.append(f"protocol {spec.protocol} is not among the stored masks ({', '.join(stored) or 'none'})")
    return problems
