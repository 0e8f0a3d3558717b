"""`orch status`: where all runs stand, in one screen. Imports neither torch nor mlflow nor pydantic."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from orchestrator import accounting, cluster, tick
from orchestrator.cli.common import Desk, find_runs, json_option, open_desk
from orchestrator.errors import ClusterError, Problem, RunsFailed
from orchestrator.goodput import Usage, in_seconds, worded
from orchestrator.lifecycle import ACTIVE, RESUMABLE, RunState
from orchestrator.records import RunRecord
from orchestrator.store import usages

ORDER = (
    RunState.RUNNING, RunState.QUEUED, RunState.SUBMITTING, RunState.PLANNED, RunState.DONE, RunState.FAILED,
    RunState.TIMED_OUT, RunState.LOST, RunState.CANCELLED, RunState.STOPPED,
)  # fmt: skip
SHOWN = 20
LOOKED_AT = 200
"""Running runs whose journals are looked at: for the tracker's line, and for what they have used until now."""


def progress_of(desk: Desk, record: RunRecord) -> str:
    """`63 %` of a running run, from its journal's last line."""
    from jobs.journal import announced_steps, last_entry

    journals = desk.root.run_dir(record.id).journals
    entry = last_entry(journals)
    if entry is None:
        return "starting"
    steps = record.steps or announced_steps(journals)
    return f"step {entry.step}" + (f" of {steps} ({100 * entry.step // steps} %)" if steps else "")


def counts_line(counts: Mapping[RunState, int]) -> str:
    """`12 runs: 4 running, 8 done`."""
    parts = [f"{counts[state]} {state.value.replace('_', ' ')}" for state in ORDER if counts.get(state)]
    return f"{sum(counts.values())} runs: " + (", ".join(parts) or "none")


def detail_lines(desk: Desk, records: Mapping[str, RunRecord]) -> list[str]:
    """The runs that a person wants to see: running ones, then those that need help, then what waits and why."""
    lines: list[str] = []
    groups: Sequence[tuple[str, list[RunRecord]]] = (
        ("running", [one for one in records.values() if one.state is RunState.RUNNING]),
        ("ended without finishing", [one for one in records.values() if one.state in RESUMABLE]),
        ("waiting", [one for one in records.values() if one.state in (RunState.PLANNED, RunState.QUEUED) and one.reason]),
    )
    for title, members in groups:
        if members:
            lines.append(f"{title}:")
        for one in members[:SHOWN]:
            what = (
                progress_of(desk, one) if one.state is RunState.RUNNING else f"{one.state.value.replace('_', ' ')}: {one.reason}"
            )
            lines.append(f"  {one.id:<24} {one.job:<12} {what}")
        if len(members) > SHOWN:
            lines.append(f"  ... and {len(members) - SHOWN} more (`--json` has all)")
    return lines


def behind_line(desk: Desk, running: Sequence[RunRecord]) -> str:
    """How far the tracker is behind: runs that changed since the last shipping, or have written more since."""
    marks = desk.root.path / "tracker_marks.json"
    shipped = marks.stat().st_mtime if marks.exists() else 0.0
    moved = {run.id for run in running[:LOOKED_AT] if _newest_write(desk, run) > shipped}
    count = len(moved | desk.store.changed_since(shipped))
    return f"tracker: {count} runs have moved since the last shipping (`orch sync`)" if count else "tracker: up to date"


def _newest_write(desk: Desk, run: RunRecord) -> float:
    """When a run last wrote to its journals (seconds since the epoch)."""
    try:
        return max((entry.stat().st_mtime for entry in os.scandir(desk.root.run_dir(run.id).journals)), default=0.0)
    except OSError:
        return 0.0


def used_lines(desk: Desk, records: Mapping[str, RunRecord] | None) -> list[str]:
    """What these runs, or all of them, have used, and how many of all nobody has read yet."""
    connection = desk.store.connection
    usage = usages.total(connection) if records is None else sum(usages.of(connection, records).values(), Usage())
    missing = usages.missing(connection)
    later = f"goodput: {missing} still to be read, some with each look"
    return [line for line in (worded(usage), later if missing else "") if line]


def render(desk: Desk, typed: Sequence[str], trouble: str, seen: Mapping[str, RunRecord] | None) -> str:
    """The whole screen. `seen`: all records, when a look has just read them."""
    records = find_runs(desk.store, typed) if typed or seen is None else seen
    lines = [trouble] if trouble else []
    names = desk.store.sweeps() if not typed else []
    for name in names:
        row = desk.store.sweep_row(name)
        lines.append(f"{name}: {counts_line(desk.store.counts(name))}" + (f"  ({row['title']})" if row and row["title"] else ""))
        if len(names) > 1 and (used := worded(usages.total(desk.store.connection, sweep=name))):
            lines.append(f"  {used}")
    if len(names) != 1:
        lines.append(counts_line(Counter(record.state for record in records.values())))
    lines += used_lines(desk, records if typed else None)
    lines += detail_lines(desk, records)
    lines.append(behind_line(desk, [one for one in records.values() if one.state is RunState.RUNNING]))
    resumable = sum(1 for record in records.values() if record.state in RESUMABLE)
    if resumable:
        lines.append(f"hint: `orch resume` continues {resumable} run{'s' if resumable != 1 else ''} from the last checkpoint")
    return "\n".join(lines)


def status_json(desk: Desk, typed: Sequence[str]) -> str:
    """Every run with its state, for scripts."""
    records = find_runs(desk.store, typed)
    used = {run: in_seconds(usage) for run, usage in usages.of(desk.store.connection, records).items()}
    return json.dumps(
        [
            {
                "id": one.id, "kind": one.kind, "state": one.state.value, "reason": one.reason, "job": one.job,
                "steps": one.steps, "usage": used.get(one.id),
            }
            for one in records.values()
        ],
        indent=1,
    )  # fmt: skip


def refresh(desk: Desk) -> tuple[str, Mapping[str, RunRecord] | None]:
    """Look once and record facts; what went wrong, if anything, and all records after the look."""
    with desk.root.lock(wait=False) as mine:
        if not mine:
            return "another orch is at work on this root, or it is read-only; showing what is recorded", None
        try:
            trouble, seen = "", tick.look(desk.root, desk.store, cluster.find_slurm()).records
        except ClusterError as error:
            trouble, seen = f"Slurm did not answer, showing what is recorded: {error.problems[0].what}", None
        accounting.renew(desk.root, desk.store, usages.running(desk.store.connection, limit=LOOKED_AT))
        return trouble, seen


@click.command("status")
@click.argument("what", nargs=-1)
@click.option("--watch", is_flag=True, help="Look again every few seconds until nothing is active.")
@json_option
@click.pass_obj
def command(root: Path, what: tuple[str, ...], watch: bool, as_json: bool) -> None:
    """Show where all runs stand, or those of a sweep or of some runs (WHAT)."""
    with open_desk(root) as desk:
        while True:
            trouble, seen = refresh(desk)
            text = status_json(desk, what) if as_json else render(desk, what, trouble, seen)
            if watch and not as_json:
                click.clear()
            click.echo(text)
            if not watch:
                return
            records = find_runs(desk.store, what)
            if not any(one.state in ACTIVE for one in records.values()):
                raise_if_failed(records)
                return
            time.sleep(5.0)


def raise_if_failed(records: Mapping[str, RunRecord]) -> None:
    """At the end of a watch: RunsFailed when some runs ended badly, so that a script can tell."""
    bad = [one for one in records.values() if one.state in (RunState.FAILED, RunState.LOST, RunState.TIMED_OUT)]
    if bad:
        raise RunsFailed(Problem(what=f"{len(bad)} runs failed", hint=f"`orch show {bad[0].id}` explains"))
