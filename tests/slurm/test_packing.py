"""Several runs in one task (`runs_per_gpu`) on the real Slurm: evicted, cancelled, failing and killed, each run for itself."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.contract import read_attempts
from jobs.count import next_value
from tests.slurm.cluster import SlurmCluster
from tests.slurm.orch import Orch, processes_of, series

pytestmark = pytest.mark.slurm

CHAIN = """
title: packed
base: [label=packed, runtime.checkpoint_every_steps=10]
axes:
  seed: {key: seed, values: [0, 1, 2, 3, 4, 5]}
where:
  - {if: {seed: 4}, steps: {first: [fail_at=5]}}
pipeline:
  first: {job: count, set: [step_s=0.1, steps=250]}
  second: {job: count, needs: [first], set: [steps=5]}
resources:
  first: {partition: low, timeout_min: 10, signal_delay_s: 30, gpus_per_node: 1, runs_per_gpu: 3}
  second: {partition: low, timeout_min: 10, signal_delay_s: 30}
table:
  rows: seed
  value: {metric: count/value, step: second, digits: 0}
"""
PAIR = """
title: pair
base: [label=pair, step_s=0.1, steps=60, runtime.checkpoint_every_steps=5]
axes:
  seed: {key: seed, values: [0, 1]}
pipeline:
  count: {job: count}
resources:
  count: {partition: low, timeout_min: 10, signal_delay_s: 30, runs_per_gpu: 2}
table:
  rows: seed
  value: {metric: count/value, step: count, digits: 0}
"""


@pytest.fixture
def orch(slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path) -> Orch:
    return make_orch(slurm_cluster, tmp_path / "root")


def by_seed(orch: Orch, *, needs: bool) -> dict[int, str]:
    """The runs with or without needs, by their seed."""
    specs = {path.parent.name: json.loads(path.read_text()) for path in orch.root.glob("runs/*/spec.json")}
    return {spec["config"]["seed"]: run for run, spec in specs.items() if bool(spec["needs"]) == needs}


def assert_exact(orch: Orch, run: str, *, seed: int, steps: int) -> None:
    """The whole series is that of a run that nobody touched."""
    value = 0
    for step, found in zip(range(1, steps + 1), series(orch.journal(run)), strict=True):
        value = next_value(value, seed, step)
        assert found == (step, "count/value", float(value % 1_000_003))


def state_of(orch: Orch, run: str) -> str:
    return str(orch.runs()[run]["state"])


def test_that_packed_runs_checkpoint_fail_and_are_cancelled_each_for_itself(orch: Orch, tmp_path: Path) -> None:
    sweep = tmp_path / "chain.yaml"
    sweep.write_text(CHAIN)
    orch("submit", sweep)
    first, second = by_seed(orch, needs=False), by_seed(orch, needs=True)
    jobs = [orch.runs()[first[seed]]["job"] for seed in range(6)]
    assert [job.partition("_")[2] for job in jobs] == ["0", "0", "0", "1", "1", "1"]
    unwanted, failing, others = first[1], first[4], [first[seed] for seed in (0, 2, 3, 5)]
    for run in others:
        orch.wait_for_step(run, 3)
    orch.cluster.until(lambda: state_of(orch, failing) == "failed", 30, "the failure was not told while its siblings ran")
    orch("cancel", unwanted)
    orch.cluster.until(lambda: state_of(orch, unwanted) == "cancelled", 30, "one run was not cancelled")
    assert [state_of(orch, run) for run in others] == ["running"] * 4
    orch.cluster.evict(jobs[0])
    orch.wait_for_state("chain", ["done", "failed", "cancelled", "planned"], timeout_s=120)
    states = orch.runs()
    assert [states[first[seed]]["state"] for seed in range(6)] == ["done", "cancelled", "done", "done", "failed", "done"]
    assert [states[second[seed]]["state"] for seed in range(6)] == ["done", "planned", "done", "done", "planned", "done"]
    assert [len(read_attempts(orch.run_dir(run))) for run in (unwanted, failing)] == [1, 1]
    for seed in (0, 2, 3, 5):
        assert_exact(orch, first[seed], seed=seed, steps=250)
        assert [one.restart_count for one in read_attempts(orch.run_dir(first[seed]))] == [0, 1]
        journals = orch.journal(first[seed]).attempts
        assert all(later.restored_step == earlier.entries[-1].step for earlier, later in itertools.pairwise(journals))
    logs = [path.read_text() for path in sorted(orch.root.glob("slurm/*/*_[01].log"))]
    assert [log.count("Slurm says: requeue") for log in logs] == [1, 1]
    assert {orch.cluster.state(job) for job in jobs} <= {"COMPLETED", ""}


def test_that_a_killed_run_and_then_its_killed_pack_are_resumed(orch: Orch, tmp_path: Path) -> None:
    sweep = tmp_path / "pair.yaml"
    sweep.write_text(PAIR)
    orch("submit", sweep)
    runs = by_seed(orch, needs=False)
    killed, sibling = runs[0], runs[1]
    for run in runs.values():
        orch.wait_for_step(run, 8)
    (pid,), (other,) = processes_of([killed]), processes_of([sibling])
    pack = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    job = orch.runs()[killed]["job"]
    os.kill(other, signal.SIGSTOP)  # or it could be done before its pack is killed
    os.kill(pid, signal.SIGKILL)
    orch.cluster.until(lambda: state_of(orch, killed) == "failed", 30, "a killed run looks as if it ran")
    assert "its process was killed by signal 9 (SIGKILL)" in orch("show", killed)
    assert f"{killed} planned again: lost" in orch("watch", "--once")
    assert (state_of(orch, sibling), orch.runs()[killed]["job"] != job) == ("running", True)
    os.kill(pack, signal.SIGKILL)
    orch.cluster.until(lambda: not Path(f"/proc/{other}").exists(), 5, "a run outlived its pack")
    orch.cluster.until(lambda: state_of(orch, sibling) == "lost", 30, "the runs of a killed pack are not lost")
    orch("resume")
    orch.wait_for_state("pair", ["done"])
    for seed, run in runs.items():
        assert_exact(orch, run, seed=seed, steps=60)
        assert orch.journal(run).attempts[-1].restored_step >= 5
