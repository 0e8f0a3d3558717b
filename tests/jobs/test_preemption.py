"""The flag: real signals in real processes, and a warning that is taken back."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from running import until

from jobs import preemption
from jobs.preemption import Flag


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_that_a_signal_raises_the_flag_and_no_more(number: int) -> None:
    pid = os.fork()
    if pid == 0:
        flag = preemption.install()
        os.kill(os.getpid(), number)
        good = flag.wait(10) and flag.first_signal == number and flag.terminating == (number != signal.SIGUSR2)
        os._exit(7 if good and preemption.install() is flag else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_that_children_inherit_the_mask() -> None:
    pid = os.fork()
    if pid == 0:
        preemption.install()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(5 if signal.sigpending() >= {signal.SIGTERM} else 6)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5


def test_that_a_process_ends_with_its_parent_also_when_that_is_gone_before_it_says_so() -> None:
    pid = os.fork()
    if pid == 0:
        preemption.end_with(os.getpid())  # not its parent
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    ours, theirs = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            preemption.end_with(os.getppid())
            os.write(theirs, str(os.getpid()).encode())
            signal.pause()
        signal.pause()
    child = int(os.read(ours, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    status = Path(f"/proc/{child}/status")
    until(lambda: not status.exists() or "\nState:\tZ" in status.read_text())


def test_that_a_warning_can_be_taken_back_and_a_termination_cannot() -> None:
    flag = Flag()
    assert not flag
    flag.raise_(signal.SIGUSR2)
    assert flag
    flag.lower()
    assert (bool(flag), flag.first_signal) == (False, 0)
    flag.raise_(signal.SIGUSR2)
    flag.raise_(signal.SIGTERM)
    flag.lower()
    assert flag
    assert (flag.first_signal, flag.terminating) == (signal.SIGUSR2, True)


def test_that_a_termination_while_a_warning_is_taken_back_is_not_lost() -> None:
    """The SIGTERM arrives right when the event is about to be cleared."""
    flag = Flag()
    flag.raise_(signal.SIGUSR2)
    clear, late = flag._event.clear, threading.Thread(target=flag.raise_, args=(signal.SIGTERM,))

    def slow() -> None:
        late.start()
        late.join(0.2)
        clear()

    flag._event.clear = slow  # type: ignore[method-assign]
    flag.lower()
    late.join()
    assert flag


def test_that_sleeping_on_the_flag_ends_with_it() -> None:
    flag = Flag()
    threading.Timer(0.05, flag.raise_, args=(signal.SIGTERM,)).start()
    assert flag.wait(30)
    assert until(lambda: flag.terminating)
