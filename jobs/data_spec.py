"""Typed configurations of data sets, one kind each (images with parts: data_spec_parts.py); torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.data_spec_parts import CelebaSpec, CubSpec, PascalPartSpec, ToyCreaturesSpec
from models.spec_base import Spec, added, location


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


class ToyVideoSpec(Spec):
    """Procedural videos of bouncing discs, squares and triangles with instance masks: no files needed."""

    kind: Literal["toy_video"] = "toy_video"
    seed: int = Field(default=0, ge=0)
    resolution: int = Field(default=64, ge=32)
    video_frames: int = Field(default=24, ge=1)
    """Frames of a whole video."""
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
    max_videos: int | None = Field(default=None, ge=1)
    """Only the first so many videos of each split: for trials."""
    max_objects: int = Field(default=23, ge=1, le=254)
    """Largest number that a mask may hold; the default is that of SAVi's MOVi settings."""

    @model_validator(mode="after")
    def _fits(self) -> VideoFilesSpec:
        if not self.path.strip():
            raise ValueError("path is empty; give the folder that holds the videos, or use kind toy_video")
        return self


DataSpec = Annotated[
    MultiDSpritesSpec
    | CocoSpec
    | ToyClevrSpec
    | ClipsSpec
    | ToyVideoSpec
    | VideoFilesSpec
    | ToyCreaturesSpec
    | PascalPartSpec
    | CubSpec
    | CelebaSpec,
    Field(discriminator="kind"),
]
