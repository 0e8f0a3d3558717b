"""Whether a run that ended is queued again: its trouble, the budget of that trouble, what was used of it since its last progress.

Pure. The ledger is the event log and nothing else: each retry is one event, written in the transaction that plans the run
again; a new checkpoint makes all earlier ones not count, and so does a person's `orch resume`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.contract import Status
from orchestrator.causes import Ended, Finding, diagnose, expand_nodes
from orchestrator.lifecycle import RunState
from orchestrator.policy import Policy, Trouble

RETRY = "retry"
"""Event of a run: it was planned again by policy."""
NODE_FAILED = "node failed"
"""Event of a run: evidence against nodes."""
RESUMED = "resumed"
"""Beginning of what the log says when a person planned a run again."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """One line of the ledger: planned again for this trouble, when that many attempts had been made."""

    trouble: Trouble
    after_attempt: int

    def line(self) -> str:
        """As the event log has it."""
        return f"{self.trouble.value} after attempt {self.after_attempt}"


def read_retry(text: str) -> Retry | None:
    """The inverse of `Retry.line`; None for another text."""
    words, _, number = text.rpartition(" after attempt ")
    known = {trouble.value: trouble for trouble in Trouble}
    return Retry(trouble=known[words], after_attempt=int(number)) if words in known and number.isdecimal() else None


def ledger(events: Iterable[tuple[str, str]]) -> list[Retry]:
    """The retries since a person last asked for the run, from its events (what, detail), oldest first."""
    found: list[Retry] = []
    for what, detail in events:
        if what == RunState.PLANNED.value and detail.startswith(RESUMED):
            found.clear()
        elif what == RETRY and (retry := read_retry(detail)) is not None:
            found.append(retry)
    return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a run that ended without finishing."""

    finding: Finding
    resume: bool
    why: str
    """One line: why it is queued again, or why not."""
    used: int
    """Retries for this trouble since the last progress."""
    budget: int
    retries: Mapping[Trouble, int] = field(default_factory=dict)
    """Of every trouble, since a person last asked for it: progress does not clear these."""
    accumulation: int | None = None
    """Resume with so many micro-batches per step; None: as it is."""
    settled: bool = True
    """False while only time has to pass."""

    @property
    def trouble(self) -> Trouble:
        return self.finding.trouble


def used_of(trouble: Trouble, retries: Iterable[Retry], progress_attempt: int) -> int:
    """Retries for a trouble that count: those that no new checkpoint has followed."""
    return sum(1 for one in retries if one.trouble is trouble and one.after_attempt >= progress_attempt)


def judge(
    ended: Ended,
    retries: Sequence[Retry],
    policy: Policy,
    *,
    age_s: float,
    more_accumulation: int | None = None,
    stopped: str = "",
) -> Verdict:
    """The verdict on a run in a resumable state.

    `age_s`: since the store learnt of its end. `more_accumulation`: what twice the accumulation would be, None when the
    batch cannot be cut further. `stopped`: why its sweeps are stopped; empty when one that needs it is not.
    """
    finding = diagnose(ended)
    trouble = finding.trouble
    budget = policy.budgets.get(trouble, 0)
    used = used_of(trouble, retries, ended.progress[0])
    counted = Counter(one.trouble for one in retries)
    smaller = more_accumulation if trouble is Trouble.DEVICE_MEMORY and policy.halve_micro_batch else None

    def verdict(resume: bool, why: str, *, settled: bool = True) -> Verdict:
        return Verdict(
            finding=finding,
            resume=resume,
            why=why,
            used=used,
            budget=budget,
            retries=counted,
            accumulation=smaller if resume else None,
            settled=settled,
        )

    if ended.state is RunState.DONE or (ended.outcome is not None and ended.outcome.status is Status.DONE):
        return verdict(False, "it is done")
    if budget == 0:
        return verdict(False, _NEVER.get(trouble, f"the policy does not retry after this: {trouble.value}"))
    if ended.local:
        return verdict(False, "it ran on this machine, and nobody queues such a run on Slurm unasked")
    if used >= budget and smaller is None:
        times = "once" if used == 1 else f"{used} times"
        return verdict(False, f"retried {times} for this since its last new checkpoint, and the budget is {budget}")
    if stopped:
        return verdict(False, stopped)
    if finding.unexplained and age_s < policy.lost_age_s:
        wait = f"waits {policy.lost_age_s:.0f} s, in case Slurm finds its job again"
        return verdict(False, wait, settled=False)
    why = f"retry {used + 1} of {budget} for this since its last new checkpoint"
    return verdict(True, why + (f", with runtime.accumulation={smaller}" if smaller is not None else ""))


_NEVER = {
    Trouble.BUG: "a bug comes back: it is not retried",
    Trouble.DATA: "the same data would be read again: it is not retried",
    Trouble.NO_PROGRESS: "the job has already tried again and again without getting further",
    Trouble.CANCELLED: "somebody wanted it to end",
}


# --- one bug, several runs --------------------------------------------------------------------------------------------


def sweep_killer(bugs: Mapping[str, str], members: Iterable[str], policy: Policy) -> str:
    """Why a sweep is stopped, in words: one bug killed several of its runs; empty when none did. `bugs`: run -> bug."""
    killed = Counter(bug for run in members if (bug := bugs.get(run, "")))
    bug, number = max(killed.items(), key=lambda one: (one[1], one[0]), default=("", 0))
    if number < policy.same_bug_runs:
        return ""
    return f"one bug has killed {number} runs of the sweep: {bug}"


# --- nodes to leave out -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NodeEvidence:
    """One failure that Slurm, or the device, has to answer for."""

    at: float
    nodes: str
    """Host list."""
    job: str


def avoided_nodes(evidence: Iterable[NodeEvidence], policy: Policy, *, now: float, most: int | None = None) -> list[str]:
    """Nodes that new submissions leave out: each was the only one of a recent failure, or shared by those of two jobs.

    Those that failed last come first; at most `policy.avoid_nodes`, and at most `most` (None: no further bound).
    """
    alone: dict[str, float] = {}
    shared: dict[str, dict[str, float]] = {}
    for one in sorted(evidence, key=lambda fact: fact.at):
        if not now - policy.avoid_node_s < one.at:
            continue
        names = expand_nodes(one.nodes)
        for name in names:
            if len(names) == 1:
                alone[name] = one.at
            shared.setdefault(name, {})[one.job] = one.at
    guilty = alone | {name: max(jobs.values()) for name, jobs in shared.items() if len(jobs) > 1}
    newest = sorted(guilty, key=lambda name: (-guilty[name], name))
    return newest[: policy.avoid_nodes if most is None else max(0, min(policy.avoid_nodes, most))]
