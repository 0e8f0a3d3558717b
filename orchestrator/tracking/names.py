"""Names and parameters in the form that the tracker accepts (MLflow's limits). Pure."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000
CUT = " ...[cut]"
"""Ends a value that was too long for the tracker; the artifact `spec.json` has it whole."""
_FORBIDDEN = re.compile(r"[^/\w.\- :]")


def tracker_key(name: str) -> str:
    """`name` if the tracker accepts it, else a readable form of it that ends in a short hash, so that two never meet.

    Keys: at most 250 of letters, digits, `_ - . / :` and space, and equal to their own normal form as a path.
    """
    key = _FORBIDDEN.sub("_", name)
    if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        key = key.replace("/", "_").lstrip(".") or "_"
    if key == name and len(key) <= MAX_KEY:
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{key[: MAX_KEY - 9]}_{mark}"


def shorten(value: str, limit: int) -> str:
    """`value`, cut to `limit` characters with a mark when it is longer."""
    return value if len(value) <= limit else value[: limit - len(CUT)] + CUT


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def params(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration as flat parameters: `model.decoder.channels` -> `64`. Lists stay whole, as JSON."""
    return {tracker_key(path): shorten(value, MAX_PARAM) for path, value in _leaves(config, "") if path}
