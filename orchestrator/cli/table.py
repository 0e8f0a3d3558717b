"""`orch table SWEEP`: ship what is new, then assemble the table from MLflow alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator import tick
from orchestrator.cli.common import open_desk, sweep_name
from orchestrator.cluster import find_slurm
from orchestrator.errors import ClusterError, Problem, UserError
from orchestrator.tables.assemble import assemble, metrics_of
from orchestrator.tables.model import TableModel
from orchestrator.tables.render import Format, render
from orchestrator.tracking.record import SweepRecord
from orchestrator.workspace import Root

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_pictures(root: Root, record: SweepRecord, path: Path) -> None:
    """The contact sheet of the rows that have a panel by now; beside it one film of those that have films."""
    from orchestrator.pictures import FILM, contact_sheet, film, row_pictures, save_film

    if record.table is not None and record.table.rows is None:
        click.echo("no pictures: they are one per row, and a factorial table has none by design", err=True)
        return
    panels, films = row_pictures(root, record), row_pictures(root, record, FILM)
    if not panels:
        click.echo("no pictures yet: an `evaluate` run draws them", err=True)
        return
    beside = path.with_suffix(".gif")
    try:
        contact_sheet(panels).save(path)
        if films:
            save_film(film(films), beside)
    except OSError as error:
        raise UserError(Problem(what=f"cannot write the picture: {error}", where=str(path))) from error
    click.echo(f"wrote {path} and {beside}" if films else f"wrote {path}", err=True)


def check_plot(path: Path, option: str = "--plot") -> None:
    """Raises UserError for a file that no plot can be written to, before anything is asked of the tracker."""
    from orchestrator.tables.plot import SUFFIXES

    if path.suffix.lower() not in SUFFIXES:
        raise UserError(Problem(what="is no format of a plot", where=option, value=str(path), allowed=", ".join(SUFFIXES)))


def write_plot(model: TableModel, path: Path) -> None:
    """The effects of the table as a dot plot."""
    from orchestrator.tables.plot import draw

    _save(draw(model), path)


def write_curves(tracking_uri: str, record: SweepRecord, metric: str, path: Path) -> None:
    """One metric over the steps, a line per row."""
    from orchestrator.tables.curves import curves, draw, runs_with
    from orchestrator.tracking.reader import read_histories

    histories = read_histories(tracking_uri, record, runs_with(record, metric), metric)
    _save(draw(record, curves(record, histories, metric), metric), path)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise UserError(Problem(what=f"cannot write the plot: {error.strerror}", where=str(path))) from error
    click.echo(f"wrote {path}", err=True)


@click.command("table")
@click.argument("sweep")
@click.option(
    "--format", "style", type=click.Choice([one.value for one in Format]), default=Format.MARKDOWN.value, show_default=True
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
@click.option(
    "--pictures", type=click.Path(path_type=Path, dir_okay=False), help="Also a PNG of masks by row; of videos a GIF too."
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the effects: .png, .pdf or .svg.")
@click.option("--curves", type=click.Path(path_type=Path, dir_okay=False), help="Also draw --metric over the steps, by row.")
@click.option("--metric", help="Of --curves: for example valid/fg_ari.")
@click.option("--no-ship", is_flag=True, help="Only read what the tracker has already.")
@click.pass_obj
def command(
    root: Path,
    sweep: str,
    style: str,
    output: Path | None,
    pictures: Path | None,
    plot: Path | None,
    curves: Path | None,
    metric: str | None,
    no_ship: bool,
) -> None:
    """Print the table of SWEEP (its name or its file) with the paper's numbers beside ours."""
    from orchestrator.shipping import ship_sweeps
    from orchestrator.tracking.reader import read_sweep, read_values

    if (curves is None) != (metric is None):
        hint = "for example `--curves curves.png --metric valid/fg_ari`"
        raise UserError(Problem(what="go together", where="--curves, --metric", hint=hint))
    for option, path in (("--plot", plot), ("--curves", curves)):
        if path is not None:
            check_plot(path, option)
    if pictures is not None and pictures.suffix.lower() != ".png":
        raise UserError(Problem(what="is no format of a picture", where="--pictures", value=str(pictures), allowed=".png"))
    name = Path(sweep).stem if sweep.endswith((".yaml", ".yml")) else sweep
    uri = ""
    if Root(root.absolute()).store.exists():
        with open_desk(root) as desk:
            uri = desk.tracking_uri
            known = sweep_name(desk.store, sweep)
            if known and not no_ship:
                with desk.root.lock():
                    try:
                        tick.look(desk.root, desk.store, find_slurm())
                    except ClusterError as error:
                        click.echo(f"Slurm did not answer, states may be old: {error.problems[0].what}", err=True)
                    ship_sweeps(desk.root, desk.store, uri, [known])
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise UserError(
            Problem(
                what="nothing was submitted here, and no tracker is named", hint="use `--root DIR`, or set MLFLOW_TRACKING_URI"
            )
        )
    record = read_sweep(uri, name)
    model = assemble(record, read_values(uri, record, metrics_of(record)))
    text = render(model, Format(style))
    if pictures is not None:
        write_pictures(Root(root.absolute()), record, pictures)
    if plot is not None:
        write_plot(model, plot)
    if curves is not None and metric is not None:
        write_curves(uri, record, metric, curves)
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(Problem(what=f"cannot write the table: {error.strerror}", where=str(output))) from error
    click.echo(f"wrote {output}", err=True)
