"""Broken variants of sweep files, by a seed: what a person gets wrong in YAML, in the grammar and in overrides.

`python tests/orchestrator/sweep/mutations.py SWEEP... OUT_DIR` writes 200 of them as files.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

WRONG_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3.5, 10**30, float("nan"), "", "x", "no such thing", "=", "a=", "=b", "~", "+a=1", "++seed=1", "${seed}",
    "seed=${steps}", "seed=1,2", "seed='", "seed=[1", "seed={a:1}", "model=[slot_attention]", "model=none", "kind=train",
    "hydra.run.dir=x", "data@x=mdsprites", "model.num_slots.x=1", "~model", "~seed", "optimizer.learning_rate=fast",
    "model.num_slots=0", "noise_seeds=[]", "noise_seeds[0]=1", "noise_seeds.0=1", "model.decoder=null", "+model.new=1",
    "model/decoder=upsampling", "data.path=null", "seed=???", "x" * 300, [], {}, [[]], {"a": {"b": []}}, ["seed=1"], {"seed": 1},
)  # fmt: skip


def _containers(tree: Any) -> Iterator[dict[str, Any] | list[Any]]:
    if isinstance(tree, (dict, list)):
        if tree:
            yield tree
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(item)


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    container = rng.choice(list(_containers(tree)))
    key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
    return container, key


def _drop(rng: random.Random, tree: Any) -> None:
    container, key = _place(rng, tree)
    del container[key]


def _retype(rng: random.Random, tree: Any) -> None:
    container, key = _place(rng, tree)
    container[key] = copy.deepcopy(rng.choice(WRONG_VALUES))


def _rename(rng: random.Random, tree: Any) -> None:
    mappings = [found for found in _containers(tree) if isinstance(found, dict)]
    mapping = rng.choice(mappings)
    key = rng.choice(list(mapping))
    new = rng.choice([str(key)[:-1], f"{key}s", str(key).upper(), "kind", "a b", "", "<<", 7, None])
    mapping[new] = mapping.pop(key)


def _swap(rng: random.Random, tree: Any) -> None:
    (left, a), (right, b) = _place(rng, tree), _place(rng, tree)
    left[a], right[b] = copy.deepcopy(right[b]), copy.deepcopy(left[a])


def _duplicate(rng: random.Random, tree: Any) -> None:
    container, key = _place(rng, tree)
    if isinstance(container, dict):
        container[f"{key}_again"] = copy.deepcopy(container[key])
    else:
        container.append(copy.deepcopy(container[key]))


def _override(rng: random.Random, tree: Any) -> None:
    """A typing mistake in one override, or a wrong one in its place."""
    lists = [found for found in _containers(tree) if isinstance(found, list) and any("=" in str(item) for item in found)]
    if not lists:
        return
    overrides = rng.choice(lists)
    index = rng.randrange(len(overrides))
    text = str(overrides[index])
    at = rng.randrange(len(text))
    typo = text[:at] + rng.choice(["", text[at] * 2, rng.choice("=.,/[]{}'$~+@: x")]) + text[at + 1 :]
    wrong = [value for value in WRONG_VALUES if isinstance(value, str)]
    overrides[index] = rng.choice([typo, typo, rng.choice(wrong)])


def _circle(rng: random.Random, tree: Any) -> None:
    steps = ["prepare", "train", "evaluate"]
    pipeline = {step: {"job": step, "needs": rng.sample(steps, rng.randint(0, 3))} for step in steps}
    tree["pipeline"] = pipeline


def _rule(rng: random.Random, tree: Any) -> None:
    axes = tree.get("axes")
    axis = rng.choice(list(axes)) if isinstance(axes, dict) and axes else "method"
    rule = {"if": {axis: rng.choice(["covloss", 0, "short", "nothing", ["long", "long"], None])}}
    rule[rng.choice(["set", "skip", "cite", "source", "then"])] = rng.choice([True, False, 3, ["seed=1"], "text", None])
    tree["where"] = [rule] * rng.randint(1, 2)


def _line(rng: random.Random, text: str) -> str:
    lines = text.splitlines()
    index = rng.choice([number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")])
    kind = rng.randrange(6)
    if kind == 0:
        lines[index] = " " * rng.randint(1, 3) + lines[index]
    elif kind == 1:
        lines[index] = lines[index].lstrip()
    elif kind == 2:
        lines[index] = "\t" + lines[index]
    elif kind == 3:
        del lines[index]
    elif kind == 4:
        lines.insert(index, lines[index])
    else:
        return "\n".join(lines[:index])
    return "\n".join(lines) + "\n"


def _character(rng: random.Random, text: str) -> str:
    body = text.index("\ntitle:")
    at = rng.randrange(body, len(text))
    return text[:at] + rng.choice("{}[]:,&*!|>%@`'\"#-?=\t\x00\x07é~ ") + text[at + rng.randint(0, 1) :]


TREE_CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    _drop, _retype, _retype, _rename, _swap, _duplicate, _circle, _rule, _override, _override, _override,
)  # fmt: skip
TEXT_CHANGES: tuple[Callable[[random.Random, str], str], ...] = (_line, _line, _character, _character)


def mutations(texts: Sequence[str], *, count: int, seed: int) -> Iterator[str]:
    """`count` mutated texts; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        text = rng.choice(texts)
        if rng.random() < 0.6:
            tree = yaml.safe_load(text)
            for _ in range(rng.choice([1, 1, 2])):
                rng.choice(TREE_CHANGES)(rng, tree)
            yield yaml.safe_dump(tree, sort_keys=False)
        else:
            yield rng.choice(TEXT_CHANGES)(rng, text)


if __name__ == "__main__":
    *sources, target = (Path(argument) for argument in sys.argv[1:])
    for number, broken in enumerate(mutations([source.read_text() for source in sources], count=200, seed=0)):
        (target / f"broken_{number:03d}.yaml").write_text(broken)
