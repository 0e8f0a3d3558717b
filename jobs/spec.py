"""Typed configurations of the job kinds, and the frozen record of one run; torch-free.

A run's configuration is composed by Hydra and validated here once, on the login node; the job reads it back from
`spec.json` and never composes again. Fields marked `location(...)` are not part of a run's identity.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from models.spec import (
    CosineObjective,
    CovarianceObjective,
    ModelSpec,
    ObjectiveSpec,
    ReconstructionObjective,
    SlotAutoencoderSpec,
    Spec,
    added,
    location,
)

SCHEMA_VERSION = 1
"""Raised when the meaning of a configuration changes: every run id changes with it."""


class RecordRange(Spec):
    """Records `first` .. `first + count - 1` of the source."""

    first: int = Field(ge=0)
    count: int = Field(ge=1)


class SpriteGeneratorSpec(Spec):
    """Procedural Multi-dSprites by the measured constants of the original (data.md 2 and 3)."""

    seed: int = Field(default=0, ge=0)
    resolution: int = Field(default=64, ge=8)
    min_sprites: int = Field(default=1, ge=0)
    max_sprites: int = Field(default=4, ge=1)
    scales: tuple[float, ...] = (0.5, 7 / 12, 8 / 12, 9 / 12, 10 / 12, 11 / 12)
    """Sprite scales; a scale of 1 is a square of 23/64 of the image side."""
    palette: Literal["uniform", "saturated"] = "uniform"
    """`uniform`: any RGB for sprites and background, as the original; `saturated`: well-separated hues on a dark background."""
    placement: Literal["central", "ring"] = added("central")
    """`central`: centres anywhere in the middle half of the image, as measured; `ring`: apart from each other, on a ring."""

    @model_validator(mode="after")
    def _ordered(self) -> SpriteGeneratorSpec:
        if self.min_sprites > self.max_sprites:
            raise ValueError(f"min_sprites {self.min_sprites} is larger than max_sprites {self.max_sprites}")
        return self


class MultiDSpritesSpec(Spec):
    """Multi-dSprites colored_on_colored: the original TFRecord file, or the same bytes from the generator."""

    kind: Literal["mdsprites"] = "mdsprites"
    path: str | None = location(None)
    """The original GZIP TFRecord file; `null` means generated."""
    content: str | None = None
    """sha256 of the file at `path`, filled in on the login node: the content is identity, its place is not."""
    generator: SpriteGeneratorSpec | None = SpriteGeneratorSpec()
    """Must be `null` when `path` is given."""
    train: RecordRange = RecordRange(first=0, count=60000)
    test: RecordRange = RecordRange(first=60000, count=320)

    @model_validator(mode="after")
    def _one_source(self) -> MultiDSpritesSpec:
        if (self.path is None) == (self.generator is None):
            raise ValueError("give either `path` (the original file) or `generator` (generated data), and set the other to null")
        return self

    @property
    def resolution(self) -> int:
        """Side of the square images, in pixels."""
        return 64 if self.generator is None else self.generator.resolution

    @property
    def max_entities(self) -> int:
        """Entities of a record, background included."""
        return 5 if self.generator is None else self.generator.max_sprites + 1


DataSpec = MultiDSpritesSpec


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


class TrainSpec(Spec):
    """Train one model; needs a `prepare` run."""

    kind: Literal["train"] = "train"
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=500_000, ge=0)
    """Optimiser steps; 0 gives the untrained model."""
    batch_size: int = Field(default=64, ge=1)
    """Images per step over all ranks."""
    drop_last: bool = False
    model: ModelSpec
    objective: ObjectiveSpec = ReconstructionObjective()
    optimizer: AdamSpec = AdamSpec()
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compile: bool = False
    validation: ValidationSpec = ValidationSpec()
    runtime: RuntimeSpec = location(RuntimeSpec())

    @model_validator(mode="after")
    def _projection_fits(self) -> TrainSpec:
        if isinstance(self.objective, CovarianceObjective | CosineObjective) and isinstance(self.model, SlotAutoencoderSpec):
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
    batch_size: int = location(64, ge=1)
    panel_images: int = Field(default=8, ge=0)
    runtime: RuntimeSpec = location(RuntimeSpec())

    @model_validator(mode="after")
    def _some_noise(self) -> EvaluateSpec:
        if not self.noise_seeds:
            raise ValueError("noise_seeds is empty; give at least one seed, for example [0]")
        return self


JobSpec = Annotated[CountSpec | PrepareSpec | TrainSpec | EvaluateSpec, Field(discriminator="kind")]
JOB_KINDS: dict[str, type[Spec]] = {"count": CountSpec, "prepare": PrepareSpec, "train": TrainSpec, "evaluate": EvaluateSpec}
NEEDS: dict[str, frozenset[str]] = {
    "count": frozenset(),
    "prepare": frozenset(),
    "train": frozenset({"prepare"}),
    "evaluate": frozenset({"prepare", "train"}),
}
"""The kinds of run that each kind cannot do without. (A `count` run accepts any need, and only checks its outcome.)"""


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


_job_spec: TypeAdapter[CountSpec | PrepareSpec | TrainSpec | EvaluateSpec] = TypeAdapter(JobSpec)


def parse_job_spec(config: dict[str, Any]) -> CountSpec | PrepareSpec | TrainSpec | EvaluateSpec:
    """Validate a resolved configuration; raises pydantic's ValidationError with every error and its path."""
    return _job_spec.validate_python(config)


def check_needs(spec: CountSpec | PrepareSpec | TrainSpec | EvaluateSpec, needs: dict[str, Any]) -> list[str]:
    """What is wrong between a run and the runs that it needs (kind -> spec); one sentence per problem, none if fine."""
    problems: list[str] = []
    missing = NEEDS[spec.kind] - set(needs)
    if missing:
        problems.append(f"a `{spec.kind}` step needs a step of kind {', '.join(f'`{kind}`' for kind in sorted(missing))}")
    prepared = needs.get("prepare")
    if isinstance(spec, TrainSpec) and isinstance(prepared, PrepareSpec):
        side = prepared.data.resolution
        if spec.model.resolution != side:
            problems.append(f"model.resolution {spec.model.resolution} differs from the data's {side} x {side} images")
        if spec.drop_last and spec.batch_size > prepared.data.train.count:
            problems.append(
                f"batch_size {spec.batch_size} is larger than the training set of {prepared.data.train.count} with drop_last"
            )
    return problems
