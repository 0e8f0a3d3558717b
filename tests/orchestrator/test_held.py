"""Jobs that Slurm holds after a failed launch are let go; those that a person holds are not."""

from __future__ import annotations

import pytest

from orchestrator.held import held, release_held
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.slurm.states import LAUNCH_FAILED, SlurmState
from orchestrator.snapshot import Snapshot, TaskSeen


def snapshot_of(slurm: FakeSlurm) -> Snapshot:
    rows = slurm.jobs("me").rows
    return Snapshot(at=slurm.now, queue={row.id: TaskSeen(state=row.state, reason=row.reason) for row in rows})


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
