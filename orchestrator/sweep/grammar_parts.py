"""What several parts of a sweep's grammar share: names, lists of overrides, conditions on axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from orchestrator.sweep.document import Item, Reader
from orchestrator.sweep.model import Axis
from orchestrator.sweep.overrides import shape_problem, split

NAME = re.compile(r"(?=.*[A-Za-z0-9_])[A-Za-z0-9_.+-]{1,64}")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . + -, not of . + - alone"


def read_name(reader: Reader, item: Item, name: str, what: str) -> bool:
    """Whether `name` may name an axis, an option, a value or a step."""
    if NAME.fullmatch(name) is None:
        reader.problem(item, f"is not a name for {what}", value=name, allowed=NAME_RULE)
        return False
    return True


def read_overrides(reader: Reader, item: Item) -> tuple[str, ...]:
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


def read_own_overrides(reader: Reader, item: Item, steps: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`steps: {stage2: [objective.sparsity=0.1]}`: overrides for one step each; a key set twice is a problem."""
    own: dict[str, tuple[str, ...]] = {}
    for step, entry in reader.mapping(item, steps).items():
        own[step] = read_overrides(reader, entry)
        if entry.is_list and not entry.node.value:
            reader.problem(entry, "has no override")
        keys = [found.key for text in own[step] if (found := split(text)) is not None]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            reader.problem(entry, f"sets `{key}` twice", value=", ".join(own[step]))
    return own


def read_condition(reader: Reader, item: Item, axes: Mapping[str, Axis]) -> dict[str, frozenset[str]]:
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
