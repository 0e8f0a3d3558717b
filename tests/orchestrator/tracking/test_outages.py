"""A tracker that is dead, slow or dies in the middle: nothing hangs, nothing is lost, nothing is doubled."""

from __future__ import annotations

import socket
import time
from contextlib import closing

import pytest

from jobs.journal import CHECKPOINT
from orchestrator.errors import TrackerError
from orchestrator.lifecycle import RunState
from orchestrator.tracking.reader import read_sweep
from orchestrator.tracking.shipper import ship


def test_that_a_dead_port_fails_in_seconds_and_says_that_nothing_is_lost(root, make, memory_cursors):
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{probe.getsockname()[1]}"
    make.steps("r1", last=3)
    start = time.monotonic()
    with pytest.raises(TrackerError, match="hint: is the server up") as caught:
        ship(uri, root, [make.facts("r1")], memory_cursors)
    assert time.monotonic() - start < 8
    assert str(caught.value.problems[0].where).startswith("http://127.0.0.1:")
    with pytest.raises(TrackerError):
        read_sweep(uri, "table1")


def test_that_a_server_that_never_answers_does_not_hang_us(root, make, memory_cursors):
    make.steps("r1", last=3)
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(TrackerError):
            ship(f"http://127.0.0.1:{silent.getsockname()[1]}", root, [make.facts("r1")], memory_cursors, timeout_s=1)
        assert time.monotonic() - start < 8


class DyingCursors:
    """Cursors that kill the server after some batches: the tracker dies in the middle of a shipping."""

    def __init__(self, inner, after: int, kill) -> None:
        self.inner, self.left, self.kill = inner, after, kill

    def get(self, run_id):
        return self.inner.get(run_id)

    def set_run(self, run_id, tracker_run):
        self.inner.set_run(run_id, tracker_run)

    def advance(self, run_id, step):
        self.left -= 1
        if self.left == 0:
            self.kill()
            raise KeyboardInterrupt  # and so do we, before the cursor moves
        self.inner.advance(run_id, step)


def test_that_a_server_killed_in_the_middle_has_every_point_once_after_its_return(root, make, json_cursors, server, rows):
    make.steps("r1", last=1500, event=CHECKPOINT)  # 3000 points: 3 batches
    make.steps("r2", last=5)
    facts = [make.facts("r1", RunState.RUNNING), make.facts("r2")]
    server.start()
    with pytest.raises(KeyboardInterrupt):
        ship(server.uri, root, facts, DyingCursors(json_cursors, 2, server.kill))
    assert json_cursors.get("r1").step == 500
    assert len(rows()) == 2000
    with pytest.raises(TrackerError):
        ship(server.uri, root, facts, json_cursors)
    make.steps("r1", first=601, last=1600, attempt=2)  # meanwhile the job fell back to step 600 and went on
    server.start()
    facts = [make.facts("r1"), make.facts("r2")]
    report = ship(server.uri, root, facts, json_cursors)
    expected = {("r1", name, step) for name in ("train/loss", "train/lr") for step in range(1, 1601)}
    expected |= {("r2", name, step) for name in ("train/loss", "train/lr") for step in range(1, 6)}
    found = rows()
    assert len(found) == len(expected)
    assert {row[:3] for row in found} == expected
    assert report.points == len(expected) - 2000
    assert ship(server.uri, root, facts, json_cursors).runs == 0
    assert list((root / "artifacts").rglob("spec.json"))
