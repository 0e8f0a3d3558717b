"""The root directory: where run directories, code snapshots and submissions live, and who may change them.

ROOT/orch.db            the store (control plane only)
ROOT/lock               held while something is changed
ROOT/site.json          the site profile (`orch doctor`)
ROOT/runs/ID/           run directories (jobs.contract)
ROOT/snapshots/TREE/    code snapshots, one per tree hash
ROOT/slurm/TOKEN/       index table, script and batch log of one submission
ROOT/mlflow.db, ROOT/mlartifacts/   the default tracker
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import CODE_PACKAGES, RunDir, write_atomically
from orchestrator.errors import ClusterError, Problem, UserError, printable


def unwritable(root: Path, error: OSError) -> UserError:
    """The words for a root that cannot be written."""
    return UserError(
        Problem(
            what=f"the root cannot be written: {error.strerror}",
            where=str(root),
            hint="choose another with `--root DIR` or ORCH_ROOT",
        )
    )


@dataclass(frozen=True)
class Root:
    """Paths below one root."""

    path: Path

    @property
    def store(self) -> Path:
        return self.path / "orch.db"

    @property
    def site(self) -> Path:
        return self.path / "site.json"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    def run_dir(self, run_id: str) -> RunDir:
        """The directory of a run (which may not exist)."""
        return RunDir(self.runs / run_id)

    @property
    def umask(self) -> int:
        """What is made below the root is its owner's alone; or its group's too, where the root is group-writable and setgid."""
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return 0o077
        return 0o007 if mode & stat.S_ISGID and mode & stat.S_IWGRP else 0o077

    @property
    def folder_mode(self) -> int:
        """Of folders below the root."""
        return 0o777 & ~self.umask

    def create(self) -> None:
        """Make the root (private to its owner) and prove that it can be written; raises UserError."""
        if printable(str(self.path)) != str(self.path) or len(str(self.path).splitlines()) > 1:
            raise UserError(Problem(what="the root's path holds a control character", where=repr(str(self.path))))
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.runs, self.snapshots, self.slurm):
                folder.mkdir(mode=self.folder_mode, exist_ok=True)
            probe = self.path / f".probe-{uuid.uuid4().hex}"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            raise unwritable(self.path, error) from error

    @contextmanager
    def lock(self, *, wait: bool = True, name: str = "lock") -> Iterator[bool]:
        """Hold the root lock, or another by name; yields False without waiting when somebody else has it and `wait` is off.

        Under a root of somebody else's that we may only read: False as well, or a UserError when `wait` is on.
        """
        try:
            handle = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o666 & ~self.umask)
        except OSError as error:
            if wait:
                raise unwritable(self.path, error) from error
            yield False
            return
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The code that queued jobs will import."""

    tree: str
    path: Path
    commit: str
    dirty: bool


def code_files(checkout: Path) -> list[Path]:
    """Every file of the packages that a job imports, sorted, relative to the checkout."""
    found: list[Path] = []
    for package in CODE_PACKAGES:
        for folder, names, files in os.walk(checkout / package):
            names[:] = [name for name in names if name != "__pycache__"]
            found += [Path(folder, name).relative_to(checkout) for name in files if name.endswith((".py", ".yaml"))]
    return sorted(found)


def tree_hash(checkout: Path) -> str:
    """Hash of the names and contents of the code files."""
    digest = hashlib.sha256()
    for name in code_files(checkout):
        content = (checkout / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _git(checkout: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def snapshot_code(root: Root, checkout: Path) -> Snapshot:
    """Copy the code once per tree hash, with the commit and the uncommitted diff beside it. Atomic, can run again."""
    tree = tree_hash(checkout)
    path = root.snapshots / tree
    if not path.is_dir():
        temporary = root.snapshots / f".{tree}.{uuid.uuid4().hex}"
        for name in code_files(checkout):
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / name, target)
        commit = _git(checkout, "rev-parse", "HEAD").strip()
        diff = _git(checkout, "diff", "HEAD", "--", *CODE_PACKAGES)
        untracked = _git(checkout, "ls-files", "--others", "--exclude-standard", "--", *CODE_PACKAGES)
        (temporary / "dirty.diff").write_text(diff, encoding="utf-8")
        facts = {"commit": commit, "dirty": bool(diff.strip() or untracked.strip()), "untracked": untracked.split()}
        (temporary / "commit.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        try:
            os.rename(temporary, path)
        except OSError:  # somebody else was faster
            shutil.rmtree(temporary, ignore_errors=True)
    try:
        facts = json.loads((path / "commit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClusterError(
            Problem(what="the code snapshot is damaged", where=str(path), hint=f"remove {path} and submit again")
        ) from error
    return Snapshot(tree=tree, path=path, commit=str(facts["commit"]), dirty=bool(facts["dirty"]))


def freeze(root: Root, run_id: str, spec: Mapping[str, Any], *, tree: str) -> str:
    """Make a run directory with its frozen spec and its code; the code tree that the run is frozen with.

    A run that is frozen already is never changed: it keeps the tree of its spec (an `orch` died before it told the store).
    """
    run_dir = root.run_dir(run_id)
    if run_dir.spec.exists():
        return str(json.loads(run_dir.spec.read_text(encoding="utf-8")).get("code_tree", ""))
    run_dir.path.mkdir(mode=root.folder_mode, exist_ok=True)
    run_dir.code.unlink(missing_ok=True)  # of a freeze that died before its spec
    run_dir.code.symlink_to(Path("..", "..", "snapshots", tree))
    run_dir.logs.mkdir(exist_ok=True)
    temporary = run_dir.path / ".spec.json"
    temporary.write_text(json.dumps(spec, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, run_dir.spec)
    return tree


def flush(root: Root) -> None:
    """Make thousands of small files durable at once: syncfs(2) on the root's file system, which Python does not wrap."""
    handle = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None, use_errno=True).syncfs(handle)
    finally:
        os.close(handle)


def refreeze_config(root: Root, run_id: str, config: Mapping[str, Any], *, planned_tasks: int | None = None) -> None:
    """Give an unfinished run the settings that are not part of its identity: same id, so nothing else can differ.

    `planned_tasks`: the world size that they are meant for; None leaves it as it is. Code from before there was such a number
    refuses a spec that has one, so 0 is not written where none stands.
    """
    run_dir = root.run_dir(run_id)
    spec = json.loads(run_dir.spec.read_text(encoding="utf-8"))
    changed = spec | {"config": dict(config)}
    if planned_tasks is not None and planned_tasks != spec.get("planned_tasks", 0):
        changed["planned_tasks"] = planned_tasks
    if changed != spec:
        write_atomically(run_dir.spec, json.dumps(changed, indent=1, sort_keys=True) + "\n")


def refreeze_runtime(root: Root, run_id: str, changed: Mapping[str, int]) -> None:
    """Change how an unfinished run is executed (keys of `runtime`), which is no part of its identity."""
    config = json.loads(root.run_dir(run_id).spec.read_text(encoding="utf-8"))["config"]
    refreeze_config(root, run_id, config | {"runtime": config["runtime"] | dict(changed)})


def refreeze_places(root: Root, run_id: str, config: Mapping[str, Any]) -> None:
    """Tell a finished run where its data and weights lie now: later runs look there. Nothing else of its record changes."""
    run_dir = root.run_dir(run_id)
    spec = json.loads(run_dir.spec.read_text(encoding="utf-8"))
    moved = _with_places(spec.get("config"), config)
    if moved != spec.get("config"):
        write_atomically(run_dir.spec, json.dumps(spec | {"config": moved}, indent=1, sort_keys=True) + "\n")


def _with_places(old: Any, new: Any) -> Any:
    """The old configuration with every `path` of the new one."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return old
    return {key: new[key] if key == "path" and key in new else _with_places(value, new.get(key)) for key, value in old.items()}


def refreeze_code(root: Root, run_id: str, snapshot: Snapshot) -> None:
    """Point an unfinished run at newer code, because the user said so."""
    run_dir = root.run_dir(run_id)
    spec = json.loads(run_dir.spec.read_text(encoding="utf-8"))
    spec |= {"code_tree": snapshot.tree, "code_commit": snapshot.commit, "code_dirty": snapshot.dirty}
    link = run_dir.path / f".code-{uuid.uuid4().hex}"
    link.symlink_to(Path("..", "..", "snapshots", snapshot.tree))
    os.replace(link, run_dir.code)
    write_atomically(run_dir.spec, json.dumps(spec, indent=1, sort_keys=True) + "\n")


def discard(root: Root, run_ids: Iterable[str]) -> None:
    """Remove run directories that nobody ever started (a refused submission leaves nothing behind)."""
    for run_id in run_ids:
        run_dir = root.run_dir(run_id)
        if not run_dir.attempts.exists():
            shutil.rmtree(run_dir.path, ignore_errors=True)
