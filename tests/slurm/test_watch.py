"""`orch watch` on the real Slurm: a bug is left, a killed run comes back, and the sweep is done without anybody typing resume."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.contract import read_attempts
from tests.slurm.cluster import SlurmCluster
from tests.slurm.orch import Orch, write_count_sweep

pytestmark = pytest.mark.slurm

SWEEP = """
title: watched
base: [step_s=0.05, steps=100, runtime.checkpoint_every_steps=5, label=watched]
axes:
  kind:
    killed: {label: killed}
    buggy:  {label: buggy, set: [fail_at=3]}
pipeline:
  count: {job: count}
resources:
  count: {partition: low, timeout_min: 10, signal_delay_s: 30, cpus_per_task: 1}
table:
  rows: kind
  value: {metric: count/value, step: count, digits: 0}
"""


def test_that_watching_brings_a_killed_run_back_and_leaves_a_bug(
    slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    orch = make_orch(slurm_cluster, tmp_path / "root")
    sweep = tmp_path / "watched.yaml"
    sweep.write_text(SWEEP)
    orch("submit", sweep)
    fails = {path.parent.name: json.loads(path.read_text())["config"]["fail_at"] for path in orch.root.glob("runs/*/spec.json")}
    (killed,), (buggy,) = ([run for run, at in fails.items() if at == one] for one in (None, 3))  # nobody looks but the watch
    orch.wait_for_step(killed, 8)
    os.kill(read_attempts(orch.run_dir(killed))[-1].pid, signal.SIGKILL)
    said: list[str] = []

    def both_have_ended() -> bool:
        said.extend(orch("watch", "--once").splitlines())
        words = "\n".join(said)
        return f"{killed} planned again: lost: retry 1 of" in words and f"{buggy} " in words and "not queued again" in words

    orch.until(both_have_ended, 60, "no retry", lambda: "\n".join(said))
    assert any(line.startswith(buggy) and "ValueError" in line and "jobs/count.py:" in line for line in said), said
    orch.until(lambda: orch.runs()[killed]["state"] == "done", 60, "the killed run did not finish")
    assert orch("watch", "--once") == ""
    assert (orch.runs()[buggy]["state"], len(read_attempts(orch.run_dir(buggy)))) == ("failed", 1)
    journals = orch.journal(killed).attempts
    assert (len(journals), journals[-1].restored_step >= 5) == (2, True)
    shown = orch("show", buggy)
    assert "cause:     bug: ValueError" in shown
    assert "`orch watch` leaves it: a bug comes back" in shown
    assert "retried:   lost (1)" in orch("show", killed)


def test_that_a_watching_job_requeues_itself_and_ends_when_all_has_settled(
    slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    """Told that its time is over it comes back under its own number, and brings a killed run back that nobody else looks at."""
    orch = make_orch(slurm_cluster, tmp_path / "root")
    orch("submit", write_count_sweep(tmp_path, "guarded", steps=100, every=5))
    run = orch.only_run("guarded")["id"]
    with orch.standing(run, 1) as processes:
        said = orch("watch", "guarded", "--submit", "--every", "1", "--partition", "low")
        watching = said.split()[1]
        assert said.startswith(f"job {watching} watches until guarded has settled")
        assert f"job {watching} watches already" in orch("watch", "guarded", "--submit")
        log = next((orch.root / "slurm").glob("orchwatch-*")) / "watch.log"
        orch.until(log.exists, 60, "the watch did not start")
        slurm_cluster.run("scancel", "--signal=USR2", "--batch", watching)
        orch.until(lambda: slurm_cluster.show(watching).get("Restarts") == "1", 60, "it did not requeue itself")
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
    slurm_cluster.wait(watching, ["COMPLETED"], timeout_s=150)
    assert f"{run} planned again: lost" in log.read_text(), log.read_text()
    assert "settled: 1 runs: 1 done" in log.read_text()
    assert orch.only_run("guarded")["state"] == "done"
    assert slurm_cluster.show(watching)["Restarts"] == "1"
