"""The smallest version of a configuration that still exercises everything; torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.data.clips_actions import FRAMES
from jobs.data_spec_parts import PART_FILES

STEPS = 3
SPARE = 8
"""Images of a second, uneven batch."""
VALIDATION = 16
CLIPS = 2
"""On disk; 34 frames each."""
VIDEOS = 3
"""Drawn ones, whole, to be scored."""


def shorten(config: Mapping[str, Any], *, batch_size: int) -> dict[str, Any]:
    """The same configuration, as little work as exercises everything: three steps, two batches of data, one noise seed.

    A COCO folder keeps its first images; features are made of those, in several shards. Videos and training clips keep their
    number of frames.
    """
    short = json.loads(json.dumps(dict(config)))
    timed = {"background_checkpoints": False, "checkpoint_auto": None}  # steps and saves are timed, each alone
    short["runtime"] = dict(short.get("runtime", {})) | {"checkpoint_every_steps": 1, "log_every": 1} | timed
    match short["kind"]:
        case "train":
            short["steps"] = min(short["steps"], STEPS)
            short["validation"] |= {"every_steps": 2, "images": 8, "panel_every": 1}
        case "count":
            short |= {"steps": min(short["steps"], STEPS), "step_s": 0.0}
        case "prepare":
            short["data"] = _less_data(short["data"], batch_size=batch_size)
        case "embed":
            short["shard_images"] = min(short["shard_images"], max(1, (batch_size + SPARE) // 2))
        case "evaluate":
            short["noise_seeds"] = short["noise_seeds"][:1]
    return dict(short)


def _less_data(data: dict[str, Any], *, batch_size: int) -> dict[str, Any]:
    validation = VALIDATION
    if data["kind"] == "coco":
        for key, made, most in (("max_train", "train_images", batch_size + SPARE), ("max_val", "val_images", VALIDATION)):
            data[key] = min(data[key] or most, most)
            if data["generator"] is not None:
                data["generator"][made] = min(data["generator"][made], most)
        return data
    if data["kind"] == "toy_creatures":
        for key, most in (("train_images", 2 * batch_size), ("test_images", VALIDATION)):
            data[key] = min(data[key], most)
        return data
    if data["kind"] in PART_FILES:
        data["max_images"] = min(data["max_images"] or 2 * batch_size, 2 * batch_size)
        return data
    if data["kind"] == "video_files":
        data["max_videos"] = min(data["max_videos"] or 2 * batch_size, 2 * batch_size)
        return data
    if data["kind"] == "clips":
        data["max_clips"] = min(data["max_clips"] or CLIPS, CLIPS)
        return data
    if data["kind"] == "toy_video":
        validation = VIDEOS
    if data["kind"] == "toy_clevr":
        batch_size, validation = -(-batch_size // FRAMES), 1
    for split, most in (("train", 2 * batch_size), ("test", validation)):
        data[split]["count"] = min(data[split]["count"], most)
    data["test"]["first"] = data["train"]["first"] + data["train"]["count"]
    return data
