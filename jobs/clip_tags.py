"""What the installed open_clip says of its architectures and of its weights, told without importing it: that would import torch.

open_clip keeps its weights in one table of literals, `pretrained.py`, which is parsed and not executed, and its architectures in
`model_configs/NAME.json`. Since 3.0 all weights lie at Hugging Face and are cached as its client does. A table in another form
gives None: unknown, and nothing is refused on the ground of it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

QUICK = "-quickgelu"
DEFAULT_NAME = "open_clip_pytorch_model.bin"
"""The file in a repository when the table names none."""
SAFE_NAME = "open_clip_model.safetensors"
"""What is taken instead of the default where a repository has it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where weights come from, and what they were trained with."""

    repository: str
    """At Hugging Face: owner and name."""
    files: tuple[str, ...]
    """Names of the file in it, the first that is there counts."""
    quick_gelu: bool


Table = Mapping[str, Mapping[str, Weights]]
"""Architecture -> tag -> weights."""


def package() -> Path | None:
    """The folder of the installed open_clip; None when there is none."""
    found = importlib.util.find_spec("open_clip")
    return None if found is None or not found.submodule_search_locations else Path(found.submodule_search_locations[0])


@functools.cache
def weights_table() -> Table | None:
    """All weights, under the names without `-quickgelu`; None when there is no table or it has another form."""
    folder = package()
    if folder is None:
        return None
    try:
        return parse_table((folder / "pretrained.py").read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None


def find_weights(name: str, tag: str) -> Weights | None:
    """The weights of an architecture (with or without `-quickgelu`) by their tag; None when none are known."""
    return tags_of(name).get(tag.lower().replace("-", "_"))


def tags_of(name: str) -> Mapping[str, Weights]:
    """Tag -> weights of an architecture, with or without `-quickgelu`; empty when none are known."""
    return (weights_table() or {}).get(name.removesuffix(QUICK), {})


def uses_quick_gelu(name: str) -> bool | None:
    """The activation that an architecture computes; None when open_clip is not known to have it."""
    folder = package()
    if folder is None:
        return None
    try:
        config = json.loads((folder / "model_configs" / f"{name}.json").read_text(encoding="utf-8"))
        return bool(config.get("quick_gelu", False))
    except (OSError, ValueError, AttributeError):
        return None


def parse_table(source: str) -> Table | None:
    """The table `_PRETRAINED` of a module's source; None when it has another form than names, `dict(...)` and literals."""
    known: dict[str, dict[str, Weights]] = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="_PRETRAINED")], value=ast.Dict(keys=keys, values=values)):
                table: dict[str, Mapping[str, Weights]] = {}
                for key, value in zip(keys, values, strict=True):
                    if not isinstance(key, ast.Constant):
                        return None
                    table[str(key.value)] = known[value.id] if isinstance(value, ast.Name) else _weights_by_tag(value)
                return table
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="dict")) as value):
                known[name] = _weights_by_tag(value)
            case _:
                pass
    return None


def _weights_by_tag(value: ast.expr) -> dict[str, Weights]:
    """`dict(tag=_pcfg(hf_hub=..., quick_gelu=...), ...)`; tags that lie elsewhere than at Hugging Face are left out."""
    if not isinstance(value, ast.Call):
        return {}
    found: dict[str, Weights] = {}
    for entry in value.keywords:
        if entry.arg is None or not isinstance(entry.value, ast.Call):
            continue
        facts = {one.arg: one.value.value for one in entry.value.keywords if isinstance(one.value, ast.Constant)}
        repository, _, file = str(facts.get("hf_hub", "")).rpartition("/")
        if repository:
            files = (SAFE_NAME, DEFAULT_NAME) if not file else (f"{file[:-4]}.safetensors", file)
            found[entry.arg] = Weights(repository=repository, files=files, quick_gelu=bool(facts.get("quick_gelu", False)))
    return found
