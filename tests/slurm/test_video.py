"""The video sweep on the real Slurm, in miniature: training and evaluation of whole videos evicted, exact, a table with films."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.compare import differences
from jobs.contract import read_attempts
from tests.slurm.cluster import SlurmCluster
from tests.slurm.orch import FULL, Orch
from tests.slurm.test_coco import of_kind, on_two_nodes, strike, submit

pytestmark = pytest.mark.slurm

METHODS = ("v0", "v1", "v3") if FULL else ("v3",)
"""ORCH_FULL=1: two minutes more, with two rows that share a training run."""

SMALL = [
    "data=toy_video_mini", "data.train.count=16", "data.test.first=16", "data.test.count=130", "miniature=video", "steps=90",
    "noise_seeds=[0, 1]",
]  # fmt: skip
"""Longer than their start-up, so that there is something to strike; two noise seeds of four pieces each."""


def checkpoints(orch: Orch, run: str) -> int:
    return len(list(orch.run_dir(run).checkpoints.glob("step-*")))


@pytest.mark.timeout(1200)
def test_that_the_video_sweep_survives_evictions_exactly(
    slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    """Each method on two nodes, training and evaluation evicted; weights and scores are those of an untouched root."""
    sweep = on_two_nodes("video", tmp_path)
    struck, calm = (make_orch(slurm_cluster, tmp_path / name) for name in ("struck", "calm"))
    with slurm_cluster.closed():
        submit(struck, sweep, ",".join(["seed=0", *(f"method={one}" for one in METHODS)]), SMALL)
        training, evaluations = of_kind(struck, "train"), of_kind(struck, "evaluate")
    assert len(of_kind(struck, "prepare")) == 1
    assert (len(training), len(evaluations)) == ((2, 3) if FULL else (1, 1)), "V1 shares the training run of V0"
    strike(struck, training)
    struck.until(lambda: any(checkpoints(struck, run) for run in evaluations), 400, "no evaluation has begun")
    begun = next(run for run in evaluations if checkpoints(struck, run))
    slurm_cluster.evict(struck.runs()[begun]["job"])
    struck.wait_for_state("video", ["done"], timeout_s=600)
    assert all(len(read_attempts(struck.run_dir(run))) >= 2 for run in (*training, begun))

    submit(calm, sweep, "method=v3,seed=0", SMALL)
    if begun not in calm.runs():
        submit(calm, sweep, "method=v0,method=v1,seed=0", SMALL)
    calm.wait_for_state("video", ["done"], timeout_s=400)
    assert begun in calm.runs()
    for run in of_kind(calm, "train"):
        assert differences(struck.run_dir(run), calm.run_dir(run)) == []
        assert (struck.run_dir(run).output / "model.pt").read_bytes() == (calm.run_dir(run).output / "model.pt").read_bytes()
    for run in of_kind(calm, "evaluate"):
        one, other = (root.run_dir(run).output / "scores.json" for root in (struck, calm))
        assert one.read_bytes() == other.read_bytes()

    table = struck("table", "video")
    print(table)
    assert "identity switches per 100 frames" in table
    sheet = struck.run_dir(begun).artifacts / "masks.png"
    with Image.open(sheet) as picture:
        assert np.asarray(picture).std() > 10, "a contact sheet shows something"
