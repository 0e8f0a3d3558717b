"""`python -m jobs.weights_alike REQUEST`: how far apart trained weights are, tensor by tensor.

The request is JSON: {"pairs": [{"id", "one", "other"}]} with two files of weights each. One JSON object per pair goes to stdout:
{"id", "tensors", "different": [names], "worst": name, "relative": largest difference over the tensor's largest magnitude}, or
{"id", "error"} for files that cannot be read.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def _leaves(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, dict):
        return {name: leaf for key, one in value.items() for name, leaf in _leaves(one, f"{path}.{key}" if path else key).items()}
    return {path: torch.as_tensor(value)}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """0 for equal bits; else the largest difference over the largest magnitude (inf for another shape or dtype, or no number)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return math.inf
    if torch.equal(_bits(one), _bits(other)):
        return 0.0
    left, right = one.double(), other.double()
    scale = max(float(left.abs().max()), float(right.abs().max()))
    found = float((left - right).abs().max()) / scale if scale > 0 else 0.0
    return found if math.isfinite(found) else math.inf


def compare(one: Path, other: Path) -> dict[str, Any]:
    """The report on one pair; raises what `torch.load` raises."""
    left, right = (_leaves(torch.load(path, map_location="cpu", weights_only=True)) for path in (one, other))
    names = sorted(left.keys() | right.keys())
    apart: dict[str, float] = {}
    for name in names:
        if name not in left or name not in right:
            apart[name] = math.inf
        elif not (left[name].dtype == right[name].dtype and left[name].shape == right[name].shape) or not torch.equal(
            _bits(left[name]), _bits(right[name])
        ):
            apart[name] = distance(left[name], right[name])
    worst = max(apart, key=lambda name: apart[name], default="")
    return {"tensors": len(names), "different": list(apart), "worst": worst, "relative": apart.get(worst, 0.0)}


def main(arguments: Sequence[str]) -> int:
    """Entry point; exit code 0 whatever was found."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    for pair in request["pairs"]:
        try:
            report = compare(Path(pair["one"]), Path(pair["other"]))
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            report = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        sys.stdout.write(json.dumps({"id": pair["id"], **report}) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
