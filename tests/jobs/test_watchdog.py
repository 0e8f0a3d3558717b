"""The watchdog: it barks once, only after silence."""

from __future__ import annotations

import threading
import time

import pytest

from jobs.watchdog import Watchdog


def test_that_silence_is_told_once_with_where_it_hung(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[float] = []
    barked = threading.Event()
    dog = Watchdog(timeout_s=0.1, on_hang=lambda silent: (told.append(silent), barked.set())[0]).start()
    assert barked.wait(10)
    assert told[0] > 0.1
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog" and thread.join(10) and thread.is_alive()]
    assert len(told) == 1
    assert "test_watchdog.py" in capfd.readouterr().err
    dog.stop()


def test_that_beats_and_a_stop_keep_it_quiet() -> None:
    told: list[float] = []
    dog = Watchdog(timeout_s=0.4, on_hang=told.append).start()
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        dog.beat()
        time.sleep(0.01)
    dog.stop()
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        time.sleep(0.05)
    assert told == []
