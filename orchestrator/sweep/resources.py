"""The words of `resources:`: the fields of hydra-submitit-launcher's Slurm schema, and a few of ours, with their types. Pure."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from orchestrator import elastic
from orchestrator.sweep.document import Item, Reader, listed

RESERVED = frozenset({"_target_", "submitit_folder", "name", "stderr_to_stdout", "max_num_timeout"})
"""Fields of the schema that `orch` decides itself: names carry tokens, and retries go by cause, not by count."""
OWN: Mapping[str, Any] = {"runs_per_gpu": int}
"""Words that `orch` has beside the schema: so many runs share a task."""
AT_LEAST_ONE = frozenset(
    {"timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "array_parallelism", "mem_gb", "runs_per_gpu"}
)
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
MOST = 10_000_000
"""Larger than any sensible count, minute or gigabyte."""


@cache
def vocabulary() -> Mapping[str, Any]:
    """Resource key -> its annotated type. Imports the launcher plugin (0.2 s), hence only when first asked."""
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf  # type: ignore[import-untyped]  # the plugin ships no types

    hints = typing.get_type_hints(SlurmQueueConf)
    return {name: hint for name, hint in sorted([*hints.items(), *OWN.items()]) if name not in RESERVED}


def read_resources(reader: Reader, item: Item, *, job: str) -> dict[str, Any]:
    """The resources of a step of this kind, each key and type checked against the launcher's schema."""
    words = vocabulary()
    read: dict[str, Any] = {}
    for key, value in reader.mapping(item, [*words, elastic.KEY]).items():
        if key == elastic.KEY:
            read[key] = _world_sizes(reader, value, job)
            continue
        hint = words[key]
        variants = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if value.is_null:
            if type(None) in variants:
                read[key] = None
            else:
                reader.problem(value, "may not be null", allowed=_named(hint))
            continue
        kind = next(variant for variant in variants if variant is not type(None))
        found = _read(reader, value, key, kind)
        if found is not None:
            read[key] = found
    return read


def _world_sizes(reader: Reader, item: Item, job: str) -> list[int]:
    """Whether they suit the step's other resources is `elastic.contradictions`' to say, when the defaults are known."""
    from jobs.spec import JOB_KINDS, SINGLE_PROCESS  # pydantic: only for a sweep that asks

    if job in SINGLE_PROCESS:
        kinds = listed(sorted(JOB_KINDS.keys() - SINGLE_PROCESS))
        reader.problem(item, f"a `{job}` step is one process and has no other size", allowed=f"steps whose job is one of {kinds}")
        return []
    found: list[int] = []
    for entry in reader.sequence(item, hint="write `elastic: [2, 4, 8]`"):
        size = reader.integer(entry, least=1, most=MOST)
        if size in found:
            reader.problem(entry, "is given twice")
        elif size is not None:
            found.append(size)
    if item.is_list and not item.node.value:
        reader.problem(item, "has no size", hint="write `elastic: [2, 4, 8]`, or leave it out")
    return found


def _read(reader: Reader, item: Item, key: str, kind: Any) -> Any:
    if kind is int:
        return reader.integer(item, least=1 if key in AT_LEAST_ONE else 0, most=MOST)
    if kind is str:
        return _one_line(reader, item)
    if typing.get_origin(kind) is list:
        lines = [reader.text(entry) for entry in reader.sequence(item, hint=f"write `{key}: [command, ...]`")]
        return [line for line in lines if line is not None]
    if not item.is_mapping:
        return reader.mapping(item) or None
    for name, value in reader.mapping(item).items():
        if _OPTION.fullmatch(name) is None:
            reader.problem(value, "is not an option of sbatch", value=name, allowed="letters, digits, _ and -")
        elif not value.is_scalar:
            reader.problem(value, "is not a value for an option of sbatch")
        elif not value.is_null:
            _one_line(reader, value)
    return reader.plain(item)


def _one_line(reader: Reader, item: Item) -> str | None:
    """Text for a header line of the script: what follows a line break would be a command."""
    text = reader.text(item)
    if text is not None and len(text.splitlines()) > 1:
        reader.problem(item, "has a line break", hint="commands for the script stand under `setup:`")
        return None
    return text


def _named(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint))


def merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Launcher defaults with a step's own values over them; `setup` lines are appended, parameters are merged."""
    result = {**defaults, **own}
    if own.get("setup") and defaults.get("setup"):
        result["setup"] = [*defaults["setup"], *(line for line in own["setup"] if line not in defaults["setup"])]
    if own.get("additional_parameters") and defaults.get("additional_parameters"):
        result["additional_parameters"] = {**defaults["additional_parameters"], **own["additional_parameters"]}
    return result
