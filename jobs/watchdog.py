"""A rank that hangs ends the attempt with a reason instead of waiting in silence. Torch-free."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Watchdog:
    """Calls `on_hang` once when nobody called `beat` for `timeout_s` seconds; `on_hang` is expected to end the process."""

    timeout_s: float
    on_hang: Callable[[float], None]
    _last: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Watchdog:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def beat(self) -> None:
        """Something was finished."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.timeout_s / 4)):
            silent = time.monotonic() - self._last
            if silent > self.timeout_s:
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self.on_hang(silent)
                return
