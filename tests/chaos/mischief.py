"""Owns deaths and errors at a chosen line, and a node's wrong clock and old listings. The standard library alone.

Tests use `struck` in their own process. For a storm the file is copied into the `jobs` package that its runs import
(tests/chaos/broken.py), and `install` is a job's first call: it waits for orders, which are files of the run's directory or of
its root, since a job inherits nothing else from whoever makes the storm.

    RUN_DIR/mischief.json      {"function": "CheckpointStore.save", "line": 73, "act": "kill"}, taken by one process, once
    ROOT/skew.json             {"n2": 90.0}: seconds that a node's clock is ahead
    ROOT/stale, ROOT/slow      until the time in it (seconds since the epoch), listings are some seconds old, or take long
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from types import CodeType, FrameType
from typing import Any

ORDER, SKEW, STALE, SLOW = "mischief.json", "skew.json", "stale", "slow"
STALE_S, SLOW_S = 3.0, 0.5
"""How old a stale listing is, and how long a slow one takes."""
ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "ESTALE")
"""What a write may meet: a full disk, a quota, a file system that has become read-only, a server that forgot the file."""

_real_time, _real_listdir = time.time, os.listdir


def lines_of(function: Callable[..., Any]) -> list[int]:
    """Numbers of the lines that a function may execute, those of functions inside it too."""
    found: set[int] = set()
    stack: list[CodeType] = [inspect.unwrap(function).__code__]
    while stack:
        code = stack.pop()
        found |= {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
        stack += [one for one in code.co_consts if isinstance(one, CodeType)]
    return sorted(found)


@contextmanager
def struck(function: Callable[..., Any], line: int, act: Callable[[], object]) -> Iterator[None]:
    """Within, on this thread: `act` is called once, right before that line of the function's file runs. What it raises, the line
    raises."""
    file, waiting = inspect.unwrap(function).__code__.co_filename, [act]

    def inside(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and frame.f_lineno == line and waiting:
            waiting.pop()()
        return inside

    def entered(frame: FrameType, _event: str, _: object) -> Any:
        return inside if waiting and frame.f_code.co_filename == file else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        yield
    finally:
        sys.settrace(before)


def acting(act: str, durable: Durable | None = None) -> Callable[[], object]:
    """What an act's name means: `kill`, `power` (what was written and not fsynced is gone as well), or one of ERRORS."""

    def die() -> None:
        if act == "power" and durable is not None:
            durable.lose_the_rest()
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        number = getattr(errno, act)
        raise OSError(number, os.strerror(number))

    return die if act in ("kill", "power") else fail


class Durable:
    """What of the files that this process has written would outlive a power cut: as much as there was at the last fsync."""

    def __init__(self) -> None:
        self._written: set[str] = set()
        self._known: dict[tuple[int, int], int] = {}
        self._fsync, self._lock = os.fsync, threading.Lock()

    def watch(self) -> Durable:
        """From now on; there is no end to it."""
        os.fsync = self._synced
        sys.addaudithook(self._happened)
        return self

    def _synced(self, handle: Any) -> None:
        self._fsync(handle)
        found = os.fstat(handle)
        with self._lock:
            self._known[found.st_dev, found.st_ino] = found.st_size

    def _happened(self, event: str, arguments: Any) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes) and isinstance(arguments[2], int):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR):
                with self._lock:
                    self._written.add(os.path.abspath(os.fsdecode(arguments[0])))
        elif event == "os.rename":
            old, new = (os.path.abspath(os.fsdecode(one)) for one in arguments[:2])
            with self._lock:
                moved = {path for path in self._written if path == old or path.startswith(f"{old}/")}
                self._written = self._written - moved | {new + path[len(old) :] for path in moved}

    def lose_the_rest(self) -> None:
        """Cut every file to what is durable of it."""
        for path in self._written:
            with suppress(OSError):
                found = os.lstat(path)
                if S_ISREG(found.st_mode):
                    os.truncate(path, min(found.st_size, self._known.get((found.st_dev, found.st_ino), 0)))


def _until(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def install(run_dir: Path) -> None:
    """In a job: from now on orders are obeyed."""
    root = run_dir.parent.parent
    with suppress(OSError, ValueError):
        ahead_s = float(json.loads((root / SKEW).read_text()).get(os.environ.get("SLURMD_NODENAME", ""), 0.0))
        time.time = lambda: _real_time() + ahead_s
        real_ns = time.time_ns
        time.time_ns = lambda: real_ns() + int(ahead_s * 1e9)

    def listdir(path: Any = ".") -> Any:
        if _until(root / SLOW) > _real_time():
            time.sleep(SLOW_S)
        found = _real_listdir(path)
        if _until(root / STALE) <= _real_time() or isinstance(path, int):
            return found
        old = _real_time() - STALE_S
        return [name for name in found if _changed(os.path.join(path, name)) < old]

    os.listdir = listdir  # pathlib's listings come from here too
    _obey(run_dir, Durable().watch())


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _obey(run_dir: Path, durable: Durable) -> None:
    """Let every target look for an order when it is called."""
    from jobs import checkpoint, contract

    def obedient(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            order = _take(run_dir, name)
            if order is None:
                return function(*arguments, **named)
            with struck(function, order["line"], acting(order["act"], durable)):
                return function(*arguments, **named)

        return wrapped

    store = checkpoint.CheckpointStore
    store.save = obedient("CheckpointStore.save", store.save)  # type: ignore[method-assign]
    store.newest = obedient("CheckpointStore.newest", store.newest)  # type: ignore[method-assign]
    for name in ("claim", "write_outcome"):
        wrapped = obedient(name, getattr(contract, name))
        for module in list(sys.modules.values()):
            if getattr(module, name, None) is getattr(contract, name) and module is not contract:
                setattr(module, name, wrapped)


def _take(run_dir: Path, name: str) -> dict[str, Any] | None:
    """The order for this function, if there is one and nobody was faster."""
    path = run_dir / ORDER
    with suppress(OSError, ValueError, KeyError):
        order: dict[str, Any] = json.loads(path.read_text())
        if order["function"] == name:
            os.rename(path, path.with_suffix(f".{os.getpid()}"))
            return order
    return None
