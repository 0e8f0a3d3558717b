"""Seconds until a sweep of trivial cells is in Slurm's queue: orch, and Hydra's submitit launcher in the same run.

On a private Slurm, into a partition that starts nothing. Prints seconds, sbatch calls, the time of `orch status`, and of one
`orch resume` and one `orch table` over all runs with their peak memory and the Slurm commands that they start; then seconds and
memory of `orch plan` for a sweep too large to queue, and seconds of `orch status` and `orch table` over finished runs.
orch and Hydra each run once with a single cell first, to find their byte code compiled, as on a login node.
Usage: python tests/bench/bench_scale.py [--cells 1000 10000] [--peer 1000] [--plan 100000] [--finished 1000]
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
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.contract import Attempt, Outcome, RunDir, Status, claim, write_outcome
from jobs.journal import END, JournalWriter
from orchestrator.accounting import AT_ONCE
from orchestrator.workspace import Root
from tests.slurm.cluster import Options, SlurmCluster

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "sacctmgr", "scancel")
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


def counting_commands(folder: Path) -> tuple[Path, Path]:
    """A folder for the front of PATH whose Slurm commands leave a line per call, and the file: `sbatch 1700000000.123456789`,
    command and the end of the call in seconds since the epoch."""
    folder.mkdir()
    calls = folder / "calls"
    for command in COMMANDS:
        wrapper = folder / command
        called = f'{shutil.which(command)} "$@"\ncode=$?\necho {command} $(date +%s.%N) >> {calls}\nexit $code'
        wrapper.write_text(f"#!/bin/sh\n{called}\n")
        wrapper.chmod(0o755)
    return folder, calls


def ends_of(calls: Path, command: str) -> list[float]:
    """When each call of a command ended."""
    lines = (line.split() for line in calls.read_text().splitlines())
    return [float(at) for name, at in lines if name == command]


def measured(words: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and peak memory in MiB of one orch command."""
    begun = time.monotonic()
    process = subprocess.Popen([*ORCH, *words], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    assert os.waitstatus_to_exitcode(status) == 0, words
    return seconds, usage.ru_maxrss / 1024


def ours(cluster: SlurmCluster, folder: Path, cells: int) -> dict[str, float]:
    """One sweep through `orch submit`, then `orch status` five times."""
    sweep = folder / f"cells{cells}.yaml"
    sweep.write_text(SWEEP.format(cells=cells, seeds=list(range(cells))))
    front, calls = counting_commands(folder / f"bin{cells}")
    environment = os.environ | cluster.env | {"ORCH_ROOT": str(folder / f"root{cells}")}
    environment["PATH"] = f"{front}:{environment['PATH']}"
    begun, begun_at = time.monotonic(), time.time()
    subprocess.run([*ORCH, "submit", str(sweep)], env=environment, stdout=subprocess.DEVNULL, check=True)
    whole = time.monotonic() - begun
    assert queued(cluster) == cells
    submitted = ends_of(calls, "sbatch")
    status: list[float] = []
    for _ in range(5):
        begun = time.monotonic()
        subprocess.run([*ORCH, "status"], env=environment, stdout=subprocess.DEVNULL, check=True)
        status.append(time.monotonic() - begun)
    found = {
        "in queue": submitted[-1] - begun_at,
        "command": whole,
        "sbatch calls": float(len(submitted)),
        "status": statistics.median(status),
    }
    for words in (["resume"], ["table", sweep.stem]):
        calls.write_text("")
        seconds, memory_mib = measured(words, environment)
        asked = float(len(calls.read_text().splitlines()))
        found |= {words[0]: seconds, f"{words[0]} MiB": memory_mib, f"{words[0]} Slurm commands": asked}
    return found


def planned(folder: Path, cells: int) -> tuple[float, float]:
    """Seconds and peak memory in MiB of `orch plan` for a sweep of so many cells."""
    sweep = folder / f"planned{cells}.yaml"
    sweep.write_text(SWEEP.format(cells=cells, seeds=list(range(cells))))
    return measured(["plan", str(sweep)], os.environ | {"ORCH_ROOT": str(folder / "planned")})


def finish(run_dir: RunDir, steps: int = 200) -> None:
    """What a run leaves that counted: an attempt, a journal, an outcome."""
    attempt = claim(run_dir, Attempt(number=0, claimant="c", job_id="7_0", started_at=time.time() - 60))
    journal = JournalWriter(run_dir.journals, attempt=attempt.number, restored_step=0)
    for step in range(1, steps):
        journal.metrics(step, {"count/value": 1.0 / step, "train/loss": 1.0 / step})
    journal.event(steps, END)
    journal.close()
    write_outcome(run_dir, Outcome(status=Status.DONE, attempt=attempt.number, step=steps))


def finished(cluster: SlurmCluster, folder: Path, runs: int) -> dict[str, float]:
    """Over so many finished runs: seconds of the first `orch status`, of one once their journals are read, of the first
    `orch table`, which ships two metrics of 199 points each to a SQLite tracker, and of the next one."""
    sweep, root = folder / f"finished{runs}.yaml", Root(folder / f"finished{runs}")
    sweep.write_text(SWEEP.format(cells=runs, seeds=list(range(runs))))
    environment = os.environ | cluster.env | {"ORCH_ROOT": str(root.path)}
    measured(["submit", str(sweep)], environment)
    for run_dir in root.runs.iterdir():
        finish(RunDir(run_dir))
    first, _ = measured(["status"], environment)
    for _ in range(runs // AT_ONCE):
        measured(["status"], environment)
    later = statistics.median(measured(["status"], environment)[0] for _ in range(5))
    tables = [measured(["table", sweep.stem], environment)[0] for _ in range(2)]
    return {"first status": first, "status": later, "first table": tables[0], "table": tables[1]}


def peer(cluster: SlurmCluster, folder: Path, cells: int) -> float:
    """The same cells through `--multirun hydra/launcher=slurm`; it blocks for ever, so it is ended once all are queued."""
    script = Path(__file__).with_name("hydra_count.py")
    command = [
        sys.executable, str(script), "--multirun", "hydra/launcher=slurm", "hydra.launcher.partition=hold",
        f"hydra.sweep.dir={folder}/hydra", f"seed=range(0,{cells})",
    ]  # fmt: skip
    front, calls = counting_commands(folder / f"peer{cells}")
    environment = os.environ | cluster.env | {"PATH": f"{front}:{os.environ['PATH']}"}
    begun_at = time.time()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while queued(cluster) < cells and process.poll() is None:
            time.sleep(1)  # a look at thousands of jobs takes the cores from who submits them
        os.killpg(process.pid, signal.SIGKILL)
    assert queued(cluster) >= cells, "the peer ended before its jobs were queued"
    return ends_of(calls, "sbatch")[-1] - begun_at


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--peer", type=int, default=1000)
    parser.add_argument("--plan", type=int, default=100_000)
    parser.add_argument("--finished", type=int, nargs="*", default=[1000])
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
        if options.plan:
            seconds, memory_mib = planned(folder, options.plan)
            print(f"plan of {options.plan} cells: {seconds:.1f} s, peak {memory_mib:.0f} MiB", flush=True)
        for runs in options.finished:
            told = finished(cluster, folder, runs)
            cluster.clear()
            print(f"{runs} finished runs: " + ", ".join(f"{name} {value:.2f}" for name, value in told.items()), flush=True)
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
