"""Shipping killed at every line between a batch and its cursor: after the next shipping every point is there once."""

from __future__ import annotations

from jobs.journal import CHECKPOINT
from orchestrator.lifecycle import RunState
from orchestrator.tracking import mlflow_store, shipper
from orchestrator.tracking.mlflow_store import MlflowTracker
from orchestrator.tracking.shipper import ShipReport, ship_run
from tests.deaths import dies_at, every_line, in_a_child

WAY = (
    shipper.ship_run,
    shipper._bind,
    shipper._fresh_points,
    shipper._advance,
    shipper._ship_description,
    shipper._ship_status,
    mlflow_store.MlflowTracker.create,
    mlflow_store.MlflowTracker.log,
)


def test_that_after_death_at_any_line_every_point_is_in_the_tracker_once(root, make, json_cursors, server, rows):
    """A run for each line, shipped three points at a time. Children share no connection with us: one does not outlive a fork."""
    server.start()
    assert MlflowTracker(server.uri, root)  # imports MLflow here, once

    def shipping(run: str, state: RunState) -> None:
        ship_run(MlflowTracker(server.uri, root), make.facts(run, state), json_cursors, ShipReport(), batch=3)

    lines, died, runs = list(every_line(*WAY)), 0, []
    for number, (function, line) in enumerate(lines):
        run = f"r{number:03d}"
        runs.append(run)
        make.steps(run, last=4, event=CHECKPOINT)
        died += dies_at(function, line, lambda run=run: shipping(run, RunState.RUNNING))
        make.steps(run, first=4, last=6, attempt=2)  # it fell back to step 3, and did step 4 again at another time
    assert died > 40
    assert in_a_child(lambda: [shipping(run, RunState.DONE) for run in runs]) == 0
    found: dict[str, list[tuple[str, int]]] = {}
    for run, name, step, _, _ in rows():
        found.setdefault(run, []).append((name, step))
    whole = sorted((name, step) for name in ("train/loss", "train/lr") for step in range(1, 7))
    for run, (function, line) in zip(runs, lines, strict=True):
        assert sorted(found.get(run, [])) == whole, f"{function.__qualname__}, line {line}"
