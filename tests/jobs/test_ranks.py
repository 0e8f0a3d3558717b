"""Who a process is among the others, and how they meet."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from jobs.contract import RunDir
from jobs.preemption import Flag
from jobs.ranks import Meeting, Ranks, attend, listen, publish, withdraw


def ranks(rank: int, *, launch: str = "7.0") -> Ranks:
    return Ranks(rank=rank, world_size=2, local_rank=rank, launch=launch, address="127.0.0.1")


def test_that_a_job_step_says_who_we_are() -> None:
    environ = {
        "SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "9", "SLURM_LOCALID": "1",
        "SLURM_RESTART_COUNT": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "RANK": "8",
    }  # fmt: skip
    expected = Ranks(rank=3, world_size=4, local_rank=1, launch="7.2", address="10.0.0.1")
    assert Ranks.from_environment(environ) == expected


def test_that_outside_a_step_the_usual_variables_count_and_else_we_are_alone() -> None:
    found = Ranks.from_environment({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "ORCH_LAUNCH": "x"})
    assert found == Ranks(rank=1, world_size=2, local_rank=1, launch="x", address="127.0.0.1")
    alone = Ranks.from_environment({"SLURM_JOB_ID": "7"})  # the batch script itself, or an interactive allocation
    assert (alone.rank, alone.world_size) == (0, 1)


def test_that_ranks_meet_whoever_comes_first(tmp_path: Path) -> None:
    run_dir, found = RunDir(tmp_path), []
    waiting = threading.Thread(target=lambda: found.append(attend(run_dir, ranks(1), Flag(), timeout_s=20)))
    waiting.start()
    publish(run_dir, ranks(0), Meeting(attempt=4, port=1234))
    waiting.join()
    assert found == [Meeting(attempt=4, port=1234)]
    assert attend(run_dir, ranks(1), Flag()) == Meeting(attempt=4, port=1234)


def test_that_another_launch_is_another_meeting(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    publish(run_dir, ranks(0, launch="7.0"), Meeting(attempt=1, port=1))
    with pytest.raises(TimeoutError, match="did not publish"):
        attend(run_dir, ranks(1, launch="7.1"), Flag(), timeout_s=0.1)
    withdraw(run_dir, ranks(0))
    withdraw(run_dir, ranks(0))
    with pytest.raises(TimeoutError, match="did not publish"):
        attend(run_dir, ranks(1), Flag(), timeout_s=0.1)


def test_that_a_waiting_rank_leaves_when_told_to(tmp_path: Path) -> None:
    flag, begun = Flag(), time.monotonic()
    flag.raise_(signal.SIGTERM)
    with pytest.raises(TimeoutError, match="told to leave"):
        attend(RunDir(tmp_path), ranks(1), flag)
    assert time.monotonic() - begun < 5


def test_that_ports_are_free_ones() -> None:
    with listen() as one, listen() as other:
        assert one.getsockname()[1] != other.getsockname()[1]
