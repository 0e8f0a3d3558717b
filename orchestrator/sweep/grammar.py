"""The grammar of a sweep file: YAML text -> Sweep, with every problem of the file reported at once.

    title, note, base, axes, where, pipeline, resources, table (`grammar_table.py`)

Nothing here composes a configuration: whether an override fits is `plan.py`'s question.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.metrics import METRICS
from orchestrator.errors import Problem, UserError
from orchestrator.sweep.document import Item, Reader, load, read_text, require
from orchestrator.sweep.grammar_table import read_table
from orchestrator.sweep.model import Axis, Option, Rule, Step, Sweep
from orchestrator.sweep.overrides import shape_problem
from orchestrator.sweep.resources import read_resources

KEYS = ("title", "note", "base", "axes", "where", "pipeline", "resources", "table")
NAME = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . + -"
MAX_CELLS = 100_000
DEFAULT_PIPELINE = (
    Step(name="prepare", job="prepare"),
    Step(name="train", job="train", needs=("prepare",)),
    Step(name="evaluate", job="evaluate", needs=("prepare", "train")),
)


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
    axes = _axes(reader, entries["axes"]) if "axes" in entries else {}
    pipeline = _pipeline(reader, entries["pipeline"]) if "pipeline" in entries else {step.name: step for step in DEFAULT_PIPELINE}
    rules = _where(reader, entries["where"], axes) if "where" in entries else []
    sweep = Sweep(
        name=name,
        path=path,
        title=(reader.text(entries["title"]) if "title" in entries else None) or name,
        note=(reader.text(entries["note"]) if "note" in entries else None) or "",
        base=_overrides(reader, entries["base"]) if "base" in entries else (),
        axes=axes,
        where=tuple(rule for _, rule in rules),
        pipeline=pipeline,
        resources=_resources(reader, entries["resources"], pipeline) if "resources" in entries else {},
        table=read_table(reader, entries["table"], axes, pipeline) if "table" in entries else None,
        text=text,
    )
    if not reader.problems:
        _check_cells(reader, entries, sweep, [item for item, _ in rules])
    if reader.problems:
        raise UserError(*reader.problems)
    return sweep


def _name(reader: Reader, item: Item, name: str, what: str) -> bool:
    if NAME.fullmatch(name) is None:
        reader.problem(item, f"is not a name for {what}", value=name, allowed=NAME_RULE)
        return False
    return True


def _overrides(reader: Reader, item: Item) -> tuple[str, ...]:
    """A list of Hydra overrides."""
    read: list[str] = []
    for entry in reader.sequence(item, hint="write a list: `[group=option, key=value]`"):
        if entry.is_mapping:
            reader.problem(
                entry, "is not an override", allowed="key=value, group=option", hint="write `key=value` instead of `key: value`"
            )
            continue
        text = reader.text(entry)
        if text is None:
            continue
        problem = shape_problem(text, where=f"{reader.path}:{entry.line}: {entry.at}")
        if problem is None:
            read.append(text)
        else:
            reader.problems.append(problem)
    return tuple(read)


def _axes(reader: Reader, item: Item) -> dict[str, Axis]:
    entries = reader.mapping(item)
    if item.is_mapping and not entries:
        reader.problem(item, "has no axis", hint="`seed: {key: seed, values: [0, 1, 2]}` is one")
    axes: dict[str, Axis] = {}
    for name, axis_item in entries.items():
        _name(reader, axis_item, name, "an axis")
        parts = (
            {key.value for key, _ in axis_item.node.value if isinstance(key, yaml.ScalarNode)} if axis_item.is_mapping else set()
        )
        options = _value_options(reader, axis_item) if parts & {"key", "values"} else _named_options(reader, axis_item)
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
        if not _name(reader, entry, value, "a value of an axis"):
            continue
        if value in options:
            reader.problem(entry, f"value `{value}` is given twice")
        options[value] = Option(name=value, label=value, set=(f"{key}={value}",))
    if entries["values"].is_list and not entries["values"].node.value:
        reader.problem(entries["values"], "has no value")
    return options


def _named_options(reader: Reader, item: Item) -> dict[str, Option]:
    """The options of `{slot_attn: {label: ..., set: [...]}, ...}`."""
    entries = reader.mapping(item)
    if item.is_mapping and not entries:
        reader.problem(item, "has no option", hint="`name: {label: ..., set: [key=value]}` is one")
    options: dict[str, Option] = {}
    for name, option_item in entries.items():
        _name(reader, option_item, name, "an option")
        parts = {} if option_item.is_null else reader.mapping(option_item, ("label", "set", "note"))
        options[name] = Option(
            name=name,
            label=(reader.text(parts["label"]) if "label" in parts else None) or name,
            set=_overrides(reader, parts["set"]) if "set" in parts else (),
            note=(reader.text(parts["note"]) if "note" in parts else None) or "",
        )
    return options


def _where(reader: Reader, item: Item, axes: Mapping[str, Axis]) -> list[tuple[Item, Rule]]:
    rules: list[tuple[Item, Rule]] = []
    for entry in reader.sequence(item, hint="write a list of `- {if: {axis: option}, set: [...]}`"):
        parts = reader.mapping(entry, ("if", "set", "skip", "cite", "source"))
        if not entry.is_mapping:
            continue
        require(reader, entry, parts, ["if"])
        if not parts.keys() & {"set", "skip", "cite"}:
            reader.problem(entry, "does nothing", value="", allowed="set, skip, cite")
        if len(parts.keys() & {"set", "skip", "cite"}) > 1:
            reader.problem(
                entry, "both sets, skips or cites", value="", hint="a skipped or cited cell has no runs: use one of the three"
            )
        if ("cite" in parts) != ("source" in parts):
            reader.problem(entry, "`cite` and `source` go together", value="", hint="a cited number says where it is from")
        skip = reader.boolean(parts["skip"]) if "skip" in parts else False
        if "skip" in parts and skip is False:
            reader.problem(parts["skip"], "does nothing", allowed="true")
        rule = Rule(
            when=_when(reader, parts["if"], axes) if "if" in parts else {},
            set=_overrides(reader, parts["set"]) if "set" in parts else (),
            skip=bool(skip),
            cite=reader.number(parts["cite"]) if "cite" in parts else None,
            source=(reader.text(parts["source"]) if "source" in parts else None) or "",
        )
        rules.append((entry, rule))
    return rules


def _when(reader: Reader, item: Item, axes: Mapping[str, Axis]) -> dict[str, frozenset[str]]:
    """`{axis: option}` or `{axis: [option, ...]}`."""
    when: dict[str, frozenset[str]] = {}
    for axis, wanted in reader.mapping(item, list(axes)).items():
        options = axes[axis].options
        words = reader.sequence(wanted) if wanted.is_list else [wanted]
        found = [reader.word(word, f"unknown option of axis `{axis}`", list(options)) for word in words]
        if wanted.is_list and not words:
            reader.problem(wanted, "names no option", allowed=", ".join(options))
        when[axis] = frozenset(word for word in found if word is not None)
    return when


def _pipeline(reader: Reader, item: Item) -> dict[str, Step]:
    """The steps, those that others need first."""
    entries = reader.mapping(item)
    if item.is_mapping and not entries:
        reader.problem(item, "has no step", hint="`train: {job: train, needs: [prepare]}` is one")
    steps: dict[str, Step] = {}
    for name, step_item in entries.items():
        _name(reader, step_item, name, "a step")
        parts = reader.mapping(step_item, ("job", "needs", "set"))
        if step_item.is_mapping:
            require(reader, step_item, parts, ["job"])
        job = reader.word(parts["job"], "unknown kind of job", list(METRICS)) if "job" in parts else None
        others = [other for other in entries if other != name]
        needs_items = reader.sequence(parts["needs"], hint="write `needs: [prepare]`") if "needs" in parts else []
        needs = [reader.word(need, "needs an unknown step", others) for need in needs_items]
        steps[name] = Step(
            name=name,
            job=job or "",
            needs=tuple(dict.fromkeys(need for need in needs if need is not None)),
            set=_overrides(reader, parts["set"]) if "set" in parts else (),
        )
    return _sorted_steps(reader, item, entries, steps)


def _sorted_steps(reader: Reader, item: Item, entries: Mapping[str, Item], steps: Mapping[str, Step]) -> dict[str, Step]:
    for name, step in steps.items():
        jobs = [steps[need].job for need in step.needs]
        for job in sorted({job for job in jobs if job and jobs.count(job) > 1}):
            reader.problem(entries[name], f"needs two steps of kind `{job}`", value=", ".join(step.needs))
    done: dict[str, Step] = {}
    left = dict(steps)
    while left:
        ready = [name for name, step in left.items() if all(need in done for need in step.needs)]
        if not ready:
            reader.problem(item, "the steps need each other in a circle", value=_circle(left))
            return {**done, **left}
        done[ready[0]] = left.pop(ready[0])
    return done


def _circle(steps: Mapping[str, Step]) -> str:
    """One cycle as `a -> b -> a`; every step here needs another one of these."""
    path = [next(iter(steps))]
    while path.count(path[-1]) == 1:
        path.append(next(need for need in steps[path[-1]].needs if need in steps))
    return " -> ".join(path[path.index(path[-1]) :])


def _resources(reader: Reader, item: Item, pipeline: Mapping[str, Step]) -> dict[str, dict[str, Any]]:
    return {step: read_resources(reader, found) for step, found in reader.mapping(item, list(pipeline)).items()}


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
