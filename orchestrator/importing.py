"""From an archive of `orch export` to a root of its own. The archive is a stranger's: what it says is checked before it counts.

Everything is unpacked beside the root, in `.NAME.importing`; one rename puts it in place when it is whole. What is on disk if we
die: that folder, under a lock that died with us; the next import of the same root removes it.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import signal
import tarfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from orchestrator import workspace
from orchestrator.archive import (
    MANIFEST,
    MANIFEST_BYTES,
    RECORD,
    SWEEP_FILE,
    TABLES,
    TRACKED,
    Manifest,
    Member,
    damaged,
    read_manifest,
)
from orchestrator.errors import Problem, UserError
from orchestrator.goodput import Usage, from_plain
from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.records import CellRecord, RunRecord
from orchestrator.store import usages
from orchestrator.store.runs import Store
from orchestrator.store.schema import transaction
from orchestrator.sweep.grammar import parse_sweep
from orchestrator.workspace import Root, tree_hash

IMPORTED = "imported"
"""ROOT/imported: the archive's own account (manifest, sweep file, tables as they were exported)."""
_CHUNK = 1 << 20
_BESIDE = (SWEEP_FILE, RECORD, TRACKED, *TABLES)


def import_archive(file: Path, root: Root) -> Manifest:
    """Rebuild a root, which must not be there yet (or be empty), from an archive. Raises UserError; then nothing is left."""
    if root.path.is_symlink() or (root.path.exists() and not (root.path.is_dir() and not any(root.path.iterdir()))):
        raise UserError(
            Problem(what="an archive needs a root of its own: this one is there already", where=str(root.path), hint="--root DIR")
        )
    try:
        with _staging(root.path) as place, _ended_by_term():
            manifest = _unpack(file, place)
            _build(Root(place), manifest, final=root.path)
            workspace.flush(Root(place))
            os.rename(place, root.path)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(str(error) or type(error).__name__) from error
    except OSError as error:
        where = str(file if error.filename == str(file) else root.path)
        raise UserError(Problem(what=f"cannot import: {error.strerror or error}", where=where)) from error
    return manifest


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A new private folder beside `path`, ours alone; gone afterwards unless it was renamed."""
    place = path.with_name(f".{path.name}.importing")
    handle = -1
    try:
        while handle < 0:
            with suppress(FileExistsError):
                place.mkdir(mode=0o700)
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                handle = -1
                raise UserError(Problem(what="another import is at work on this root", where=str(path))) from None
            if any(place.iterdir()):  # of an import that was killed
                shutil.rmtree(place)
                os.close(handle)
                handle = -1
        yield place
    finally:
        if handle >= 0:
            with suppress(OSError):
                if os.path.samestat(os.fstat(handle), os.stat(place)):  # else renamed, or another's by now
                    shutil.rmtree(place, ignore_errors=True)
            os.close(handle)


@contextmanager
def _ended_by_term() -> Iterator[None]:
    """SIGTERM ends an import as Ctrl-C does, so that nothing is left behind."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unpack(file: Path, place: Path) -> Manifest:
    """Every file of the archive into a new folder, each measured against the manifest as it comes.

    Headers are read here, one block each: no entry can make us unpack, or remember, more than the manifest says.
    """
    with gzip.open(file, "rb") as packed:
        stream: IO[bytes] = packed  # type: ignore[assignment]  # has all that is asked of it
        first = _header(stream)
        if first is None or first.name != MANIFEST or first.type != tarfile.REGTYPE or not 0 <= first.size <= MANIFEST_BYTES:
            raise damaged("it does not begin with its manifest")
        text = b"".join(_content(stream, first.size))
        try:
            manifest = read_manifest(text.decode())
        except UnicodeDecodeError as error:
            raise damaged("its manifest is no text") from error
        _check_room(manifest, place)
        missing = dict(manifest.files)
        while (header := _header(stream)) is not None:
            expected = missing.pop(header.name, None)
            if expected is None:
                raise damaged("a file is not in its manifest, or comes twice", value=header.name)
            if header.type != tarfile.REGTYPE or header.size != expected.bytes:
                raise damaged("an entry is no plain file of the size that its manifest says", value=header.name)
            _store(_content(stream, header.size), place / _where(header.name), expected)
        if missing:
            raise damaged(f"it lacks {len(missing)} files", value=next(iter(missing)))
    (place / IMPORTED).mkdir(mode=0o700, exist_ok=True)
    (place / IMPORTED / MANIFEST).write_bytes(text)
    return manifest


def _header(stream: IO[bytes]) -> tarfile.TarInfo | None:
    """The next entry's header; None at the end. Raises UserError for what is no header."""
    try:
        return tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "ascii", "strict")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # public, and missing from the stubs
        return None
    except UnicodeDecodeError as error:
        raise damaged("an entry has a name that no archive has") from error


def _content(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """What follows a header, with the padding taken off; raises UserError when there is less."""
    left = size
    while left:
        chunk = stream.read(min(_CHUNK, left))
        if not chunk:
            raise damaged("it ends too early")
        left -= len(chunk)
        yield chunk
    stream.read(-size % tarfile.BLOCKSIZE)


def _where(name: str) -> str:
    """The place of a member below the root."""
    return f"{IMPORTED}/{name}" if name in _BESIDE else name


def _check_room(manifest: Manifest, place: Path) -> None:
    free = shutil.disk_usage(place).free
    if manifest.total_bytes > free:
        what = f"it unpacks to {manifest.total_bytes:,} bytes, and there is room for {free:,}"
        raise UserError(Problem(what=what, where=str(place.parent)))


def _store(chunks: Iterator[bytes], path: Path, expected: Member) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != expected.sha256:
        raise damaged("a file does not match its checksum", value=path.name)


def _build(root: Root, manifest: Manifest, *, final: Path) -> None:
    """The rest of a root: links to the code, the store. `final`: where it will be."""
    told = _load(root.path / IMPORTED / RECORD)
    try:
        name, runs, cells = _record(told)
        used = _usage(told)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise damaged(f"its record cannot be read ({type(error).__name__}: {error})") from error
    definition = (root.path / IMPORTED / SWEEP_FILE).read_text(encoding="utf-8")
    sweep = parse_sweep(definition, f"{name}.yaml")  # also refuses a name that no sweep has
    if name != manifest.sweep:
        raise damaged("its manifest and its record name two sweeps", value=name)
    root.create()
    for tree in [path.name for path in root.snapshots.iterdir()]:
        if tree_hash(root.snapshots / tree) != tree or not (root.snapshots / tree / "commit.json").is_file():
            raise damaged("a code snapshot is not the one that its runs were frozen with", value=tree)
    known = {run.id for run in runs}
    if strangers := sorted({path.name for path in root.runs.iterdir()} - known):
        raise damaged("it holds a run that its record does not know", value=strangers[0])
    for run in runs:
        _build_run(root, run)
    store = Store(root.store)
    try:
        comment = str(told.get("comment", ""))
        path = str(final / IMPORTED / f"{name}.yaml")
        store.add(
            name=name, path=path, title=sweep.title, definition=definition, comment=comment, cells=cells, runs=runs, partial=False
        )
        with transaction(store.connection):
            usages.put(store.connection, used, store.runs(used), at=time.time())
    finally:
        store.close()


def _build_run(root: Root, run: RunRecord) -> None:
    place = root.run_dir(run.id)
    spec = _load(place.spec)
    if spec.get("id") != run.id or spec.get("code_tree") != run.code_tree:
        raise damaged("a run's specification is not its own", value=run.id)
    if not (root.snapshots / run.code_tree).is_dir():
        raise damaged("it lacks the code of a run", value=run.id)
    place.code.symlink_to(Path("..", "..", "snapshots", run.code_tree))
    place.logs.mkdir()


def _record(told: Mapping[str, Any]) -> tuple[str, list[RunRecord], list[CellRecord]]:
    """The sweep's name, its runs and cells; raises KeyError, ValueError or TypeError for what is none."""
    runs = [
        RunRecord(
            id=_text(one["id"]),
            kind=_text(one["kind"]),
            state=RunState(one["state"]),
            reason=str(one["reason"]),
            needs={_text(kind): _text(need) for kind, need in one["needs"].items()},
            resources=dict(one["resources"]),
            code_tree=_text(one["code_tree"]),
            steps=int(one["steps"]),
        )
        for one in told["runs"]
    ]
    known = {run.id for run in runs}
    cells = [
        CellRecord(
            coordinates={str(axis): str(option) for axis, option in cell["coordinates"].items()},
            runs={str(step): str(run) for step, run in cell["runs"].items()},
        )
        for cell in told["cells"]
    ]
    used = {run for cell in cells for run in cell.runs.values()} | {need for run in runs for need in run.needs.values()}
    if len(known) != len(runs) or not used <= known or any(run.state in ACTIVE for run in runs):
        raise ValueError("its runs do not fit together")
    return _text(told["name"]), runs, cells


def _usage(told: Mapping[str, Any]) -> dict[str, Usage]:
    """What its runs have used, where it says so; from the journals alone nobody could tell how long they were queued."""
    return {str(one["id"]): from_plain(one["usage"]) for one in told["runs"] if one.get("usage") is not None}


def _text(value: Any) -> str:
    """A name that is safe as one part of a path."""
    if not isinstance(value, str) or not value or value.startswith(".") or "/" in value or "\0" in value:
        raise ValueError("no name")
    return value


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged("a file of it cannot be read", value=path.name) from error
    if not isinstance(raw, dict):
        raise damaged("a file of it cannot be read", value=path.name)
    return raw
