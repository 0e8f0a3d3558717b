"""Sweep -> cells: the grid of its axes with `where` rules, `--only` and `--set` applied. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from orchestrator.errors import Problem, UserError
from orchestrator.sweep.document import did_you_mean, listed
from orchestrator.sweep.model import Cell, Option, Rule, Sweep
from orchestrator.sweep.overrides import shape_problem


def expand(sweep: Sweep, *, only: Sequence[str] = (), overrides: Sequence[str] = ()) -> list[Cell]:
    """The cells of a sweep, in the order of its axes.

    `only`: texts like `method=covloss,seed=0`; one axis named twice takes either option.
    `overrides`: the values of `--set`, applied after everything in the file.
    Raises UserError for an unknown axis or option, a malformed override, and a selection without cells.
    """
    wanted = _selection(sweep, only)
    problems = [problem for text in overrides if (problem := shape_problem(text, where="--set"))]
    if problems:
        raise UserError(*problems)
    last = tuple(overrides)
    names = tuple(sweep.axes)
    axes = [
        [option for option in axis.options.values() if option.name in wanted.get(name, axis.options)]
        for name, axis in sweep.axes.items()
    ]
    cells: list[Cell] = []
    parts: tuple[Option | Rule, ...]
    for point in itertools.product(*axes):
        coordinates = dict(zip(names, (option.name for option in point), strict=True))
        rules = [rule for rule in sweep.where if _matches(rule, coordinates)]
        if any(rule.skip for rule in rules):
            continue
        cited = next((rule for rule in rules if rule.cite is not None), None)
        if cited is not None:
            cells.append(Cell(coordinates=coordinates, overrides=(), cite=cited.cite, source=cited.source))
            continue
        parts = (*point, *rules)
        chosen = itertools.chain(sweep.base, *(part.set for part in parts))
        steps: dict[str, tuple[str, ...]] = {}
        for part in parts:
            for step, own in part.steps.items():
                steps[step] = steps.get(step, ()) + own
        cells.append(Cell(coordinates=coordinates, overrides=tuple(chosen), steps=steps, last=last))
    if not cells:
        raise UserError(Problem(what="no cell is left", where="--only" if only else sweep.path, value=" ".join(only)))
    return cells


def _matches(rule: Rule, coordinates: dict[str, str]) -> bool:
    return all(coordinates[axis] in options for axis, options in rule.when.items())


def _selection(sweep: Sweep, only: Sequence[str]) -> dict[str, set[str]]:
    """axis -> selected options; axes that are not named are not restricted."""
    wanted: dict[str, set[str]] = {}
    problems: list[Problem] = []
    for part in (part.strip() for text in only for part in text.split(",")):
        axis, equals, option = part.partition("=")
        if not equals:
            problems.append(Problem(what="is not `axis=option`", where="--only", value=part, allowed=listed(sweep.axes)))
        elif axis not in sweep.axes:
            hint = did_you_mean(axis, sweep.axes)
            problems.append(Problem(what="unknown axis", where="--only", value=axis, allowed=listed(sweep.axes), hint=hint))
        elif option not in sweep.axes[axis].options:
            options = sweep.axes[axis].options
            hint = did_you_mean(option, options)
            what = f"unknown option of axis `{axis}`"
            problems.append(Problem(what=what, where="--only", value=option, allowed=listed(options), hint=hint))
        else:
            wanted.setdefault(axis, set()).add(option)
    if problems:
        raise UserError(*problems)
    return wanted
