"""Owns making clips on disk from toy-CLEVR, in the original's layout: for tests and rehearsals of the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jobs.contract import write_atomically
from jobs.data.clips_actions import COLORS, FRAMES, SHAPES
from jobs.data.clips_files import IMAGES, MASKS, SCENES, SPLIT_LISTS
from jobs.data.clips_media import Codec, write_frames, write_video
from jobs.data.clips_scene import ClipScene, SceneObject, scene_json
from jobs.data.store import SPLITS
from jobs.data.toy_clevr_draw import draw_frames
from jobs.data.toy_clevr_scene import SIZES, Scenes, draw_scenes
from jobs.data_spec import ToyClevrSpec

Form = Codec | Literal["frames"]
"""A video of that codec, or a folder of PNGs."""


def write_clips(spec: ToyClevrSpec, folder: Path, *, form: Form = "ffv1", masks: bool = True) -> None:
    """Write the clips of both splits; `folder` must not hold any. The lists come last: without them it is no data set."""
    for name in (SCENES, IMAGES):
        (folder / name).mkdir(parents=True)
    for clips in (spec.train, spec.test):
        for clip in range(clips.first, clips.first + clips.count):
            _write_clip(spec, clip, folder, form=form, masks=masks)
    for split, clips in zip(SPLITS, (spec.train, spec.test), strict=True):
        names = [f"{_name(clip)}.json" for clip in range(clips.first, clips.first + clips.count)]
        write_atomically(folder / SPLIT_LISTS[split], json.dumps(names))


def _name(clip: int) -> str:
    return f"CLEVR_new_{clip:06d}"


def _write_clip(spec: ToyClevrSpec, clip: int, folder: Path, *, form: Form, masks: bool) -> None:
    name = _name(clip)
    scenes = draw_scenes(spec, np.full(FRAMES, clip))
    images_FSS3, labels_FSS = draw_frames(scenes, np.arange(FRAMES), resolution=spec.resolution)
    if form == "frames":
        write_frames(folder / IMAGES / name, images_FSS3)
    else:
        write_video(folder / IMAGES / f"{name}.avi", images_FSS3, codec=form)
    if masks:
        write_frames(folder / MASKS / name, labels_FSS)
    objects, extra = _objects(scenes, spec.resolution)
    scene = ClipScene(clip=name, objects=objects, actions=scenes.actions(0))
    write_atomically(folder / SCENES / f"{name}.json", json.dumps(scene_json(scene, index=clip, extra=extra)))


def _objects(scenes: Scenes, resolution: int) -> tuple[tuple[SceneObject, ...], tuple[dict[str, Any], ...]]:
    """Objects of the first scene, before anything moves; pixel coordinates are those of their centres, depth grows backwards."""
    objects, extra = [], []
    for slot in range(int(scenes.number_N[0])):
        pair = int(scenes.pair_NK[0, slot])
        x, y = scenes.foot_NK2[0, slot].tolist()
        half_height = float(scenes.half_heights[0, slot])
        objects.append(
            SceneObject(
                color=COLORS[pair // len(SHAPES)],
                shape=SHAPES[pair % len(SHAPES)],
                size=SIZES[int(scenes.size_NK[0, slot])],
                material="rubber",
                pixel_coords=(x * resolution, (y - half_height) * resolution, 1 - y),
            )
        )
        extra.append({"3d_coords": [x, 1 - y, half_height], "rotation": 0.0})
    return tuple(objects), tuple(extra)
