"""A run of four tasks goes on with two when nodes are taken, and with four when they are free again; nobody is logged in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.contract import read_attempts
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import Options
from tests.slurm.orch import Orch, series

pytestmark = pytest.mark.slurm

STEPS = 40
"""Training is chaotic: a rounding error of the first steps is one of 1e-2 after 400."""
ROUNDING = 2e-3
"""Of weights and losses; other batches are tenfold away in weights, a hundredfold in losses."""
SWEEP = f"""
base: [experiment=demo, data=mdsprites_easy, data.train.count=128, data.test.first=128, data.test.count=16, steps={STEPS},
       batch_size=16, runtime.log_every=1, validation.every_steps=1000, objective=covariance, objective.projection.size=64]
axes: {{seed: {{key: seed, values: [0]}}}}
pipeline: {{prepare: {{job: prepare}}, train: {{job: train, needs: [prepare]}}}}
resources:
  prepare: {{partition: low, timeout_min: 10}}
  train: {{partition: low, timeout_min: 60, nodes: 4, elastic: [2, 4], signal_delay_s: 30}}
"""


@pytest.fixture
def four_nodes(slurm_cluster_factory: Callable[[Options], SlurmCluster]) -> Iterator[SlurmCluster]:
    cluster = slurm_cluster_factory(Options(nodes=4, accounting=False))
    yield cluster
    cluster.stop()


def training(orch: Orch) -> str:
    (run,) = (run for run, one in orch.runs().items() if one["kind"] == "train")
    return run


def take(orch: Orch, run: str, attempt: int, *, nodes: int) -> str:
    """A high-priority job takes some nodes of the run at work; that job's id."""
    with orch.standing(run, attempt):  # until the eviction, which comes with a SIGCONT
        taker = orch.cluster.sbatch("sleep 600", f"--nodes={nodes}", "--exclusive", partition="high")
        orch.cluster.wait(taker, ["RUNNING"])
    return taker


def distance(one: Path, other: Path) -> float:
    """Of two files of weights, relative to the length of the vector of all."""
    left, right = (torch.cat([part.flatten() for part in torch.load(path, weights_only=True).values()]) for path in (one, other))
    return float((left - right).norm() / right.norm())


@pytest.mark.timeout(600)
def test_that_a_run_goes_on_with_the_nodes_that_are_left(
    four_nodes: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    """Of three nodes that are left it uses two. The objective pools the batch, over ranks and over micro-batches."""
    sweep = tmp_path / "sizes.yaml"
    sweep.write_text(SWEEP)
    struck, calm = (make_orch(four_nodes, tmp_path / name) for name in ("struck", "calm"))
    struck("submit", sweep)
    run = training(struck)
    taker = take(struck, run, 1, nodes=1)
    struck.wait_for_attempt(run, 2)
    four_nodes.run("scancel", taker)
    four_nodes.run("scancel", take(struck, run, 2, nodes=4))
    struck.wait_for_state("sizes", ["done"], timeout_s=300)

    assert [one.world_size for one in read_attempts(struck.run_dir(run))] == [4, 2, 4]
    attempts = struck.journal(run).attempts
    starts = [entry for attempt in attempts for entry in attempt.entries if entry.event == "start"]
    assert [(one.detail["world_size"], one.detail["accumulation"]) for one in starts] == [(4, 1), (2, 2), (4, 1)]
    assert [one.step for one in starts] == [0, *(attempt.entries[-1].step for attempt in attempts[:-1])]
    shown = struck("show", run)
    assert [shown.count(f", world size {size}, step ") for size in (4, 2)] == [2, 1]

    calm("submit", sweep, "--local")  # one process, four micro-batches
    (start,) = (entry for entry in calm.journal(run).counting() if entry.event == "start")
    assert (start.detail["world_size"], start.detail["accumulation"]) == (1, 4)
    found, expected = (
        np.array([(step, value) for step, name, value in series(orch.journal(run)) if name == "train/loss"])
        for orch in (struck, calm)
    )
    assert found[:, 0].tolist() == list(range(1, STEPS + 1))
    apart = distance(*(orch.run_dir(run).output / "model.pt" for orch in (struck, calm)))
    print(f"apart: weights {apart:.1e}, losses {np.abs(found / expected - 1).max():.1e}")
    np.testing.assert_allclose(found, expected, rtol=ROUNDING)
    assert apart < ROUNDING
