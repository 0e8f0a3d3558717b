"""What the commands share: opening the root and the store, finding sweeps and runs by what a person typed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from orchestrator.errors import Problem, UserError
from orchestrator.records import RunRecord
from orchestrator.store.runs import Store
from orchestrator.workspace import Root


@dataclass(frozen=True, kw_only=True)
class Desk:
    """An opened root."""

    root: Root
    store: Store

    @property
    def tracking_uri(self) -> str:
        """MLFLOW_TRACKING_URI, else a SQLite store below the root."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root.path.absolute() / 'mlflow.db'}"


@contextmanager
def open_desk(path: Path, *, create: bool = False) -> Iterator[Desk]:
    """Open the root; without `create` it must exist already."""
    root = Root(path.absolute())
    if create:
        root.create()
    elif not root.store.exists():
        raise UserError(
            Problem(
                what="nothing was submitted here yet",
                where=str(root.path),
                hint="`orch submit SWEEP` makes a root; `--root DIR` or ORCH_ROOT point at another",
            )
        )
    store = Store(root.store)
    try:
        yield Desk(root=root, store=store)
    finally:
        store.close()


def sweep_name(store: Store, typed: str) -> str | None:
    """The submitted sweep that a name or a path to its file means; None when it means none."""
    name = Path(typed).stem if typed.endswith((".yaml", ".yml")) else typed
    return name if store.sweep_row(name) is not None else None


def find_runs(store: Store, typed: Sequence[str]) -> dict[str, RunRecord]:
    """The runs meant by sweep names, sweep files, run ids or unique beginnings of run ids; all runs when nothing is typed."""
    if not typed:
        return store.runs()
    everything: dict[str, RunRecord] | None = None
    found: dict[str, RunRecord] = {}
    for one in typed:
        sweep = sweep_name(store, one)
        if sweep is not None:
            found |= store.of_sweep(sweep)
            continue
        everything = store.runs() if everything is None else everything
        matches = [run for run in everything if run.startswith(one) or run.partition("-")[2].startswith(one)]
        if one in everything:
            matches = [one]
        if len(matches) != 1:
            raise UserError(_unknown(store, one, matches))
        found[matches[0]] = everything[matches[0]]
    return found


def _unknown(store: Store, typed: str, matches: Sequence[str]) -> Problem:
    if matches:
        shown = ", ".join(matches[:8]) + (" ..." if len(matches) > 8 else "")
        return Problem(what="more than one run begins like this", value=typed, allowed=shown, hint="type a few more characters")
    import difflib

    near = difflib.get_close_matches(typed, [*store.sweeps(), *store.runs()], n=3)
    return Problem(
        what="no submitted sweep and no run is called so",
        value=typed,
        allowed="sweeps: " + (", ".join(store.sweeps()) or "none yet"),
        hint=f"did you mean {near[0]}?" if near else "`orch status` lists everything",
    )


def find_run(store: Store, typed: str) -> RunRecord:
    """Exactly one run."""
    found = find_runs(store, [typed])
    if len(found) != 1:
        raise UserError(
            Problem(what="this means several runs", value=typed, allowed=", ".join(list(found)[:8]), hint="name one run")
        )
    return next(iter(found.values()))


only_option = click.option("--only", multiple=True, metavar="AXIS=OPTION[,...]", help="Only these cells.")
set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key in every cell.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
