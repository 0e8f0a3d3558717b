"""A YAML file as nodes that know their line, and a reader that collects every problem instead of stopping at one."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import Problem, UserError, printable

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 40
MAX_NODES = 200_000
"""Limits of what is read: a sweep is written by a person; anything larger is a mistake or an alias bomb."""

_STR, _INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_TRUE = frozenset({"true", "yes", "on"})


@dataclass(frozen=True, kw_only=True)
class Item:
    """One node of the document and the dotted path that leads to it."""

    node: yaml.Node
    at: str

    @property
    def line(self) -> int:
        """Line in the file, counted from 1."""
        return int(self.node.start_mark.line) + 1 if self.node.start_mark is not None else 1

    @property
    def is_null(self) -> bool:
        return self.node.tag == _NULL

    @property
    def is_scalar(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode)

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def shown(self) -> str:
        """The value in few words, for a message."""
        if isinstance(self.node, yaml.ScalarNode):
            text = "null" if self.is_null else str(self.node.value)
            return text if len(text) <= 80 else f"{text[:77]}..."
        return f"a {'list' if self.is_list else 'mapping'} of {len(self.node.value)}"


def did_you_mean(wrong: str, allowed: Iterable[str]) -> str:
    """`did you mean ...?`, or nothing when no allowed word is near."""
    near = difflib.get_close_matches(wrong, list(allowed), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""


def listed(words: Iterable[str]) -> str:
    """Allowed values for a message; a long list is cut."""
    known = list(words)
    return ", ".join(known) if len(known) <= 40 else f"{', '.join(known[:40])}, ... ({len(known)} in all)"


@dataclass(kw_only=True)
class Reader:
    """Reads values out of items; a wrong one is recorded as a Problem and read as None."""

    path: str
    problems: list[Problem] = field(default_factory=list)

    def problem(self, item: Item, what: str, *, value: str | None = None, allowed: str = "", hint: str = "") -> None:
        """Record what is wrong with an item."""
        where = f"{self.path}:{item.line}: {item.at}" if item.at else f"{self.path}:{item.line}"
        self.problems.append(
            Problem(what=what, where=where, value=item.shown if value is None else value, allowed=allowed, hint=hint)
        )

    def unknown(self, item: Item, what: str, wrong: str, allowed: Collection[str]) -> None:
        """Record a word that is none of the allowed ones."""
        self.problem(item, what, value=wrong, allowed=listed(allowed), hint=did_you_mean(wrong, allowed))

    def mapping(self, item: Item, keys: Collection[str] | None = None) -> dict[str, Item]:
        """The entries of a mapping; `keys` are the allowed ones. Duplicate and unknown keys are problems."""
        if not isinstance(item.node, yaml.MappingNode):
            allowed = listed(keys) if keys is not None else "a mapping of `key: value`"
            self.problem(item, "is not a mapping", allowed=allowed)
            return {}
        found: dict[str, Item] = {}
        for key_node, value_node in item.node.value:
            key_item = Item(node=key_node, at=item.at)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_item, "has a key that is not a word")
                continue
            key = str(key_node.value)
            at = f"{item.at}.{key}" if item.at else key
            if key in found:
                self.problem(Item(node=key_node, at=at), f"key `{key}` is given twice", hint=f"first in line {found[key].line}")
            elif keys is not None and key not in keys:
                self.unknown(Item(node=key_node, at=at), "unknown key", key, keys)
            else:
                found[key] = Item(node=value_node, at=at)
        return found

    def sequence(self, item: Item, hint: str = "") -> list[Item]:
        """The entries of a list."""
        if not isinstance(item.node, yaml.SequenceNode):
            self.problem(item, "is not a list", hint=hint)
            return []
        return [Item(node=node, at=f"{item.at}[{index}]") for index, node in enumerate(item.node.value)]

    def text(self, item: Item) -> str | None:
        """Any scalar as it is written."""
        if not isinstance(item.node, yaml.ScalarNode) or item.is_null:
            self.problem(item, "is not text")
            return None
        text = str(item.node.value)
        if printable(text) != text:
            self.problem(item, "holds a control character")
            return None
        return text

    def word(self, item: Item, what: str, allowed: Collection[str]) -> str | None:
        """A scalar that must be one of the allowed words."""
        found = self.text(item)
        if found is not None and found not in allowed:
            self.unknown(item, what, found, allowed)
            return None
        return found

    def number(self, item: Item) -> float | None:
        """A finite number; also `1e-3`, which YAML 1.1 reads as text."""
        if isinstance(item.node, yaml.ScalarNode) and item.node.tag in (_INT, _FLOAT, _STR) and len(item.node.value) <= 40:
            try:
                found = float(item.node.value)
            except ValueError:
                found = math.nan
            if math.isfinite(found):
                return found
        self.problem(item, "is not a number")
        return None

    def integer(self, item: Item, *, least: int, most: int) -> int | None:
        """A whole number within bounds."""
        if item.node.tag == _INT and _INTEGER.fullmatch(str(item.node.value)):
            found = int(item.node.value)
            if least <= found <= most:
                return found
        self.problem(item, "is not a whole number in range", allowed=f"{least} ... {most}")
        return None

    def boolean(self, item: Item) -> bool | None:
        """`true` or `false`."""
        if item.node.tag != _BOOL:
            self.problem(item, "is neither true nor false", allowed="true, false")
            return None
        return str(item.node.value).lower() in _TRUE

    def plain(self, item: Item) -> Any:
        """The item as plain values. Call only after `load` has bounded depth and size."""
        if isinstance(item.node, yaml.MappingNode):
            return {key: self.plain(value) for key, value in self.mapping(item).items()}
        if isinstance(item.node, yaml.SequenceNode):
            return [self.plain(entry) for entry in self.sequence(item)]
        text, tag = str(item.node.value), item.node.tag
        if tag == _NULL:
            return None
        if tag == _BOOL:
            return text.lower() in _TRUE
        if tag == _INT and _INTEGER.fullmatch(text):
            return int(text)
        return self.number(item) if tag == _FLOAT else text


def _check_depth(text: str, path: str, loader: Any) -> None:
    """Refuse deep nesting before nodes are built: the C composer recurses until the process dies."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            where = path if event.start_mark is None else f"{path}:{event.start_mark.line + 1}"
            raise UserError(Problem(what=f"is nested deeper than {MAX_DEPTH} levels", where=where))


def _bounded(root: yaml.Node, path: str) -> None:
    """Refuse documents whose expanded form is too deep (also: contains itself) or too large; raises UserError."""
    budget = MAX_NODES
    stack: list[tuple[yaml.Node, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        budget -= 1
        if depth > MAX_DEPTH or budget < 0:
            what = f"is nested deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"holds more than {MAX_NODES} values"
            where = f"{path}:{Item(node=node, at='').line}"
            raise UserError(Problem(what=what, where=where, hint="does an alias (*name) refer to itself or multiply?"))
        if isinstance(node, yaml.MappingNode):
            stack.extend((part, depth + 1) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            stack.extend((part, depth + 1) for part in node.value)


def _syntax_problem(error: yaml.YAMLError, path: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{path}:{mark.line + 1}: column {mark.column + 1}" if mark is not None else path
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    context = getattr(error, "context", None)
    hint = "indent with spaces, the same number for keys of one level; a value with `: `, `[` or `{` in it needs quotes"
    return Problem(what=f"malformed YAML: {what}{f' ({context})' if context else ''}", where=where, hint=hint)


def load(text: str, path: str) -> Item:
    """The root of a YAML document; raises UserError when it is empty, malformed, too deep or too large."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(text, path, loader)
        root = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        raise UserError(_syntax_problem(error, path)) from None
    except RecursionError:
        raise UserError(Problem(what="malformed YAML: nested too deeply", where=path)) from None
    except ValueError as error:  # text that cannot be encoded, such as a lone surrogate
        raise UserError(Problem(what=f"malformed YAML: {error}", where=path)) from None
    if root is None:
        raise UserError(Problem(what="the file is empty", where=path, hint="start from sweeps/demo.yaml"))
    _bounded(root, path)
    return Item(node=root, at="")


def read_text(path: Path) -> str:
    """A file's text; raises UserError when it is missing, not a file, too large or not UTF-8."""
    shown = str(path)
    try:
        with open(path, "rb") as handle:
            content = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        siblings = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = did_you_mean(shown, siblings)
        raise UserError(Problem(what="no such file", where=shown, allowed=listed(siblings), hint=hint)) from None
    except IsADirectoryError:
        raise UserError(Problem(what="is a directory", where=shown, hint="name one sweep file")) from None
    except (OSError, ValueError) as error:
        raise UserError(Problem(what=f"cannot be read: {error}", where=shown)) from None
    if len(content) > MAX_BYTES:
        raise UserError(Problem(what=f"is larger than {MAX_BYTES} bytes", where=shown))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8 text (byte 0x{content[error.start]:02x})"
        raise UserError(Problem(what=what, where=f"{shown}:{line}")) from None


def require(reader: Reader, item: Item, found: Mapping[str, Item], keys: Iterable[str]) -> None:
    """Record each required key that is missing from a mapping."""
    for key in keys:
        if key not in found:
            reader.problem(item, f"lacks the key `{key}`", value="")
