"""Reads published weights, from a file or through timm's, open_clip's or torchvision's download, and builds frozen nets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip  # type: ignore[import-untyped]  # ships neither stubs nor a marker
import timm
import torch
import torchvision  # type: ignore[import-untyped]  # ships no marker
from safetensors.torch import load_file
from torch import Tensor

from jobs.data.errors import DataError, Place
from jobs.data.store import file_sha256
from jobs.weights_file import (
    AnyWeights,
    FromTorchvision,
    config_key,
    download_hint,
    expected_file,
    titled,
    torchvision_name,
    weights_cache,
    weights_path,
)
from models.backbone import Backbone, BackboneError, build_backbone
from models.clip_towers import ClipError, ClipTowers, build_clip, check_tag
from models.dilated_resnet import DilatedResNet, TrunkError
from models.feature_net import FeatureNet, FeatureNetError, Layer, build_feature_net
from models.perceptual import FrameLpips, LpipsError, build_lpips
from models.spec import BackboneSpec
from models.spec_language import ClipSpec
from models.spec_parts import FeatureNetSpec, TrunkSpec
from models.spec_video import LpipsSpec

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


def load_clip(spec: ClipSpec, device: torch.device) -> ClipTowers:
    """The frozen CLIP towers of a configuration, on a device.

    A tag that open_clip does not have for this name, or whose weights were trained with the other activation, is an error
    before anything is read or downloaded.

    Raises:
        DataError: that; weights that are missing, unreadable, changed since the run was planned, or another architecture's; or
            an architecture that is not what the spec says.
    """
    place, hint = Place(file="open_clip"), ""
    try:
        if spec.weights != "random" and spec.pretrained is not None:
            check_tag(spec.name, spec.pretrained)
        match spec.weights:
            case "random":
                towers = build_clip(spec, state=None)
            case "file":
                path, state = _checked_file(spec)
                place, hint = Place(file=str(path)), f"the file must hold open_clip's own parameters of the whole {spec.name}"
                towers = build_clip(spec, state=state)
            case "pretrained":
                towers = build_clip(spec, state=_pretrained_clip(spec))
    except ClipError as error:
        what, _, found = str(error).partition("; hint: ")
        raise DataError(what, place=place, hint=found or hint) from error
    return towers.to(device)


def load_lpips(spec: LpipsSpec, device: torch.device) -> FrameLpips:
    """The frozen LPIPS net of a configuration, on a device.

    Raises:
        DataError: weights that are missing, unreadable, changed since the run was planned, or another trunk's.
    """
    place, state = _torchvision_state(spec)
    try:
        return build_lpips(spec, state=state).to(device)
    except LpipsError as error:
        raise DataError(str(error), place=place, hint="the file must hold torchvision's own parameters") from error


def load_feature_net(spec: FeatureNetSpec, layers: Sequence[Layer], device: torch.device) -> FeatureNet:
    """The frozen feature net of a configuration, on a device; it yields `layers` (one or more, each once), in this order.

    Raises:
        DataError: weights that are missing, unreadable, changed since the run was planned, or another net's.
    """
    place, state = _torchvision_state(spec)
    try:
        return build_feature_net(spec, layers=layers, state=state).to(device)
    except FeatureNetError as error:
        hint = f"{config_key(spec)}.path must name torchvision's own parameters of {spec.name}"
        raise DataError(str(error), place=place, hint=hint) from error


def load_trunk(trunk: DilatedResNet, spec: TrunkSpec) -> None:
    """Give a part model's trunk the published weights of its configuration; with weights=random it stays as it is.

    Raises:
        DataError: weights that are missing, unreadable, changed since the run was planned, or another net's.
    """
    place, state = _torchvision_state(spec)
    if state is None:
        return
    try:
        trunk.load_published(state)
    except TrunkError as error:
        hint = f"{config_key(spec)}.path must name torchvision's own parameters of {spec.name}"
        raise DataError(str(error), place=place, hint=hint) from error


def weights_digest(backbone: torch.nn.Module) -> str:
    """sha256 over names, shapes and values of all parameters: what the tokens were computed with, wherever it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {list(array.shape)};".encode())
        digest.update(memoryview(array.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _from_file(spec: BackboneSpec) -> Backbone:
    path, state = _checked_file(spec)
    try:
        return build_backbone(spec, state=state)
    except BackboneError as error:
        raise DataError(
            str(error),
            place=Place(file=str(path)),
            hint=f"the file must hold timm's own parameters of {spec.name}, see backbone.name",
        ) from error


def _checked_file(spec: AnyWeights) -> tuple[Path, Mapping[str, Tensor]]:
    """The file and its state dict, once its content is what the run was planned with."""
    path = weights_path(spec)
    if spec.content is not None and (found := file_sha256(path)) != spec.content:
        raise DataError(
            f"sha256 is {found}",
            place=Place(file=str(path)),
            expected=f"{spec.content}, as when the run was planned",
            hint="the file was changed or replaced since: put it back, or plan again",
        )
    return path, _read(path, spec)


def _read(path: Path, spec: AnyWeights) -> Mapping[str, Tensor]:
    place, expected = Place(file=str(path)), expected_file(spec)
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
        raise _not_here(spec, error) from error


def _pretrained_clip(spec: ClipSpec) -> Mapping[str, Tensor]:
    try:
        with torch.random.fork_rng(devices=[]):  # open_clip draws weights before it loads others
            return dict(open_clip.create_model(spec.name, pretrained=spec.pretrained, device="cpu").state_dict())
    except Exception as error:  # as above
        raise _not_here(spec, error) from error


def _torchvision_state(spec: FromTorchvision) -> tuple[Place, Mapping[str, Tensor] | None]:
    """Where the weights come from, and torchvision's state dict, None with weights=random."""
    match spec.weights:
        case "random":
            return Place(file="torchvision"), None
        case "file":
            path, state = _checked_file(spec)
            return Place(file=str(path)), state
        case "pretrained":
            weights = torchvision.models.get_model_weights(torchvision_name(spec))["IMAGENET1K_V1"]
            try:
                return Place(file="torchvision"), dict(weights.get_state_dict(progress=False, check_hash=True))
            except Exception as error:  # as above
                raise _not_here(spec, error) from error


def _not_here(spec: AnyWeights, error: Exception) -> DataError:
    return DataError(
        f"pretrained weights of {titled(spec)} are not here and cannot be downloaded "
        f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
        place=Place(file=str(weights_cache(spec, os.environ))),
        hint=download_hint(spec),
    )
