"""The private cluster itself: what the other tests build on."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import SlurmCluster

pytestmark = pytest.mark.slurm


def test_that_a_job_on_two_nodes_sees_its_pretend_gpus(slurm_cluster: SlurmCluster) -> None:
    output = slurm_cluster.directory / "gpus.txt"
    job = slurm_cluster.sbatch(
        "srun bash -c 'echo $SLURM_PROCID $CUDA_VISIBLE_DEVICES'", "-N2", "--gpus-per-node=2", f"--output={output}"
    )
    slurm_cluster.wait(job, {"COMPLETED"})
    assert sorted(output.read_text().split("\n")) == ["", "0 0,1", "1 0,1"]
