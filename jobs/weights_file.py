"""Where frozen or published weights lie, as far as that is known without torch: for the login node and messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from jobs.clip_tags import QUICK, find_weights, tags_of, uses_quick_gelu
from jobs.data.errors import DataError, Place
from jobs.data.store import file_sha256
from models.spec import AnyBackbone, BackboneSpec
from models.spec_language import ClipSpec
from models.spec_parts import FeatureNetSpec, TrunkSpec
from models.spec_video import LpipsSpec

FromTorchvision = LpipsSpec | FeatureNetSpec | TrunkSpec
AnyWeights = AnyBackbone | FromTorchvision
"""Whatever names weights that somebody else trained."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
CACHED_NAMES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TIMM_HINT = (
    "copy a state dict here and set weights=file path=FILE, or run once, on a node with network: "
    "python -c \"import timm; timm.create_model('{name}', pretrained=True)\" (HF_HOME says where its cache lies)"
)
CLIP_HINT = (
    "copy a state dict of open_clip's whole model here and set weights=file path=FILE, or run once, on a node with network: "
    "python -c \"import open_clip; open_clip.create_model('{name}', pretrained='{tag}')\" (HF_HOME says where its cache lies)"
)
TORCHVISION_HINT = (
    "copy torchvision's state dict here and set {key}.weights=file {key}.path=FILE, or run once, on a node with network: "
    "python -c \"import torchvision; torchvision.models.{name}(weights='IMAGENET1K_V1')\" (TORCH_HOME says where its cache lies)"
)
LPIPS_TRUNKS = {"alex": "alexnet", "vgg": "vgg16"}
"""LPIPS net -> torchvision's name of its trunk."""
TORCHVISION_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
}
"""As torchvision names its downloads of IMAGENET1K_V1."""


def torchvision_name(spec: FromTorchvision) -> str:
    """Its name of the net that the weights belong to."""
    return LPIPS_TRUNKS[spec.net] if isinstance(spec, LpipsSpec) else spec.name


def config_key(spec: AnyWeights) -> str:
    """Where the configuration says which weights these are."""
    match spec:
        case LpipsSpec():
            return "objective.lpips"
        case FeatureNetSpec():
            return "objective.features"
        case TrunkSpec():
            return "model.trunk"
        case BackboneSpec() | ClipSpec():
            return "backbone"
        case _:
            assert_never(spec)


def titled(spec: AnyWeights) -> str:
    """What the weights belong to, as messages name it."""
    match spec:
        case LpipsSpec():
            return f"LPIPS's trunk {torchvision_name(spec)}"
        case FeatureNetSpec():
            return f"the feature net {spec.name}"
        case TrunkSpec():
            return f"the trunk {spec.name}"
        case BackboneSpec():
            return spec.name
        case ClipSpec():
            return f"{spec.name} ({spec.pretrained})" if spec.weights == "pretrained" else spec.name
        case _:
            assert_never(spec)


def expected_file(spec: AnyWeights) -> str:
    """What a file of its weights holds, for messages."""
    if isinstance(spec, FromTorchvision):
        return f"a state dict of torchvision's {torchvision_name(spec)}"
    return f"a state dict of {'timm' if isinstance(spec, BackboneSpec) else 'open_clip'}'s {spec.name}"


def download_hint(spec: AnyWeights) -> str:
    """What to do where pretrained weights are missing and there is no network."""
    if isinstance(spec, FromTorchvision):
        return TORCHVISION_HINT.format(name=torchvision_name(spec), key=config_key(spec))
    if isinstance(spec, BackboneSpec):
        return TIMM_HINT.format(name=spec.name)
    return CLIP_HINT.format(name=spec.name, tag=spec.pretrained)


def weights_content(spec: AnyWeights) -> str | None:
    """The sha256 of the weights file, in hex (half a second for a ViT-B); None when the weights are no file.

    Raises:
        DataError: no such file, not readable, empty, or with a suffix that is no state dict's.
    """
    return None if spec.weights != "file" else file_sha256(weights_path(spec))


def weights_path(spec: AnyWeights) -> Path:
    """The readable file of weights=file.

    Raises:
        DataError: see `weights_content`.
    """
    assert spec.path is not None  # the spec has a path with weights=file
    path = Path(spec.path).expanduser()
    place, key = Place(file=str(path)), f"{config_key(spec)}.path"
    expected = f"{expected_file(spec)} ({', '.join(SUFFIXES)})"
    if path.suffix not in SUFFIXES:
        raise DataError(f"suffix {path.suffix!r}", place=place, expected=expected, hint=f"{key} must name a state dict")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", place=place, expected=expected, hint=f"{key} must be a readable file"
        ) from error
    if empty:
        raise DataError("is empty", place=place, expected=expected, hint="copy it again")
    return path


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where Hugging Face's client keeps what timm and open_clip download."""
    if folder := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def weights_cache(spec: AnyWeights, environ: Mapping[str, str]) -> Path:
    """Where torchvision, or else Hugging Face's client, keeps what it downloads."""
    if not isinstance(spec, FromTorchvision):
        return cache_folder(environ)
    home = environ.get("TORCH_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def cached_weights(spec: AnyWeights, environ: Mapping[str, str]) -> Path | None:
    """A file of these pretrained weights in the cache; None when none is found.

    Without timm only its naming is known (`timm/<name>`, any tag when the name has none): the few models that timm takes from
    others' repositories are not found here although they may be there. Of open_clip's the table is read (jobs.clip_tags).
    """
    if isinstance(spec, FromTorchvision):
        path = weights_cache(spec, environ) / TORCHVISION_FILES[torchvision_name(spec)]
        return path if path.exists() else None
    if isinstance(spec, ClipSpec):
        weights = None if spec.pretrained is None else find_weights(spec.name, spec.pretrained)
        return None if weights is None else _in_cache(f"models--{weights.repository.replace('/', '--')}", weights.files, environ)
    repository = f"models--timm--{spec.name}" + ("" if "." in spec.name else ".*")
    return _in_cache(repository, CACHED_NAMES, environ)


def _in_cache(repository: str, names: tuple[str, ...], environ: Mapping[str, str]) -> Path | None:
    found = (
        path for name in names for path in sorted(cache_folder(environ).glob(f"{repository}/snapshots/*/{name}")) if path.exists()
    )
    return next(found, None)


def check_clip_tag(spec: ClipSpec) -> None:
    """That open_clip has these weights and that the architecture computes the activation that they were trained with.

    The job looks again, through open_clip itself (models.clip_towers.check_tag). What is not known here is not refused.

    Raises:
        DataError: it has not, or does not.
    """
    tags = tags_of(spec.name)
    if spec.weights == "random" or spec.pretrained is None or not tags:
        return
    place = Place(file="open_clip")
    weights = find_weights(spec.name, spec.pretrained)
    if weights is None:
        raise DataError(f"pretrained {spec.pretrained!r} with name {spec.name!r}", place=place, expected=", ".join(sorted(tags)))
    computed, spoken = uses_quick_gelu(spec.name), {True: "QuickGELU", False: "GELU"}
    if computed is not None and computed != weights.quick_gelu:
        raise DataError(
            f"name {spec.name!r} computes {spoken[computed]}, pretrained {spec.pretrained!r} needs {spoken[weights.quick_gelu]}",
            place=place,
            hint=f"set name={spec.name.removesuffix(QUICK)}{QUICK if weights.quick_gelu else ''}",
        )


def check_weights(spec: AnyWeights, environ: Mapping[str, str]) -> list[str]:
    """Look, on the login node, whether the weights are there; returns what was found, line by line.

    Pretrained weights that are not in the cache are no error here: a compute node may have a network, or a cache of its own.

    Raises:
        DataError: weights=file, and the file cannot be used (see `weights_content`); or CLIP weights of another activation.
    """
    if isinstance(spec, ClipSpec):
        check_clip_tag(spec)
    match spec.weights:
        case "random":
            return [f"{titled(spec)} with random weights: for rehearsals only"]
        case "file":
            path = weights_path(spec)
            return [f"{titled(spec)} from {path} ({path.stat().st_size} bytes)"]
        case "pretrained":
            found = cached_weights(spec, environ)
            if found is not None:
                return [f"{titled(spec)} from {found}"]
            return [
                f"{titled(spec)} is not in {weights_cache(spec, environ)}: the job will try to download it",
                "hint: " + download_hint(spec),
            ]
