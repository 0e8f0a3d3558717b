"""Reads a backbone's weights, from a file or through timm's download, and builds the backbone with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from jobs.data.errors import DataError, Place
from jobs.data.store import file_sha256
from jobs.weights_file import HINT, cache_folder, weights_path
from models.backbone import Backbone, BackboneError, build_backbone
from models.spec import BackboneSpec

WRAPPERS = ("state_dict", "model")
"""Keys under which a file may hold its state dict instead of being one."""


def load_backbone(spec: BackboneSpec, device: torch.device) -> Backbone:
    """The frozen backbone of a configuration, on a device.

    Raises:
        DataError: weights that are missing, unreadable, changed since the run was planned, or another architecture's.
        BackboneError: the architecture is not what the spec says (see models.backbone).
    """
    match spec.weights:
        case "random":
            return build_backbone(spec, state=None).to(device)
        case "file":
            return _from_file(spec).to(device)
        case "pretrained":
            return build_backbone(spec, state=_pretrained(spec)).to(device)


def weights_digest(backbone: torch.nn.Module) -> str:
    """sha256 over names, shapes and values of all parameters: what the tokens were computed with, wherever it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {list(array.shape)};".encode())
        digest.update(memoryview(array.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _from_file(spec: BackboneSpec) -> Backbone:
    path = weights_path(spec)
    place = Place(file=str(path))
    if spec.content is not None and (found := file_sha256(path)) != spec.content:
        raise DataError(
            f"sha256 is {found}",
            place=place,
            expected=f"{spec.content}, as when the run was planned",
            hint="the file was changed or replaced since: put it back, or plan again",
        )
    state = _read(path, spec)
    try:
        return build_backbone(spec, state=state)
    except BackboneError as error:
        raise DataError(
            str(error), place=place, hint=f"the file must hold timm's own parameters of {spec.name}, see backbone.name"
        ) from error


def _read(path: Path, spec: BackboneSpec) -> Mapping[str, Tensor]:
    place, expected = Place(file=str(path)), f"a state dict of timm's {spec.name}"
    try:
        content: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # whatever a reader says of a damaged or hostile file
        raise DataError(
            f"not a state dict ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            place=place,
            expected=expected,
            hint="save only tensors: torch.save(model.state_dict(), path)",
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError("holds something else than named tensors", place=place, expected=expected)
    return content


def _pretrained(spec: BackboneSpec) -> Mapping[str, Tensor]:
    try:
        return dict(timm.create_model(spec.name, pretrained=True).state_dict())
    except Exception as error:  # the network's, the hub's and timm's errors have no common base
        if not timm.is_model(spec.name):
            raise BackboneError(f"backbone.name {spec.name!r} is not a model of timm {timm.__version__}") from error
        raise DataError(
            f"pretrained weights of {spec.name} are not here and cannot be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            place=Place(file=str(cache_folder(os.environ))),
            hint=HINT.format(name=spec.name),
        ) from error
