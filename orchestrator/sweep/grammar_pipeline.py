"""The grammar of a sweep's `pipeline:` part: steps, what they need, and the cells that have them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import yaml

from jobs.metrics import METRICS
from orchestrator.sweep.document import Item, Reader, require
from orchestrator.sweep.grammar_parts import read_condition, read_name, read_overrides
from orchestrator.sweep.model import Axis, Step

DEFAULT_PIPELINE = (
    Step(name="prepare", job="prepare"),
    Step(name="train", job="train", needs=("prepare",)),
    Step(name="evaluate", job="evaluate", needs=("prepare", "train")),
)

MAX_POINTS = 100_000
"""Combinations of options that are looked at; a sweep with more has too many cells anyway."""


def step_names(item: Item) -> list[str]:
    """The names of the steps as they are written; what is wrong with them is `read_pipeline`'s to say."""
    pairs = item.node.value if isinstance(item.node, yaml.MappingNode) else []
    return [str(key.value) for key, _ in pairs if isinstance(key, yaml.ScalarNode)]


def read_pipeline(reader: Reader, item: Item, axes: Mapping[str, Axis]) -> dict[str, Step]:
    """The steps, those that others need first."""
    entries = reader.mapping(item)
    if item.is_mapping and not entries:
        reader.problem(item, "has no step", hint="`train: {job: train, needs: [prepare]}` is one")
    steps: dict[str, Step] = {}
    for name, step_item in entries.items():
        read_name(reader, step_item, name, "a step")
        parts = reader.mapping(step_item, ("job", "needs", "set", "only"))
        if step_item.is_mapping:
            require(reader, step_item, parts, ["job"])
        job = reader.word(parts["job"], "unknown kind of job", list(METRICS)) if "job" in parts else None
        others = [other for other in entries if other != name]
        needs, choices = _needs(reader, parts["needs"], others) if "needs" in parts else ((), ())
        steps[name] = Step(
            name=name,
            job=job or "",
            needs=needs,
            choices=choices,
            set=read_overrides(reader, parts["set"]) if "set" in parts else (),
            only=read_condition(reader, parts["only"], axes) if "only" in parts else {},
        )
        if "only" in parts and parts["only"].is_mapping and not parts["only"].node.value:
            reader.problem(parts["only"], "names no axis", value="", hint="leave it out: a step belongs to every cell")
    return _sorted_steps(reader, item, entries, steps, axes)


def _needs(reader: Reader, item: Item, others: Sequence[str]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """`[prepare, [stage2, stage1]]`: plain needs, and choices of which the first that a cell has counts."""
    plain: list[str] = []
    choices: list[tuple[str, ...]] = []
    for entry in reader.sequence(item, hint="write `needs: [prepare]`"):
        if not entry.is_list:
            need = reader.word(entry, "needs an unknown step", others)
            plain += [] if need is None else [need]
            continue
        words = [reader.word(word, "needs an unknown step", others) for word in reader.sequence(entry)]
        if len(words) < 2:
            reader.problem(entry, "is no choice of steps", hint="`[stage2, stage1]`: the first of them that a cell has")
        choices.append(tuple(dict.fromkeys(word for word in words if word is not None)))
    return tuple(dict.fromkeys(plain)), tuple(choices)


def _sorted_steps(
    reader: Reader, item: Item, entries: Mapping[str, Item], steps: Mapping[str, Step], axes: Mapping[str, Axis]
) -> dict[str, Step]:
    for name, step in steps.items():
        for job, twice in sorted(_ambiguous(step, steps, axes)):
            hint = "a run knows its needs by kind: give one of the steps an `only`, or let this one choose: `[[stage2, stage1]]`"
            reader.problem(entries[name], f"needs two steps of kind `{job}`", value=twice, hint=hint)
    done: dict[str, Step] = {}
    left = dict(steps)
    while left:
        ready = [name for name, step in left.items() if all(need in done for need in step.named)]
        if not ready:
            reader.problem(item, "the steps need each other in a circle", value=_circle(left))
            return {**done, **left}
        done[ready[0]] = left.pop(ready[0])
    return done


def _circle(steps: Mapping[str, Step]) -> str:
    """One cycle as `a -> b -> a`; every step here needs another one of these."""
    path = [next(iter(steps))]
    while path.count(path[-1]) == 1:
        path.append(next(need for need in steps[path[-1]].named if need in steps))
    return " -> ".join(path[path.index(path[-1]) :])


def _ambiguous(step: Step, steps: Mapping[str, Step], axes: Mapping[str, Axis]) -> set[tuple[str, str]]:
    """(kind, steps) where some cell gives a step two needs of one kind."""
    found: set[tuple[str, str]] = set()
    for present in _present(step, steps, axes):
        needed = step.needed(present)
        jobs = [steps[need].job for need in needed]
        found |= {
            (job, ", ".join(need for need in needed if steps[need].job == job)) for job in jobs if job and jobs.count(job) > 1
        }
    return found


def _present(step: Step, steps: Mapping[str, Step], axes: Mapping[str, Axis]) -> Iterator[frozenset[str]]:
    """The distinct sets of steps in the cells that have `step`."""
    named = [axis for axis in axes if any(axis in other.only for other in steps.values())]
    seen: set[frozenset[str]] = set()
    for point in itertools.islice(itertools.product(*(axes[axis].options for axis in named)), MAX_POINTS):
        at = dict(zip(named, point, strict=True))
        present = frozenset(name for name, other in steps.items() if other.belongs(at))
        if step.name in present and present not in seen:
            seen.add(present)
            yield present
