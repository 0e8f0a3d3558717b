"""One pass: observe, decide, record. `orch status` does this much; submit and resume then act on what is planned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator import accounting, apply
from orchestrator.batches import Limits, avoiding, cut
from orchestrator.cluster import user_name
from orchestrator.decide import Adopt, decide
from orchestrator.errors import ClusterError
from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.observe import observe
from orchestrator.policy import Policy
from orchestrator.records import RunRecord
from orchestrator.retry import NODE_FAILED, NodeEvidence, avoided_nodes
from orchestrator.slurm.client import Slurm
from orchestrator.slurm.submit import AnswerLost
from orchestrator.snapshot import Snapshot
from orchestrator.store.runs import Store
from orchestrator.workspace import Root

DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one look found: the records after it, and the snapshot behind them."""

    records: Mapping[str, RunRecord]
    snapshot: Snapshot


def look(
    root: Root,
    store: Store,
    slurm: Slurm | None,
    *,
    policy: Policy | None = None,
    now: float | None = None,
    always: bool = False,
) -> Pass:
    """Observe and record facts. Looks once more when a submission was adopted, so that its runs are seen at once.

    `always`: see the queue also when no run waits for anything there.
    """
    policy = policy or Policy()
    for _ in range(2):
        at = time.time() if now is None else now
        records = store.runs()
        unanswered = store.unanswered(since=at - DAY_S)
        snapshot = observe(root, records, unanswered, slurm, user=user_name(), now=at, always=always)
        actions = decide(records, unanswered, snapshot, policy, at)
        apply.record(store, actions, now=at)
        accounting.renew_stopped(root, store)
        if not any(isinstance(action, Adopt) for action in actions):
            break
    return Pass(records=store.runs() if actions else records, snapshot=snapshot)


def submit_planned(
    root: Root,
    store: Store,
    ids: Iterable[str],
    limits: Limits,
    *,
    policy: Policy | None = None,
    now: float | None = None,
) -> apply.Submitted:
    """Queue the planned runs among `ids`, and planned runs that they need; nodes that failed lately are left out."""
    records = store.runs()
    wanted: dict[str, RunRecord] = {}
    pending = [run for run in ids if run in records]
    while pending:
        run = pending.pop()
        if run not in wanted and records[run].state is RunState.PLANNED:
            wanted[run] = records[run]
            pending += [need for need in records[run].needs.values() if need in records]
    planned = [record for run, record in records.items() if run in wanted]
    if limits.max_tasks is not None:
        queued = len({record.job or record.id for record in records.values() if record.state in ACTIVE})  # tasks, not runs
        limits = replace(limits, max_tasks=max(0, limits.max_tasks - queued))
    avoided = nodes_to_avoid(store, limits, policy or Policy(), now=time.time() if now is None else now)
    if not avoided:
        return apply.submit_batches(root, store, cut(planned, records, limits))
    fewer = [replace(record, resources=avoiding(record.resources, avoided)) for record in planned]
    try:
        return apply.submit_batches(root, store, cut(fewer, records, limits))
    except AnswerLost:
        raise
    except ClusterError:  # without these nodes there may be none left that fits: better a doubtful node than none
        records = store.runs()
        planned = [records[run] for run in wanted if records[run].state is RunState.PLANNED]
        return apply.submit_batches(root, store, cut(planned, records, limits))


def nodes_to_avoid(store: Store, limits: Limits, policy: Policy, *, now: float) -> list[str]:
    """Nodes that failed under runs of this root a while ago, by the event log."""
    evidence: list[NodeEvidence] = []
    for event in store.events_named(NODE_FAILED, since=now - policy.avoid_node_s):
        nodes, _, job = event.detail.partition(" ")
        evidence.append(NodeEvidence(at=event.at, nodes=nodes, job=job))
    return avoided_nodes(evidence, policy, now=now, most=limits.avoidable_nodes)
