"""The Text2Slot sweep on the real Slurm, in miniature: sentences embedded once, training evicted, exact, effects in a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.compare import differences
from jobs.contract import read_attempts
from tests.slurm.cluster import SlurmCluster
from tests.slurm.orch import FULL, Orch
from tests.slurm.test_coco import of_kind, on_two_nodes, strike, submit

pytestmark = pytest.mark.slurm

SMALL = [
    "data=toy_clevr_mini", "data.train.count=8", "data.test.first=8", "data.test.count=2", "backbone=clip_tiny",
    "miniature=language", "model.slot_size=16", "model.decoder.channels=[16,16,16]", "steps=80", "batch_size=4", "every=9",
    "noise_seeds=[0, 1]",
]  # fmt: skip
"""Longer than their start-up, so that there is something to strike."""


@pytest.mark.skipif(not FULL, reason="ORCH_FULL=1: three more minutes")
@pytest.mark.timeout(1200)
def test_that_the_text2slot_sweep_survives_evictions_exactly(
    slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    """Base and both controls, each on two nodes and evicted; weights and scores are those of an untouched run."""
    sweep = on_two_nodes("text2slot", tmp_path)
    struck, calm = (make_orch(slurm_cluster, tmp_path / name) for name in ("struck", "calm"))
    only = "method=base,method=no_text,method=shuffled,seed=0"
    with slurm_cluster.closed():
        submit(struck, sweep, only, SMALL)
        training = of_kind(struck, "train")
    assert (len(of_kind(struck, "prepare")), len(of_kind(struck, "embed")), len(training)) == (1, 1, 3)
    strike(struck, training)
    struck.wait_for_state("text2slot", ["done"], timeout_s=600)
    assert [len(read_attempts(struck.run_dir(run))) for run in of_kind(struck, "embed")] == [1]

    submit(calm, sweep, "method=shuffled,seed=0", SMALL)
    calm.wait_for_state("text2slot", ["done"], timeout_s=400)
    for run in of_kind(calm, "train"):
        assert len(read_attempts(struck.run_dir(run))) >= 2
        assert differences(struck.run_dir(run), calm.run_dir(run)) == []
        assert (struck.run_dir(run).output / "model.pt").read_bytes() == (calm.run_dir(run).output / "model.pt").read_bytes()
    for run in of_kind(calm, "evaluate"):
        one, other = (root.run_dir(run).output / "scores.json" for root in (struck, calm))
        assert one.read_bytes() == other.read_bytes()

    picture = tmp_path / "effects.png"
    table = struck("table", "text2slot", "--plot", picture)
    print(table)
    assert picture.stat().st_size > 10_000
    assert "text swap: change of masks" in table
