"""What an archive of a table's sources holds: layout, manifest, legal names, texts without paths of the machine. Pure.

manifest.json                first member: format, sweep, and per file its bytes and sha256
record.json                  the sweep's row, cells and runs as the store has them
sweep.yaml                   the sweep file as it was submitted
sweep.json                   the record that the tracker is told
table.md, table.csv, table.json
environments/FINGERPRINT.json
runs/ID/spec.json, outcome.json, attempts/NNNN.json, journal/NNNN.jsonl, output/*.json (and output/model.pt)
snapshots/TREE/...           the code that the runs were frozen with
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import Problem, UserError

FORMAT = 1
MANIFEST, RECORD, SWEEP_FILE, TRACKED = "manifest.json", "record.json", "sweep.yaml", "sweep.json"
TABLES = {"table.md": "md", "table.csv": "csv", "table.json": "json"}
"""Member -> format of `orch table`."""
MANIFEST_BYTES = 256 * 2**20
"""Most that a manifest may be."""
ELSEWHERE = "elsewhere"
"""What stands in place of the folder of an absolute path."""

_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}"
_LEGAL = re.compile(
    r"record\.json|sweep\.yaml|sweep\.json|table\.(?:md|csv|json)|environments/[0-9a-f]{1,64}\.json"
    rf"|runs/{_PLAIN}/(?:spec\.json|outcome\.json|attempts/\d{{1,9}}\.json|journal/\d{{1,9}}\.jsonl"
    rf"|output/{_PLAIN}\.json|output/model\.pt)"
    rf"|snapshots/[0-9a-f]{{1,64}}/(?:commit\.json|(?:jobs|models)(?:/{_PLAIN}){{1,9}})",
    re.ASCII,
)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_EMBEDDED = re.compile(r"(?<![\w.~:/+-])/(?:[\w.+@~-]+/)+([\w.+@~-]*)")
_SET = re.compile(r"(?<==)/(?:[^\s,\]}\"'/]+/)*([^\s,\]}\"'/]*)")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of an archive, as the manifest has it."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The archive's list of contents."""

    sweep: str
    files: Mapping[str, Member]

    @property
    def total_bytes(self) -> int:
        """Of all files, unpacked."""
        return sum(one.bytes for one in self.files.values())

    def to_json(self) -> str:
        """One JSON object, the same text for the same content."""
        files = {name: {"bytes": one.bytes, "sha256": one.sha256} for name, one in sorted(self.files.items())}
        return json.dumps({"format": FORMAT, "sweep": self.sweep, "files": files}, indent=1, sort_keys=True) + "\n"


def damaged(what: str, *, value: str = "") -> UserError:
    """The words for a file that cannot be taken in; nothing was put in place."""
    return UserError(
        Problem(
            what=f"is no archive of `orch export`, or is damaged: {what}",
            value=value[:200],
            hint="nothing was written; fetch the file again, or export it anew",
        )
    )


def read_manifest(text: str) -> Manifest:
    """Read what `to_json` wrote; raises UserError for anything else, for names that no archive has, and for missing members."""
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise damaged("it has another format", value=str(raw["format"]))
        files = {
            str(name): Member(bytes=_count(one["bytes"]), sha256=str(one["sha256"])) for name, one in dict(raw["files"]).items()
        }
        sweep = raw["sweep"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"its manifest cannot be read ({type(error).__name__})") from error
    if not isinstance(sweep, str) or not sweep or "\0" in sweep:
        raise damaged("its sweep has no name")
    for name, one in files.items():
        if not legal(name):
            raise damaged("it names a file that no archive has", value=name)
        if not _HASH.fullmatch(one.sha256):
            raise damaged("it has no checksum of a file", value=name)
    folders = {name[:at] for name in files for at in range(len(name)) if name[at] == "/"}
    for name in files:
        if name in folders:
            raise damaged("a file of it is a folder too", value=name)
    for name in (RECORD, SWEEP_FILE, TRACKED):
        if name not in files:
            raise damaged("it lacks a file", value=name)
    return Manifest(sweep=sweep, files=files)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no number of bytes")
    return value


def legal(name: str) -> bool:
    """Whether an archive may hold a file of this name: a known place, plain parts, never `..` or an absolute name."""
    return _LEGAL.fullmatch(name) is not None


def without_paths(value: Any, machine: Sequence[str] = ()) -> Any:
    """The same JSON value; in its texts (not its keys) each absolute path becomes `elsewhere/<its last part>`.

    machine: folders whose names are taken out wherever they stand, also when they contain blanks.
    """
    if isinstance(value, str):
        return _without_path(value, machine)
    if isinstance(value, Mapping):
        return {key: without_paths(one, machine) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(one, machine) for one in value]
    return value


def _without_path(text: str, machine: Sequence[str]) -> str:
    if len(text) > 1 and text.startswith("/") and "\n" not in text:
        return f"{ELSEWHERE}/{text.rstrip('/').rpartition('/')[2]}"
    for folder in sorted(machine, key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", ELSEWHERE, text)
    return _EMBEDDED.sub(lambda found: f"{ELSEWHERE}/{found[1]}", text)


def definition_without_paths(text: str, machine: Sequence[str] = ()) -> str:
    """A sweep file whose overrides (`key=/a/b/file`) name no place of the machine; nothing else of it changes."""
    for folder in sorted(machine, key=len, reverse=True):
        text = re.sub(rf"(?<==){re.escape(folder)}(?=/)", "/", text)
    return _SET.sub(lambda found: f"{ELSEWHERE}/{found[1]}", text)


def journal_without_paths(content: bytes, machine: Sequence[str] = ()) -> bytes:
    """A journal's whole lines; only lines in which a path stood are written anew."""
    kept: list[bytes] = []
    for line in content.split(b"\n")[:-1]:
        try:
            raw = json.loads(line) if b"/" in line else None
        except ValueError:
            raw = None
        clean = without_paths(raw, machine)
        kept.append(line if clean == raw else json.dumps(clean, separators=(",", ":")).encode())
    return b"".join(line + b"\n" for line in kept)
