"""`orch verify-resume SWEEP`: prove for one's own configurations that a killed and resumed run equals an untouched one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from jobs.rehearsal_config import shorten
from orchestrator.cli.common import only_option, set_option
from orchestrator.errors import Problem, RunsFailed
from orchestrator.rehearsal import Chain, distinct_chains, in_warm_process
from orchestrator.submission import make_plan

FIRST = ("prepare", "embed")
"""What the others read: runs untouched, on little data."""
KINDS = ("train", "count")
"""What is struck: kinds with a state that grows step by step."""


def request(chains: Sequence[Chain], folder: Path, *, kills: int, steps: int, ranks: int, seed: int) -> dict[str, Any]:
    """What the warm process is asked for: one run per distinct pipeline step, the kills spread over them."""
    first: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for chain in chains:
        size = max((getattr(run.spec, "batch_size", 8) for run in chain.runs.values() if run.kind == "train"), default=8)
        for run in chain.runs.values():
            config = run.spec.model_dump(mode="json")
            needs = {kind: need for kind, need in run.needs.items() if need in first or need in runs}
            if run.kind in FIRST:
                generous = 1 if run.kind == "embed" or config["data"]["kind"] == "coco" else 8
                first[run.id] = {"id": run.id, "config": shorten(config, batch_size=generous * size), "needs": needs}
            elif run.kind in KINDS and config["steps"] > 1:
                config["steps"] = min(config["steps"], steps)
                config["runtime"] |= {
                    "checkpoint_every_steps": max(1, steps // 10), "log_every": 1, "max_attempts_without_progress": 10_000,
                }  # fmt: skip
                runs[run.id] = {"id": run.id, "config": config, "needs": needs, "ranks": ranks if run.kind == "train" else 1}
    share, rest = divmod(kills, max(1, len(runs)))
    for position, one in enumerate(runs.values()):
        one["kills"] = share + (position < rest)
    return {"folder": str(folder), "first": list(first.values()), "runs": list(runs.values()), "seed": seed}


@click.command("verify-resume")
@click.argument("sweep", type=click.Path(path_type=Path))
@click.option("--kills", type=click.IntRange(min=1), default=20, show_default=True, help="Signals in all, at random moments.")
@click.option("--steps", type=click.IntRange(min=2), default=40, show_default=True, help="Steps of each run.")
@click.option("--ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Processes per run.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random moments.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@only_option
@set_option
def command(
    sweep: Path, kills: int, steps: int, ranks: int, seed: int, as_json: bool, only: tuple[str, ...], overrides: tuple[str, ...]
) -> None:
    """Run each distinct configuration of SWEEP untouched, and struck by SIGKILL, SIGTERM and SIGUSR2 at random moments; compare.

    Weights, optimiser state and metric series must be equal bit for bit. Runs are cut to a few steps; nothing is queued or kept.
    """
    made = make_plan(sweep, None, only=only, overrides=overrides)
    chains = distinct_chains(made)
    names = {run.id: chain.name for chain in chains for run in chain.runs.values()}
    hits, bad, compared = 0, 0, 0
    reports = in_warm_process(
        "jobs.verify", lambda folder: request(chains, folder, kills=kills, steps=steps, ranks=ranks, seed=seed)
    )
    for report in reports:
        if as_json:
            click.echo(json.dumps(report))
        name = names.get(report["id"], report["id"])
        if "error" in report:
            bad += 1
            click.echo(f"{name}: {report['error']}", err=True)
            continue
        compared += 1
        hits += report["kills"]
        bad += bool(report["differences"])
        verdict = "equal bit for bit" if not report["differences"] else "DIFFERS: " + "; ".join(report["differences"][:3])
        if not as_json:
            click.echo(f"{name}: struck {report['kills']} times, {verdict}")
    if bad:
        raise RunsFailed(Problem(what=f"{bad} configurations are not resumed exactly", hint="`--json` has every difference"))
    if not compared:
        click.echo("nothing to verify: no run of this sweep makes steps")
        return
    click.echo(f"{hits} kills at random moments in {compared} configurations: 0 differences")
