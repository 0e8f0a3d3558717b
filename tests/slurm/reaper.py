"""Owns one process tree of the private cluster: starts a daemon and adopts and ends everything that comes from it.

    python reaper.py [--die-with-parent] -- COMMAND...

slurmd's step daemons detach themselves, so a process group does not hold them; as a *subreaper* this process becomes
the parent of every orphan below it. SIGTERM ends the tree politely, then for good; SIGUSR1 kills it at once, as a node
that loses power; SIGUSR2 kills the daemon alone and starts it again. With `--die-with-parent` the tree also ends when the test
process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLITE_S = 3.0


def descendants(root: int) -> list[int]:
    """Pids of all living processes below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as handle:
                fields = handle.read().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue  # it ended while we looked
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    stack = [root]
    while stack:
        below = children.get(stack.pop(), [])
        found.extend(below)
        stack.extend(below)
    return found


def kill_all() -> None:
    """SIGKILL every descendant until none is left; each round first stops them, so that none forks meanwhile."""
    while pids := descendants(os.getpid()):
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
        reap()
        time.sleep(0.01)


def reap() -> None:
    """Collect every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main(arguments: list[str]) -> int:
    """Run the daemon until it ends or a signal asks for the end of the tree."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    split = arguments.index("--")
    if "--die-with-parent" in arguments[:split]:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    asked: list[int] = []

    def ask(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, ask)
    daemon = subprocess.Popen(arguments[split + 1 :])
    signal.set_wakeup_fd(-1)
    while not asked and daemon.poll() is None:
        signal.sigtimedwait({signal.SIGCHLD}, 0.2)  # a signal with a handler ends the wait as well
        if asked == [signal.SIGUSR2]:
            daemon.kill()
            daemon.wait()
            daemon = subprocess.Popen(arguments[split + 1 :])
            asked.clear()
        reap_others(daemon.pid)
    if asked and asked[0] != signal.SIGUSR1 and daemon.poll() is None:
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(POLITE_S)
    kill_all()
    return 0


def reap_others(keep: int) -> None:
    """Collect ended orphans, but leave the daemon's exit status to its Popen object."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid == keep:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(info.si_pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
