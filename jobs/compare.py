"""Are two runs the same, bit for bit? Final state tensor by tensor, and the counting metric series."""

from __future__ import annotations

import json
from typing import Any

import torch

from jobs.checkpoint import CheckpointStore
from jobs.contract import RunDir
from jobs.journal import read_journal


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: leaf for key, one in value.items() for name, leaf in _leaves(one, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {name: leaf for i, one in enumerate(value) for name, leaf in _leaves(one, f"{path}/{i}").items()}
    return {path: value}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))
        )
    return type(one) is type(other) and one == other


def newest_state(run_dir: RunDir) -> dict[str, Any]:
    """The newest valid checkpoint's content as flat leaves; empty when there is none."""
    found, _ = CheckpointStore(directory=run_dir.checkpoints, config_hash=run_dir.id).newest()
    if found is None:
        return {}
    leaves: dict[str, Any] = {}
    for file in sorted(found.path.iterdir()):
        if file.suffix == ".pt":
            leaves |= _leaves(torch.load(file, map_location="cpu", weights_only=True), file.stem)
        elif file.name == "state.json":
            leaves |= _leaves(json.loads(file.read_text(encoding="utf-8")), file.stem)
    return leaves


def series(run_dir: RunDir) -> list[tuple[int, str, float]]:
    """(step, metric, value) of every counting entry."""
    counting = read_journal(run_dir.journals).counting()
    return [(entry.step, name, value) for entry in counting for name, value in entry.metrics.items()]


def differences(one: RunDir, other: RunDir) -> list[str]:
    """What differs between two runs' newest checkpoints and series, a line each; none when they are equal."""
    found: list[str] = []
    left, right = newest_state(one), newest_state(other)
    if not left or not right:
        found.append("no checkpoint to compare")
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right or not _same(left[name], right[name]):
            found.append(f"state {name} differs")
    if repr(series(one)) != repr(series(other)):  # repr: NaN equals NaN, -0.0 differs from 0.0
        found.append("the metric series differ")
    return found


def output_differences(one: RunDir, other: RunDir) -> list[str]:
    """Which files below two runs' outputs differ, byte for byte, a line each; none when they are equal."""
    left, right = (
        {path.relative_to(run.output).as_posix(): path for path in run.output.rglob("*") if path.is_file()}
        for run in (one, other)
    )
    same = {name for name in left.keys() & right.keys() if left[name].read_bytes() == right[name].read_bytes()}
    found = [f"output {name} differs" for name in sorted(left.keys() | right.keys()) if name not in same]
    return found if left or right else ["no output to compare"]
