"""`orch logs RUN [-f]`: a run's newest log."""

from __future__ import annotations

import time
from pathlib import Path

import click

from orchestrator.cli.common import find_run, open_desk
from orchestrator.cli.show import log_files
from orchestrator.cli.status import refresh
from orchestrator.errors import Problem, UserError
from orchestrator.lifecycle import ACTIVE


@click.command("logs")
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the run ends.")
@click.option("--all", "everything", is_flag=True, help="All attempts and ranks, oldest first.")
@click.pass_obj
def command(root: Path, run: str, follow: bool, everything: bool) -> None:
    """Print the newest log of RUN."""
    with open_desk(root) as desk:
        record = find_run(desk.store, run)
        files = log_files(desk, record.id)
        if not files and not follow:
            raise UserError(
                Problem(what="this run has no log yet", value=record.id, hint=f"`orch show {record.id}` says where it stands")
            )
        for path in files if everything else files[-1:]:
            click.echo(path.read_text(encoding="utf-8", errors="replace"), nl=False)
        if not follow:
            return
        current, offset = (files[-1], files[-1].stat().st_size) if files else (None, 0)
        while True:
            newest = log_files(desk, record.id)[-1:]
            if newest and newest[0] != current:
                current, offset = newest[0], 0
            if current is not None:
                with open(current, "rb") as handle:
                    handle.seek(offset)
                    fresh = handle.read()
                offset += len(fresh)
                click.echo(fresh.decode("utf-8", "replace"), nl=False)
            refresh(desk)
            if desk.store.runs([record.id])[record.id].state not in ACTIVE:
                return
            time.sleep(2.0)
