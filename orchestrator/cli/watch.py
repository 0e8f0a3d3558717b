"""`orch watch [SWEEP...]`: resumes by policy, queues what fits, ships, while nobody is logged in. Ctrl-C ends it.

In the foreground, one turn for cron (`--once`), or as a small job that requeues itself (`--submit`).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click

from orchestrator import cluster
from orchestrator.cli.common import Desk, open_desk, sweep_name
from orchestrator.cli.status import counts_line, raise_if_failed
from orchestrator.errors import Problem, UserError
from orchestrator.policy import Policy
from orchestrator.slurm.client import Slurm
from orchestrator.slurm.submit import submit_script
from orchestrator.tracking.address import shown
from orchestrator.watch import Watch
from orchestrator.watch_job import WatchRequest, queued_as, write_script

SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@click.command("watch")
@click.argument("sweeps", nargs=-1, metavar="[SWEEP]...")
@click.option("--every", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds between two turns.")
@click.option("--once", is_flag=True, help="One turn, for cron.")
@click.option("--halve-micro-batch", is_flag=True, help="Resume what ran out of device memory with twice `runtime.accumulation`.")
@click.option("--submit", is_flag=True, help="Queue it as a job of one core that requeues itself at its time limit.")
@click.option("--partition", help="Of that job: best one where nobody is evicted.")
@click.pass_obj
def command(
    root: Path,
    sweeps: tuple[str, ...],
    every: float,
    once: bool,
    halve_micro_batch: bool,
    submit: bool,
    partition: str | None,
) -> None:
    """Resume what failed for a reason worth a retry, queue what is planned as the queue drains, ship journals.

    All sweeps that were not cancelled, or the named SWEEPs; with names it ends when they have settled. Running it twice
    is harmless.
    """
    if partition is not None and not submit:
        raise click.UsageError("--partition is for --submit")
    if submit and once:
        raise click.UsageError("--submit and --once do not go together")
    slurm = cluster.require_slurm()
    with open_desk(root) as desk:
        names = [name for one in sweeps if (name := sweep_name(desk.store, one)) is not None]
        if len(names) != len(sweeps):
            unknown = next(one for one in sweeps if sweep_name(desk.store, one) is None)
            allowed = ", ".join(desk.store.sweeps()) or "none yet"
            raise UserError(Problem(what="no submitted sweep is called so", value=unknown, allowed=allowed))
        if submit:
            request = WatchRequest(
                root=desk.root.path.absolute(),
                sweeps=tuple(names),
                every_s=every,
                halve_micro_batch=halve_micro_batch,
                partition=partition,
                tracking_uri=_tracker_of_a_job(os.environ),
            )
            queue_it(request, slurm)
            return
        watch = Watch(
            root=desk.root,
            store=desk.store,
            slurm=slurm,
            limits=lambda: cluster.limits_of(cluster.site_profile(desk.root, slurm)),
            tracking_uri=desk.tracking_uri,
            policy=Policy(halve_micro_batch=halve_micro_batch),
            sweeps=names,
        )
        follow(desk, watch, every_s=every, once=once)


def follow(desk: Desk, watch: Watch, *, every_s: float, once: bool) -> None:
    """Turns, said in lines, until what was named has settled; one with `once`.

    Raises RunsFailed when runs ended badly, and with `once` ClusterError when Slurm did not answer.
    """
    while True:
        with desk.root.lock(wait=once) as mine:  # somebody else at work: the next turn will do
            turn = watch.turn() if mine else None
        if turn is not None:
            for line in turn.lines:
                click.echo(line if once else f"{time.strftime('%H:%M:%S')} {line}")
            for line in turn.troubles:
                click.echo(line, err=True)
            if once and turn.unanswered is not None:
                raise turn.unanswered
            if watch.sweeps and turn.settled and not once:
                records = {run: one for name in watch.sweeps for run, one in desk.store.of_sweep(name).items()}
                click.echo(f"settled: {counts_line(Counter(one.state for one in records.values()))}")
                raise_if_failed(records)
                return
        if once:
            return
        time.sleep(every_s)


def queue_it(request: WatchRequest, slurm: Slurm) -> None:
    """Submit the watching job, unless there is one. Raises ClusterError as `submit_script`."""
    known = queued_as(request, slurm.jobs(cluster.user_name()))
    if known is not None:
        click.echo(f"job {known} watches already; `scancel {known}` ends it")
        return
    job = submit_script(write_script(request))
    watched = ", ".join(request.sweeps)
    until = f"until {watched} {'has' if len(request.sweeps) == 1 else 'have'} settled" if watched else "until it is cancelled"
    click.echo(f"job {job} watches {until}; its log: {request.folder / 'watch.log'}")


def _tracker_of_a_job(environ: Mapping[str, str]) -> str | None:
    """The team's server, for a script that others may read. Raises UserError for an address with a password."""
    uri = environ.get("MLFLOW_TRACKING_URI") or None
    hint = "a job has none of your secrets: let MLflow find them in ~/.mlflow/credentials"
    if uri is not None and shown(uri) != uri:
        raise UserError(Problem(what="MLFLOW_TRACKING_URI holds a user or a password", value=shown(uri), hint=hint))
    if found := [name for name in SECRETS if environ.get(name)]:
        click.echo(f"note: {', '.join(found)} will not be there: {hint}", err=True)
    return uri
