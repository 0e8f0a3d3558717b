"""Running planned runs on this machine with a progress display, then shipping what they wrote."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.cli.common import Desk, open_desk
from orchestrator.errors import Problem, RunsFailed, UserError
from orchestrator.lifecycle import RunState
from orchestrator.local import LocalRunner, Progress, default_parallel
from orchestrator.records import RunRecord
from orchestrator.store.runs import Store


def time_left(progress: Progress) -> str:
    """Estimated from this process's own rate; `?` before it has one."""
    if not progress.steps or not progress.step or progress.elapsed_s < 1:
        return "?"
    left = progress.elapsed_s * (progress.steps - progress.step) / progress.step
    return f"{int(left // 60)}:{int(left % 60):02d}"


def bar_line(progress: Progress) -> str:
    """One run in words: id, bar, step, loss, time left."""
    share = progress.step / progress.steps if progress.steps else 0.0
    filled = int(20 * min(1.0, share))
    parts = [f"{progress.run:<22}", "[" + "#" * filled + "." * (20 - filled) + "]"]
    if progress.steps:
        parts.append(f"step {progress.step}/{progress.steps}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.5f}")
    parts.append(f"left {time_left(progress)}")
    return " ".join(parts)


class Display:
    """A few lines that are redrawn on a terminal; on anything else one line a run every ten seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._drawn = 0
        self._said = 0.0

    def show(self, running: Sequence[Progress], ended: int, total: int) -> None:
        """Draw."""
        lines = [f"{ended}/{total} runs ended", *(f"  {bar_line(one)}" for one in running)]
        if self._terminal:
            sys.stderr.write(f"\x1b[{self._drawn}F" if self._drawn else "")
            sys.stderr.write("".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[0J")
            self._drawn = len(lines)
            sys.stderr.flush()
        elif time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            click.echo("; ".join([lines[0], *(line.strip() for line in lines[1:])]), err=True)


def run_here(root: Path, ids: Sequence[str], *, sweep: str | None, parallel: int | None) -> None:
    """Execute planned runs; raises RunsFailed when some did not finish."""
    with open_desk(root) as desk, desk.root.lock(name="local.lock", wait=False) as mine:
        if not mine:
            raise UserError(Problem(what="another local run is at work on this root", where=str(desk.root.path)))
        before = with_needs(desk.store, ids)
        todo = [run for run, record in before.items() if record.state is RunState.PLANNED]
        if not todo:
            _nothing(before, sweep)
            return
        runner = LocalRunner(root=desk.root, store=desk.store, parallel=parallel or default_parallel(), report=Display().show)
        runner.run(todo)
        names = desk.store.sweeps() if sweep is None else [sweep]
        _ship(desk, names)
        _sum_up(desk.store.runs(before), sweep)


def with_needs(store: Store, ids: Sequence[str]) -> dict[str, RunRecord]:
    """The named runs and everything that they need, needed runs first."""
    records, found = store.runs(), dict[str, RunRecord]()

    def take(run: str) -> None:
        if run in records and run not in found:
            for need in records[run].needs.values():
                take(need)
            found[run] = records[run]

    for run in ids:
        take(run)
    return found


def _nothing(records: dict[str, RunRecord], sweep: str | None) -> None:
    done = sum(1 for record in records.values() if record.state is RunState.DONE)
    if done == len(records):
        click.echo(f"nothing to do: all {done} runs are done" + (f"; `orch table {sweep}` prints the table" if sweep else ""))
    else:
        _sum_up(records, sweep)


def _ship(desk: Desk, names: Sequence[str]) -> None:
    from orchestrator.shipping import try_to_ship

    with desk.root.lock():
        why = try_to_ship(desk.root, desk.store, desk.tracking_uri, names)
    if why:
        click.echo(f"the tracker is behind: {why}; `orch sync` ships later, nothing is lost", err=True)


def _sum_up(records: dict[str, RunRecord], sweep: str | None) -> None:
    unfinished = {run: record for run, record in records.items() if record.state is not RunState.DONE}
    click.echo(f"{len(records) - len(unfinished)} of {len(records)} runs done")
    failed = {
        run: record for run, record in unfinished.items() if record.state in (RunState.FAILED, RunState.LOST, RunState.TIMED_OUT)
    }
    for run, record in failed.items():
        click.echo(f"  {run} {record.state.value}: {record.reason}", err=True)
    if failed:
        first = next(iter(failed))
        raise RunsFailed(
            Problem(what=f"{len(failed)} runs failed", hint=f"`orch show {first}` explains; `orch resume` tries again")
        )
    if unfinished:
        target = f" {sweep}" if sweep else ""
        click.echo(f"stopped; `orch resume{target} --local` goes on", err=True)
