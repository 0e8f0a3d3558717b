"""Jobs that Slurm holds after a failed launch are let go, or cancelled when no run waits for them; a person's stay held."""

from __future__ import annotations

import pytest

from orchestrator.held import cancel_leftovers, held, release_held
from orchestrator.lifecycle import RunState
from orchestrator.records import RunRecord
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.slurm.states import LAUNCH_FAILED, SlurmState
from orchestrator.snapshot import Snapshot, TaskSeen
from orchestrator.store.runs import Change, Store


def snapshot_of(slurm: FakeSlurm) -> Snapshot:
    rows = slurm.jobs("me").rows
    return Snapshot(
        at=slurm.now,
        queue={row.id: TaskSeen(state=row.state, reason=row.reason) for row in rows},
        arrays={row.name.removeprefix("orch-"): row.array_id for row in rows},
    )


def test_that_only_what_slurm_holds_by_itself_is_released() -> None:
    slurm = FakeSlurm()
    array = slurm.submit(name="orch-a", count=4, user="me", partition="low")
    slurm.start(f"{array}_0")
    slurm.hold(f"{array}_0", reason=LAUNCH_FAILED)
    slurm.hold(f"{array}_1")
    slurm.hold(f"{array}_2", reason=LAUNCH_FAILED)
    mine = [f"{array}_{index}" for index in (0, 1, 3)] + ["", "99_0"]
    assert release_held(slurm, snapshot_of(slurm), mine) == [f"{array}_0"]
    reasons = {task: one.reason for task, one in (snapshot_of(slurm).queue or {}).items()}
    assert reasons == {f"{array}_0": "None", f"{array}_1": "JobHeldUser", f"{array}_2": LAUNCH_FAILED, f"{array}_3": "None"}
    calls = slurm.calls.count("release")
    assert release_held(slurm, snapshot_of(slurm), mine) == []
    assert slurm.calls.count("release") == calls


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (SlurmState.PENDING, "launch failed requeued held", ["1"]),
        (SlurmState.PENDING, "launch_failed_requeued_held", ["1"]),
        (SlurmState.PENDING, "job requeued in held state", []),
        (SlurmState.RUNNING, "launch failed requeued held", []),
    ],
)
def test_that_the_reason_is_known_in_both_spellings(state: SlurmState, reason: str, expected: list[str]) -> None:
    assert held(Snapshot(at=0.0, queue={"1": TaskSeen(state=state, reason=reason)}), ["1"]) == expected
    assert held(Snapshot(at=0.0, queue=None), ["1"]) == []


def test_that_what_no_run_waits_for_is_cancelled(store: Store) -> None:
    """Slurm lost sight of tasks 0 to 3, their runs went on in another array, and it brought them back and holds them."""
    slurm = FakeSlurm()
    old = slurm.submit(name="orch-a", count=7, user="me", partition="low")
    other = slurm.submit(name="orch-elsewhere", count=1, user="me", partition="low")
    for index in (0, 1, 2, 4, 5):
        slurm.hold(f"{old}_{index}", reason=LAUNCH_FAILED)
    slurm.hold(f"{old}_3")
    slurm.hold(f"{other}_0", reason=LAUNCH_FAILED)  # of another root
    records = [
        RunRecord(id="again", kind="count", state=RunState.RUNNING, job="99_0"),
        RunRecord(id="done", kind="count", state=RunState.DONE, job=f"{old}_1"),
        RunRecord(id="failed", kind="count", state=RunState.FAILED, job=f"{old}_2"),
        RunRecord(id="waits", kind="count", state=RunState.QUEUED, job=f"{old}_4"),
        RunRecord(id="lost", kind="count", state=RunState.LOST, job=f"{old}_5"),
    ]
    store.add(name="s", path="p", title="", definition="", comment="", partial=False, runs=records, cells=[])
    store.apply([Change(run=one.id, state=one.state, job=one.job) for one in records], now=slurm.now)
    store.intend("a", [], after={}, now=slurm.now)
    line = cancel_leftovers(slurm, store, snapshot_of(slurm))
    assert line == f"cancelled {old}_[0-2]: Slurm held what no run waits for any more"
    left = {row.id for row in slurm.jobs("me").rows if row.state is SlurmState.PENDING}
    assert left == {f"{old}_3", f"{old}_4", f"{old}_5", f"{old}_6", f"{other}_0"}
    assert cancel_leftovers(slurm, store, snapshot_of(slurm)) == ""
    assert slurm.calls.count("cancel") == 1
