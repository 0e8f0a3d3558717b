"""What makes two runs one run: the canonical form of a configuration, and the run id made from it. Pure.

Left out of the canonical form: fields marked `location(...)` (where something lies, how fast it runs) and fields
marked `added(neutral)` that equal their neutral value, so that runs made before the field existed keep their ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jobs.spec import SCHEMA_VERSION
from models.spec_base import Spec

ID_DIGITS = 12
"""Hex digits of a run id: 48 bits; among a million runs two collide with probability 0.002."""

_ABSENT = object()


@cache
def _plan(spec_type: type[Spec]) -> tuple[tuple[str, object], ...]:
    """The fields that count, sorted by name, each with its neutral value (`_ABSENT` when it has none)."""
    counted: list[tuple[str, object]] = []
    for name, declared in spec_type.model_fields.items():
        extra = declared.json_schema_extra
        marks: Mapping[str, Any] = extra if isinstance(extra, dict) else {}
        if not marks.get("location", False):
            counted.append((name, marks.get("neutral", _ABSENT)))
    return tuple(sorted(counted))


def _tree(spec: Spec) -> dict[str, Any]:
    """The counted fields of a spec as plain values, keys sorted."""
    tree: dict[str, Any] = {}
    for name, neutral in _plan(type(spec)):
        value = getattr(spec, name)
        if neutral is not _ABSENT and value == neutral:
            continue
        tree[name] = _plain(value)
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return _tree(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    return value


_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def canonical(spec: Spec) -> str:
    """The configuration as JSON with sorted keys, without what is not identity.

    The spec must be validated: validation is what makes 1 and 1.0 one value of a float field.
    """
    return _encode(_tree(spec))


def id_of_canonical(kind: str, text: str, needs: Mapping[str, str]) -> str:
    """The run id of an already canonical configuration (`canonical`) and the ids it needs (kind -> id)."""
    hashed = hashlib.sha256(_encode([SCHEMA_VERSION, text, sorted(needs.items())]).encode()).hexdigest()
    return f"{kind}-{hashed[:ID_DIGITS]}"


def run_id(spec: Spec, needs: Mapping[str, str]) -> str:
    """A run's id, such as `train-3f9c2a7d41be`; `needs` maps the kind of each needed run to its id."""
    kind: str = spec.kind  # type: ignore[attr-defined]  # every job spec has one; `Spec` itself is their base
    return id_of_canonical(kind, canonical(spec), needs)
