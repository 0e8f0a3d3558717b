"""The smallest version of a configuration that still exercises everything; torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

STEPS = 3


def shorten(config: Mapping[str, Any], *, batch_size: int) -> dict[str, Any]:
    """The same configuration, as little work as exercises everything: three steps, two batches of data, one noise seed."""
    short = json.loads(json.dumps(dict(config)))
    short["runtime"] = dict(short.get("runtime", {})) | {"checkpoint_every_steps": 1, "log_every": 1}
    match short["kind"]:
        case "train":
            short["steps"] = min(short["steps"], STEPS)
            short["validation"] |= {"every_steps": 2, "images": 8, "panel_every": 1}
        case "count":
            short |= {"steps": min(short["steps"], STEPS), "step_s": 0.0}
        case "prepare":
            for split, most in (("train", 2 * batch_size), ("test", 16)):
                short["data"][split]["count"] = min(short["data"][split]["count"], most)
            short["data"]["test"]["first"] = short["data"]["train"]["first"] + short["data"]["train"]["count"]
        case "evaluate":
            short["noise_seeds"] = short["noise_seeds"][:1]
    return dict(short)
