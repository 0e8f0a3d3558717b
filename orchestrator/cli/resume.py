"""`orch resume [SWEEP | RUN...]`: plan ended runs again and queue them; they go on from their last checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import click

from jobs.contract import manifest_problem
from orchestrator import cluster, submission, tick, workspace
from orchestrator.cli.common import find_runs, open_desk, sweep_name
from orchestrator.cli.local_run import run_here
from orchestrator.held import cancel_leftovers, release_held
from orchestrator.lifecycle import ACTIVE, RESUMABLE, RunState
from orchestrator.store.runs import Change


@click.command("resume")
@click.argument("what", nargs=-1)
@click.option("--local", is_flag=True, help="Continue on this machine.")
@click.option("--parallel", type=click.IntRange(min=1), help="Runs at once with --local.")
@click.option("--new-code", is_flag=True, help="Use the present code instead of the one the runs were frozen with.")
@click.pass_obj
def command(root: Path, what: tuple[str, ...], local: bool, parallel: int | None, new_code: bool) -> None:
    """Continue failed, lost, timed-out, cancelled and stopped runs (all, or those of WHAT), and queue what is planned."""
    with open_desk(root) as desk:
        with desk.root.lock():
            slurm = cluster.find_slurm() if local else cluster.require_slurm()
            seen = tick.look(desk.root, desk.store, slurm, always=not local)
            chosen = find_runs(desk.store, what)
            if slurm is not None:
                for job in release_held(
                    slurm, seen.snapshot, dict.fromkeys(one.job for one in chosen.values() if one.state in ACTIVE)
                ):
                    click.echo(f"released {job}: a node could not launch it, and Slurm held it")
                if line := cancel_leftovers(slurm, desk.store, seen.snapshot):
                    click.echo(line)
            for name in {name for one in what if (name := sweep_name(desk.store, one)) is not None}:
                desk.store.note(name, "resumed")
            again = [record for record in chosen.values() if record.state in RESUMABLE]
            whole = [record for record in chosen.values() if what and record.state is RunState.DONE]
            again += [record for record in whole if manifest_problem(desk.root.run_dir(record.id)) is not None]
            for record in again:
                desk.root.run_dir(record.id).cancel_mark.unlink(missing_ok=True)
            desk.store.apply([Change(run=one.id, state=RunState.PLANNED, reason="resumed") for one in again], now=time.time())
            planned = [run for run, one in desk.store.runs(chosen).items() if one.state is RunState.PLANNED]
            if new_code and planned:
                snapshot = workspace.snapshot_code(desk.root, submission.checkout())
                for run in planned:
                    workspace.refreeze_code(desk.root, run, snapshot)
                desk.store.refrozen(planned, snapshot.tree, now=time.time())
            if not planned:
                active = sum(1 for one in chosen.values() if one.state not in (RunState.DONE, RunState.PLANNED))
                click.echo(f"nothing to resume: {len(chosen) - active} done, {active} active")
                return
            if not local:
                site = cluster.site_profile(desk.root, cluster.require_slurm())
                done = tick.submit_planned(desk.root, desk.store, planned, cluster.limits_of(site))
                for job, tasks in done.arrays.items():
                    click.echo(f"queued array {job}: {tasks} run{'s' if tasks != 1 else ''}")
                for run, reason in list(done.held.items())[:10]:
                    click.echo(f"held {run}: {reason}")
                from orchestrator.shipping import try_to_ship

                why = try_to_ship(desk.root, desk.store, desk.tracking_uri, desk.store.sweeps())
                if why:
                    click.echo(f"the tracker is behind: {why}; nothing is lost", err=True)
        if local:
            run_here(root, planned, sweep=None, parallel=parallel)
