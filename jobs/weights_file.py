"""Where weights of backbones and LPIPS nets lie, as far as that is known without torch: for the login node and messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from jobs.clip_tags import QUICK, find_weights, tags_of, uses_quick_gelu
from jobs.data.errors import DataError, Place
from jobs.data.store import file_sha256
from models.spec import AnyBackbone, BackboneSpec
from models.spec_language import ClipSpec
from models.spec_video import LpipsSpec

AnyWeights = AnyBackbone | LpipsSpec
"""Whatever names frozen weights."""

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
LPIPS_HINT = (
    "copy torchvision's state dict here and set weights=file path=FILE, or run once, on a node with network: "
    "python -c \"import torchvision; torchvision.models.{name}(weights='IMAGENET1K_V1')\" (TORCH_HOME says where its cache lies)"
)
TRUNKS = {"alex": "alexnet", "vgg": "vgg16"}
"""LPIPS net -> torchvision's name of its trunk."""
TRUNK_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
"""As torchvision names its downloads."""


def titled(spec: AnyWeights) -> str:
    """A backbone, or an LPIPS net, as messages name it."""
    if isinstance(spec, LpipsSpec):
        return f"LPIPS's trunk {TRUNKS[spec.net]}"
    if isinstance(spec, BackboneSpec) or spec.weights != "pretrained":
        return spec.name
    return f"{spec.name} ({spec.pretrained})"


def expected_file(spec: AnyWeights) -> str:
    """What a file of its weights holds, for messages."""
    if isinstance(spec, LpipsSpec):
        return f"a state dict of torchvision's {TRUNKS[spec.net]}"
    return f"a state dict of {'timm' if isinstance(spec, BackboneSpec) else 'open_clip'}'s {spec.name}"


def download_hint(spec: AnyWeights) -> str:
    """What to do where pretrained weights are missing and there is no network."""
    if isinstance(spec, LpipsSpec):
        return LPIPS_HINT.format(name=TRUNKS[spec.net])
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
    place, key = Place(file=str(path)), "objective.lpips.path" if isinstance(spec, LpipsSpec) else "backbone.path"
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


def torch_cache_folder(environ: Mapping[str, str]) -> Path:
    """Where torchvision keeps what it downloads."""
    home = environ.get("TORCH_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def cached_weights(spec: AnyWeights, environ: Mapping[str, str]) -> Path | None:
    """A file of these pretrained weights in the cache; None when none is found.

    Without timm only its naming is known (`timm/<name>`, any tag when the name has none): the few models that timm takes from
    others' repositories are not found here although they may be there. Of open_clip's the table is read (jobs.clip_tags).
    """
    if isinstance(spec, LpipsSpec):
        path = torch_cache_folder(environ) / TRUNK_FILES[spec.net]
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
            folder = torch_cache_folder(environ) if isinstance(spec, LpipsSpec) else cache_folder(environ)
            return [
                f"{titled(spec)} is not in {folder}: the job will try to download it",
                "hint: " + download_hint(spec),
            ]
