"""One turn of `orch watch`: look, plan again by policy, queue what is planned and fits, ship. Returns what changed, in lines.

Every act is one that another command makes too, under the same root lock and with the same records: a turn that dies
at any line is finished by the next one, and two watches at once only take turns.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.contract import Status, manifest_problem, read_outcome
from orchestrator import apply, shipping, tick
from orchestrator.batches import Limits
from orchestrator.endings import Cache, gather, verdicts
from orchestrator.errors import ClusterError, OrchError
from orchestrator.held import cancel_leftovers, held
from orchestrator.lifecycle import ACTIVE, RESUMABLE, RunState
from orchestrator.local_process import LOCAL_JOB
from orchestrator.policy import Policy, Trouble
from orchestrator.records import RunRecord
from orchestrator.retry import RETRY, Retry, Verdict, ledger, used_of
from orchestrator.slurm.client import Slurm
from orchestrator.snapshot import Snapshot
from orchestrator.store.runs import Change, Store
from orchestrator.workspace import Root


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn did."""

    lines: tuple[str, ...] = ()
    """One per change."""
    troubles: tuple[str, ...] = ()
    """What went wrong around it and was not said before; nothing of it is lost."""
    settled: bool = False
    """Nothing is active, and nothing will be queued unless a person asks."""
    unanswered: ClusterError | None = None
    """Slurm did not answer, or refused."""


@dataclass(kw_only=True)
class Watch:
    """What somebody who watches keeps in mind between turns; losing it costs nothing but repeated words."""

    root: Root
    store: Store
    slurm: Slurm
    limits: Callable[[], Limits]
    """Of the site. May raise ClusterError."""
    tracking_uri: str
    policy: Policy = field(default_factory=Policy)
    sweeps: Sequence[str] = ()
    """Those that are watched; none: all."""
    clock: Callable[[], float] = time.time
    _read: Cache = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)

    def turn(self) -> Turn:
        """One turn. The caller holds the root lock."""
        names = [name for name in self.sweeps or self.store.sweeps() if self.store.wanted(name)]
        before = self._watched(names)
        troubles: list[str] = []
        lines: list[str] = []
        unanswered: ClusterError | None = None
        found: dict[str, Verdict] = {}
        try:
            snapshot = tick.look(self.root, self.store, self.slurm, policy=self.policy, now=self.clock()).snapshot
            looked = self._watched(names)
            found, killers = verdicts(self.root, self.store, names, self.policy, now=self.clock(), cache=self._read)
            lines += _moves(before, looked, found)
            lines += [line for name, why in killers.items() if (line := self._once(f"stop {name}", f"{name} stops: {why}"))]
            for run in apply.plan_again(self.root, self.store, found, now=self.clock()):
                lines.append(f"{run} planned again: {found[run].trouble.value}: {found[run].why}")
            lines += self._release(snapshot, looked.values())
            lines += self._queue([name for name in names if name not in killers])
            troubles += self._once_line("slurm", "")
        except (OrchError, sqlite3.OperationalError, OSError) as error:
            said = str(error.problems[0].what) if isinstance(error, OrchError) else str(error)
            troubles += self._once_line("slurm", f"{said.strip()} (jobs go on without us; trying again)")
            unanswered = error if isinstance(error, ClusterError) else None
        troubles += self._ship(names)
        after = self._watched(names)
        waits = any(not one.settled for one in found.values())
        busy = any(one.state in ACTIVE for one in after.values()) or unanswered is not None
        queueable = any(one.state is RunState.PLANNED for one in after.values()) and bool(lines)
        return Turn(
            lines=tuple(lines),
            troubles=tuple(troubles),
            settled=not (busy or waits or queueable),
            unanswered=unanswered,
        )

    def _watched(self, names: Iterable[str]) -> dict[str, RunRecord]:
        found: dict[str, RunRecord] = {}
        for name in names:
            found |= self.store.of_sweep(name)
        return found

    def _queue(self, names: Iterable[str]) -> list[str]:
        """Queue the planned runs of these sweeps as far as the site's limits go; what was queued or held, in lines."""
        planned: dict[str, RunRecord] = {}
        for name in names:
            runs = self.store.of_sweep(name)
            if not _only_local(runs.values()):
                planned |= {run: one for run, one in runs.items() if one.state is RunState.PLANNED}
        if not planned:
            return []
        with self.root.lock(name="local.lock", wait=False) as nobody_else:
            if not nobody_else:  # `orch submit --local` is at work on them
                return []
            blocked = {run: why for run in planned if (why := self._blocked(planned[run]))}
            done = tick.submit_planned(
                self.root,
                self.store,
                [run for run in planned if run not in blocked],
                self.limits(),
                policy=self.policy,
                now=self.clock(),
            )
            apply.hold(self.store, blocked)
        lines = [f"queued array {job}: {tasks} run{'s' if tasks != 1 else ''}" for job, tasks in done.arrays.items()]
        waiting = {**done.held, **blocked}
        fresh = {run: why for run, why in waiting.items() if run not in planned or planned[run].reason != why}
        by_reason: dict[str, list[str]] = {}
        for run, why in fresh.items():
            by_reason.setdefault(why, []).append(run)
        for why, ids in by_reason.items():
            lines.append(f"{ids[0]} held: {why}" if len(ids) == 1 else f"{len(ids)} runs held: {why}")
        return lines

    def _release(self, snapshot: Snapshot, records: Iterable[RunRecord]) -> list[str]:
        """Let jobs go that Slurm holds because a node could not launch them, as often as nodes may fail; cancel those among them
        that no run waits for."""
        waiting = [record for record in records if record.state in ACTIVE and record.job]
        stuck = set(held(snapshot, {record.job for record in waiting}))
        changes: list[Change] = []
        released: dict[str, None] = {}
        for record in waiting:
            if record.job not in stuck:
                continue
            events = self.store.events_of(record.id)
            ended = gather(self.root, record, events)
            used = used_of(Trouble.NODE_FAILURE, ledger((event.what, event.detail) for event in events), ended.progress[0])
            if used < self.policy.budgets.get(Trouble.NODE_FAILURE, 0):
                line = Retry(trouble=Trouble.NODE_FAILURE, after_attempt=ended.newest_attempt).line()
                changes.append(Change(run=record.id, state=record.state, reason=record.reason, facts={RETRY: line}))
                released[record.job] = None  # a pack goes with those of its runs that may go
        self.store.apply(changes, now=self.clock())
        if released:
            self.slurm.release(list(released))
        old = cancel_leftovers(self.slurm, self.store, snapshot)
        return [*(f"released {job}: a node could not launch it, and Slurm held it" for job in released), *([old] if old else [])]

    def _blocked(self, record: RunRecord) -> str:
        """Why a run that had found its needs unfit would find them so again; empty when it may be tried."""
        run_dir = self.root.run_dir(record.id)
        outcome = read_outcome(run_dir)
        if outcome is None or outcome.status is not Status.BLOCKED:
            return ""
        states = {need: one.state for need, one in self.store.runs(record.needs.values()).items()}
        for need, state in states.items():
            problem = manifest_problem(run_dir.needed(need)) if state is RunState.DONE else None
            if problem is not None:
                return f"{problem}; `orch resume {need}` makes it again"
        return ""

    def _ship(self, names: Iterable[str]) -> list[str]:
        """Ship what is new; never fails."""
        try:
            why = shipping.try_to_ship(self.root, self.store, self.tracking_uri, names)
        except Exception as error:  # whatever a tracker's client raises: journals keep every point, and runs need us
            why = f"{type(error).__name__}: {error}".split("\n")[0]
        return self._once_line("tracker", why and f"the tracker is behind: {why}; nothing is lost")

    def _once(self, topic: str, words: str) -> str:
        """The words, unless they were the last ones on this topic."""
        if self._said.get(topic, "") == words:
            return ""
        self._said[topic] = words
        return words

    def _once_line(self, topic: str, words: str) -> list[str]:
        """A trouble when it is new, and its end when it is over."""
        before = self._said.get(topic, "")
        said = self._once(topic, words)
        return [said] if said else ([f"the {topic} answers again"] if before and not words else [])


def _only_local(runs: Iterable[RunRecord]) -> bool:
    """Whether a sweep was only ever executed outside Slurm: its planned runs are not ours to queue."""
    tokens = [run.token for run in runs if run.token]
    return bool(tokens) and all(token.startswith(LOCAL_JOB.rstrip(":")) for token in tokens)


def _moves(before: Mapping[str, RunRecord], after: Mapping[str, RunRecord], found: Mapping[str, Verdict]) -> list[str]:
    """One line per run whose state changed; of a run that ended without finishing also why, and why it stays so."""
    lines: list[str] = []
    for run, now in after.items():
        if run not in before or before[run].state is now.state:
            continue
        old, new = (state.value.replace("_", " ") for state in (before[run].state, now.state))
        verdict = found.get(run)
        why = now.reason
        if now.state in RESUMABLE and verdict is not None:
            rest = "" if verdict.resume else f"; {verdict.why}" if not verdict.settled else f"; not queued again: {verdict.why}"
            why = f"{verdict.finding.what}{rest}"
        lines.append(f"{run} {old} -> {new}" + (f": {why}" if why else ""))
    return lines
