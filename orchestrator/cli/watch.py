"""`orch watch [SWEEP...]`: resumes by policy, queues what fits, ships, while nobody is logged in. Foreground; Ctrl-C ends it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import click

from orchestrator import cluster
from orchestrator.cli.common import open_desk, sweep_name
from orchestrator.cli.status import counts_line, raise_if_failed
from orchestrator.errors import Problem, UserError
from orchestrator.policy import Policy
from orchestrator.watch import Watch


@click.command("watch")
@click.argument("sweeps", nargs=-1, metavar="[SWEEP]...")
@click.option("--every", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds between two turns.")
@click.option("--once", is_flag=True, help="One turn, for cron.")
@click.option("--halve-micro-batch", is_flag=True, help="Resume what ran out of device memory with twice `runtime.accumulation`.")
@click.pass_obj
def command(root: Path, sweeps: tuple[str, ...], every: float, once: bool, halve_micro_batch: bool) -> None:
    """Resume what failed for a reason worth a retry, queue what is planned as the queue drains, ship journals.

    All sweeps that were not cancelled, or the named SWEEPs; with names it ends when they have settled. Running it twice
    is harmless.
    """
    slurm = cluster.require_slurm()
    with open_desk(root) as desk:
        names = [name for one in sweeps if (name := sweep_name(desk.store, one)) is not None]
        if len(names) != len(sweeps):
            unknown = next(one for one in sweeps if sweep_name(desk.store, one) is None)
            allowed = ", ".join(desk.store.sweeps()) or "none yet"
            raise UserError(Problem(what="no submitted sweep is called so", value=unknown, allowed=allowed))
        watch = Watch(
            root=desk.root,
            store=desk.store,
            slurm=slurm,
            limits=lambda: cluster.limits_of(cluster.site_profile(desk.root, slurm)),
            tracking_uri=desk.tracking_uri,
            policy=Policy(halve_micro_batch=halve_micro_batch),
            sweeps=names,
        )
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
                if names and turn.settled and not once:
                    records = {run: one for name in names for run, one in desk.store.of_sweep(name).items()}
                    click.echo(f"settled: {counts_line(Counter(one.state for one in records.values()))}")
                    raise_if_failed(records)
                    return
            if once:
                return
            time.sleep(every)
