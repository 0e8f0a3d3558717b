"""Owns the original's scene JSON, of which one describes a clip: objects and actions, both ways.

Read: `image_filename` (name of the clip, without suffix), `objects` (in the order that `actions` counts) and `actions`
[a, b, c] (jobs.data.clips_actions). Other keys (`relationships`, `directions`, `3d_coords`, ...) are allowed and not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.data.clips_actions import ACTING, COLORS, RELATION_WORDS, SHAPES, Actions, Noun, Relation
from jobs.data.clips_files import read_json
from jobs.data.errors import DataError, Place

RELATIONS = ", ".join(f"{relation.value} {words}" for relation, words in RELATION_WORDS.items())


class SceneObject(BaseModel):
    """One object of a scene file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    color: str
    shape: str
    size: str
    material: str
    pixel_coords: tuple[float, float, float]
    """x, y in pixels of the original frame, and depth."""


class _SceneFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    image_filename: str
    objects: tuple[SceneObject, ...]
    actions: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ClipScene:
    """One clip, checked."""

    clip: str
    """Name of its video or folder of frames."""
    objects: tuple[SceneObject, ...]
    actions: Actions

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """What the objects are called."""
        return tuple(Noun(color=thing.color, shape=thing.shape) for thing in self.objects)


def read_scene(path: Path) -> ClipScene:
    """Read a scene file.

    Raises:
        DataError: missing, no JSON, a key that is missing or of another type, a colour, shape or relation that nobody
            knows, fewer objects than an action needs, or a reference to an object that is not there.
    """
    place = Place(file=str(path))
    try:
        scene = _SceneFile.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{key}: {first['msg']}" + (f", {first['input']!r} given" if first["type"] != "missing" else ""),
            place=place,
            expected="objects (color, shape, size, material, pixel_coords), actions [a, b, c] and image_filename",
            hint="the schema stands in jobs/data/README.md",
        ) from error
    _check_objects(scene, place)
    return ClipScene(clip=scene.image_filename, objects=scene.objects, actions=_actions(scene, place))


def _check_objects(scene: _SceneFile, place: Place) -> None:
    for number, thing in enumerate(scene.objects):
        for key, value, allowed in (("color", thing.color, COLORS), ("shape", thing.shape, SHAPES)):
            if value not in allowed:
                raise DataError(f"objects.{number}.{key}: unknown {key} `{value}`", place=place, expected=", ".join(allowed))
    if len(scene.objects) < ACTING:
        raise DataError(
            f"objects: {len(scene.objects)} given",
            place=place,
            expected=f"at least {ACTING}: object 0 is lifted, 1 and 2 are moved",
            hint="take the scene out of the split's list",
        )


def _actions(scene: _SceneFile, place: Place) -> Actions:
    first, reference, second = scene.actions
    for at, value in ((0, first), (2, second)):
        if value not in set(Relation):
            raise DataError(f"actions.{at}: unknown relation {value}", place=place, expected=RELATIONS)
    if not 1 <= reference <= len(scene.objects):
        raise DataError(
            f"actions.1: object {reference} does not exist",
            place=place,
            expected=f"1 .. {len(scene.objects)}: the object that the second move refers to, counted from 1",
        )
    if reference == ACTING:
        raise DataError(
            f"actions.1: object {reference} would be moved relative to itself",
            place=place,
            expected="another object than the moved one",
        )
    return Actions(first=Relation(first), reference=reference, second=Relation(second))


def scene_json(scene: ClipScene, *, index: int, extra: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """What a scene file of a clip holds.

    Args:
        scene: the clip.
        index: its number, `image_index`.
        extra: further keys of each object, such as `3d_coords` and `rotation`.
    """
    objects = [{**thing.model_dump(), **more} for thing, more in zip(scene.objects, extra, strict=True)]
    actions = [int(scene.actions.first), scene.actions.reference, int(scene.actions.second)]
    return {"image_index": index, "image_filename": scene.clip, "split": "new", "objects": objects, "actions": actions}
