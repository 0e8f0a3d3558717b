"""Begin a run from the weights of an earlier one: everything that fits is loaded, and what does not is said or an error."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from jobs.attempt import Refused

log = logging.getLogger("jobs")
SHOWN = 5
"""Names listed of each kind of mismatch."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of every parameter; names sorted."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    """Of the new model, as it was initialised."""

    def worded(self) -> str:
        """One line for the log. (Nothing is ever left over: that is an error.)"""
        return f"warm start: {len(self.loaded)} tensors loaded, {len(self.fresh)} fresh{_listed(self.fresh)}, 0 left over"


def warm_start(model: nn.Module, weights: Mapping[str, torch.Tensor], *, fresh: tuple[str, ...], source: str) -> Report:
    """Copy `weights` into `model`, in place; parameters below a `fresh` prefix keep their initial values.

    Raises Refused, before anything is copied, when a tensor of the model that is not below a `fresh` prefix is missing or
    of another shape, when a tensor of `weights` has no place, or when a prefix names nothing.
    """
    mine = model.state_dict()
    new = {name for name in mine if any(name == prefix or name.startswith(f"{prefix}.") for prefix in fresh)}
    idle = [prefix for prefix in fresh if not any(name == prefix or name.startswith(f"{prefix}.") for name in mine)]
    missing = sorted(mine.keys() - weights.keys() - new)
    left_over = sorted(weights.keys() - mine.keys())
    shapes = [
        f"{name} is {list(weights[name].shape)}, the model's {list(mine[name].shape)}"
        for name in sorted(mine.keys() & weights.keys() - new)
        if weights[name].shape != mine[name].shape
    ]
    problems = [
        f"{what}{_listed(tuple(names))}"
        for what, names in (
            ("warm_start.fresh names nothing of the model", idle),
            ("not in the earlier weights, and not declared fresh", missing),
            ("in the earlier weights, and nowhere in the model", left_over),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise Refused(f"cannot start from {source}: {'; '.join(problems)}")
    loaded = sorted(mine.keys() - new)
    model.load_state_dict({name: weights[name] for name in loaded}, strict=False)
    return Report(loaded=tuple(loaded), fresh=tuple(sorted(new)))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights that a training run put out; raises Refused for a file that is not such."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise Refused(f"{path} is no file of weights: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise Refused(f"{path} is no file of weights: it holds other things than named tensors")
    return found


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{rest})"
