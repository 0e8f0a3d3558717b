"""Looks for what `gc.py` decides about, and removes what it names. Never follows a symbolic link below the root.

A folder is renamed inside its own directory first, to a name that nobody reads (`.gc-...`), and removed then: killed at any line,
a checkpoint or a snapshot is whole under its name or gone, and the next `orch gc` removes the rest. A file goes at once.

under the root's lock     is everything still as it was seen? then rename
without it                remove what has been renamed: it is nobody's
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.checkpoint import MANIFEST, CheckpointStore
from jobs.contract import Attempt, RunDir, Status, manifest_problem, read_attempts, read_outcome
from orchestrator.gc import (
    CheckpointSeen,
    Kind,
    LogSeen,
    Removal,
    RunSeen,
    SnapshotsSeen,
    Thing,
    removals_of_snapshots,
    why_left_alone,
)
from orchestrator.lifecycle import RunState
from orchestrator.local_process import LOCAL_JOB, alive
from orchestrator.records import RunRecord
from orchestrator.store.runs import Store
from orchestrator.workspace import Root

TRASH = ".gc-"
_CHECKPOINT, _SAVING = "step-", ".saving-"
_RANK_LOG = re.compile(r"(\d+_\d+)\.\d+\.log")
_LOOKERS = 8
"""Threads: checksums are read from disk."""
_TRIES = 20


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing when it is none, or a symbolic link to one."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return []
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _measure(entry: os.DirEntry[str]) -> tuple[int, float]:
    """(bytes of the files in it, newest time of writing); of what vanishes meanwhile, nothing."""
    with suppress(FileNotFoundError):
        own = entry.stat(follow_symlinks=False)
        if not entry.is_dir(follow_symlinks=False):
            return own.st_size, own.st_mtime
        inside = [_measure(one) for one in _entries(Path(entry.path))]
        return sum(size for size, _ in inside), max([own.st_mtime, *(at for _, at in inside)])
    return 0, 0.0


def _thing(root: Root, entry: os.DirEntry[str]) -> Thing:
    return Thing(path=os.path.relpath(entry.path, root.path), bytes=_measure(entry)[0])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _trash(root: Root, *folders: Path) -> list[Thing]:
    return [_thing(root, one) for folder in folders for one in _entries(folder) if one.name.startswith(TRASH) and _is_folder(one)]


def _lives(record: RunRecord, newest: Attempt | None) -> bool | None:
    """Whether a process without Slurm works on a run; None when this machine cannot know."""
    if record.job.startswith(LOCAL_JOB) and alive(record.job):
        return True
    if newest is None or newest.job_id or newest.node != platform.node() or newest.pid <= 0:
        return None
    try:
        return record.id.encode() in Path(f"/proc/{newest.pid}/cmdline").read_bytes()  # process ids are used again
    except FileNotFoundError:
        return False
    except OSError:
        return None


def look(root: Root, record: RunRecord) -> RunSeen:
    """One run as it lies on disk; which of its checkpoints are valid is not asked yet."""
    run_dir = root.run_dir(record.id)
    if not all(stat.S_ISDIR(os.lstat(path).st_mode) for path in (root.runs, run_dir.path) if os.path.lexists(path)):
        return RunSeen(id=record.id, state=record.state)  # moved elsewhere by a link: not ours
    attempts = read_attempts(run_dir)
    newest = attempts[-1] if attempts else None
    outcome = read_outcome(run_dir)
    saved = _entries(run_dir.checkpoints)
    logs = [one for one in _entries(run_dir.logs) if one.name.endswith(".log") and one.is_file(follow_symlinks=False)]
    measured = {one.path: _measure(one) for one in [*saved, *logs]}
    journals = [_measure(one)[1] for folder in (run_dir.journals, run_dir.attempts) for one in _entries(folder)]
    scratch = next((one for one in _entries(run_dir.path) if one.name == "work" and _is_folder(one)), None)
    return RunSeen(
        id=record.id,
        state=record.state,
        job=record.job,
        attempt=newest.number if newest else 0,
        attempt_job=newest.job_id if newest else "",
        process_lives=_lives(record, newest),
        ended=outcome is not None and (outcome.status is Status.DONE or newest is None or outcome.attempt >= newest.number),
        whole=manifest_problem(run_dir) is None,
        written_at=max([*journals, *(at for _, at in measured.values())], default=0.0),
        checkpoints=[
            CheckpointSeen(path=os.path.relpath(one.path, root.path), bytes=measured[one.path][0], removable=_is_folder(one))
            for one in saved
            if one.name.startswith(_CHECKPOINT)
        ],
        leftovers=[_thing(root, one) for one in saved if one.name.startswith(_SAVING) and _is_folder(one)],
        scratch=None if scratch is None else _thing(root, scratch),
        logs=[_log(root, one, measured[one.path]) for one in logs],
        trash=_trash(root, run_dir.path, run_dir.checkpoints),
    )


def _log(root: Root, entry: os.DirEntry[str], measured: tuple[int, float]) -> LogSeen:
    of_rank = _RANK_LOG.fullmatch(entry.name)
    job = of_rank[1] if of_rank else entry.name
    return LogSeen(path=os.path.relpath(entry.path, root.path), bytes=measured[0], job=job, modified_at=measured[1])


def with_checksums(root: Root, run: RunSeen) -> RunSeen:
    """The same with its newest valid checkpoint; all its files are read."""
    found, _ = CheckpointStore(directory=root.run_dir(run.id).checkpoints, config_hash=run.id).newest()
    return replace(run, newest_valid=None if found is None else os.path.relpath(found.path, root.path))


def look_at_all(root: Root, records: Iterable[RunRecord], live: frozenset[str] | None, now: float) -> list[RunSeen]:
    """Every run; checksums are read where something may depend on them."""

    def one(record: RunRecord) -> RunSeen:
        seen = look(root, record)
        asks = len(seen.checkpoints) > 1 and not why_left_alone(seen, live, now)
        return with_checksums(root, seen) if asks else seen

    with ThreadPoolExecutor(_LOOKERS) as pool:
        return list(pool.map(one, records))


def _tree_in_spec(run_dir: RunDir) -> str:
    """The code tree that a frozen spec names; raises OSError or ValueError when it cannot be read."""
    found = json.loads(run_dir.spec.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("no mapping")
    return str(found.get("code_tree", ""))


def look_at_snapshots(root: Root, records: Mapping[str, RunRecord]) -> SnapshotsSeen:
    """Code snapshots and every link to them: of runs in the store, and of run directories that it does not know."""
    linked = {record.code_tree for record in records.values()}
    unknown = ["runs"] if root.runs.is_symlink() else []
    for entry in _entries(root.runs):
        run_dir = RunDir(Path(entry.path))
        try:
            linked.add(os.path.basename(os.readlink(run_dir.code)))
        except OSError:
            try:
                linked.add(_tree_in_spec(run_dir))
            except FileNotFoundError:
                pass  # a freeze that died before both; the next one begins anew
            except (OSError, ValueError):
                unknown.append(entry.name)
    folders = [one for one in _entries(root.snapshots) if _is_folder(one)]
    return SnapshotsSeen(
        trees=[_thing(root, one) for one in folders if not one.name.startswith(".")],
        leftovers=[_thing(root, one) for one in folders if one.name.startswith(".") and not one.name.startswith(TRASH)],
        trash=_trash(root, root.snapshots),
        linked=frozenset(linked),
        unknown=unknown,
    )


def unchanged(root: Root, run: RunSeen, record: RunRecord | None) -> bool:
    """Whether a run is still as it was seen: nobody has taken it up, and the checkpoint that is kept is there."""
    if record is None or (record.state, record.job) != (run.state, run.job):
        return False
    run_dir = root.run_dir(run.id)
    if max((attempt.number for attempt in read_attempts(run_dir)), default=0) != run.attempt:
        return False
    if run.newest_valid is not None and not (root.path / run.newest_valid / MANIFEST).exists():
        return False
    return run.state is not RunState.DONE or not run.whole or manifest_problem(run_dir) is None


@contextmanager
def _parent(root: Root, path: str) -> Iterator[tuple[int, str]]:
    """(handle of the folder that holds a path below the root, last name); raises OSError where a link is on the way."""
    *folders, name = path.split("/")
    if not folders or {"", ".", ".."} & {*folders, name}:
        raise ValueError(f"not a path below the root: {path}")
    handle = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle, name
    finally:
        os.close(handle)


def _take(root: Root, removal: Removal) -> str | None:
    """Take a thing away from under its name: where it lies now, empty when it has gone at once, None when it was not there."""
    with suppress(FileNotFoundError), _parent(root, removal.path) as (parent, name):
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISREG(mode):
            os.unlink(name, dir_fd=parent)
            return ""
        if not stat.S_ISDIR(mode):
            return None
        if removal.kind is Kind.TRASH:
            return removal.path
        trash = f"{TRASH}{uuid.uuid4().hex}"
        os.rename(name, trash, src_dir_fd=parent, dst_dir_fd=parent)
        return f"{removal.path.rpartition('/')[0]}/{trash}"
    return None


def _empty(root: Root, path: str) -> None:
    """Remove a folder that was taken; another `orch gc` may be at it as well. Raises OSError."""
    with suppress(FileNotFoundError), _parent(root, path) as (parent, name):
        for _ in range(_TRIES):  # two that remove one folder make each other stumble
            os.stat(name, dir_fd=parent, follow_symlinks=False)
            with suppress(FileNotFoundError):
                shutil.rmtree(name, dir_fd=parent)
        os.stat(name, dir_fd=parent, follow_symlinks=False)
        raise OSError(errno.EBUSY, "it is still there")


@dataclass(kw_only=True)
class Removed:
    """What became of removals."""

    done: list[Removal] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Path -> why it is still there, or what is left of it."""
    moved_on: list[str] = field(default_factory=list)
    """Runs that somebody took up, or that changed, since they were looked at."""

    def take(self, root: Root, removal: Removal) -> tuple[Removal, str] | None:
        """For the holder of the root's lock: the removal and where its folder lies now."""
        try:
            path = _take(root, removal)
        except OSError as error:
            self.failed[removal.path] = error.strerror or str(error)
            return None
        return None if path is None else (removal, path)

    def empty(self, root: Root, taken: Iterable[tuple[Removal, str]]) -> None:
        """Without the lock: remove what was taken."""
        for removal, path in taken:
            try:
                if path:
                    _empty(root, path)
                self.done.append(removal)
            except OSError as error:
                self.failed[removal.path] = error.strerror or str(error)


def remove_of_run(root: Root, store: Store, run: RunSeen, removals: Sequence[Removal], into: Removed) -> None:
    """Remove what was decided about one run, as long as it stays what it was: asked again right before each removal."""
    taken: list[tuple[Removal, str]] = []
    with root.lock():
        for removal in removals:
            if not unchanged(root, run, store.runs([run.id]).get(run.id)):
                into.moved_on.append(run.id)
                break
            if one := into.take(root, removal):
                taken.append(one)
    into.empty(root, taken)


def remove_snapshots(root: Root, store: Store, into: Removed) -> None:
    """Remove the code that no run links to now: whoever freezes a run holds the same lock."""
    with root.lock():
        decided = removals_of_snapshots(look_at_snapshots(root, store.runs()))
        taken = [one for removal in decided if (one := into.take(root, removal))]
    into.empty(root, taken)
