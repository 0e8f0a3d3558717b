"""`orch doctor`: look at this cluster, say what it means for our jobs, write the site profile that submit reads."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click

from orchestrator import cluster
from orchestrator.cli.common import json_option, open_desk
from orchestrator.errors import ClusterError
from orchestrator.site import Partition, Site, probe, save, to_json
from orchestrator.tracking.address import shown


def partition_line(site: Site, partition: Partition) -> str:
    """One partition in words: nodes, limits, how it evicts and what our jobs do then."""
    shapes = ", ".join(
        f"{shape.count} x {shape.cpus} CPUs {shape.memory_mib // 1024} GiB" + (f" {shape.gpus} GPUs" if shape.gpus else "")
        for shape in partition.shapes
    )
    limit = "no time limit" if partition.max_time_s is None else f"at most {partition.max_time_s // 60} min"
    mode, grace_s = site.preemption(partition.name)
    match mode:
        case "OFF":
            evicts = "not preempted"
        case "REQUEUE":
            evicts = f"preempted with {grace_s} s of grace, then requeued by Slurm"
        case "CANCEL":
            evicts = f"preempted with {grace_s} s of grace, then cancelled: our jobs requeue themselves within the grace"
        case other:
            evicts = f"preempted by {other} with {grace_s} s of grace"
    if mode in ("REQUEUE", "CANCEL") and grace_s == 0:
        evicts += "; no notice: a run loses at most one checkpoint interval"
    return f"  {partition.name:<12} {partition.state:<5} {shapes or 'no nodes'}; {limit}; {evicts}" + (
        " (default)" if partition.default else ""
    )


def describe(site: Site) -> list[str]:
    """The profile in words."""
    signal = "the job's own signal (USR2)" if site.user_signal_on_preemption else "SIGTERM alone"
    lines = [
        f"Slurm {site.slurm_version}, cluster {site.cluster}",
        f"preemption: {site.preempt_type}; notice by {signal}",
        f"requeue: {'allowed' if site.requeue_allowed else 'off by default, our jobs ask for it'}; "
        f"a requeued job waits about {site.requeue_delay_s} s",
        f"arrays: at most {site.largest_chunk} tasks each (MaxArraySize {site.max_array_size}, MaxJobCount {site.max_job_count}, "
        f"MaxSubmitJobs {site.max_submit_jobs or 'not set'})",
        "accounting: "
        + ("sacct answers" if site.accounting else "none: jobs that vanish are judged by squeue and their run directories"),
        f"limits: KillWait {site.kill_wait_s} s, MinJobAge {site.min_job_age_s} s",
        "partitions:",
    ]
    return lines + [partition_line(site, partition) for partition in site.partitions]


def attempts_line(root: Path) -> str:
    """What attempts under this root have seen: how often runs were restarted by Slurm."""
    from jobs.contract import RunDir, read_attempts

    folder = root / "runs"
    restarts: Counter[int] = Counter()
    for run in list(folder.iterdir())[:2000] if folder.is_dir() else []:
        for attempt in read_attempts(RunDir(run)):
            restarts[min(attempt.restart_count, 1)] += 1
    total = sum(restarts.values())
    return f"seen here: {total} attempts, {restarts[1]} of them after a requeue"


def shared_root_line(root: Path) -> str:
    """Whether the root looks shared: on a local or temporary file system compute nodes would not see it."""
    try:
        kind = subprocess.run(["stat", "-f", "-c", "%T", str(root)], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        kind = "?"
    note = "; compute nodes will not see it" if kind in ("tmpfs", "ramfs") else ""
    free_gib = shutil.disk_usage(root).free / 2**30
    return f"root: {root} on {kind or '?'}, {free_gib:.0f} GiB free{note} (it must be the same path on every node)"


@click.command("doctor")
@json_option
@click.pass_obj
def command(root: Path, as_json: bool) -> None:
    """Look at this cluster and write the site profile that `orch submit` reads."""
    with open_desk(root, create=True) as desk:
        slurm = cluster.find_slurm()
        site = None if slurm is None else probe(slurm, user=cluster.user_name())
        if site is not None:
            save(site, desk.root.site)
        if as_json:
            click.echo("null" if site is None else to_json(site))
            return
        click.echo(f"orch on {platform.node()}, Python {platform.python_version()} at {sys.executable}")
        click.echo(shared_root_line(desk.root.path))
        click.echo(
            f"tracker: {shown(desk.tracking_uri)}"
            + ("" if os.environ.get("MLFLOW_TRACKING_URI") else " (default; MLFLOW_TRACKING_URI chooses another)")
        )
        click.echo(tracker_line(desk.tracking_uri))
        if site is None:
            raise_without_slurm()
        assert site is not None
        for line in describe(site):
            click.echo(line)
        click.echo(attempts_line(desk.root.path))
        click.echo(f"wrote {desk.root.site}")


def tracker_line(uri: str) -> str:
    """Whether the tracker answers."""
    from orchestrator.errors import TrackerError
    from orchestrator.tracking.mlflow_store import MlflowTracker, initialised

    if uri.startswith("sqlite:") and not initialised(uri):
        return "tracker: a new SQLite store, made at the first submit"
    try:
        tracker = MlflowTracker(uri, None, timeout_s=5)
        tracker.dispose()
    except TrackerError as error:
        return f"tracker: does not answer: {error.problems[0].what}; runs go on without it, nothing is lost"
    return "tracker: answers"


def raise_without_slurm() -> None:
    """Say what works without Slurm."""
    try:
        cluster.require_slurm()
    except ClusterError as error:
        click.echo(f"Slurm: {error.problems[0].what}; `orch submit SWEEP --local` works here")
        raise
