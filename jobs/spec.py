"""Typed configurations of the job kinds, and the frozen record of one run; torch-free.

A run's configuration is composed by Hydra and validated here once, on the login node; the job reads it back from
`spec.json` and never composes again. Fields marked `location(...)` are not part of a run's identity.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from models.spec import (
    AnyBackbone,
    BackboneSpec,
    ClipSpec,
    CosineObjective,
    CovarianceObjective,
    DinosaurSpec,
    LanguageSlotsSpec,
    ModelSpec,
    ObjectiveSpec,
    ReconstructionObjective,
    SemanticObjective,
    Spec,
    UntrainedScoreSpec,
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


class CocoGeneratorSpec(Spec):
    """A miniature COCO in the original's own layout: JPEGs, polygons, RLE, crowds, overlaps (for rehearsals)."""

    seed: int = Field(default=0, ge=0)
    train_images: int = Field(default=64, ge=1)
    val_images: int = Field(default=16, ge=1)
    largest_side: int = Field(default=320, ge=64)


class CocoSpec(Spec):
    """COCO 2017 instances, from the original layout (data.md 5): train2017/, val2017/, annotations/."""

    kind: Literal["coco"] = "coco"
    path: str | None = location(None)
    """The folder that holds `train2017`, `val2017` and `annotations`; `null` means generated."""
    content: str | None = None
    """sha256 over both annotation files, filled in on the login node."""
    generator: CocoGeneratorSpec | None = None
    preprocessing: Literal["covloss", "official"] = "official"
    """`official`: short side bicubic, centre crop; `covloss`: squashed to a square."""
    resolution: int = Field(default=224, ge=16)
    """Side of the stored images, which the ViT sees."""
    target_resolution: int | None = Field(default=None, ge=16)
    """Side of a second copy of the training images, to be reconstructed as pixels; `null`: none."""
    train_images: Literal["all", "annotated"] = "all"
    """`annotated`: those with at least one annotation that is no crowd (CovLoss)."""
    max_train: int | None = Field(default=None, ge=1)
    max_val: int | None = Field(default=None, ge=1)
    """Only the first so many images (by image id): for trials."""
    protocols: tuple[Literal["official", "adaslot", "gd", "covloss"], ...] = ("official", "gd")
    """Evaluation masks to store: `official` at 320, `adaslot` (the same rules) and `gd` at 224, `covloss` (squashed) at 128."""

    @model_validator(mode="after")
    def _one_source(self) -> CocoSpec:
        if (self.path is None) == (self.generator is None):
            raise ValueError("give either `path` (the COCO folder) or `generator` (a miniature), and set the other to null")
        if not self.protocols:
            raise ValueError("protocols is empty; evaluation needs at least one of official, gd, covloss")
        for protocol in self.protocols:
            if (protocol == "covloss") != (self.preprocessing == "covloss"):
                raise ValueError(f"protocol {protocol} does not fit preprocessing {self.preprocessing}: their geometry differs")
        return self


class ToyClevrSpec(Spec):
    """Procedural pick-and-place clips of 34 frames with masks and sentences (language_slots.md 7): no files needed."""

    kind: Literal["toy_clevr"] = "toy_clevr"
    seed: int = Field(default=0, ge=0)
    resolution: int = Field(default=224, ge=32)
    min_n_objects: int = Field(default=3, ge=3)
    """Three take part in every clip: one is lifted, two are moved."""
    max_n_objects: int = Field(default=6, ge=3, le=8)
    """Objects of a clip are uniform between both; has nothing to do with the model's number of slots."""
    fine_grained: bool = True
    """A frame's sentence is that of its phase; `false`: all four phases of the clip, joined by ", "."""
    train: RecordRange = RecordRange(first=0, count=16_000)
    """Clips of the endless series that the seed names; a clip has 34 frames."""
    test: RecordRange = RecordRange(first=16_000, count=4_000)

    @model_validator(mode="after")
    def _ranges(self) -> ToyClevrSpec:
        if self.min_n_objects > self.max_n_objects:
            raise ValueError(f"min_n_objects {self.min_n_objects} is larger than max_n_objects {self.max_n_objects}")
        earlier, later = sorted((self.train, self.test), key=lambda clips: clips.first)
        if earlier.first + earlier.count > later.first:
            raise ValueError(
                f"train and test share clips from {later.first} on: "
                f"train is {self.train.first} .. {self.train.first + self.train.count - 1}, "
                f"test is {self.test.first} .. {self.test.first + self.test.count - 1}"
            )
        return self


class ClipsSpec(Spec):
    """Pick-and-place clips on disk with the original's scene files (language_slots.md 7; layout in jobs/data/README.md)."""

    kind: Literal["clips"] = "clips"
    path: str = location()
    """The folder that holds `scenes`, `images`, `train_annos.json` and `val_annos.json`."""
    content: str | None = None
    """sha256 of jobs.data.clips_files.clips_content_hash, filled in on the login node: content is identity, its place is not."""
    resolution: int = Field(default=224, ge=32)
    """Frames are resized (bicubic, short side) and cropped in the centre."""
    max_n_objects: int = Field(default=6, ge=3)
    """Clips with more objects are left out; has nothing to do with the model's number of slots."""
    max_clips: int | None = Field(default=None, ge=1)
    """Only the first so many clips of each split: for trials."""
    fine_grained: bool = True
    """A frame's sentence is that of its phase; `false`: all four phases of the clip, joined by ", "."""

    @model_validator(mode="after")
    def _somewhere(self) -> ClipsSpec:
        if not self.path.strip():
            raise ValueError("path is empty; give the folder that holds scenes/ and images/, or use kind toy_clevr")
        return self


DataSpec = Annotated[MultiDSpritesSpec | CocoSpec | ToyClevrSpec | ClipsSpec, Field(discriminator="kind")]


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


TOWER_KEYS = ("global_features", "tokens", "feature_size", "text_size")
"""Keys of a language model that must be those of its CLIP towers."""


class TrainSpec(Spec):
    """Train one model; needs a `prepare` run, for models on tokens an `embed` run too, for a warm start a `train` run."""

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
    flip: bool = added(False)
    """Mirror each training image with probability one half."""
    online: AnyBackbone | None = added(None)
    """Compute tokens in the training loop, as the originals do, instead of reading those of an `embed` run."""
    told: Literal["own", "shuffled"] = added("own")
    """Which sentence a sample of a language model is told: its own, or another sample's of the batch (a control)."""
    warm_start: WarmStartSpec | None = added(None)
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
    """Score every n-th image: the frames of a clip resemble each other."""
    batch_size: int = location(64, ge=1)
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


AnyJob = CountSpec | PrepareSpec | EmbedSpec | TrainSpec | EvaluateSpec
_job_spec: TypeAdapter[AnyJob] = TypeAdapter(JobSpec)


def parse_job_spec(config: dict[str, Any]) -> AnyJob:
    """Validate a resolved configuration; raises pydantic's ValidationError with every error and its path."""
    return _job_spec.validate_python(config)


# Videos (video_slots.md 2 and 6). Not part of DataSpec yet.


class ToyVideoSpec(Spec):
    """Procedural videos of bouncing discs, squares and triangles with instance masks: no files needed."""

    kind: Literal["toy_video"] = "toy_video"
    seed: int = Field(default=0, ge=0)
    resolution: int = Field(default=64, ge=32)
    video_frames: int = Field(default=24, ge=1)
    """Frames of a whole video."""
    clip_frames: int = Field(default=6, ge=1)
    """Frames of a training clip; its first frame is drawn anew in each epoch."""
    frame_step: int = Field(default=1, ge=1)
    """Only every n-th frame is looked at, in training clips and whole videos."""
    min_objects: int = Field(default=3, ge=2)
    max_objects: int = Field(default=5, ge=2, le=8)
    """Objects of a video are uniform between both; has nothing to do with the model's number of slots."""
    crossings: float = Field(default=0.0, ge=0, le=1)
    """Share of videos in which two objects of the same colour, shape and size cross (the swap test)."""
    occluders: float = Field(default=0.0, ge=0, le=1)
    """Share of videos with an upright bar, behind which an object vanishes and comes out again."""
    train: RecordRange = RecordRange(first=0, count=10_000)
    """Videos of the endless series that the seed names."""
    test: RecordRange = RecordRange(first=10_000, count=250)

    @model_validator(mode="after")
    def _ranges(self) -> ToyVideoSpec:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects {self.min_objects} is larger than max_objects {self.max_objects}")
        if self.video_frames < 20 and (self.crossings or self.occluders):
            raise ValueError(f"video_frames {self.video_frames} is too short for crossings and occluders; they need 20")
        if self.min_objects < 3 and self.crossings and self.occluders:
            raise ValueError(f"min_objects {self.min_objects} is too small for crossings and occluders at once; they need 3")
        _check_clip(self.clip_frames, self.frame_step, self.video_frames)
        earlier, later = sorted((self.train, self.test), key=lambda videos: videos.first)
        if earlier.first + earlier.count > later.first:
            raise ValueError(f"train and test share videos from {later.first} on")
        return self


class VideoFilesSpec(Spec):
    """Videos on disk, with or without instance masks (layouts in jobs/data/README.md)."""

    kind: Literal["video_files"] = "video_files"
    path: str = location()
    """The folder that holds `train` and `test`; with format `movi` the one that holds the shards."""
    content: str | None = None
    """sha256 of jobs.data.video_files.videos_content_hash, filled in on the login node: content is identity, its place is not."""
    format: Literal["media", "movi"] = "media"
    """`media`: video files or folders of frames; `movi`: the TFRecord shards of a MOVi data set."""
    resolution: int = Field(default=64, ge=8)
    """Frames are resized (bicubic, short side) and cropped in the centre."""
    video_frames: int = Field(default=24, ge=1)
    """Frames of a whole video: a longer one is cut off there, a shorter one is an error."""
    clip_frames: int = Field(default=6, ge=1)
    """Frames of a training clip; its first frame is drawn anew in each epoch."""
    frame_step: int = Field(default=1, ge=1)
    """Only every n-th frame is looked at, in training clips and whole videos."""
    max_objects: int = Field(default=23, ge=1, le=254)
    """Largest number that a mask may hold; the default is that of SAVi's MOVi settings."""

    @model_validator(mode="after")
    def _fits(self) -> VideoFilesSpec:
        if not self.path.strip():
            raise ValueError("path is empty; give the folder that holds the videos, or use kind toy_video")
        _check_clip(self.clip_frames, self.frame_step, self.video_frames)
        return self


def _check_clip(clip_frames: int, frame_step: int, video_frames: int) -> None:
    """A clip must fit into its video."""
    needed = (clip_frames - 1) * frame_step + 1
    if needed > video_frames:
        raise ValueError(f"{clip_frames} frames with frame_step {frame_step} span {needed}, video_frames is {video_frames}")
