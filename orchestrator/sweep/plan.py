"""Cells -> runs: every cell's pipeline resolved, validated, identified and merged by run id. Queues and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.needs import check_needs
from jobs.spec import AnyJob, EmbedSpec, TrainSpec, parse_job_spec
from models.spec import BackboneSpec
from orchestrator.elastic import contradictions
from orchestrator.errors import Problem, UserError
from orchestrator.identity import canonical, id_of_canonical
from orchestrator.lifecycle import RunState
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.model import Cell, Step, Sweep
from orchestrator.sweep.plan_problems import Faults, invalid, locate, placed
from orchestrator.sweep.resources import merged

SHOWN_PROBLEMS = 50
WEIGHTS = "weights"
"""What `content` is told of a file of weights; of data it is told the kind of data set and its format, if it has one."""
Content = Callable[[str, str], str]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the store already knows of a run."""

    state: RunState
    code_tree: str = ""
    """Hash of the code snapshot that the run was frozen with."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep; it may serve many cells."""

    id: str
    kind: str
    step: str
    """The pipeline step that it belongs to (the first one, if several resolve to it)."""
    spec: AnyJob
    config: Mapping[str, Any]
    """The resolved configuration as plain values."""
    needs: Mapping[str, str]
    """Kind of the needed run -> its id."""
    resources: Mapping[str, Any]
    """Values of the launcher's schema: its defaults with the step's own over them."""
    known: Known | None = None
    """None for a run that nobody has planned before."""


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell and the runs that fill it (none when it is cited)."""

    cell: Cell
    runs: Mapping[str, str]
    """step name -> run id."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What submitting a sweep would mean."""

    sweep: Sweep
    cells: tuple[PlannedCell, ...]
    runs: Mapping[str, PlannedRun]
    """run id -> run, needed runs first."""
    code_tree: str = ""
    """Hash of the code as it is now."""

    @property
    def new(self) -> tuple[PlannedRun, ...]:
        """Runs that nobody has planned before."""
        return tuple(run for run in self.runs.values() if run.known is None)

    @property
    def cached(self) -> tuple[PlannedRun, ...]:
        """Runs that are done."""
        return tuple(run for run in self.runs.values() if run.known is not None and run.known.state is RunState.DONE)

    @property
    def unfinished(self) -> tuple[PlannedRun, ...]:
        """Runs that are known and not done: queued, running, failed ..."""
        return tuple(run for run in self.runs.values() if run.known is not None and run.known.state is not RunState.DONE)

    @property
    def changed(self) -> tuple[PlannedRun, ...]:
        """Known runs that were frozen with other code than the present one."""
        if not self.code_tree:
            return ()
        return tuple(run for run in self.runs.values() if run.known is not None and run.known.code_tree != self.code_tree)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Resolved:
    """One distinct configuration of a step."""

    spec: AnyJob
    config: dict[str, Any]
    canonical: str


def plan(
    sweep: Sweep,
    cells: Sequence[Cell],
    composer: Composer,
    *,
    content: Content,
    existing: Callable[[str], Known | None],
    code_tree: str = "",
) -> Plan:
    """Resolve every cell into runs.

    `content`: (kind of data set with its format, or `WEIGHTS`; path) -> sha256 of what is there; UserError when it is missing.
    `existing`: run id -> what the store knows, or None.
    Raises UserError with all distinct problems, each with the cells that have it.
    """
    work = _Planning(sweep=sweep, composer=composer, content=content, existing=existing)
    overrides = dict.fromkeys(text for cell in cells for text in (*cell.overrides, *cell.last))
    work.check_overrides(list(overrides))
    planned = [work.cell(cell) for cell in cells]
    problems = work.problems + work.faults.worded()
    problems += [] if problems else _twins(sweep, planned)
    if len(problems) > SHOWN_PROBLEMS:
        rest = len(problems) - SHOWN_PROBLEMS
        problems = [*problems[:SHOWN_PROBLEMS], Problem(what=f"and {rest} more problems", where=sweep.path)]
    if problems:
        raise UserError(*problems)
    return Plan(sweep=sweep, cells=tuple(planned), runs=work.runs, code_tree=code_tree)


@dataclass(kw_only=True)
class _Planning:
    """The state of one `plan` call."""

    sweep: Sweep
    composer: Composer
    content: Content
    existing: Callable[[str], Known | None]
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    _resolved: dict[tuple[str, tuple[str, ...]], _Resolved | tuple[Problem, ...]] = field(default_factory=dict)
    _contents: dict[tuple[str, str], str | tuple[Problem, ...]] = field(default_factory=dict)
    _bad: set[str] = field(default_factory=set)
    _resources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def check_overrides(self, overrides: Sequence[str]) -> None:
        """Record each override that fits no step at all, once."""
        jobs = [step.job for step in self.sweep.pipeline.values()]
        places = [(text, jobs) for text in overrides]
        for step in self.sweep.pipeline.values():
            parts = [option.steps for axis in self.sweep.axes.values() for option in axis.options.values()]
            parts += [rule.steps for rule in self.sweep.where]
            own = dict.fromkeys((*step.set, *(text for part in parts for text in part.get(step.name, ()))))
            places += [(text, [step.job]) for text in own]
        for text, at in places:
            problem = self.composer.override_problem(text, at)
            if problem is not None:
                self._bad.add(text)
                self.problems.append(placed(problem, locate(self.sweep, text)))
        for name, step in self.sweep.pipeline.items():
            self._resources[name] = merged(self.composer.launcher(step.job), self.sweep.resources.get(name, {}))
            self.problems += contradictions(self._resources[name], f"{self.sweep.path}: resources.{name}")

    def cell(self, cell: Cell) -> PlannedCell:
        """Resolve one cell; its problems are recorded."""
        ids: dict[str, str] = {}
        texts = (*cell.overrides, *cell.last, *(text for own in cell.steps.values() for text in own))
        if cell.cite is None and not any(text in self._bad for text in texts):
            resolved = self._resolved_steps(cell)
            for name in () if resolved is None else resolved:
                self._identify(cell, self.sweep.pipeline[name], resolved or {}, ids)
        return PlannedCell(cell=cell, runs=ids)

    def _resolved_steps(self, cell: Cell) -> dict[str, _Resolved] | None:
        """The configuration of each step that the cell has; None when one has problems, which are recorded."""
        found: dict[str, _Resolved] = {}
        for step in self.sweep.pipeline.values():
            if not step.belongs(cell.coordinates):
                continue
            one = self._resolve(cell, step)
            if isinstance(one, tuple):
                for problem in one:
                    self.faults.add(problem, cell)
                return None
            found[step.name] = one
        trained = [one.spec for one in found.values() if isinstance(one.spec, TrainSpec)]
        if trained and all(isinstance(spec.online, BackboneSpec) for spec in trained):  # nobody reads stored tokens
            self._compare_backbones(cell, found)
            return {name: one for name, one in found.items() if one.spec.kind != "embed"}
        return found

    def _compare_backbones(self, cell: Cell, found: Mapping[str, _Resolved]) -> None:
        """Record where online tokens would be others than those of the `embed` step that they replace.

        `backbone=OPTION` reaches that step alone: without this a run would quietly see the default backbone's tokens.
        """
        for embed in (one.spec for one in found.values() if isinstance(one.spec, EmbedSpec)):
            for step, train in ((name, one.spec) for name, one in found.items() if isinstance(one.spec, TrainSpec)):
                for key in ("name", "block", "normalise"):
                    mine, theirs = getattr(train.online, key), getattr(embed.backbone, key, None)
                    if mine != theirs:
                        what = f"online.{key} is not that of the `embed` step, which online features replace"
                        hint = "`backbone@online=OPTION` sets it: the same option as `backbone=`"
                        where = f"{self.sweep.path}: {step}"
                        problem = Problem(what=what, where=where, value=str(mine), allowed=str(theirs), hint=hint)
                        self.faults.add(problem, cell)

    def _disagreements(self, needs: Mapping[str, str]) -> Iterator[str]:
        """Needed runs that themselves stand on other data or tokens than the run that needs them."""
        for kind, run_id in needs.items():
            for shared in ("prepare", "embed"):
                theirs = self.runs[run_id].needs.get(shared)
                if shared in needs and theirs not in (None, needs[shared]):
                    yield f"it needs {needs[shared]}, but its {kind} run stands on {theirs}: name one `{shared}` step"

    def _identify(self, cell: Cell, step: Step, resolved: Mapping[str, _Resolved], ids: dict[str, str]) -> None:
        """Give one step its run, whose needs have theirs already."""
        found, needed = resolved[step.name], step.needed(resolved)
        needs = {self.sweep.pipeline[need].job: ids[need] for need in needed}
        run_id = id_of_canonical(step.job, found.canonical, needs)
        ids[step.name] = run_id
        if run_id not in self.runs:
            specs = {self.sweep.pipeline[need].job: resolved[need].spec for need in needed}
            for sentence in (*check_needs(found.spec, specs), *self._disagreements(needs)):
                self.faults.add(Problem(what=sentence, where=f"{self.sweep.path}: {step.name}"), cell)
            self.runs[run_id] = PlannedRun(
                id=run_id,
                kind=step.job,
                step=step.name,
                spec=found.spec,
                config=found.config,
                needs=needs,
                resources=self._resources[step.name],
                known=self.existing(run_id),
            )

    def _resolve(self, cell: Cell, step: Step) -> _Resolved | tuple[Problem, ...]:
        reaches, job = self.composer.reaches, step.job
        common, last = ((text for text in texts if reaches(job, text)) for texts in (cell.overrides, cell.last))
        overrides = (*common, *step.set, *cell.steps.get(step.name, ()), *last)
        known = self._resolved.get((step.name, overrides))
        if known is None:
            known = self._resolved[step.name, overrides] = self._resolve_new(step, overrides)
        return known

    def _resolve_new(self, step: Step, overrides: tuple[str, ...]) -> _Resolved | tuple[Problem, ...]:
        if any(text in self._bad for text in step.set):
            return ()
        try:
            config = self.composer.compose(step.job, overrides)
        except UserError as error:
            return tuple(placed(problem, f"{locate(self.sweep, problem.value)}: {step.name}") for problem in error.problems)
        missing = self._fill_content(config, step)
        if missing:
            return missing
        try:
            spec = parse_job_spec(config)
        except ValidationError as error:
            return invalid(self.sweep, step, config, error)
        return _Resolved(spec=spec, config=config, canonical=canonical(spec))

    def _fill_content(self, config: dict[str, Any], step: Step) -> tuple[Problem, ...]:
        """Make each path of data and weights absolute and put the content's hash beside it; problems of what cannot be used.

        A job starts in its run directory, where a path relative to the user's would lead nowhere.
        """
        problems: list[Problem] = []
        parts = {name: config.get(name) for name in ("data", "backbone", "online")}
        for group, name in (("objective", "lpips"), ("objective", "features"), ("model", "trunk")):
            within = config.get(group)
            parts[f"{group}.{name}"] = within.get(name) if isinstance(within, dict) else None
        for name, part in parts.items():
            if isinstance(part, dict) and isinstance(part.get("path"), str):
                kind = " ".join(str(part[key]) for key in ("kind", "format") if key in part) if name == "data" else WEIGHTS
                problems += self._fill_one(part, kind, f"{self.sweep.path}: {step.name}: {name}")
        return tuple(problems)

    def _fill_one(self, part: dict[str, Any], kind: str, where: str) -> tuple[Problem, ...]:
        path, pinned = str(Path(part["path"]).expanduser().absolute()), part.get("content")
        if (kind, path) not in self._contents:
            try:
                self._contents[kind, path] = self.content(kind, path)
            except UserError as error:
                self._contents[kind, path] = tuple(placed(problem, f"{where}.path") for problem in error.problems)
        found = self._contents[kind, path]
        if isinstance(found, tuple):
            return found
        if pinned not in (None, found):
            what = f"{path} has other content than the one asked for"
            hint = f"leave {where.rpartition(' ')[2]}.content at null"
            return (Problem(what=what, where=f"{where}.content", value=str(pinned), allowed=found, hint=hint),)
        part["path"], part["content"] = path, found
        return ()


def _twins(sweep: Sweep, cells: Sequence[PlannedCell]) -> list[Problem]:
    """Cells that would show the same runs: an axis that changes nothing, or an option given twice."""
    first: dict[tuple[str, ...], str] = {}
    problems: list[Problem] = []
    for planned in cells:
        if planned.cell.cite is not None:
            continue
        name, runs = planned.cell.name, tuple(planned.runs.values())
        other = first.setdefault(runs, name)
        if other != name:
            hint = "give the options different settings, or skip one of the cells"
            problems.append(Problem(what="two cells with one config", where=sweep.path, value=f"{other} and {name}", hint=hint))
    return problems
