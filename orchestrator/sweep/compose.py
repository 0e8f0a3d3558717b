"""Hydra's result at the price of a dictionary copy: config groups go through Hydra once, values are written into copies.

Hydra takes about 60 ms per composition. A sweep has few distinct sets of group choices and many values, so each set is
composed once; plain `a.b=c` overrides are read by Hydra's own grammar and assigned. Whatever is not plain (`+`, `++`,
`~`, packages, mappings, list indices) goes through Hydra beside the group choices; with an interpolation anywhere,
everything does. The result is always Hydra's own: a property test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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

from jobs.spec import JOB_KINDS
from orchestrator.errors import Problem, UserError
from orchestrator.sweep.document import did_you_mean, listed
from orchestrator.sweep.overrides import shape_problem, split
from orchestrator.sweep.resources import RESERVED
from orchestrator.sweep.trees import Assign, Base, Group, Part, Whole, assign, copied, dotted_keys, has_mapping, is_plain, mixed

_COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError)
"""What Hydra and OmegaConf raise for overrides that a user got wrong (both also use the builtin three)."""

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
_INT = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NOT_WORDS = frozenset({"true", "false", "null", "inf", "nan"})


class Composer:
    """Composes the configurations of job kinds from one directory of Hydra configs; remembers what it composed."""

    def __init__(self, conf_dir: Path) -> None:
        self._dir = conf_dir.resolve()
        self.jobs = tuple(sorted(path.stem for path in self._dir.glob("*.yaml") if path.stem in JOB_KINDS))
        """Primary configs: one per job kind."""
        folders = {path.parent.relative_to(self._dir).as_posix() for path in self._dir.rglob("*.yaml")}
        self._groups = frozenset(folder for folder in folders if folder != "." and folder.split("/")[0] != "hydra")
        self._parser = OverridesParser.create()
        self._parts: dict[str, Part] = {}
        self._bases: dict[tuple[str, tuple[str, ...]], Base | tuple[Problem, ...]] = {}
        self._wholes: dict[tuple[str, tuple[str, ...]], dict[str, Any] | tuple[Problem, ...]] = {}
        self._refusals: dict[tuple[str, tuple[str, ...], str], Problem | None] = {}
        self._heads: dict[str, frozenset[str]] = {}
        self._defaults: dict[str, DictConfig] = {}
        self._reach: dict[tuple[str, str], bool] = {}
        self.hydra_calls = 0
        """Compositions that went through Hydra."""

    # -- composing ----------------------------------------------------------------------------------------------

    def compose(self, job: str, overrides: Sequence[str]) -> dict[str, Any]:
        """The resolved configuration of a job kind, as plain values that the caller may change.

        Raises UserError with every override that cannot be applied.
        """
        whole = tuple(overrides)
        parts = [self._part(text) for text in overrides]
        prefix = tuple(text for text, part in zip(overrides, parts, strict=True) if not isinstance(part, Assign))
        if any(isinstance(part, Whole) for part in parts) and mixed(overrides, parts):
            return self._compose_whole(job, whole)
        base = self._base(job, prefix)
        if not base.plain:
            return self._compose_whole(job, whole)
        tree: dict[str, Any] = copied(base.tree)
        failed = [
            text
            for text, part in zip(overrides, parts, strict=True)
            if isinstance(part, Assign) and not assign(tree, part.path, part.value)
        ]
        if not failed:
            return tree
        problems = [problem for text in failed if (problem := self._refusal(job, prefix, text)) is not None]
        if len(problems) == len(failed):
            raise UserError(*problems)
        return self._compose_whole(job, whole)

    def _part(self, text: str) -> Part:
        part = self._parts.get(text)
        if part is None:
            part = self._parts[text] = self._classify(text)
        return part

    def _classify(self, text: str) -> Part:
        key, equals, value = text.partition("=")
        if equals and _KEY.fullmatch(key) and key not in self._groups:
            # the commonest values without Hydra's parser (0.3 ms each); the same reading, by the property test
            if _INT.fullmatch(value) and len(value) < 20:
                return Assign(tuple(key.split(".")), int(value))
            if _FLOAT.fullmatch(value):
                return Assign(tuple(key.split(".")), float(value))
            if _WORD.fullmatch(value) and value.lower() not in _NOT_WORDS:
                return Assign(tuple(key.split(".")), value)
        override = self._parse(text)
        if (
            override.type is not OverrideType.CHANGE
            or override.package is not None
            or override.value_type is not ValueType.ELEMENT
        ):
            return Whole()
        found = override.value()
        if override.key_or_group in self._groups:
            return Whole() if isinstance(found, dict) else Group()
        if not _KEY.fullmatch(override.key_or_group) or has_mapping(found) or not is_plain(found):
            return Whole()
        return Assign(tuple(override.key_or_group.split(".")), found)

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

    def _with_hydra(self, job: str) -> DictConfig:
        """The job's defaults and what Hydra knows of them, the launcher's included; composed once."""
        if job not in self._defaults:
            self._defaults[job] = self._hydra(job, ["hydra/launcher=slurm"], with_hydra=True)
        return self._defaults[job]

    def _resolved(self, job: str, overrides: Sequence[str]) -> Base:
        config = self._hydra(job, overrides)
        plain = is_plain(OmegaConf.to_container(config, resolve=False))
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        if not isinstance(tree, dict):
            raise TypeError(f"the configuration of {job} is not a mapping")
        return Base({str(key): value for key, value in tree.items()}, plain)

    def _base(self, job: str, prefix: tuple[str, ...]) -> Base:
        """The composition of everything that only Hydra can apply; its refusal is remembered too."""
        known = self._bases.get((job, prefix))
        if known is None:
            try:
                known = self._resolved(job, prefix)
            except OmegaConfBaseException:  # something refers to a value that is still to come: Hydra decides with all
                known = Base({}, plain=False)
            except _COMPOSE_ERRORS as error:
                known = tuple(self._explain(job, prefix, error))
            self._bases[job, prefix] = known
        if isinstance(known, tuple):
            raise UserError(*known)
        return known

    def _compose_whole(self, job: str, overrides: tuple[str, ...]) -> dict[str, Any]:
        known = self._wholes.get((job, overrides))
        if known is None:
            try:
                known = self._resolved(job, overrides).tree
            except _COMPOSE_ERRORS as error:
                known = tuple(self._explain(job, overrides, error))
            self._wholes[job, overrides] = known
        if isinstance(known, tuple):
            raise UserError(*known)
        tree: dict[str, Any] = copied(known)
        return tree

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
            config = self._with_hydra(job)
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
            keys = {key for job in jobs for key in dotted_keys(self.compose(job, ()))} | self._groups
            hint = did_you_mean(override.key, sorted(keys - {"kind"})) or did_you_mean(override.head, heads)
            what = f"override matches nothing in {', '.join(f'`{job}`' for job in dict.fromkeys(jobs))}"
            return Problem(what=what, value=text, allowed=f"keys starting with {listed(heads)}", hint=hint)
        try:
            if isinstance(self._part(text), Assign):
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
        """One problem per override that fails on its own beside the group choices; else the fewest that fail together."""
        choices = tuple(text for text in overrides if isinstance(self._part(text), Group))
        if self._fails(job, choices):
            few = self._fewest(job, choices)
            return [Problem(what=f"config groups that do not fit together: {_reason(error)}", value=" ".join(few))]
        problems = [
            problem for text in overrides if text not in choices and (problem := self._refusal(job, choices, text)) is not None
        ]
        if problems:
            return problems
        few = self._fewest(job, overrides)
        return [Problem(what=f"overrides that do not fit together: {_reason(error)}", value=" ".join(few))]

    def _fails(self, job: str, overrides: Sequence[str]) -> bool:
        try:
            self._resolved(job, overrides)
        except _COMPOSE_ERRORS:
            return True
        return False

    def _fewest(self, job: str, overrides: Sequence[str]) -> list[str]:
        """Overrides that fail together and of which none can be left out."""
        few = list(overrides)
        for text in overrides:
            rest = [other for other in few if other != text]
            if self._fails(job, rest):
                few = rest
        return few

    def _refusal(self, job: str, prefix: tuple[str, ...], text: str) -> Problem | None:
        """Why an override cannot follow a prefix that composes, or None when it can; asked once."""
        key = (job, prefix, text)
        if key not in self._refusals:
            self._refusals[key] = None
            try:
                self._resolved(job, [*prefix, text])
            except _COMPOSE_ERRORS as error:
                self._refusals[key] = _refused(job, text, self._resolved(job, prefix).tree, error)
        return self._refusals[key]

    # -- resources ------------------------------------------------------------------------------------------------

    def launcher(self, job: str) -> dict[str, Any]:
        """The defaults of `resources:`: the launcher config without what `orch` decides itself."""
        found = OmegaConf.to_container(self._with_hydra(job).hydra.launcher, resolve=False)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items() if key not in RESERVED}


def _refused(job: str, text: str, base: dict[str, Any], error: Exception) -> Problem:
    """Words for an override that a composed configuration does not take."""
    override = split(text)
    keys = [key for key in dotted_keys(base) if key != "kind"]
    if override is None or override.sign in ("+", "++") or override.key in keys:
        return Problem(what=f"cannot be applied: {_reason(error)}", value=text)
    parent = override.key.rpartition(".")[0]
    while parent and parent not in keys:
        parent = parent.rpartition(".")[0]
    near = [key for key in keys if key.rpartition(".")[0] == parent]
    return Problem(what=f"unknown key of `{job}`", value=text, allowed=listed(near), hint=did_you_mean(override.key, keys))


def _reason(error: Exception) -> str:
    """The first line that says something; Hydra hides OmegaConf's message in the cause."""
    for candidate in (error, error.__cause__, error.__context__):
        lines = str(candidate).strip().splitlines() if candidate is not None else []
        if lines:
            return lines[0]
    return type(error).__name__
