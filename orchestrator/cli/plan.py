"""`orch plan SWEEP`: what it would run. Writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.cli.common import json_option, only_option, set_option
from orchestrator.lifecycle import RunState
from orchestrator.store.runs import Store
from orchestrator.submission import make_plan
from orchestrator.sweep.plan import Plan, PlannedRun
from orchestrator.workspace import Root


def status_of(made: Plan, run: PlannedRun) -> str:
    """`new`, `done`, or the state of a run that exists; with a word when its code is not the present one."""
    if run.known is None:
        return "new"
    word = "cached" if run.known.state is RunState.DONE else run.known.state.value
    return word + (" (other code)" if run in made.changed else "")


def plan_json(made: Plan) -> str:
    """The whole plan for scripts."""
    runs = {
        run.id: {
            "kind": run.kind, "step": run.step, "status": status_of(made, run), "needs": dict(run.needs),
            "resources": {k: v for k, v in run.resources.items() if v is not None}, "config": run.spec.model_dump(mode="json"),
        }
        for run in made.runs.values()
    }  # fmt: skip
    cells = [{"coordinates": dict(cell.cell.coordinates), "runs": dict(cell.runs), "cite": cell.cell.cite} for cell in made.cells]
    return json.dumps({"sweep": made.sweep.name, "code_tree": made.code_tree, "cells": cells, "runs": runs}, indent=1)


def as_text(made: Plan) -> str:
    """Counts, then a line per run (the first hundred)."""
    cited = sum(1 for cell in made.cells if cell.cell.cite is not None)
    lines = [
        f"{made.sweep.title or made.sweep.name}",
        f"{len(made.cells)} cells" + (f" ({cited} cited)" if cited else "") + f", {len(made.runs)} runs: "
        f"{len(made.new)} new, {len(made.cached)} cached, {len(made.unfinished)} unfinished",
    ]
    serves: dict[str, list[str]] = {}
    for cell in made.cells:
        for run_id in cell.runs.values():
            serves.setdefault(run_id, []).append(cell.cell.name)
    for run in list(made.runs.values())[:100]:
        cells = serves.get(run.id, [])
        what = cells[0] if len(cells) == 1 else f"{len(cells)} cells"
        lines.append(f"  {run.id:<24} {status_of(made, run):<12} {what}")
    if len(made.runs) > 100:
        lines.append(f"  ... and {len(made.runs) - 100} more (`--json` has all)")
    if made.changed:
        lines.append(
            f"{len(made.changed)} runs were frozen with other code: finished ones stay valid, unfinished ones go on with the "
            "code that they were frozen with (`orch resume --new-code` changes that)"
        )
    return "\n".join(lines)


@click.command("plan")
@click.argument("sweep", type=click.Path(path_type=Path))
@only_option
@set_option
@json_option
@click.pass_obj
def command(root: Path, sweep: Path, only: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what SWEEP would run: new, cached and changed runs."""
    known = Root(root.absolute())
    store = Store(known.store) if known.store.exists() else None
    made = make_plan(sweep, store, only=only, overrides=overrides)
    click.echo(plan_json(made) if as_json else as_text(made))
