"""Typed configurations of the job kinds, and the frozen record of one run; torch-free.

A run's configuration is composed by Hydra and validated here once, on the login node; the job reads it back from
`spec.json` and never composes again. Fields marked `location(...)` are not part of a run's identity.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from jobs.data_spec import DataSpec
from models.spec import (
    AnyBackbone,
    BackboneSpec,
    CosineObjective,
    CovarianceObjective,
    DinosaurSpec,
    ModelSpec,
    ObjectiveSpec,
    ReconstructionObjective,
    UntrainedScoreSpec,
)
from models.spec_base import Spec, added, location
from models.spec_language import ClipSpec, LanguageSlotsSpec, SemanticObjective
from models.spec_parts import PartSlotsSpec, PartsObjective
from models.spec_video import VideoObjective, VideoSlotsSpec

SCHEMA_VERSION = 1
"""Raised when the meaning of a configuration changes: every run id changes with it."""


class AdamSpec(Spec):
    """Adam with warm-up and smooth exponential decay: lr * min(1, i/warmup) * rate^(i/decay_steps), i = 1, 2, ..."""

    learning_rate: float = Field(default=4e-4, gt=0)
    warmup_steps: int = Field(default=10_000, ge=0)
    decay_rate: float = Field(default=0.5, gt=0, le=1)
    decay_steps: int = Field(default=100_000, ge=1)
    decay: Literal["during_warmup", "after_warmup"] = "during_warmup"
    """`during_warmup` as official slot attention and CovLoss; `after_warmup` as official DINOSAUR."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; `null` does not clip."""
    trunk_rate: float | None = added(None, gt=0)
    """Learning rate of a part model's pretrained trunk, with the same warm-up and decay; `null`: that of everything else."""


class IntervalSpec(Spec):
    """Bounds of an interval between checkpoints that a run chooses itself (jobs.interval), in seconds."""

    floor_s: float = location(30.0, gt=0)
    ceiling_s: float = location(1800.0, gt=0)
    """Also the most that a kill without notice costs."""
    prior_uptime_s: float = location(14400.0, gt=0)
    """Mean time between interruptions as believed before any was seen."""

    @model_validator(mode="after")
    def _in_order(self) -> IntervalSpec:
        if self.floor_s > self.ceiling_s:
            raise ValueError(f"floor_s {self.floor_s:g} is above ceiling_s {self.ceiling_s:g}")
        return self


class RuntimeSpec(Spec):
    """How a run is executed. None of it is part of its identity."""

    workers: int = location(0, ge=0)
    """Loader processes per rank; 0 loads on the training thread."""
    threads: int = location(1, ge=1)
    """CPU threads per rank for tensor operations; part of what `bit for bit` is conditional on."""
    accumulation: int = location(1, ge=1)
    """Micro-batches per step; the result is equal up to reduction order."""
    log_every: int = location(10, ge=1)
    checkpoint_every_steps: int = location(5000, ge=1)
    checkpoint_every_s: float = location(600.0, gt=0)
    checkpoint_auto: IntervalSpec | None = location(None)
    """Of training: seconds between checkpoints from the run's own facts, instead of both fixed intervals above."""
    background_checkpoints: bool = location(True)
    """Of training: write a copy of the state while it goes on; costs memory for that copy on rank 0."""
    keep_checkpoints: int = location(2, ge=1)
    hang_timeout_s: float = location(900.0, gt=0)
    """A rank without a finished step for so long ends the attempt with a reason."""
    max_attempts_without_progress: int = location(5, ge=1)


class ValidationSpec(Spec):
    """The short look at held-out images during training (the table's number comes from an `evaluate` run)."""

    every_steps: int = Field(default=10_000, ge=1)
    images: int = Field(default=64, ge=1)
    noise_seed: int = Field(default=0, ge=0)
    panel_every: int = location(1, ge=1)
    """A picture of the masks at every n-th look."""
    panel_images: int = location(8, ge=1)


class CountSpec(Spec):
    """The counting job: the whole contract without torch; rehearses a site's preemption and scale."""

    kind: Literal["count"] = "count"
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=10, ge=1)
    step_s: float = location(0.0, ge=0)
    """Seconds of sleep per step."""
    label: str = ""
    fail_at: int | None = Field(default=None, ge=0)
    """Raise at this step: to rehearse failures."""
    runtime: RuntimeSpec = location(RuntimeSpec())


class PrepareSpec(Spec):
    """Turn a data set's original files into one memory-mapped store."""

    kind: Literal["prepare"] = "prepare"
    data: DataSpec
    runtime: RuntimeSpec = location(RuntimeSpec())


class EmbedSpec(Spec):
    """Tokens of a frozen backbone for every image of a `prepare` run, once for all training runs."""

    kind: Literal["embed"] = "embed"
    backbone: AnyBackbone = BackboneSpec()
    images: Literal["all", "none"] = added("all")
    """`none`: of CLIP towers, the sentences' features alone; vision tokens are then computed in the loop (features=online)."""
    text: Literal["sentence", "tokens"] = added("sentence")
    """With CLIP towers: one feature per sentence, or also those of its tokens (for text2slot=transformer)."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """What is stored; the backbone computes in fp32."""
    flips: bool = True
    """Store the mirrored training images' tokens too: they are no mirror image of the tokens."""
    shard_images: int = Field(default=512, ge=1)
    batch_size: int = location(32, ge=1)
    runtime: RuntimeSpec = location(RuntimeSpec())


class WarmStartSpec(Spec):
    """Begin from the weights of the training run that this one needs; optimiser, schedule and step begin anew."""

    fresh: tuple[str, ...] = ()
    """Prefixes of parameters that the earlier model does not have. Any other mismatch is an error."""


class WindowSpec(Spec):
    """The frames of a video that a training step sees, from a place drawn anew for each (seed, epoch, video)."""

    frames: int = Field(default=6, ge=1)
    step: int = Field(default=1, ge=1)
    """Every n-th frame."""

    @property
    def span(self) -> int:
        """Frames from the first to the last."""
        return (self.frames - 1) * self.step + 1


TOWER_KEYS = ("global_features", "tokens", "feature_size", "text_size")
"""Keys of a language model that must be those of its CLIP towers."""


class TrainSpec(Spec):
    """Train one model; needs a `prepare` run, for models on tokens an `embed` run too, for a warm start a `train` run."""

    kind: Literal["train"] = "train"
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=500_000, ge=0)
    """Optimiser steps; 0 gives the untrained model."""
    batch_size: int = Field(default=64, ge=1)
    """Images, or clips, per step over all ranks."""
    drop_last: bool = False
    model: ModelSpec
    objective: ObjectiveSpec = ReconstructionObjective()
    optimizer: AdamSpec = AdamSpec()
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compile: bool = False
    flip: bool = added(False)
    """Mirror each training image with probability one half."""
    online: AnyBackbone | None = added(None)
    """Compute tokens in the training loop, as the originals do, instead of reading those of an `embed` run."""
    told: Literal["own", "shuffled"] = added("own")
    """Which sentence a sample of a language model is told: its own, or another sample's of the batch (a control)."""
    warm_start: WarmStartSpec | None = added(None)
    clip: WindowSpec | None = added(None)
    """Which frames a sample of a video model has; `null` for models of images."""
    validation: ValidationSpec = ValidationSpec()
    runtime: RuntimeSpec = location(RuntimeSpec())

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_towers(cls, found: Any) -> Any:
        """What is null of a language model's `global_features` and sizes is that of the towers in its loop.

        Raises ValueError without such towers: nothing here says what an `embed` step has stored.
        """
        model = found.get("model") if isinstance(found, dict) else None
        if not isinstance(model, dict) or model.get("kind") != "language_slots":
            return found
        missing = [key for key in TOWER_KEYS if key in model and model[key] is None]
        if not missing:
            return found
        online = found.get("online")
        if not isinstance(online, dict) or online.get("kind") != "clip":
            named = ", ".join(f"model.{key}" for key in missing)
            raise ValueError(
                f"{named}: null is what the towers in the loop yield (features=online), and there are none: give numbers"
            )
        towers = ClipSpec.model_validate(online)
        return found | {"model": model | {key: getattr(towers, key) for key in missing}}

    @model_validator(mode="after")
    def _clips_fit(self) -> TrainSpec:
        model, objective, clip = self.model, self.objective, self.clip
        if isinstance(objective, VideoObjective) != isinstance(model, VideoSlotsSpec):
            raise ValueError(
                f"model.kind video_slots and objective.kind video go together, not {model.kind} and {objective.kind}"
            )
        if not isinstance(model, VideoSlotsSpec) or not isinstance(objective, VideoObjective):
            if clip is not None:
                raise ValueError(f"clip is for model.kind video_slots, not {model.kind}: set it to null")
            return self
        if clip is None:
            raise ValueError("model.kind video_slots needs clip, for example {frames: 6, step: 1}")
        problems = objective.problems(model)
        if self.flip:
            problems.append("flip=true is for images: clips are not mirrored")
        if clip.frames < 2:
            if model.recurrence is not None and model.recurrence.predictor is not None:
                problems.append("model.recurrence.predictor works between frames: clip.frames is 1, it must be 2 or more")
            if model.encoder_time != "none":
                problems.append(
                    f"model.encoder_time {model.encoder_time} works between frames: clip.frames is 1, it must be 2 or more"
                )
            if objective.future_masks or objective.future_slots or objective.perceptual:
                problems.append("the objective's terms compare frames: clip.frames is 1, it must be 2 or more")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainSpec:
        model, objective = self.model, self.objective
        if isinstance(objective, PartsObjective) != isinstance(model, PartSlotsSpec):
            raise ValueError(f"model.kind part_slots and objective.kind parts go together, not {model.kind} and {objective.kind}")
        problems = objective.problems(model) if isinstance(objective, PartsObjective) and isinstance(model, PartSlotsSpec) else []
        if isinstance(objective, PartsObjective) and objective.contrast and self.batch_size < 2:
            problems.append(f"objective.contrast compares images: batch_size is {self.batch_size}, it must be 2 or more")
        if self.optimizer.trunk_rate is not None and not isinstance(model, PartSlotsSpec):
            problems.append(f"optimizer.trunk_rate is for model.kind part_slots, not {model.kind}: set it to null")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _projection_fits(self) -> TrainSpec:
        gated = isinstance(self.model, DinosaurSpec) and self.model.gate is not None
        if isinstance(self.objective, ReconstructionObjective) and self.objective.sparsity > 0 and not gated:
            raise ValueError("objective.sparsity needs a model with a gate (model.gate)")
        if gated and not isinstance(self.objective, ReconstructionObjective):
            raise ValueError(f"a model with a gate goes with objective.kind reconstruction, not {self.objective.kind}")
        language = isinstance(self.model, LanguageSlotsSpec)
        if isinstance(self.objective, SemanticObjective) and not language:
            raise ValueError(f"objective.kind semantic is for model.kind language_slots, not {self.model.kind}")
        if self.told == "shuffled" and not (language and isinstance(self.objective, ReconstructionObjective)):
            raise ValueError("told=shuffled goes with model.kind language_slots and objective.kind reconstruction")
        if isinstance(self.objective, CovarianceObjective | CosineObjective) and not isinstance(self.model, UntrainedScoreSpec):
            head = self.objective.projection
            if head.kind == "identity" and head.size != self.model.slot_size:
                raise ValueError(
                    f"objective.projection.size {head.size} differs from model.slot_size {self.model.slot_size}: "
                    "an identity head keeps the slot size"
                )
        return self


class EvaluateSpec(Spec):
    """Score one training run on held-out images; needs a `train` and a `prepare` run."""

    kind: Literal["evaluate"] = "evaluate"
    noise_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Slot noise draws; each score is the mean over them and `<score>_noise_sd` their spread."""
    protocol: Literal["own", "official", "adaslot", "gd", "covloss"] = added("own")
    """`own`: the data's first mask set, images without objects skipped and counted; else the original's masks and rules."""
    gate: Literal["noisy", "deterministic"] = added("noisy")
    """AdaSlot's gate with its Gumbel noise, as the original evaluates, or its most probable choice."""
    every: int = added(1, ge=1)
    """Score every n-th image: the frames of a clip resemble each other. Of videos every n-th video, all its frames."""
    noise: Literal["fresh", "fixed", "fixed_per_seed"] = added("fresh")
    """Of a video model's frames. `fresh`: each its own draw; `fixed`: the checkpoint's for all, then the first noise seed stands
    for every other (V1, V8); `fixed_per_seed`: one draw per noise seed for all frames of all videos."""
    chunk: int = added(24, ge=1)
    """Frames of a video per forward pass; the slots are carried on to the next."""
    batch_size: int = location(64, ge=1)
    """Images per forward pass; of videos frames, at least one chunk."""
    panel_images: int = Field(default=8, ge=0)
    runtime: RuntimeSpec = location(RuntimeSpec())

    @model_validator(mode="after")
    def _some_noise(self) -> EvaluateSpec:
        if not self.noise_seeds:
            raise ValueError("noise_seeds is empty; give at least one seed, for example [0]")
        return self


JobSpec = Annotated[CountSpec | PrepareSpec | EmbedSpec | TrainSpec | EvaluateSpec, Field(discriminator="kind")]
JOB_KINDS: dict[str, type[Spec]] = {
    "count": CountSpec,
    "prepare": PrepareSpec,
    "embed": EmbedSpec,
    "train": TrainSpec,
    "evaluate": EvaluateSpec,
}


SINGLE_PROCESS = frozenset({"count", "prepare"})
"""Kinds that rank 0 does alone; further ranks end at once."""


class FrozenRun(Spec):
    """What `spec.json` in a run directory holds: everything that a job may read about itself."""

    id: str
    config: JobSpec
    needs: dict[str, str] = Field(default_factory=dict)
    """Kind of the needed run -> its id; its directory stands beside this one."""
    code_tree: str = ""
    """Hash of the code snapshot that the run imports."""
    code_commit: str = ""
    code_dirty: bool = False
    environment: str = ""
    """Fingerprint of the installed packages at submit (jobs.environment)."""
    planned_tasks: int = Field(default=0, ge=0)
    """The world size that `runtime.accumulation` is meant for, of a run that may have others; 0: every size takes it as it is."""


AnyJob = CountSpec | PrepareSpec | EmbedSpec | TrainSpec | EvaluateSpec
_job_spec: TypeAdapter[AnyJob] = TypeAdapter(JobSpec)


def parse_job_spec(config: dict[str, Any]) -> AnyJob:
    """Validate a resolved configuration; raises pydantic's ValidationError with every error and its path."""
    return _job_spec.validate_python(config)
