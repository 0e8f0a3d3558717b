"""Work on a thread of its own, one piece at a time: what it raises is raised again where the owner asks. Torch-free.

A piece is never given up: `start` waits for the one before, and whoever ends the attempt waits with `wait` or `close`.
A death of the process takes the thread with it, so a piece must be harmless at any line (as jobs.checkpoint is).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable

from jobs.preemption import NOTICES

log = logging.getLogger("jobs")


class Background:
    """At most one piece of work under way."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a piece is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the piece before (raising what it raised), then begin this one."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)  # inherited, too; a notice is for the waiting thread alone
        try:
            work()
        except BaseException as error:  # carried to the thread that asks
            self._error = error

    def check(self) -> None:
        """Raise what a finished piece raised, once; never waits."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Wait for the piece under way; raises what it raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait while another exception is on its way: what the piece raised is only logged."""
        try:
            self.wait()
        except BaseException as error:
            log.error("the %s failed too: %s: %s", self._name, type(error).__name__, error)
