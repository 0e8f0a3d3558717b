"""Configurations as plain dictionaries, and what kinds of override can be written into them without Hydra. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.sweep.overrides import split


@dataclass(frozen=True, slots=True)
class Group:
    """A choice of a config group."""


@dataclass(frozen=True, slots=True)
class Assign:
    """A plain value for an existing key."""

    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class Whole:
    """Anything else: only Hydra can apply it."""


Part = Group | Assign | Whole


@dataclass(frozen=True, slots=True)
class Base:
    """One composition of everything that only Hydra can apply."""

    tree: dict[str, Any]
    plain: bool
    """Free of interpolations and missing values: values may be assigned without Hydra."""


def copied(value: Any) -> Any:
    """A deep copy of mappings and lists, several times faster than `copy.deepcopy`."""
    if isinstance(value, dict):
        return {key: copied(item) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def is_plain(value: Any) -> bool:
    """Whether OmegaConf hands the value back as it is: no interpolation, no missing mark."""
    return not any("${" in text or text == "???" for text in _strings(value))


def has_mapping(value: Any) -> bool:
    """Whether a mapping is in it: OmegaConf merges those instead of replacing."""
    return isinstance(value, dict) or (isinstance(value, list) and any(has_mapping(item) for item in value))


def assign(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    """Write a value at an existing key; False when only Hydra knows what that would mean."""
    at: Any = tree
    for name in path[:-1]:
        at = at.get(name)
        if not isinstance(at, dict):
            return False
    last = path[-1]
    if last not in at or isinstance(at[last], dict):
        return False
    at[last] = copied(value)
    return True


def mixed(overrides: Sequence[str], parts: Sequence[Part]) -> bool:
    """Whether an override that only Hydra can apply follows an assignment below the same top-level name."""
    seen: set[str] = set()
    for text, part in zip(overrides, parts, strict=True):
        if isinstance(part, Assign):
            seen.add(part.path[0])
        elif isinstance(part, Whole):
            override = split(text)
            if override is None or override.head in seen:
                return True
    return False


def dotted_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, inner nodes included."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{name}.")
