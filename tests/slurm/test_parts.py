"""The parts sweep on the real Slurm, in miniature: evicted, exact, and the table of what each repair bought."""

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

SMALL = ["data=toy_creatures_mini", "miniature=parts", "steps=90", "noise_seeds=[0, 1]"]
"""Longer than their start-up, so that there is something to strike."""


@pytest.mark.skipif(not FULL, reason="ORCH_FULL=1: three more minutes")
@pytest.mark.timeout(1200)
def test_that_the_parts_sweep_survives_evictions_exactly(
    slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    """As the seed has it, and pooled terms with warped views (P15), on two nodes each, all evicted."""
    sweep = on_two_nodes("parts", tmp_path)
    struck, calm = (make_orch(slurm_cluster, tmp_path / name) for name in ("struck", "calm"))
    only = "method=p00,method=p15,seed=0"
    with slurm_cluster.closed():
        submit(struck, sweep, only, SMALL)
        training = of_kind(struck, "train")
    assert (len(of_kind(struck, "prepare")), len(training)) == (1, 2)
    strike(struck, training)
    struck.wait_for_state("parts", ["done"], timeout_s=600)

    submit(calm, sweep, "method=p15,seed=0", SMALL)
    calm.wait_for_state("parts", ["done"], timeout_s=400)
    for run in of_kind(calm, "train"):
        assert len(read_attempts(struck.run_dir(run))) >= 2
        assert differences(struck.run_dir(run), calm.run_dir(run)) == []
        assert (struck.run_dir(run).output / "model.pt").read_bytes() == (calm.run_dir(run).output / "model.pt").read_bytes()
    for run in of_kind(calm, "evaluate"):
        one, other = (root.run_dir(run).output / "scores.json" for root in (struck, calm))
        assert one.read_bytes() == other.read_bytes()

    table = struck("table", "parts")
    print(table)
    assert "P00 as the seed describes it" in table
    assert "gap: parts that change their slots" in table
    panel = struck.run_dir(next(iter(of_kind(struck, "evaluate")))).artifacts / "masks.png"
    with Image.open(panel) as picture:
        assert np.asarray(picture).std() > 10, "a panel of part maps shows something"
