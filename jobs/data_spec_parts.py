"""Typed configurations of images with parts, one kind each; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from models.spec_base import Spec, location


class ToyCreaturesSpec(Spec):
    """Drawn creatures of one category with five parts and ten keypoints (scops_slots.md 4): no files needed."""

    kind: Literal["toy_creatures"] = "toy_creatures"
    seed: int = Field(default=0, ge=0)
    resolution: int = Field(default=128, ge=32)
    train_images: int = Field(default=8000, ge=1)
    """The first of the endless series that the seed names for this split: more of them leave the others as they are."""
    test_images: int = Field(default=1000, ge=1)


PascalCategory = Literal[
    "aeroplane", "bicycle", "bird", "bottle", "bus", "car", "cat", "cow", "dog", "horse", "motorbike", "person", "pottedplant",
    "sheep", "train", "tvmonitor",
]  # fmt: skip
"""PASCAL-Part's categories with parts; the other four (boat, chair, diningtable, sofa) have silhouettes alone."""

_GRAZING = {
    "head": "head leye reye lear rear muzzle",
    "neck": "neck",
    "torso": "torso",
    "leg": "lfuleg lflleg rfuleg rflleg lbuleg lblleg rbuleg rblleg",
    "tail": "tail",
}
_HORNED = _GRAZING | {"head": f"{_GRAZING['head']} lhorn rhorn"}
_PAWED = _GRAZING | {"head": "head leye reye lear rear nose", "leg": "lfleg lfpa rfleg rfpa lbleg lbpa rbleg rbpa"}
_ROAD = {
    "frontside": "frontside",
    "side": "leftside rightside",
    "backside": "backside",
    "roofside": "roofside",
    "mirror": "leftmirror rightmirror",
    "plate": "fliplate bliplate",
    "door": "door",
    "wheel": "wheel",
    "headlight": "headlight",
    "window": "window",
}
PASCAL_PARTS: Mapping[PascalCategory, Mapping[str, str]] = {
    "aeroplane": {
        "body": "body", "stern": "stern", "wing": "lwing rwing", "tail": "tail", "engine": "engine", "wheel": "wheel",
    },
    "bicycle": {
        "wheel": "fwheel bwheel", "saddle": "saddle", "handlebar": "handlebar", "chainwheel": "chainwheel",
        "headlight": "headlight",
    },
    "bird": {
        "head": "head leye reye beak", "neck": "neck", "torso": "torso", "wing": "lwing rwing", "leg": "lleg rleg lfoot rfoot",
        "tail": "tail",
    },
    "bottle": {"cap": "cap", "body": "body"},
    "bus": _ROAD,
    "car": _ROAD,
    "cat": _PAWED,
    "cow": _HORNED,
    "dog": _PAWED | {"head": f"{_PAWED['head']} muzzle"},
    "horse": _GRAZING | {"leg": f"{_GRAZING['leg']} lfho rfho lbho rbho"},
    "motorbike": {"wheel": "fwheel bwheel", "handlebar": "handlebar", "saddle": "saddle", "headlight": "headlight"},
    "person": {
        "head": "head leye reye lear rear lebrow rebrow nose mouth hair", "neck": "neck", "torso": "torso",
        "arm": "llarm luarm rlarm ruarm", "hand": "lhand rhand", "leg": "llleg luleg rlleg ruleg", "foot": "lfoot rfoot",
    },
    "pottedplant": {"pot": "pot", "plant": "plant"},
    "sheep": _HORNED,
    "train": {
        "head": "head hfrontside hleftside hrightside hbackside hroofside headlight",
        "coach": "coach cfrontside cleftside crightside cbackside croofside",
    },
    "tvmonitor": {"screen": "screen"},
}  # fmt: skip
"""Category -> merged part -> all the names (without numbers) that PASCAL-Part's own list gives the parts that it is made of."""


class MergedPart(Spec):
    """Parts that count as one."""

    name: str = Field(min_length=1)
    prefixes: tuple[str, ...] = Field(min_length=1)
    """Beginnings of the original's names; of several that fit a name the longest counts."""


class PascalPartSpec(Spec):
    """PASCAL-Part: the objects of one category, cut out by their boxes (scops_slots.md 4; layout in jobs/data/README.md)."""

    kind: Literal["pascal_part"] = "pascal_part"
    path: str = location()
    """The folder that holds `Annotations_Part`, `JPEGImages` and `ImageSets`."""
    content: str | None = None
    """sha256 of jobs.data.pascal_part.pascal_part_content_hash, filled in on the login node; the place is not identity."""
    category: PascalCategory = "horse"
    parts: tuple[MergedPart, ...] = Field(default=(), max_length=254)
    """Parts 1, 2 ...; a part of the original that none of them takes is not annotated. `()`: those of PASCAL_PARTS."""
    resolution: int = Field(default=128, ge=16)
    pad: float = Field(default=0.05, ge=0, le=1)
    """Margin on each side of an object's box, as a share of its longer side."""
    min_side: int = Field(default=32, ge=1)
    """Objects whose box has a shorter longer side, in pixels of the original, are left out."""
    max_images: int | None = Field(default=None, ge=1)
    """Only the first so many objects of each split: for trials."""

    @model_validator(mode="after")
    def _fits(self) -> PascalPartSpec:
        _check_path(self.path)
        names = [part.name for part in self.parts]
        prefixes = [prefix for part in self.parts for prefix in part.prefixes]
        for what, words in (("part", names), ("prefix", prefixes)):
            if twice := sorted({word for word in words if words.count(word) > 1}):
                raise ValueError(f"parts: {what} `{twice[0]}` stands there twice")
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in self.known_names):
                raise ValueError(
                    f"parts: no part of a {self.category} begins with `{prefix}`; there are {', '.join(self.known_names)}"
                )
        return self

    @property
    def known_names(self) -> tuple[str, ...]:
        """The original's names of this category's parts, without numbers."""
        return tuple(name for names in PASCAL_PARTS[self.category].values() for name in names.split())

    @property
    def merged(self) -> tuple[MergedPart, ...]:
        """Parts 1, 2 ... with their prefixes."""
        if self.parts:
            return self.parts
        return tuple(MergedPart(name=name, prefixes=tuple(names.split())) for name, names in PASCAL_PARTS[self.category].items())

    def number_of(self, name: str) -> int | None:
        """Which merged part an original part belongs to, from 1; 0 for none; None for a name that the category does not have."""
        if name not in self.known_names:
            return None
        fits = [
            (len(prefix), number)
            for number, part in enumerate(self.merged, start=1)
            for prefix in part.prefixes
            if name.startswith(prefix)
        ]
        return max(fits)[1] if fits else 0


CUB_MASKS = "segmentations"
"""Folder of the birds' masks, below `path`."""


class CubSpec(Spec):
    """CUB-200-2011: birds with 15 keypoints (scops_slots.md 4; layout in jobs/data/README.md)."""

    kind: Literal["cub"] = "cub"
    path: str = location()
    """The folder `CUB_200_2011`, which holds `images.txt`; masks lie in `segmentations` below it."""
    content: str | None = None
    """sha256 of jobs.data.cub.cub_content_hash, filled in on the login node; the place is not identity."""
    classes: tuple[int, ...] = ()
    """Numbers of the classes to take, from 1 (SCOPS reports 1, 2 and 3 on their own); `()`: all."""
    crop: Literal["box", "image"] = "box"
    """`box`: the square about the bird's box; `image`: the whole image, with black bars."""
    resolution: int = Field(default=128, ge=16)
    max_images: int | None = Field(default=None, ge=1)
    """Only the first so many images of each split: for trials."""

    @model_validator(mode="after")
    def _fits(self) -> CubSpec:
        _check_path(self.path)
        if sorted(set(self.classes)) != list(self.classes) or any(not 1 <= number <= 200 for number in self.classes):
            raise ValueError(f"classes is {list(self.classes)}; give ascending numbers from 1 to 200, or none of them for all")
        return self


class CelebaSpec(Spec):
    """Unaligned CelebA: photographs of faces with 5 landmarks (scops_slots.md 4; layout in jobs/data/README.md)."""

    kind: Literal["celeba"] = "celeba"
    path: str = location()
    """The folder that holds `Anno`, `Eval` and `img_celeba`."""
    content: str | None = None
    """sha256 of jobs.data.celeba.celeba_content_hash, filled in on the login node; the place is not identity."""
    protocol: Literal["celeba", "mafl"] = "celeba"
    """`celeba`: its own training and test images; `mafl`: tested on MAFL's test images, trained on MAFL's training images, which
    come first (landmarks are regressed on them alone), and then CelebA's without MAFL's."""
    min_face: float = Field(default=0.3, ge=0, le=1)
    """Images whose box of the face covers a smaller share are left out."""
    resolution: int = Field(default=128, ge=16)
    max_images: int | None = Field(default=None, ge=1)
    """Only the first so many images of each split: for trials."""

    @model_validator(mode="after")
    def _somewhere(self) -> CelebaSpec:
        _check_path(self.path)
        return self


def _check_path(path: str) -> None:
    if not path.strip():
        raise ValueError("path is empty; give the folder of the original files, or use kind toy_creatures, which needs none")


PartFilesSpec = PascalPartSpec | CubSpec | CelebaSpec
"""Folders of the user's."""
PART_FILES = ("pascal_part", "cub", "celeba")
"""Their kinds."""
PartDataSpec = ToyCreaturesSpec | PartFilesSpec
