"""Hydra's result at the price of a dictionary copy: config groups go through Hydra once, values are written into copies.

Hydra takes about 60 ms per composition. A sweep has few distinct sets of group choices and many values, so each set is
composed once; plain `a.b=c` overrides are read by Hydra's own grammar and assigned. Whatever is not plain (`+`, `++`,
`~`, packages, interpolations, mappings, list indices, unknown keys) goes through Hydra whole. The result is always
Hydra's own: a property test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.errors import Problem, UserError
from orchestrator.sweep.document import did_you_mean, listed
from orchestrator.sweep.overrides import shape_problem, split
from orchestrator.sweep.resources import RESERVED

_COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError)
"""What Hydra and OmegaConf raise for overrides that a user got wrong (both also use the builtin three)."""

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
_INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None}
_NOT_WORDS = frozenset({*_CONSTANTS, "inf", "nan"})


@dataclass(frozen=True, slots=True)
class _Group:
    """A choice of a config group."""


@dataclass(frozen=True, slots=True)
class _Assign:
    """A plain value for an existing key."""

    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class _Whole:
    """Anything else: the composition must go through Hydra as a whole."""


_Part = _Group | _Assign | _Whole


@dataclass(frozen=True, slots=True)
class _Base:
    """One composed set of group choices."""

    tree: dict[str, Any]
    plain: bool
    """Free of interpolations and missing values: values may be assigned without Hydra."""


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
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


def _is_plain(value: Any) -> bool:
    """Whether OmegaConf hands the value back as it is: no interpolation, no missing mark."""
    return not any("${" in text or text == "???" for text in _strings(value))


def _has_mapping(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(_has_mapping(item) for item in value))


def _assign(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    """Write a value at an existing key; False when only Hydra knows what that would mean."""
    at: Any = tree
    for name in path[:-1]:
        at = at.get(name)
        if not isinstance(at, dict):
            return False
    last = path[-1]
    if last not in at or isinstance(at[last], dict):
        return False
    at[last] = _copy(value)
    return True


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, inner nodes included."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


class Composer:
    """Composes the configurations of job kinds from one directory of Hydra configs; remembers what it composed."""

    def __init__(self, conf_dir: Path) -> None:
        self._dir = conf_dir.resolve()
        self.jobs = tuple(sorted(path.stem for path in self._dir.glob("*.yaml")))
        """Primary configs: one per job kind."""
        folders = {path.parent.relative_to(self._dir).as_posix() for path in self._dir.rglob("*.yaml")}
        self._groups = frozenset(folder for folder in folders if folder != "." and folder.split("/")[0] != "hydra")
        self._parser = OverridesParser.create()
        self._parts: dict[str, _Part] = {}
        self._bases: dict[tuple[str, tuple[str, ...]], _Base] = {}
        self._wholes: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
        self._heads: dict[str, frozenset[str]] = {}
        self._reach: dict[tuple[str, str], bool] = {}
        self.hydra_calls = 0
        """Compositions that went through Hydra."""

    # -- composing ----------------------------------------------------------------------------------------------

    def compose(self, job: str, overrides: Sequence[str]) -> dict[str, Any]:
        """The resolved configuration of a job kind, as plain values that the caller may change.

        Raises UserError with every override that cannot be applied.
        """
        choices: list[str] = []
        values: list[_Assign] = []
        for text in overrides:
            part = self._part(text)
            if isinstance(part, _Assign):
                values.append(part)
            elif isinstance(part, _Group):
                choices.append(text)
            else:
                return self._compose_whole(job, tuple(overrides))
        base = self._base(job, tuple(choices), tuple(overrides))
        if not base.plain:
            return self._compose_whole(job, tuple(overrides))
        tree: dict[str, Any] = _copy(base.tree)
        for assignment in values:
            if not _assign(tree, assignment.path, assignment.value):
                return self._compose_whole(job, tuple(overrides))
        return tree

    def _part(self, text: str) -> _Part:
        part = self._parts.get(text)
        if part is None:
            part = self._parts[text] = self._classify(text)
        return part

    def _classify(self, text: str) -> _Part:
        key, equals, value = text.partition("=")
        if equals and _KEY.fullmatch(key) and key not in self._groups:
            # the commonest values without Hydra's parser (0.3 ms each); the same reading, by the property test
            if _INT.fullmatch(value) and len(value) < 20:
                return _Assign(tuple(key.split(".")), int(value))
            if _FLOAT.fullmatch(value):
                return _Assign(tuple(key.split(".")), float(value))
            if _WORD.fullmatch(value) and value.lower() not in _NOT_WORDS:
                return _Assign(tuple(key.split(".")), value)
        override = self._parse(text)
        if (
            override.type is not OverrideType.CHANGE
            or override.package is not None
            or override.value_type is not ValueType.ELEMENT
        ):
            return _Whole()
        found = override.value()
        if override.key_or_group in self._groups:
            return _Whole() if isinstance(found, dict) else _Group()
        if not _KEY.fullmatch(override.key_or_group) or _has_mapping(found) or not _is_plain(found):
            return _Whole()
        return _Assign(tuple(override.key_or_group.split(".")), found)

    def _parse(self, text: str) -> HydraOverride:
        try:
            return self._parser.parse_overrides([text])[0]
        except HydraException as error:
            reason = str(error).strip().splitlines()[0]
            hint = "quote values with special characters: `key='a, b'`"
            raise UserError(Problem(what=f"cannot be read as an override: {reason}", value=text, hint=hint)) from None

    def _hydra(self, job: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
        self.hydra_calls += 1
        with initialize_config_dir(version_base="1.3", config_dir=str(self._dir)):
            return hydra_compose(job, list(overrides), return_hydra_config=with_hydra)

    def _resolved(self, job: str, overrides: Sequence[str]) -> _Base:
        config = self._hydra(job, overrides)
        plain = _is_plain(OmegaConf.to_container(config, resolve=False))
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        if not isinstance(tree, dict):
            raise TypeError(f"the configuration of {job} is not a mapping")
        return _Base({str(key): value for key, value in tree.items()}, plain)

    def _base(self, job: str, choices: tuple[str, ...], overrides: tuple[str, ...]) -> _Base:
        base = self._bases.get((job, choices))
        if base is None:
            try:
                base = self._bases[job, choices] = self._resolved(job, choices)
            except OmegaConfBaseException:  # a choice that needs a value: Hydra decides with all overrides
                return _Base({}, plain=False)
            except _COMPOSE_ERRORS as error:
                raise UserError(*self._explain(job, overrides, error)) from None
        return base

    def _compose_whole(self, job: str, overrides: tuple[str, ...]) -> dict[str, Any]:
        tree = self._wholes.get((job, overrides))
        if tree is None:
            try:
                tree = self._wholes[job, overrides] = self._resolved(job, overrides).tree
            except _COMPOSE_ERRORS as error:
                raise UserError(*self._explain(job, overrides, error)) from None
        copied: dict[str, Any] = _copy(tree)
        return copied

    # -- which override belongs to which job ----------------------------------------------------------------------

    def reaches(self, job: str, text: str) -> bool:
        """Whether an override applies to a job: its first name is a key or a group of the job's configuration."""
        known = self._reach.get((job, text))
        if known is None:
            override = split(text)
            known = self._reach[job, text] = override is not None and override.head in self._heads_of(job)
        return known

    def _heads_of(self, job: str) -> frozenset[str]:
        heads = self._heads.get(job)
        if heads is None:
            config = self._hydra(job, (), with_hydra=True)
            choices = [str(group).split("/")[0] for group in config.hydra.runtime.choices]
            keys = {str(key) for key in config} - {"hydra", "kind"}
            heads = self._heads[job] = frozenset(keys | ({*choices} - {"hydra"}))
        return heads

    def override_problem(self, text: str, jobs: Sequence[str]) -> Problem | None:
        """What is wrong with an override for a pipeline of these jobs, as far as it can be said without other overrides."""
        problem = shape_problem(text)
        if problem is not None:
            return problem
        override = split(text)
        assert override is not None  # shape_problem has checked it
        if not any(self.reaches(job, text) for job in jobs):
            heads = sorted(set().union(*(self._heads_of(job) for job in jobs)))
            keys = {key for job in jobs for key in _keys(self.compose(job, ()))} | self._groups
            hint = did_you_mean(override.key, sorted(keys - {"kind"})) or did_you_mean(override.head, heads)
            what = f"override matches nothing in {', '.join(f'`{job}`' for job in dict.fromkeys(jobs))}"
            return Problem(what=what, value=text, allowed=f"keys starting with {listed(heads)}", hint=hint)
        try:
            if isinstance(self._part(text), _Assign):
                return None
            parsed = self._parse(text)
        except UserError as error:
            return error.problems[0]
        if parsed.is_sweep_override():
            hint = "an axis sweeps over values; a list is `key=[a,b]`, text with a comma is `key='a,b'`"
            return Problem(what="has several values", value=text, hint=hint)
        chosen = parsed.value()
        if parsed.key_or_group in self._groups and isinstance(chosen, str) and "${" not in chosen:
            options = sorted(path.stem for path in (self._dir / parsed.key_or_group).glob("*.yaml"))
            if chosen not in options:
                what = f"unknown option of config group `{parsed.key_or_group}`"
                return Problem(what=what, value=text, allowed=listed(options), hint=did_you_mean(chosen, options))
        return None

    # -- words for what Hydra refused -------------------------------------------------------------------------------

    def _explain(self, job: str, overrides: tuple[str, ...], error: Exception) -> list[Problem]:
        """One problem per override that fails on its own beside the group choices; else one for all of them."""
        choices = [text for text in overrides if isinstance(self._part(text), _Group)]
        try:
            base = self._resolved(job, choices).tree
        except _COMPOSE_ERRORS:
            return [Problem(what=f"the config groups do not fit together: {_reason(error)}", value=" ".join(choices))]
        problems: list[Problem] = []
        for text in overrides:
            if text in choices:
                continue
            try:
                self._resolved(job, [*choices, text])
            except _COMPOSE_ERRORS as found:
                problems.append(self._refused(job, text, base, found))
        return problems or [Problem(what=f"the overrides do not fit together: {_reason(error)}", value=" ".join(overrides))]

    def _refused(self, job: str, text: str, base: dict[str, Any], error: Exception) -> Problem:
        override = split(text)
        keys = [key for key in _keys(base) if key != "kind"]
        if override is None or override.sign in ("+", "++") or override.key in keys:
            return Problem(what=f"cannot be applied: {_reason(error)}", value=text)
        parent = override.key.rpartition(".")[0]
        while parent and parent not in keys:
            parent = parent.rpartition(".")[0]
        near = [key for key in keys if key.rpartition(".")[0] == parent]
        return Problem(what=f"unknown key of `{job}`", value=text, allowed=listed(near), hint=did_you_mean(override.key, keys))

    # -- resources ------------------------------------------------------------------------------------------------

    def launcher(self, name: str = "slurm") -> dict[str, Any]:
        """The defaults of `resources:`: the launcher config without what `orch` decides itself."""
        job = self.jobs[0]
        config = self._hydra(job, [f"hydra/launcher={name}"], with_hydra=True)
        found = OmegaConf.to_container(config.hydra.launcher, resolve=False)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items() if key not in RESERVED}


def _reason(error: Exception) -> str:
    """The first line that says something; Hydra hides OmegaConf's message in the cause."""
    for candidate in (error, error.__cause__, error.__context__):
        lines = str(candidate).strip().splitlines() if candidate is not None else []
        if lines:
            return lines[0]
    return type(error).__name__
