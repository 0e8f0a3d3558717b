"""`orch sync`: ship journals to MLflow."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator import tick
from orchestrator.cli.common import open_desk
from orchestrator.cluster import find_slurm


@click.command("sync")
@click.pass_obj
def command(root: Path) -> None:
    """Ship everything that is not in MLflow yet; each point arrives exactly once."""
    from orchestrator.shipping import ship_sweeps

    with open_desk(root) as desk, desk.root.lock():
        tick.look(desk.root, desk.store, find_slurm())
        report = ship_sweeps(desk.root, desk.store, desk.tracking_uri, desk.store.sweeps())
        click.echo(
            f"shipped {report.points} points and {report.artifacts} files of {report.runs} runs; {report.unchanged} unchanged"
        )
        for subject, why in report.rejected.items():
            click.echo(f"not accepted by the tracker: {subject}: {why}", err=True)
