"""Where a backbone's weights lie, as far as that can be told without torch: for the login node and for error messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from jobs.data.errors import DataError, Place
from jobs.data.store import file_sha256
from models.spec import BackboneSpec

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
CACHED_NAMES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HINT = (
    "copy a state dict here and set weights=file path=FILE, or run once, on a node with network: "
    "python -c \"import timm; timm.create_model('{name}', pretrained=True)\" (HF_HOME says where its cache lies)"
)


def weights_content(spec: BackboneSpec) -> str | None:
    """The sha256 of the weights file, in hex (half a second for a ViT-B); None when the weights are no file.

    Raises:
        DataError: no such file, not readable, empty, or with a suffix that is no state dict's.
    """
    return None if spec.weights != "file" else file_sha256(weights_path(spec))


def weights_path(spec: BackboneSpec) -> Path:
    """The readable file of weights=file.

    Raises:
        DataError: see `weights_content`.
    """
    assert spec.path is not None  # the spec has a path with weights=file
    path = Path(spec.path).expanduser()
    place = Place(file=str(path))
    expected = f"a state dict of timm's {spec.name} ({', '.join(SUFFIXES)})"
    if path.suffix not in SUFFIXES:
        raise DataError(f"suffix {path.suffix!r}", place=place, expected=expected, hint="backbone.path must name a state dict")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", place=place, expected=expected, hint="backbone.path must be a readable file"
        ) from error
    if empty:
        raise DataError("is empty", place=place, expected=expected, hint="copy it again")
    return path


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where Hugging Face's client keeps what timm downloads."""
    if folder := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def cached_weights(spec: BackboneSpec, environ: Mapping[str, str]) -> Path | None:
    """A file of these pretrained weights in the cache; None when none is where timm's own repositories are kept.

    Without timm only its naming is known (`timm/<name>`, any tag when the name has none): the few models that timm takes from
    others' repositories are not found here although they may be there.
    """
    repository = f"models--timm--{spec.name}" + ("" if "." in spec.name else ".*")
    found = (
        path
        for name in CACHED_NAMES
        for path in sorted(cache_folder(environ).glob(f"{repository}/snapshots/*/{name}"))
        if path.exists()
    )
    return next(found, None)


def check_weights(spec: BackboneSpec, environ: Mapping[str, str]) -> list[str]:
    """Look, on the login node, whether the weights are there; returns what was found, line by line.

    Pretrained weights that are not in the cache are no error here: a compute node may have a network, or a cache of its own.

    Raises:
        DataError: weights=file, and the file cannot be used (see `weights_content`).
    """
    match spec.weights:
        case "random":
            return [f"{spec.name} with random weights: for rehearsals only"]
        case "file":
            path = weights_path(spec)
            return [f"{spec.name} from {path} ({path.stat().st_size} bytes)"]
        case "pretrained":
            found = cached_weights(spec, environ)
            if found is not None:
                return [f"{spec.name} from {found}"]
            return [
                f"{spec.name} is not in {cache_folder(environ)}: the job will try to download it",
                "hint: " + HINT.format(name=spec.name),
            ]
