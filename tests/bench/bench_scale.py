"""Seconds until a sweep of trivial cells is in Slurm's queue: orch, and Hydra's submitit launcher in the same run.

On a private Slurm, into a partition that starts nothing. Prints seconds, sbatch calls and the time of `orch status`.
Both run once with a single cell first, so that both find their byte code compiled, as on a login node.
Usage: python tests/bench/bench_scale.py [--cells 1000 10000] [--peer 1000]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.slurm.cluster import Options, SlurmCluster

ORCH = [sys.executable, "-c", "from orchestrator.cli.main import main; main()"]
SWEEP = """
title: {cells} trivial cells
base: [steps=1]
axes:
  seed: {{key: seed, values: {seeds}}}
pipeline:
  count: {{job: count}}
resources:
  count: {{partition: hold, timeout_min: 1}}
table:
  rows: seed
  value: {{metric: count/value, step: count}}
"""


def queued(cluster: SlurmCluster) -> int:
    """Tasks in the queue."""
    return len(cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split())


def counting_sbatch(folder: Path) -> tuple[Path, Path]:
    """A folder for the front of PATH whose sbatch leaves a line per call, and the file with the lines."""
    folder.mkdir()
    calls = folder / "calls"
    wrapper = folder / "sbatch"
    wrapper.write_text(f'#!/bin/sh\necho call >> {calls}\nexec {shutil.which("sbatch")} "$@"\n')
    wrapper.chmod(0o755)
    return folder, calls


def ours(cluster: SlurmCluster, folder: Path, cells: int) -> dict[str, float]:
    """One sweep through `orch submit`, then `orch status` five times."""
    sweep = folder / f"cells{cells}.yaml"
    sweep.write_text(SWEEP.format(cells=cells, seeds=list(range(cells))))
    front, calls = counting_sbatch(folder / f"bin{cells}")
    environment = os.environ | cluster.env | {"ORCH_ROOT": str(folder / f"root{cells}")}
    environment["PATH"] = f"{front}:{environment['PATH']}"
    begun = time.monotonic()
    with subprocess.Popen([*ORCH, "submit", str(sweep)], env=environment, stdout=subprocess.DEVNULL) as process:
        while queued(cluster) < cells and process.poll() in (None, 0):
            time.sleep(0.02)
        in_queue = time.monotonic() - begun
        code = process.wait()
    whole = time.monotonic() - begun
    assert code == 0, code
    status: list[float] = []
    for _ in range(5):
        begun = time.monotonic()
        subprocess.run([*ORCH, "status"], env=environment, stdout=subprocess.DEVNULL, check=True)
        status.append(time.monotonic() - begun)
    return {
        "in queue": in_queue,
        "command": whole,
        "sbatch calls": float(len(calls.read_text().splitlines())),
        "status": statistics.median(status),
    }


def peer(cluster: SlurmCluster, folder: Path, cells: int) -> float:
    """The same cells through `--multirun hydra/launcher=slurm`; it blocks for ever, so it is ended once all are queued."""
    script = Path(__file__).with_name("hydra_count.py")
    command = [
        sys.executable, str(script), "--multirun", "hydra/launcher=slurm", "hydra.launcher.partition=hold",
        f"hydra.sweep.dir={folder}/hydra", f"seed=range(0,{cells})",
    ]  # fmt: skip
    begun = time.monotonic()
    with subprocess.Popen(command, env=os.environ | cluster.env, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while queued(cluster) < cells and process.poll() is None:
            time.sleep(0.1)
        seconds = time.monotonic() - begun
        os.killpg(process.pid, signal.SIGKILL)
    assert queued(cluster) >= cells, "the peer ended before its jobs were queued"
    return seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--peer", type=int, default=1000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="orch-scale-"))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    cluster = SlurmCluster(folder / "slurm", Options()).start()
    try:
        for warm_up in (ours, peer):
            warm_up(cluster, folder, 1)
            cluster.clear()
        found: dict[int, dict[str, float]] = {}
        for cells in options.cells:
            found[cells] = ours(cluster, folder, cells)
            cluster.clear()
            print(f"{cells} cells: " + ", ".join(f"{name} {value:.2f}" for name, value in found[cells].items()), flush=True)
        if options.peer:
            seconds = peer(cluster, folder, options.peer)
            cluster.clear()
            print(f"hydra's submitit launcher, {options.peer} cells: in queue {seconds:.2f}")
            if options.peer in found:
                print(f"ratio at {options.peer} cells: {seconds / found[options.peer]['in queue']:.1f}")
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
