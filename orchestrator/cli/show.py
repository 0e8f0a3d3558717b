"""`orch show RUN`: what it is, its attempts, why it failed, the last log lines."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import click

from jobs.contract import read_attempts, read_outcome
from jobs.journal import read_journal
from orchestrator.accounting import read_usage
from orchestrator.cli.common import Desk, find_run, json_option, open_desk
from orchestrator.cli.status import refresh
from orchestrator.endings import tail, verdicts
from orchestrator.goodput import Usage, in_seconds, worded
from orchestrator.lifecycle import RESUMABLE, RunState
from orchestrator.policy import Policy
from orchestrator.records import RunRecord
from orchestrator.retry import ledger
from orchestrator.store import usages


def log_files(desk: Desk, run: str) -> list[Path]:
    """A run's logs, oldest first."""
    folder = desk.root.run_dir(run).logs
    return sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []


def when(seconds: float) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "?"


def outlook(desk: Desk, record: RunRecord) -> list[str]:
    """What happened to a run that ended without finishing, how often, and what `orch watch` will do or why it will not."""
    before = Counter(one.trouble for one in ledger((event.what, event.detail) for event in desk.store.events_of(record.id)))
    often = ", ".join(f"{trouble.value} ({number})" for trouble, number in before.items())
    lines = [f"retried:   {often}"] if often else []
    if record.state not in RESUMABLE:
        return lines
    names = desk.store.sweeps_of(record.id)
    wanted = [name for name in names if desk.store.wanted(name)]
    verdict = verdicts(desk.root, desk.store, wanted or names, Policy(), now=time.time())[0].get(record.id)
    if verdict is None:
        return lines
    lines.insert(0, f"cause:     {verdict.trouble.value}: {verdict.finding.what}")
    if verdict.finding.nodes:
        lines.append(f"node:      {verdict.finding.nodes} (left out for some hours, if it failed alone or under two jobs)")
    if names and not wanted:
        lines.append("next:      nothing: its sweep was cancelled; `orch resume` takes it up again")
    elif verdict.resume:
        lines.append(f"next:      `orch watch` or `orch resume` queues it again: {verdict.why}")
    else:
        lines.append(f"next:      `orch watch` leaves it: {verdict.why}; `orch resume {record.id}` continues it all the same")
    return [*lines, f"hint:      {verdict.finding.hint}"] if verdict.finding.hint else lines


def used_by(desk: Desk, record: RunRecord) -> Usage:
    """What a run has used until now."""
    if record.state is RunState.RUNNING:
        return read_usage(desk.root, desk.store, record)
    return usages.of(desk.store.connection, [record.id]).get(record.id, Usage())


def explain(desk: Desk, record: RunRecord) -> str:
    """Everything about one run in words."""
    run_dir = desk.root.run_dir(record.id)
    lines = [f"{record.id}: {record.state.value}" + (f": {record.reason}" if record.reason else "")]
    lines += [f"  {line}" for line in outlook(desk, record)]
    lines.append(f"  directory: {run_dir.path}")
    lines.append(f"  serves:    {', '.join(desk.store.sweeps_of(record.id)) or 'no sweep'}")
    lines += [f"  needs:     {need} ({kind})" for kind, need in record.needs.items()]
    try:
        spec = json.loads(run_dir.spec.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        lines.append(f"  spec.json cannot be read: {error}")
        spec = {}
    dirty = " with uncommitted changes" if spec.get("code_dirty") else ""
    lines.append(f"  code:      tree {spec.get('code_tree', '?')}, commit {str(spec.get('code_commit', '?'))[:12] or '?'}{dirty}")
    journals = {one.attempt: one for one in read_journal(run_dir.journals).attempts}
    attempts = read_attempts(run_dir)
    lines.append(f"attempts: {len(attempts) or 'none yet'}")
    if used := worded(used_by(desk, record)):
        lines.append(f"  {used}")
    for one in attempts:
        journal = journals.get(one.number)
        reached = (
            f"step {journal.restored_step} -> {journal.entries[-1].step if journal.entries else journal.restored_step}"
            if journal
            else "no journal"
        )
        place = one.job_id or "this machine"
        lines.append(
            f"  {one.number}: {when(one.started_at)} {place} restart {one.restart_count} on {one.node or '?'}, "
            f"world size {one.world_size}, {reached}"
        )
        if one.environment and spec.get("environment") and one.environment != spec["environment"]:
            lines.append("     note: the installed packages had changed since submit")
    outcome = read_outcome(run_dir)
    if outcome is not None:
        lines.append(
            f"outcome: {outcome.status.value} at step {outcome.step}, {when(outcome.finished_at)}"
            + (f": {outcome.reason}" if outcome.reason else "")
        )
        lines += [f"  {name} = {value:.6g}" for name, value in sorted(outcome.values.items())]
    logs = log_files(desk, record.id)
    if logs:
        lines.append(f"last lines of {logs[-1]}:")
        lines += [f"  {line}" for line in tail(logs[-1], 12)]
    lines.append("history:")
    lines += [f"  {when(event.at)} {event.what} {event.detail}".rstrip() for event in desk.store.events_of(record.id)[-12:]]
    return "\n".join(lines)


@click.command("show")
@click.argument("run")
@json_option
@click.pass_obj
def command(root: Path, run: str, as_json: bool) -> None:
    """Explain one RUN (an id, or a unique beginning of one)."""
    with open_desk(root) as desk:
        refresh(desk)
        record = find_run(desk.store, run)
        if as_json:
            run_dir = desk.root.run_dir(record.id)
            outcome = read_outcome(run_dir)
            facts = {
                "id": record.id, "kind": record.kind, "state": record.state.value, "reason": record.reason, "job": record.job,
                "directory": str(run_dir.path), "needs": dict(record.needs), "sweeps": desk.store.sweeps_of(record.id),
                "attempts": len(read_attempts(run_dir)), "values": dict(outcome.values) if outcome else {},
                "usage": in_seconds(used_by(desk, record)),
            }  # fmt: skip
            click.echo(json.dumps(facts, indent=1))
        else:
            click.echo(explain(desk, record))
