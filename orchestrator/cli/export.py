"""`orch export SWEEP FILE`: a table's sources in one archive, which `orch import` makes a root of elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator import accounting, tick
from orchestrator.cli.common import open_desk, sweep_name
from orchestrator.cluster import find_slurm
from orchestrator.errors import ClusterError, Problem, UserError
from orchestrator.store import usages


@click.command("export")
@click.argument("sweep")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--weights", is_flag=True, help="Also the trained weights (output/model.pt).")
@click.pass_obj
def command(root: Path, sweep: str, file: Path, weights: bool) -> None:
    """Pack the sources of SWEEP's table into FILE (.tar.gz): sweep file, configurations, code, journals, scores, the table.

    The same sources give the same bytes. No place of this machine is named in it: an absolute path in a configuration, a
    reason or the sweep file becomes `elsewhere/` and its last part. Data, features and checkpoints stay here.
    """
    from orchestrator.exporting import export

    if not file.name.endswith((".tar.gz", ".tgz")):
        raise UserError(Problem(what="is no name of an archive", where="FILE", value=str(file), allowed=".tar.gz, .tgz"))
    with open_desk(root) as desk:
        name = sweep_name(desk.store, sweep)
        if name is None:
            known = ", ".join(desk.store.sweeps()) or "none yet"
            raise UserError(Problem(what="no submitted sweep is called so", value=sweep, allowed=known))
        with desk.root.lock(wait=False) as mine:  # a root that we may only read is exported as it is recorded
            if mine:
                try:
                    tick.look(desk.root, desk.store, find_slurm())
                except ClusterError as error:
                    click.echo(f"Slurm did not answer, states may be old: {error.problems[0].what}", err=True)
                accounting.renew(desk.root, desk.store, usages.unread(desk.store.connection, desk.store.of_sweep(name)))
        done = export(desk.root, desk.store, name, file.absolute(), weights=weights)
    click.echo(f"wrote {file}: {done.runs} runs, {done.files} files, {done.bytes:,} bytes ({done.unpacked_bytes:,} unpacked)")
