"""Preemption is a flag: signals are blocked, one thread waits for them and sets it. Nothing runs in a handler.

SIGUSR2 and SIGTERM (and SIGINT outside Slurm) are blocked from the first instruction, by `env --block-signal=...` in the
srun line and here again; children inherit the mask, so that the loader's workers live until the rank's checkpoint is made.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from dataclasses import dataclass, field

NOTICES = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


@dataclass
class Flag:
    """Set once a signal asked us to leave; read at step boundaries."""

    _event: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    first_signal: int = 0
    """The first signal that arrived (0: none)."""
    terminating: bool = False
    """SIGTERM or SIGINT arrived: this is no mere warning."""
    raised_at: float = 0.0
    """Monotonic seconds of the first signal."""

    def raise_(self, number: int) -> None:
        """Record a signal (from the waiting thread)."""
        with self._lock:
            if not self._event.is_set():
                self.first_signal, self.raised_at = number, time.monotonic()
            if number != signal.SIGUSR2:
                self.terminating = True
            self._event.set()

    def lower(self) -> None:
        """Take a warning back: a checkpoint was made and nobody is evicting us."""
        with self._lock:
            if not self.terminating:
                self.first_signal = 0
                self._event.clear()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep up to `timeout_s`, less when the flag is raised; whether it is."""
        return self._event.wait(timeout_s)


def _watch(flag: Flag) -> None:
    while True:
        flag.raise_(signal.sigwait(NOTICES))


_installed: dict[int, Flag] = {}
"""Process id -> its flag: a process has one waiting thread, and a fork starts without any."""


def install() -> Flag:
    """Block the notice signals in this thread (and all later ones) and start the one that waits for them, once a process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    if os.getpid() not in _installed:
        _installed[os.getpid()] = flag = Flag()
        threading.Thread(target=_watch, args=(flag,), name="signals", daemon=True).start()
    return _installed[os.getpid()]


_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """From now on a SIGKILL to the parent process is one to this process too; at once when the parent is gone already.

    Where Slurm tracks processes by their parents, an orphan would outlive its job and compute on.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
