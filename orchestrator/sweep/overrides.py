"""The outside of a Hydra override: its key and its value as text, and which keys a sweep may not touch. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.errors import Problem

_SHAPE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z_$][A-Za-z0-9_$./\-@:\[\]]*)(?P<equals>=)?(?P<value>.*)")
_HEAD = re.compile(r"[./:\[]")
_PACKAGE = re.compile(r"[@:]")


@dataclass(frozen=True, kw_only=True)
class Override:
    """`sign key = value` with the value not yet read."""

    sign: str
    """`` (change), `+` (add), `++` (add or change) or `~` (delete)."""
    key: str
    value: str | None

    @property
    def head(self) -> str:
        """The top-level name that it writes below: `model` of `model/decoder`, `online` of `backbone@online`."""
        package = _PACKAGE.split(self.key)[-1] if "@" in self.key else self.key
        return _HEAD.split(package, maxsplit=1)[0]


def split(text: str) -> Override | None:
    """Take an override apart; None when it has no such shape."""
    found = _SHAPE.fullmatch(text)
    if found is None:
        return None
    sign, value = found["sign"] or "", found["value"]
    if found["equals"] is None:
        return Override(sign=sign, key=found["key"], value=None) if sign == "~" and not value else None
    return Override(sign=sign, key=found["key"], value=value)


def _calls_resolver(text: str) -> bool:
    """Whether there is a `:` directly inside some `${...}`: a token of the environment would become part of a configuration."""
    inside: list[bool] = []
    for at, one in enumerate(text):
        if one == "{":
            inside.append(text[at - 1 : at] == "$")
        elif one == "}" and inside:
            inside.pop()
        elif one == ":" and inside and inside[-1]:
            return True
    return False


def shape_problem(text: str, where: str = "") -> Problem | None:
    """What is wrong with an override before any configuration is looked at, or None."""
    override = split(text)
    if override is None:
        allowed = "key=value, group=option, +key=value, ~key"
        return Problem(
            what="is not an override", where=where, value=text, allowed=allowed, hint="for example `optimizer.learning_rate=1e-3`"
        )
    if _calls_resolver(text):
        hint = "write the value itself; `${other.key}` is allowed, `${oc.env:HOME}` is not"
        return Problem(what="calls a resolver, which could read the environment", where=where, value=text, hint=hint)
    if override.head == "hydra":
        hint = "Slurm settings belong under `resources:`"
        return Problem(what="sets Hydra itself, which is no part of a run", where=where, value=text, hint=hint)
    if override.key == "kind" or override.key.startswith(("kind@", "kind.", "kind[", "kind:")):
        hint = "a step's `job:` decides it"
        return Problem(what="`kind` cannot be overridden", where=where, value=text, hint=hint)
    return None
