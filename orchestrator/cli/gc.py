"""`orch gc [WHAT] [--apply]`: what takes room and is of no use any more. Dry unless told. Imports neither torch nor mlflow."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from orchestrator import cluster, removal, tick
from orchestrator.cli.common import Desk, find_runs, json_option, open_desk
from orchestrator.cli.status import refresh
from orchestrator.errors import ClusterError, Problem, UserError
from orchestrator.gc import Keep, Kind, Removal, SnapshotsSeen, removals_of, removals_of_snapshots, why_left_alone
from orchestrator.slurm.states import ENDED

SHOWN = 3


def size(count: int) -> str:
    """Bytes in words."""
    for unit, one in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count} bytes"


def things(count: int) -> str:
    """`1 thing`, `2 things`."""
    return f"{count} thing{'' if count == 1 else 's'}"


def live_jobs() -> frozenset[str] | None:
    """This user's jobs that have not ended; None when Slurm cannot be asked."""
    slurm = cluster.find_slurm()
    try:
        return (
            None if slurm is None else frozenset(one.id for one in slurm.jobs(cluster.user_name()).rows if one.state not in ENDED)
        )
    except ClusterError:
        return None


def observe(desk: Desk, *, wait: bool) -> str:
    """Record facts first: what has ended meanwhile is no longer active. What went wrong, if anything."""
    if not wait:
        return refresh(desk)[0]
    with desk.root.lock():
        try:
            tick.look(desk.root, desk.store, cluster.find_slurm())
        except ClusterError as error:
            return f"Slurm did not answer, going by what is recorded: {error.problems[0].what}"
    return ""


def kind_lines(found: Sequence[Removal]) -> list[str]:
    """A line per kind with its sum, and the largest of each with the reason."""
    lines: list[str] = []
    for kind in Kind:
        mine = sorted((one for one in found if one.kind is kind), key=lambda one: (-one.bytes, one.path))
        if mine:
            lines.append(f"{kind.value}: {len(mine)}, {size(sum(one.bytes for one in mine))}")
            shown = mine[:SHOWN]
            lines += [f"  {one.path}  {size(one.bytes)}  ({one.reason})" for one in shown]
            if len(mine) > len(shown):
                lines.append(f"  ... and {len(mine) - len(shown)} more (`--json` has all)")
    return lines


def left_lines(left: Mapping[str, str], snapshots: SnapshotsSeen) -> list[str]:
    """Which runs were not touched, by reason, and whether code was kept because a link cannot be read."""
    by_reason: dict[str, list[str]] = {}
    for run, reason in left.items():
        by_reason.setdefault(reason, []).append(run)
    lines = [
        f"left alone: {', '.join(runs[:SHOWN])}{f' and {len(runs) - SHOWN} more' if len(runs) > SHOWN else ''}: {reason}"
        for reason, runs in by_reason.items()
    ]
    if snapshots.unknown:
        lines.append(f"all code snapshots are kept: the code of {', '.join(snapshots.unknown[:SHOWN])} cannot be read")
    return lines


@click.command("gc")
@click.argument("what", nargs=-1)
@click.option("--apply", "really", is_flag=True, help="Remove; without it nothing is touched.")
@click.option(
    "--keep-logs", type=click.IntRange(min=1), default=Keep.logs, show_default=True, help="Newest jobs whose logs stay, per run."
)
@click.option("--finished-checkpoints", is_flag=True, help="Also the last checkpoint of runs that are done and whole.")
@json_option
@click.pass_obj
def command(root: Path, what: tuple[str, ...], really: bool, keep_logs: int, finished_checkpoints: bool, as_json: bool) -> None:
    """Say what could be removed below the root and how many bytes that is, of everything or of WHAT (sweeps, runs).

    Never touched: journals, attempts, outcomes, specs, outputs, artifacts, runs that somebody may work on, the newest valid
    checkpoint of a run that is not done.
    """
    keep = Keep(logs=keep_logs, finished_checkpoints=finished_checkpoints)
    with open_desk(root) as desk:
        trouble = observe(desk, wait=really)
        records = find_runs(desk.store, what)
        live, now = live_jobs(), time.time()
        seen = {run.id: run for run in removal.look_at_all(desk.root, records.values(), live, now)}
        left = {run: reason for run, one in seen.items() if (reason := why_left_alone(one, live, now))}
        decided = {run: removals_of(one, keep, live, now) for run, one in seen.items()}
        snapshots = SnapshotsSeen() if what else removal.look_at_snapshots(desk.root, desk.store.runs())
        found = [one for mine in decided.values() for one in mine] + removals_of_snapshots(snapshots)
        failed: dict[str, str] = {}
        if really:
            removed = removal.Removed()
            for run, mine in decided.items():
                if mine:
                    removal.remove_of_run(desk.root, desk.store, seen[run], mine, removed)
            if not what:
                removal.remove_snapshots(desk.root, desk.store, removed)
            found, failed = removed.done, removed.failed
            left |= dict.fromkeys(removed.moved_on, "it changed meanwhile: `orch gc` again")
        if as_json:
            click.echo(_json(found, left, snapshots, failed, really=really))
        else:
            for line in [*([trouble] if trouble else []), *kind_lines(found), *left_lines(left, snapshots)]:
                click.echo(line)
            total = f"{things(len(found))}, {size(sum(one.bytes for one in found))}"
            click.echo(f"removed {total}" if really else f"would remove {total}" + ("; `--apply` does it" if found else ""))
    if failed:
        path, why = next(iter(failed.items()))
        raise UserError(
            Problem(
                what=f"{things(len(failed))} could not be removed, the first: {why}",
                where=str(root / path),
                hint="is the root yours, and writable? `orch gc --apply` again removes the rest",
            )
        )


def _json(
    found: Sequence[Removal], left: Mapping[str, str], snapshots: SnapshotsSeen, failed: Mapping[str, str], *, really: bool
) -> str:
    """Everything, for scripts."""
    return json.dumps(
        {
            "removed": really,
            "bytes": sum(one.bytes for one in found),
            "things": [{"kind": one.kind.value, "path": one.path, "bytes": one.bytes, "reason": one.reason} for one in found],
            "left_alone": dict(left),
            "unreadable_code": list(snapshots.unknown),
            "failed": dict(failed),
        },
        indent=1,
    )
