"""`orch submit SWEEP`: freeze what is new and queue it; `--local` runs it here; `--dry-run` proves every cell first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator import cluster, submission, tick
from orchestrator.batches import Limits
from orchestrator.cli.common import Desk, only_option, open_desk, set_option
from orchestrator.cli.local_run import run_here
from orchestrator.errors import ClusterError
from orchestrator.lifecycle import RESUMABLE, RunState
from orchestrator.sweep.plan import Plan
from orchestrator.workspace import Root


@click.command("submit")
@click.argument("sweep", type=click.Path(path_type=Path))
@click.option("--local", is_flag=True, help="Run it on this machine: one GPU, or the CPU. No Slurm.")
@click.option(
    "--dry-run", is_flag=True, help="Put every distinct cell through build, steps, kill, restore, evaluate; queue nothing."
)
@click.option(
    "--parallel", type=click.IntRange(min=1), help="Runs at once with --local (default: one per GPU, else one per core)."
)
@click.option("--comment", default="", help="A note that goes into the tracker's record of the sweep.")
@only_option
@set_option
@click.pass_obj
def command(
    root: Path,
    sweep: Path,
    local: bool,
    dry_run: bool,
    parallel: int | None,
    comment: str,
    only: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Queue SWEEP on Slurm. Submitting it again queues only what is new; a finished sweep does nothing."""
    if dry_run:
        from orchestrator.cli.dry_run import rehearse

        draft = submission.make_plan(sweep, None, only=only, overrides=overrides)
        warn(submission.check_inputs(draft, os.environ))
        rehearse(draft)
        return
    slurm = None if local else cluster.require_slurm()
    # every mistake of the user's is found before the first write
    draft = submission.make_plan(sweep, None, only=only, overrides=overrides)
    warn(submission.check_inputs(beside_known(draft, root), os.environ))
    site = None if slurm is None else cluster.site_profile(Root(root.absolute()), slurm)
    if site is not None:
        submission.check_site(draft, site)
        draft, lines = submission.fit_to_site(draft, site)
        warn(lines)
    with open_desk(root, create=True) as desk, desk.root.lock():
        limits = Limits()
        if site is not None:
            cluster.keep_profile(desk.root, site)
            limits = cluster.limits_of(site)
            tick.look(desk.root, desk.store, slurm)
        made = submission.beside_store(draft, desk.store)
        submission.check_name(made, desk.store)
        frozen = submission.freeze(made, desk.root, desk.store, comment=comment, partial=bool(only))
        if site is not None:
            try:
                done = tick.submit_planned(desk.root, desk.store, made.runs, limits)
            except ClusterError:
                submission.undo(frozen, desk.root, desk.store)
                raise
            say_submitted(made, desk, dict(done.arrays), dict(done.held), site_signal=site.user_signal_on_preemption)
        initialise_tracker(desk)  # last: jobs never touch the tracker, and it takes seconds
    if local:
        run_here(root, list(made.runs), sweep=made.sweep.name, parallel=parallel)


def beside_known(draft: Plan, root: Path) -> Plan:
    """The plan with what an earlier submission left in the store; makes no root."""
    if not Root(root.absolute()).store.exists():
        return draft
    with open_desk(root) as desk:
        return submission.beside_store(draft, desk.store)


def warn(lines: Sequence[str]) -> None:
    """What is no error: on stderr, so that it never mixes with output that is read by programs."""
    for line in lines:
        click.echo(line, err=True)


def initialise_tracker(desk: Desk) -> None:
    """Create the default store's schema once, here, so that no two processes ever do it at once."""
    from orchestrator.tracking.mlflow_store import initialise, initialised

    if not initialised(desk.tracking_uri):
        initialise(desk.tracking_uri, desk.root.path)


def say_submitted(made: Plan, desk: Desk, arrays: dict[str, int], held: dict[str, str], *, site_signal: bool) -> None:
    """One line per array; or that there was nothing to do."""
    records = desk.store.runs(made.runs)
    for job, tasks in arrays.items():
        click.echo(f"queued array {job}: {tasks} run{'s' if tasks != 1 else ''}")
    for run, reason in list(held.items())[:10]:
        click.echo(f"held {run}: {reason}")
    if len(held) > 10:
        click.echo(f"... and {len(held) - 10} more held")
    done = sum(1 for record in records.values() if record.state is RunState.DONE)
    stuck = [record for record in records.values() if record.state in RESUMABLE]
    if not arrays and not held:
        if done == len(records):
            click.echo(
                f"nothing to do: all {done} runs of {made.sweep.name} are done; `orch table {made.sweep.name}` prints the table"
            )
        else:
            click.echo(
                f"nothing new to queue: {done} of {len(records)} runs are done, {len(stuck)} need `orch resume {made.sweep.name}`"
            )
    elif stuck:
        click.echo(
            f"{len(stuck)} runs ended before and stay as they are; `orch resume {made.sweep.name}` continues them", err=True
        )
    if arrays and not site_signal:
        click.echo("note: this site evicts with SIGTERM alone; jobs checkpoint within its grace time", err=True)
