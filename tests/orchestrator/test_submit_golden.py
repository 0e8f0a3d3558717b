"""The sbatch scripts, whole, as files: what a site's support will get to see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ClusterError
from orchestrator.slurm.submit import ArrayRequest, clean_environment, write_index

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/shared/my root/slurm/0123456789ab")


def request(**resources: object) -> ArrayRequest:
    return ArrayRequest(token="0123456789ab", folder=FOLDER, tasks=1, resources=resources, python="/venv/bin/python")


SCRIPTS = {
    "count": request(timeout_min=10, cpus_per_task=1, nodes=1, gpus_per_node=None, submitit_folder="x", name="y"),
    "train": replace(
        request(
            timeout_min=240, nodes=2, gpus_per_node=4, cpus_per_task=8, mem_gb=64, partition="gpu", account="lab",
            signal_delay_s=90, array_parallelism=16, setup=["module load cuda"], additional_parameters={"nice": 100},
        ),
        tasks=12,
        dependency="afterok:41_0:41_3",
    ),
    "elastic": request(timeout_min=240, nodes=2, gpus_per_node=4, cpus_per_task=8, tasks_per_node=1, elastic=[16, 4, 8]),
    "evaluate": replace(request(timeout_min=30, gpus_per_node=1), tasks=500, dependency="aftercorr:42"),
    "packed": replace(request(timeout_min=60, gpus_per_node=1, cpus_per_task=4, runs_per_gpu=4), tasks=3, runs_per_task=4),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_that_the_script_is_the_golden_one(name: str) -> None:
    assert SCRIPTS[name].script() == (GOLDEN / f"{name}.sh").read_text()


def test_that_rendering_writes_nothing(tmp_path: Path) -> None:
    replace(SCRIPTS["train"], folder=tmp_path / "new").script()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gpus", "tasks", "expected"), [(4, None, 4), (4, 1, 4), (None, None, 1), (None, 3, 3), (2, 4, 4)])
def test_that_there_is_one_task_per_gpu(gpus: int | None, tasks: int | None, expected: int) -> None:
    assert f"#SBATCH --ntasks-per-node={expected}\n" in request(gpus_per_node=gpus, tasks_per_node=tasks).script()


def test_that_what_keeps_a_run_alive_cannot_be_forgotten() -> None:
    for script in (one.script() for one in SCRIPTS.values()):
        for needed in (
            "#SBATCH --requeue", "#SBATCH --kill-on-invalid-dep=yes", "#SBATCH --open-mode=append", "#SBATCH --signal=USR2@",
            "#SBATCH --job-name=orch-0123456789ab", "--kill-on-bad-exit=1", "PYTHONSAFEPATH=1",
            "env --block-signal=USR2 --block-signal=TERM",
        ):  # fmt: skip
            assert needed in script


def test_that_the_index_table_has_one_run_directory_per_line(tmp_path: Path) -> None:
    made = replace(SCRIPTS["count"], folder=tmp_path / "t")
    write_index(made, [Path("/r/a"), Path("/r/b c")])
    assert made.index_table.read_text() == "/r/a\n/r/b c\n"
    assert (made.folder / "submission.sh").read_text() == made.script()
    assert made.folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match="newline"):
        write_index(made, [Path("/r/a\nb")])


def test_that_unknown_resources_are_worded() -> None:
    with pytest.raises(ClusterError, match="colour"):
        request(colour="red").script()


def test_that_nothing_of_an_enclosing_job_and_no_secret_reaches_sbatch() -> None:
    kept = clean_environment(
        {
            "PATH": "/bin", "HOME": "/home/a", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3",
            "SBATCH_PARTITION": "gpu", "SRUN_DEBUG": "1", "MLFLOW_TRACKING_PASSWORD": "x", "AWS_SECRET_ACCESS_KEY": "y",
            "MLFLOW_TRACKING_URI": "http://user:word@host",
        }
    )  # fmt: skip
    assert kept == {"PATH": "/bin", "HOME": "/home/a", "SLURM_CONF": "/etc/slurm.conf"}
