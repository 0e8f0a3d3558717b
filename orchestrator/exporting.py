"""From a root to one archive: gathers a table's sources and writes them, the same bytes for the same sources. Changes no run."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from jobs.journal import read_journal
from orchestrator.archive import (
    MANIFEST,
    RECORD,
    SWEEP_FILE,
    TABLES,
    TRACKED,
    Manifest,
    Member,
    definition_without_paths,
    journal_without_paths,
    legal,
    without_paths,
)
from orchestrator.errors import Problem, UserError
from orchestrator.goodput import Usage, to_plain
from orchestrator.lifecycle import ACTIVE
from orchestrator.records import RunRecord
from orchestrator.shipping import gather_sweep, run_facts
from orchestrator.store import usages
from orchestrator.store.runs import Store
from orchestrator.submission import ENVIRONMENTS, checkout
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import parse_sweep
from orchestrator.tables.assemble import assemble, metrics_of
from orchestrator.tables.render import Format, render
from orchestrator.tracking.names import tracker_key
from orchestrator.tracking.points import covered_points
from orchestrator.tracking.record import RunFacts, SweepRecord
from orchestrator.workspace import Root, code_files

WEIGHTS = "model.pt"
_CHUNK = 1 << 20
Content = Callable[[], bytes] | Path
"""What a member holds: made when it is needed, or a file that is copied as it is."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote."""

    files: int
    runs: int
    unpacked_bytes: int
    bytes: int


def machine_folders(root: Root) -> tuple[str, ...]:
    """Folders of this machine whose names must not leave it."""
    found = {str(root.path), str(checkout()), str(Path.home()), sys.prefix, os.getcwd()}
    found |= {str(Path(one).resolve()) for one in found}
    return tuple(sorted(one for one in found if len(one) > 1))


def export(root: Root, store: Store, name: str, target: Path, *, weights: bool) -> Exported:
    """Write the sources of a submitted sweep's table to `target` (whole or not at all). Raises UserError."""
    members = dict(sorted(_members(root, store, name, weights=weights).items()))
    for one in members:
        if not legal(one):
            raise UserError(Problem(what="a file of this name cannot be exported", where=name, value=one))
    manifest = Manifest(sweep=name, files={one: _measured(content) for one, content in members.items()})
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with (
            open(temporary, "xb") as file,
            gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
        ):
            text = manifest.to_json().encode()
            _add(tar, MANIFEST, len(text), io.BytesIO(text))
            for one, content in members.items():
                with _opened(content) as stream:
                    _add(tar, one, manifest.files[one].bytes, stream)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(Problem(what=f"cannot write the archive: {error.strerror or error}", where=str(target))) from error
    finally:
        temporary.unlink(missing_ok=True)
    runs = len({one.split("/")[1] for one in members if one.startswith("runs/")})
    return Exported(files=len(members), runs=runs, unpacked_bytes=manifest.total_bytes, bytes=target.stat().st_size)


def _add(tar: tarfile.TarFile, name: str, size: int, stream: IO[bytes]) -> None:
    header = tarfile.TarInfo(name)  # mtime 0, no owner
    header.size, header.mode = size, 0o600
    tar.addfile(header, stream)


def _opened(content: Content) -> IO[bytes]:
    return open(content, "rb") if isinstance(content, Path) else io.BytesIO(content())


def _measured(content: Content) -> Member:
    digest, size = hashlib.sha256(), 0
    with _opened(content) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Member(bytes=size, sha256=digest.hexdigest())


def _members(root: Root, store: Store, name: str, *, weights: bool) -> dict[str, Content]:
    row, records = store.sweep_row(name), store.of_sweep(name)
    assert row is not None
    busy = [run for run, record in records.items() if record.state in ACTIVE]
    if busy:
        raise UserError(
            Problem(
                what=f"{len(busy)} runs are still queued or at work",
                where=name,
                value=", ".join(busy[:4]),
                hint="wait for them, or `orch cancel` them: an archive holds what does not change any more",
            )
        )
    machine = machine_folders(root)
    used = usages.of(store.connection, records)
    facts = {run: _clean_facts(root, record, used.get(run), machine) for run, record in records.items()}
    tracked = _tracked(store, name, facts, machine)
    told = {
        "name": name,
        "title": row["title"],
        "comment": tracked.comment,
        "submitted_at": row["submitted_at"],
        "cells": [{"coordinates": dict(cell.coordinates), "runs": dict(cell.runs)} for cell in store.cells(name)],
        "runs": [_told(record, used.get(record.id), machine) for record in records.values()],
    }
    found: dict[str, Content] = {
        RECORD: partial(_json, told),
        SWEEP_FILE: partial(str.encode, tracked.definition),
        TRACKED: partial(str.encode, tracked.to_json() + "\n"),
    }
    if tracked.table is not None:
        model = assemble(tracked, _values(root, tracked))
        found |= {member: partial(str.encode, render(model, Format(style))) for member, style in TABLES.items()}
    trees, environments = set[str](), set[str]()
    for run in records:
        for path in _files_of(root, run, weights=weights):
            member = f"runs/{run}/{path.relative_to(root.run_dir(run).path).as_posix()}"
            found[member] = path if path.suffix == ".pt" else partial(_clean, path, machine)
        spec = _read(root.run_dir(run).spec)
        trees.add(str(spec.get("code_tree", "")))
        environments.add(str(spec.get("environment", "")))
        environments |= {
            str(_read(path).get("environment", "")) for path in _files_of(root, run) if path.parent.name == "attempts"
        }
    for tree in sorted(trees - {""}):
        for file in [*code_files(root.snapshots / tree), Path("commit.json")]:
            found[f"snapshots/{tree}/{file.as_posix()}"] = root.snapshots / tree / file
    for environment in sorted(environments - {""}):
        packages = root.path / ENVIRONMENTS / f"{environment}.json"
        if packages.is_file():
            found[f"{ENVIRONMENTS}/{environment}.json"] = packages
    return found


def _files_of(root: Root, run: str, *, weights: bool = False) -> Iterator[Path]:
    """What of a run directory is a source of a table."""
    place = root.run_dir(run)
    for path in (place.spec, place.outcome):
        if path.is_file():
            yield path
    for folder, pattern in ((place.attempts, "[0-9]*.json"), (place.journals, "[0-9]*.jsonl"), (place.output, "[!.]*.json")):
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())
    if weights and (place.output / WEIGHTS).is_file():
        yield place.output / WEIGHTS


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _clean(path: Path, machine: tuple[str, ...]) -> bytes:
    """A file of a run directory without paths of the machine; byte for byte itself when it holds none."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        return journal_without_paths(content, machine)
    try:
        raw = json.loads(content)
    except ValueError:
        return content
    clean = without_paths(raw, machine)
    return content if clean == raw else (json.dumps(clean, indent=1, sort_keys=True) + "\n").encode()


def _told(record: RunRecord, usage: Usage | None, machine: tuple[str, ...]) -> dict[str, Any]:
    """A row of the store without what only this cluster understands."""
    return {
        "id": record.id,
        "kind": record.kind,
        "state": record.state.value,
        "reason": without_paths(record.reason, machine),
        "needs": dict(record.needs),
        "resources": without_paths(dict(record.resources), machine),
        "code_tree": record.code_tree,
        "steps": record.steps,
        "usage": None if usage is None else to_plain(usage),
    }


def _clean_facts(root: Root, record: RunRecord, usage: Usage | None, machine: tuple[str, ...]) -> RunFacts:
    return run_facts(root, replace(record, reason=without_paths(record.reason, machine)), usage)


def _tracked(store: Store, name: str, facts: Mapping[str, RunFacts], machine: tuple[str, ...]) -> SweepRecord:
    """The sweep's record as the tracker is told it, without places and the tracker's own ids. Raises UserError."""
    record = gather_sweep(store, name, facts)
    assert record is not None
    definition = definition_without_paths(record.definition, machine)
    path = f"{name}.yaml"
    before, after = (parse_sweep(text, path) for text in (record.definition, definition))
    same = [dict(one.coordinates) for one in expand(before)] == [dict(one.coordinates) for one in expand(after)]
    labels = [
        [(axis, [one.label for one in told.options.values()]) for axis, told in one.axes.items()] for one in (before, after)
    ]
    if not same or labels[0] != labels[1] or (before.table, before.title, before.note) != (after.table, after.title, after.note):
        raise UserError(
            Problem(what="its table names places of this machine", where=name, hint="name the options of the axis, with labels")
        )
    return replace(record, definition=definition, axes=dict(after.axes), comment=without_paths(record.comment, machine))


def _values(root: Root, record: SweepRecord) -> dict[str, dict[str, float]]:
    """run id -> metric -> value at its largest step: from the journals what the tracker has of them."""
    keys = {metric: tracker_key(metric) for metric in metrics_of(record)}
    found: dict[str, dict[str, float]] = {}
    for run in record.runs:
        last = {point.name: point.value for point in covered_points(read_journal(root.run_dir(run).journals), from_step=-1)}
        found[run] = {metric: last[key] for metric, key in keys.items() if key in last}
    return found
