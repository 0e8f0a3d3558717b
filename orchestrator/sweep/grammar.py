"""The grammar of a sweep file: YAML text -> Sweep, with every problem of the file reported at once.

    title, note, base, axes, where, pipeline, resources, table (`grammar_table.py`)

Nothing here composes a configuration: whether an override fits is `plan.py`'s question.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import Problem, UserError
from orchestrator.sweep.document import Item, Reader, load, read_text, require
from orchestrator.sweep.grammar_parts import NAME, NAME_RULE, read_condition, read_name, read_overrides, read_own_overrides
from orchestrator.sweep.grammar_pipeline import DEFAULT_PIPELINE, read_pipeline, step_names
from orchestrator.sweep.grammar_table import read_table
from orchestrator.sweep.model import Axis, Option, Rule, Step, Sweep
from orchestrator.sweep.overrides import shape_problem
from orchestrator.sweep.resources import read_resources

KEYS = ("title", "note", "base", "axes", "where", "pipeline", "resources", "table")
MAX_CELLS = 100_000


def load_sweep(path: Path) -> Sweep:
    """Read and check one sweep file; raises UserError with every problem found, and nothing else."""
    return parse_sweep(read_text(path), str(path))


def parse_sweep(text: str, path: str) -> Sweep:
    """Check a sweep's text; `path` is used in messages, and its stem is the sweep's name. Raises UserError."""
    root = load(text, path)
    reader = Reader(path=path)
    name = Path(path).stem
    if NAME.fullmatch(name) is None:
        reader.problems.append(Problem(what="the file's name is not a sweep's name", where=path, value=name, allowed=NAME_RULE))
    entries = reader.mapping(root, KEYS)
    if not root.is_mapping:
        raise UserError(*reader.problems)
    require(reader, root, entries, ["axes"])
    steps = step_names(entries["pipeline"]) if "pipeline" in entries else [step.name for step in DEFAULT_PIPELINE]
    axes = _axes(reader, entries["axes"], steps) if "axes" in entries else {}
    pipeline = (
        read_pipeline(reader, entries["pipeline"], axes)
        if "pipeline" in entries
        else {step.name: step for step in DEFAULT_PIPELINE}
    )
    rules = _where(reader, entries["where"], axes, steps) if "where" in entries else []
    sweep = Sweep(
        name=name,
        path=path,
        title=_line(reader, entries.get("title")) or name,
        note=(reader.text(entries["note"]) if "note" in entries else None) or "",
        base=read_overrides(reader, entries["base"]) if "base" in entries else (),
        axes=axes,
        where=tuple(rule for _, rule in rules),
        pipeline=pipeline,
        resources=_resources(reader, entries["resources"], pipeline) if "resources" in entries else {},
        table=read_table(reader, entries["table"], axes, pipeline) if "table" in entries else None,
        text=text,
    )
    if not reader.problems:
        _check_own_overrides(reader, entries, sweep, [item for item, _ in rules])
        _check_cells(reader, entries, sweep, [item for item, _ in rules])
    if reader.problems:
        raise UserError(*reader.problems)
    return sweep


def _axes(reader: Reader, item: Item, steps: Sequence[str]) -> dict[str, Axis]:
    entries = reader.mapping(item)
    if item.is_mapping and not entries:
        reader.problem(item, "has no axis", hint="`seed: {key: seed, values: [0, 1, 2]}` is one")
    axes: dict[str, Axis] = {}
    for name, axis_item in entries.items():
        read_name(reader, axis_item, name, "an axis")
        parts = (
            {key.value for key, _ in axis_item.node.value if isinstance(key, yaml.ScalarNode)} if axis_item.is_mapping else set()
        )
        options = _value_options(reader, axis_item) if parts & {"key", "values"} else _named_options(reader, axis_item, steps)
        axes[name] = Axis(name=name, options=options)
    return axes


def _value_options(reader: Reader, item: Item) -> dict[str, Option]:
    """The options of `{key: seed, values: [0, 1, 2]}`."""
    entries = reader.mapping(item, ("key", "values"))
    require(reader, item, entries, ("key", "values"))
    if len(entries) < 2:
        return {}
    key = reader.text(entries["key"])
    if key is None:
        return {}
    problem = shape_problem(f"{key}=0", where=f"{reader.path}:{entries['key'].line}: {entries['key'].at}")
    if problem is not None or "=" in key or not key[:1].isalpha():
        reader.problem(entries["key"], "is not a configuration key", hint="for example `seed` or `optimizer.learning_rate`")
        return {}
    options: dict[str, Option] = {}
    for entry in reader.sequence(entries["values"], hint="write `values: [0, 1, 2]`"):
        if not entry.is_scalar:
            reader.problem(entry, "is not a single value", hint="an axis of lists needs named options")
            continue
        value = "null" if entry.is_null else str(entry.node.value)
        if not read_name(reader, entry, value, "a value of an axis"):
            continue
        if value in options:
            reader.problem(entry, f"value `{value}` is given twice")
        options[value] = Option(name=value, label=value, set=(f"{key}={value}",))
    if entries["values"].is_list and not entries["values"].node.value:
        reader.problem(entries["values"], "has no value")
    return options


def _named_options(reader: Reader, item: Item, steps: Sequence[str]) -> dict[str, Option]:
    """The options of `{slot_attn: {label: ..., set: [...]}, ...}`."""
    entries = reader.mapping(item)
    if item.is_mapping and not entries:
        reader.problem(item, "has no option", hint="`name: {label: ..., set: [key=value]}` is one")
    options: dict[str, Option] = {}
    for name, option_item in entries.items():
        read_name(reader, option_item, name, "an option")
        parts = {} if option_item.is_null else reader.mapping(option_item, ("label", "set", "steps", "note"))
        options[name] = Option(
            name=name,
            label=_line(reader, parts.get("label")) or name,
            set=read_overrides(reader, parts["set"]) if "set" in parts else (),
            steps=read_own_overrides(reader, parts["steps"], steps) if "steps" in parts else {},
            note=(reader.text(parts["note"]) if "note" in parts else None) or "",
        )
    return options


def _line(reader: Reader, item: Item | None) -> str:
    """Text in one line, however it was broken in the file; empty where there is none."""
    return " ".join((reader.text(item) or "").split()) if item is not None else ""


def _where(reader: Reader, item: Item, axes: Mapping[str, Axis], steps: Sequence[str]) -> list[tuple[Item, Rule]]:
    rules: list[tuple[Item, Rule]] = []
    for entry in reader.sequence(item, hint="write a list of `- {if: {axis: option}, set: [...]}`"):
        parts = reader.mapping(entry, ("if", "set", "steps", "skip", "cite", "source"))
        if not entry.is_mapping:
            continue
        require(reader, entry, parts, ["if"])
        if not parts.keys() & {"set", "steps", "skip", "cite"}:
            reader.problem(entry, "does nothing", value="", allowed="set, steps, skip, cite")
        if len(parts.keys() & {"skip", "cite"}) + bool(parts.keys() & {"set", "steps"}) > 1:
            reader.problem(
                entry, "both sets, skips or cites", value="", hint="a skipped or cited cell has no runs: use one of the three"
            )
        if ("cite" in parts) != ("source" in parts):
            reader.problem(entry, "`cite` and `source` go together", value="", hint="a cited number says where it is from")
        skip = reader.boolean(parts["skip"]) if "skip" in parts else False
        if "skip" in parts and skip is False:
            reader.problem(parts["skip"], "does nothing", allowed="true")
        rule = Rule(
            when=read_condition(reader, parts["if"], axes) if "if" in parts else {},
            set=read_overrides(reader, parts["set"]) if "set" in parts else (),
            steps=read_own_overrides(reader, parts["steps"], steps) if "steps" in parts else {},
            skip=bool(skip),
            cite=reader.number(parts["cite"]) if "cite" in parts else None,
            source=(reader.text(parts["source"]) if "source" in parts else None) or "",
        )
        rules.append((entry, rule))
    return rules


def _resources(reader: Reader, item: Item, pipeline: Mapping[str, Step]) -> dict[str, dict[str, Any]]:
    return {
        step: read_resources(reader, found, job=pipeline[step].job)
        for step, found in reader.mapping(item, list(pipeline)).items()
    }


def _check_own_overrides(reader: Reader, entries: Mapping[str, Item], sweep: Sweep, rule_items: list[Item]) -> None:
    """Overrides for a step that their cells never have."""
    places: list[tuple[Item, str, Mapping[str, frozenset[str]], Mapping[str, tuple[str, ...]]]] = [
        (entries["axes"], f"option `{option.name}` of axis `{axis.name}`", {axis.name: frozenset({option.name})}, option.steps)
        for axis in sweep.axes.values()
        for option in axis.options.values()
    ]
    places += [(item, "this rule", rule.when, rule.steps) for item, rule in zip(rule_items, sweep.where, strict=True)]
    for item, what, when, steps in places:
        for step in steps:
            only = sweep.pipeline[step].only
            if any(axis in only and not names & only[axis] for axis, names in when.items()):
                cells = ", ".join(f"{axis}: {' | '.join(sorted(names))}" for axis, names in only.items())
                reader.problem(item, f"{what} has overrides for a step of other cells", value=step, allowed=f"cells with {cells}")


def _check_cells(reader: Reader, entries: Mapping[str, Item], sweep: Sweep, rule_items: list[Item]) -> None:
    """The number of cells, and that every `where` rule changes at least one of them."""
    count = math.prod(len(axis.options) for axis in sweep.axes.values())
    if count > MAX_CELLS:
        reader.problem(entries["axes"], "makes too many cells", value=str(count), allowed=f"at most {MAX_CELLS}")
        return
    named = [axis for axis in sweep.axes if any(axis in rule.when for rule in sweep.where)]
    used: set[int] = set()
    left = False
    for point in itertools.product(*(sweep.axes[axis].options for axis in named)):
        at = dict(zip(named, point, strict=True))
        hits = [index for index, rule in enumerate(sweep.where) if all(at[axis] in names for axis, names in rule.when.items())]
        skips = [index for index in hits if sweep.where[index].skip]
        cites = [index for index in hits if sweep.where[index].cite is not None]
        left = left or not skips
        used.update(skips[:1] or cites[:1] or hits)
    for index, item in enumerate(rule_items):
        if index not in used:
            reader.problem(item, "matches no cell that an earlier rule leaves to it", value=_shown(sweep.where[index]))
    if not left:
        reader.problem(entries["where"], "skips every cell", value="")


def _shown(rule: Rule) -> str:
    return ", ".join(f"{axis}: {' | '.join(sorted(names))}" for axis, names in rule.when.items()) or "no condition"
