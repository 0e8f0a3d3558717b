"""The private cluster itself: what the other tests build on, and that it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster, temporary_directory

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


def processes_of(directory: Path) -> list[str]:
    """Command lines of the living processes that name the directory, in their arguments or their working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(directory) in command or os.readlink(entry / "cwd").startswith(str(directory)):
                    found.append(command)
            except OSError:
                continue  # ended while we looked
    return found


def nothing_left(directory: Path, patience_s: float = 20.0) -> bool:
    deadline = time.monotonic() + patience_s
    while processes_of(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of(directory)


@pytest.fixture
def scratch(slurm_programs: None) -> Iterator[Path]:
    directory = temporary_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_that_a_job_on_two_nodes_sees_its_pretend_gpus(slurm_cluster: SlurmCluster) -> None:
    output = slurm_cluster.directory / "gpus.txt"
    job = slurm_cluster.sbatch(
        "srun bash -c 'echo $SLURM_PROCID $CUDA_VISIBLE_DEVICES'", "-N2", "--gpus-per-node=2", f"--output={output}"
    )
    slurm_cluster.wait(job, {"COMPLETED"})
    assert sorted(output.read_text().split("\n")) == ["", "0 0,1", "1 0,1"]


def test_that_an_eviction_sends_the_chosen_signal_and_the_job_comes_back(slurm_cluster: SlurmCluster) -> None:
    output = slurm_cluster.directory / "signal.txt"
    job = slurm_cluster.sbatch(
        "srun bash -c 'trap \"echo USR2; exit 1\" USR2; echo up; while true; do sleep 0.1; done'",
        *("--requeue", "--signal=USR2@60", "-N2", f"--output={output}", "--open-mode=append"),
    )
    slurm_cluster.wait(job, {"RUNNING"})
    slurm_cluster.until(lambda: output.exists() and output.read_text().count("up") == 2, 30, "the steps did not start")
    slurm_cluster.evict(job)
    assert "USR2" in output.read_text()


def test_that_a_node_that_loses_power_takes_its_jobs_with_it(slurm_cluster: SlurmCluster) -> None:
    marker = f"{slurm_cluster.directory}/burning"
    job = slurm_cluster.sbatch(f"exec -a {marker} sleep 600", "--requeue", "--nodelist=n1")
    slurm_cluster.wait(job, {"RUNNING"})
    slurm_cluster.until(lambda: any(marker in command for command in processes_of(slurm_cluster.directory)), 10, "no process")
    slurm_cluster.node_down("n1")
    assert not any(command.startswith(marker) for command in processes_of(slurm_cluster.directory))
    slurm_cluster.wait(job, {"PENDING"})
    assert slurm_cluster.show(job)["Restarts"] == "1"
    slurm_cluster.node_up("n1")
    slurm_cluster.wait(job, {"RUNNING"})


def test_that_the_command_line_starts_a_cluster_and_ends_all_of_it(scratch: Path) -> None:
    script = str(ROOT / "tests" / "slurm" / "cluster.py")
    up = subprocess.run(
        [sys.executable, script, "up", str(scratch), "accounting=false", "nodes=1"], capture_output=True, text=True, check=True
    )
    assert up.stdout == f"export SLURM_CONF={scratch}/slurm.conf\n"
    try:
        cluster = SlurmCluster.attach(scratch)
        job = cluster.sbatch("setsid sleep 600 &\nsrun sleep 600", f"--chdir={scratch}")
        cluster.wait(job, {"RUNNING"})
        sleepers = ("sleep 600", "/usr/bin/sleep 600", "/bin/sleep 600")
        cluster.until(lambda: sum(one.startswith(sleepers) for one in processes_of(scratch)) == 2, 20, "no sleepers")
    finally:
        subprocess.run([sys.executable, script, "down", str(scratch)], check=True)
    assert processes_of(scratch) == []


def test_that_nothing_outlives_a_test_process_that_is_killed(scratch: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.slurm.cluster import SlurmCluster, Options;"
        f"SlurmCluster(Path({str(scratch)!r}), Options(accounting=False, nodes=1)).start();"
        "print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert processes_of(scratch)
        owner.send_signal(signal.SIGKILL)
    assert nothing_left(scratch)
