"""How a plan's problems are worded: where an override stands, which cells share a problem, what pydantic refused. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import Problem
from orchestrator.sweep.model import Cell, Step, Sweep

SHOWN_CELLS = 3
"""Cells named in a problem; the rest are counted."""


@dataclass(kw_only=True)
class Faults:
    """Distinct problems, each with the cells that have it."""

    cells: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, problem: Problem, cell: Cell) -> None:
        """Record that a cell has a problem."""
        self.cells.setdefault(problem, []).append(cell.name)

    def worded(self) -> list[Problem]:
        """Each distinct problem once, with its cells in the hint."""
        found: list[Problem] = []
        for problem, cells in self.cells.items():
            shown = "; ".join(dict.fromkeys(cells[:SHOWN_CELLS]))
            more = f" and {len(cells) - SHOWN_CELLS} more" if len(cells) > SHOWN_CELLS else ""
            hint = f"{problem.hint}; in cell {shown}{more}" if problem.hint else f"in cell {shown}{more}"
            found.append(Problem(what=problem.what, where=problem.where, value=problem.value, allowed=problem.allowed, hint=hint))
        return found


def placed(problem: Problem, where: str) -> Problem:
    """The same problem with a place, in front of one that it has already."""
    place = f"{where}: {problem.where}" if problem.where else where
    return Problem(what=problem.what, where=place, value=problem.value, allowed=problem.allowed, hint=problem.hint)


def locate(sweep: Sweep, override: str) -> str:
    """`file:line` of an override in the sweep's text, `--set` when it is not from the file."""
    options = [option for axis in sweep.axes.values() for option in axis.options.values()]
    sets = [sweep.base, *(step.set for step in sweep.pipeline.values())]
    sets += [found for option in options for found in (option.set, *option.steps.values())]
    sets += [found for rule in sweep.where for found in (rule.set, *rule.steps.values())]
    if not any(override in found for found in sets):
        return sweep.path if " " in override else "--set"
    key = override.partition("=")[0]
    lines = sweep.text.splitlines()
    for needle in (override, f"key: {key}", key):
        for number, line in enumerate(lines, start=1):
            if needle in line.partition(" #")[0] and not line.lstrip().startswith("#"):
                return f"{sweep.path}:{number}"
    return sweep.path


def invalid(sweep: Sweep, step: Step, config: Mapping[str, Any], error: ValidationError) -> tuple[Problem, ...]:
    """pydantic's errors with the path as a user writes it (without the tags of unions) and the value."""
    problems: list[Problem] = []
    for found in error.errors(include_url=False, include_context=False):
        at: Any = config
        path: list[str] = []
        for part in found["loc"]:
            if isinstance(at, dict) and part not in at and at.get("kind") == part:
                continue
            at = at.get(part) if isinstance(at, dict) else (at[part] if isinstance(at, list) and isinstance(part, int) else None)
            path.append(str(part))
        where = f"{sweep.path}: {step.name}: {'.'.join(path)}" if path else f"{sweep.path}: {step.name}"
        shown = found["input"]
        value = "" if isinstance(shown, dict) else repr(shown) if isinstance(shown, str) else str(shown)
        what = found["msg"].removeprefix("Value error, ")
        problems.append(Problem(what=what[:1].lower() + what[1:], where=where, value=value))
    return tuple(problems)
