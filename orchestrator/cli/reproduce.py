"""`orch reproduce WHAT`: a finished cell once more from its frozen code and configuration, and what differs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.cli.common import Desk, find_runs, json_option, only_option, open_desk, sweep_name
from orchestrator.errors import Problem, RunsFailed, UserError
from orchestrator.lifecycle import RunState
from orchestrator.likeness import Likeness, Verdict
from orchestrator.records import RunRecord
from orchestrator.store.runs import Store
from orchestrator.workspace import Root


def chosen_runs(desk: Desk, what: Sequence[str], only: Sequence[str]) -> dict[str, RunRecord]:
    """The runs that are meant, with everything that they need, needed runs first. Raises UserError."""
    from orchestrator.cli.local_run import with_needs
    from orchestrator.sweep.expand import expand
    from orchestrator.sweep.grammar import parse_sweep

    if not only:
        return with_needs(desk.store, list(find_runs(desk.store, what)))
    ids: dict[str, None] = {}
    for typed in what:
        name = sweep_name(desk.store, typed)
        row = None if name is None else desk.store.sweep_row(name)
        if name is None or row is None:
            hint = "`--only` selects cells of a submitted sweep; a run id names a run by itself"
            raise UserError(Problem(what="no submitted sweep is called so", value=typed, hint=hint))
        cells = expand(parse_sweep(row["definition"], row["path"]), only=only)
        wanted = [dict(cell.coordinates) for cell in cells]
        for known in desk.store.cells(name):
            if dict(known.coordinates) in wanted:
                ids |= dict.fromkeys(known.runs.values())
    if not ids:
        raise UserError(Problem(what="no submitted cell is meant", where="--only", value=" ".join(only)))
    return with_needs(desk.store, list(ids))


def worded(one: Likeness) -> list[str]:
    """The table of one run."""
    lines = [f"{one.run} ({one.kind}): {'reproduced' if one.equal else 'DIFFERS'}"]
    for fact in one.facts:
        if fact.verdict is Verdict.DIFFERENT:
            sides = f"{fact.original} -> {fact.reproduced}" if fact.original != fact.reproduced and fact.reproduced else ""
        else:
            sides = fact.original or fact.reproduced
        mark = fact.verdict.value.upper() if fact.judged and fact.verdict is Verdict.DIFFERENT else fact.verdict.value
        lines.append("  " + f"{fact.what:<15}{mark:<14}{'; '.join(part for part in (sides, fact.detail) if part)}".rstrip())
    return lines


@click.command("reproduce")
@click.argument("what", nargs=-1, required=True)
@only_option
@click.option(
    "--into", type=click.Path(path_type=Path, file_okay=False), help="A new folder to run in (default: below the root)."
)
@click.option("--steps", type=click.IntRange(min=1), help="Stop training after so many steps, and compare up to there.")
@click.option("--parallel", type=click.IntRange(min=1), help="Processes at once.")
@json_option
@click.pass_obj
def command(
    root: Path,
    what: tuple[str, ...],
    only: tuple[str, ...],
    into: Path | None,
    steps: int | None,
    parallel: int | None,
    as_json: bool,
) -> None:
    """Run finished runs (ids, or the cells of a SWEEP) and all that they need once more on this machine, from their own frozen
    code and configuration, and say what differs. Exit 0: configuration, code, metrics and weights are equal; 4: they are not.

    The original is only read. The packages are those of this environment: what differs between them is said, and not judged.
    """
    from orchestrator.cli.local_run import Display
    from orchestrator.local import LocalRunner, default_parallel
    from orchestrator.reproduction import PLACE, choose, compare, lay_out

    with open_desk(root) as desk:
        source, records = desk.root, chosen_runs(desk, what, only)
    chosen = choose(records, steps=steps)
    for run in chosen.left_out:
        click.echo(f"left out {run}: it needs a run that is stopped early", err=True)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(what[0]).stem)[:60].lstrip(".") or "runs"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    place = Root((into or source.path / PLACE / f"{name}-{stamp}").absolute())
    if source.path == place.path or place.path.is_relative_to(source.runs) or place.path.is_relative_to(source.snapshots):
        raise UserError(Problem(what="is a place of the original", where="--into", value=str(place.path)))
    lay_out(source, place, chosen, records, name=name)
    with place.lock(name="local.lock", wait=False) as mine:
        if not mine:
            raise UserError(Problem(what="another local run is at work on this root", where=str(place.path)))
        store = Store(place.store)
        try:
            runner = LocalRunner(root=place, store=store, parallel=parallel or default_parallel(), report=Display().show)
            ended = runner.run(chosen.runs)
        finally:
            store.close()
    _check_ended(ended, place)
    found = compare(source, place, chosen, records)
    if as_json:
        told = [
            {"run": one.run, "kind": one.kind, "equal": one.equal, "facts": [asdict(fact) for fact in one.facts]} for one in found
        ]
        click.echo(json.dumps({"root": str(place.path), "equal": all(one.equal for one in found), "runs": told}, indent=1))
    else:
        for one in found:
            click.echo("\n".join(worded(one)))
        click.echo(f"{sum(one.equal for one in found)} of {len(found)} runs reproduced in {place.path}")
    if differing := [one.run for one in found if not one.equal]:
        raise RunsFailed(
            Problem(what=f"{len(differing)} of {len(found)} runs differ from the original", value=", ".join(differing[:4]))
        )


def _check_ended(records: dict[str, RunRecord], place: Root) -> None:
    undone = {run: record for run, record in records.items() if record.state is not RunState.DONE}
    if not undone:
        return
    for run, record in undone.items():
        click.echo(f"  {run} {record.state.value}: {record.reason}", err=True)
    hint = f"its log: `orch --root {place.path} logs {next(iter(undone))}`; the same command with `--into {place.path}` goes on"
    raise RunsFailed(Problem(what=f"{len(undone)} runs did not finish, nothing was compared", hint=hint))
