"""Owns deaths of a piece of work in a child process: SIGKILL right before a chosen line, as if the machine had lost us there."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from tests.chaos.mischief import Durable, acting, lines_of, struck


def every_line(*functions: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], int]]:
    """(function, line) for every line of these functions."""
    for function in functions:
        for line in lines_of(function):
            yield function, line


def in_a_child(work: Callable[[], object]) -> int:
    """Do the work in a fork of this process; the signal that ended it, or 0. Fails the test when the work raised."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), "the work raised (its traceback is above)"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def dies_at(function: Callable[..., Any], line: int, work: Callable[[], object], *, act: str = "kill") -> bool:
    """Whether a child that does the work came to that line, and died there. `act`: `kill`, or `power` (mischief.py)."""

    def doomed() -> None:
        durable = Durable().watch() if act == "power" else None
        with struck(function, line, acting(act, durable)):
            work()

    return in_a_child(doomed) == signal.SIGKILL
