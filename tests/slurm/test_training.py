"""Table 1's methods as multi-rank jobs on the real Slurm: evicted, killed, resumed, and equal to untouched runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs.compare import differences
from jobs.contract import read_attempts
from tests.slurm.cluster import SlurmCluster
from tests.slurm.orch import FULL, Orch, processes_of, series

pytestmark = pytest.mark.slurm

SEEDS, METHODS = ([0, 1], ["slot_attn", "covloss", "cosine"]) if FULL else ([0], ["covloss"])
"""ORCH_FULL=1: three methods and two seeds, as a table has. Else the method that pools what its ranks hold."""
STEPS = 300
"""Long enough to be struck three times on a fast machine."""

SWEEP = """
title: three methods on {tasks} tasks
base: [experiment=demo, data=mdsprites_easy, data.train.count=256, data.test.first=256, data.test.count=32, steps={steps},
       batch_size=16, runtime.checkpoint_every_steps=10, runtime.log_every=1, validation.every_steps=1000]
axes:
  method:
    slot_attn: {{label: Slot-Attn, set: [objective=reconstruction]}}
    covloss: {{label: CovLoss, set: [objective=covariance, objective.projection.size=64]}}
    cosine: {{label: CosineLoss, set: [objective=cosine, objective.projection.size=64]}}
  seed: {{key: seed, values: {seeds}}}
resources:
  prepare: {{partition: low, timeout_min: 10}}
  train: {{partition: low, timeout_min: 60, nodes: {nodes}, tasks_per_node: {per_node}, signal_delay_s: 30}}
  evaluate: {{partition: low, timeout_min: 10}}
table:
  rows: method
  value: {{metric: eval/fg_ari, scale: 100, digits: 1, over: seed}}
  paper: {{slot_attn: 90.71, covloss: 87.42, cosine: 88.82}}
  paper_source: project page of arXiv 2306.02577
"""


def write(folder: Path, *, nodes: int, per_node: int, steps: int, seeds: list[int]) -> Path:
    path = folder / "methods.yaml"
    path.write_text(SWEEP.format(nodes=nodes, per_node=per_node, tasks=nodes * per_node, steps=steps, seeds=seeds))
    return path


def training_runs(orch: Orch) -> dict[str, dict[str, str]]:
    return {run: one for run, one in orch.runs("methods").items() if one["kind"] == "train"}


def evict_all(orch: Orch, runs: Mapping[str, Mapping[str, str]], attempt: int) -> None:
    """One high-priority job takes both nodes while every run is at work in this attempt."""
    orch.gather(runs, attempt)
    orch.cluster.evict(next(iter(runs.values()))["job"])


def kill_all(orch: Orch, runs: Mapping[str, Mapping[str, str]], attempt: int) -> None:
    """SIGKILL to every rank of every run, at work in this attempt: no notice, no outcome."""
    orch.gather(runs, attempt)
    for pid in processes_of(runs):
        os.kill(pid, signal.SIGKILL)


def assert_equal_to_untouched(orch: Orch, calm: Orch) -> None:
    for run in training_runs(orch):
        found = differences(orch.run_dir(run), calm.run_dir(run))
        assert found == [], f"{run}: {found}"
        one, other = (root.run_dir(run).output / "model.pt" for root in (orch, calm))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.timeout(1500)
def test_that_evicted_and_killed_runs_equal_untouched_ones(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    """Two tasks on two nodes; every run evicted twice and killed once without notice; bit-identical in the end."""
    sweep = write(tmp_path, nodes=2, per_node=1, steps=STEPS, seeds=SEEDS)
    only = ("--only", ",".join(f"method={method}" for method in METHODS))
    struck = Orch(cluster=slurm_cluster, root=tmp_path / "struck")
    calm = Orch(cluster=slurm_cluster, root=tmp_path / "calm")
    with slurm_cluster.closed():
        struck("submit", sweep, *only)
        runs = training_runs(struck)
    assert len(runs) == len(METHODS) * len(SEEDS)
    evict_all(struck, runs, 1)
    evict_all(struck, runs, 2)
    kill_all(struck, runs, 3)
    struck.until(
        lambda: all(one["state"] in ("lost", "failed") for one in training_runs(struck).values()),
        120,
        "the killed runs are not lost",
    )
    struck("resume")
    struck.wait_for_state("methods", ["done"], timeout_s=600)
    assert all(len(read_attempts(struck.run_dir(run))) >= 4 for run in runs)

    calm("submit", sweep, *only)
    calm.wait_for_state("methods", ["done"], timeout_s=600)
    assert all(len(read_attempts(calm.run_dir(run))) == 1 for run in runs)
    assert_equal_to_untouched(struck, calm)
    table = struck("table", "methods")
    print(table)
    assert "CovLoss" in table
    assert "87.42" in table
    for run in runs:
        steps = [step for step, name, _ in series(struck.journal(run)) if name == "train/loss"]
        assert steps == list(range(1, STEPS + 1))
    assert_every_point_once(struck)


def assert_every_point_once(orch: Orch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{orch.root / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    for run in training_runs(orch):
        (tracked,) = client.search_runs(experiments, f"tags.`orch.run_id` = '{run}'")
        for name in ("train/loss", "train/mse", "train/learning_rate"):
            steps = [point.step for point in client.get_metric_history(tracked.info.run_id, name)]
            assert sorted(steps) == list(range(1, STEPS + 1)), f"{run} {name}"


@pytest.mark.skipif(not FULL, reason="ORCH_FULL=1: two more minutes (outside Slurm: test_train.py)")
@pytest.mark.timeout(900)
def test_that_three_ranks_resume_exactly_too(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    """At three ranks DDP's default differs after a resume, since it rebuilds its buckets after the first step."""
    sweep = write(tmp_path, nodes=1, per_node=3, steps=STEPS // 2, seeds=[0])
    struck = Orch(cluster=slurm_cluster, root=tmp_path / "struck")
    calm = Orch(cluster=slurm_cluster, root=tmp_path / "calm")
    only = ("--only", "method=covloss")
    with slurm_cluster.closed():
        struck("submit", sweep, *only)
        runs = training_runs(struck)
    (run,) = runs
    evict_all(struck, runs, 1)
    struck.wait_for_state("methods", ["done"], timeout_s=300)
    calm("submit", sweep, *only)
    calm.wait_for_state("methods", ["done"], timeout_s=300)
    assert len(read_attempts(struck.run_dir(run))) == 2
    assert_equal_to_untouched(struck, calm)
