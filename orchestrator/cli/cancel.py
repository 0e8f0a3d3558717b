"""`orch cancel SWEEP | RUN...`: the mark first, then scancel. Runs that another sweep needs are left alone."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator import apply, cluster, tick
from orchestrator.cli.common import find_runs, open_desk, sweep_name
from orchestrator.held import cancel_leftovers
from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.local_process import LOCAL_JOB


@click.command("cancel")
@click.argument("what", nargs=-1, required=True)
@click.pass_obj
def command(root: Path, what: tuple[str, ...]) -> None:
    """Cancel the runs of sweeps, or single runs."""
    with open_desk(root) as desk, desk.root.lock():
        slurm = cluster.find_slurm()
        seen = tick.look(desk.root, desk.store, slurm)
        if slurm is not None and (line := cancel_leftovers(slurm, desk.store, seen.snapshot)):
            click.echo(line)
        chosen = find_runs(desk.store, what)
        if any(one.state in ACTIVE and one.job and not one.job.startswith(LOCAL_JOB) for one in chosen.values()):
            slurm = cluster.require_slurm()  # a mark alone would leave the jobs running
        named = {name for one in what if (name := sweep_name(desk.store, one)) is not None}
        kept = []
        if named:
            for name in named:
                desk.store.note(name, RunState.CANCELLED.value)
            wanted = {name for name in desk.store.sweeps() if desk.store.wanted(name)}
            others = {run: wanted & set(desk.store.sweeps_of(run)) for run in chosen}
            kept = [run for run, rest in others.items() if rest and chosen[run].state in ACTIVE | {RunState.PLANNED}]
        ended = apply.cancel(desk.root, desk.store, slurm, [one for run, one in chosen.items() if run not in kept])
        click.echo(f"cancelled {len(ended)} run{'s' if len(ended) != 1 else ''}")
        if kept:
            click.echo(f"left {len(kept)} that another sweep needs (`orch cancel RUN` alone cancels one all the same)")
