"""`python -m jobs.train --multirun hydra/launcher=slurm`: the same job code and launcher file, by hand, on the real Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.contract import RunDir, Status, read_attempts, read_outcome
from jobs.journal import read_journal
from tests.slurm.cluster import SlurmCluster

pytestmark = pytest.mark.slurm
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_that_a_multirun_by_hand_survives_an_eviction_with_its_first_configuration(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    """After the requeue Hydra composes YAML that was edited since; the spec that was written once wins."""
    conf = tmp_path / "conf"
    conf.mkdir()
    edited = conf / "adhoc_edit.yaml"
    edited.write_text("# @package _global_\nsteps: 500\n")
    command = [
        sys.executable, "-m", "jobs.train", "--multirun", "hydra/launcher=slurm", "hydra.launcher.partition=low",
        "hydra.launcher.timeout_min=10", f"hydra.searchpath=[file://{tmp_path}]", f"hydra.sweep.dir={tmp_path}/sweep",
        "experiment=demo", "+conf=adhoc_edit", "data=mdsprites_easy", "data.train.count=64", "data.test.first=64",
        "data.test.count=16", "batch_size=8", "seed=0,1", "runtime.log_every=1", "validation.every_steps=1000",
    ]  # fmt: skip
    environment = os.environ | slurm_cluster.env | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    log = open(tmp_path / "multirun.log", "w")  # noqa: SIM115
    with log, subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log) as process:
        runs = [RunDir(tmp_path / "sweep" / str(number) / "runs" / "train-adhoc") for number in (0, 1)]

        def stepped() -> bool:
            assert process.poll() is None, (tmp_path / "multirun.log").read_text()[-3000:]
            return all(any(one.entries for one in read_journal(run.journals).attempts) for run in runs)

        slurm_cluster.until(stepped, 120, "the runs made no step")
        edited.write_text("# @package _global_\nsteps: 9999\n")
        task = slurm_cluster.run("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").stdout.split()[0]
        slurm_cluster.evict(task)
        slurm_cluster.until(
            lambda: all((found := read_outcome(run)) is not None and found.status is Status.DONE for run in runs),
            150,
            "the evicted runs did not finish",
        )
        process.terminate()
    for run in runs:
        assert json.loads(run.spec.read_text())["config"]["steps"] == 500
        outcome = read_outcome(run)
        assert outcome is not None
        assert outcome.step == 500
    assert max(len(read_attempts(run)) for run in runs) >= 2
