"""Acting on the cluster, and dying between any two lines of it: submit, look, adopt, cancel."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from jobs.contract import Attempt, Outcome, Status, claim, write_outcome
from orchestrator import apply, tick
from orchestrator.batches import Limits
from orchestrator.errors import ClusterError
from orchestrator.lifecycle import RunState
from orchestrator.records import CellRecord, RunRecord
from orchestrator.slurm.client import SlurmCommand
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.slurm.states import SlurmState
from orchestrator.slurm.submit import AnswerLost
from orchestrator.store.runs import Change, Store
from orchestrator.workspace import Root, freeze
from tests.orchestrator.stub import StubSlurm

NOW = 1_700_000_000.0


def plan(root: Root, store: Store, runs: Iterable[RunRecord], sweep: str = "s") -> None:
    records = list(runs)
    for run in records:
        freeze(root, run.id, {"id": run.id}, tree="t")
    store.add(
        name=sweep, path="p", title="", definition="", comment="", partial=False, runs=records,
        cells=[CellRecord(coordinates={"seed": run.id}, runs={run.kind: run.id}) for run in records],
    )  # fmt: skip


def counts(number: int) -> list[RunRecord]:
    return [RunRecord(id=f"count-{i}", kind="count", state=RunState.PLANNED, resources={"timeout_min": 5}) for i in range(number)]


def submit(root: Root, store: Store, limits: Limits | None = None) -> apply.Submitted:
    return tick.submit_planned(root, store, list(store.runs()), limits or Limits())


def states(store: Store) -> list[str]:
    return [run.state.value for run in store.runs().values()]


# --- sbatch ----------------------------------------------------------------------------------------------------------


def test_that_an_array_is_submitted_with_its_index_table(root: Root, store: Store, stub_slurm: StubSlurm) -> None:
    plan(root, store, counts(3))
    done = submit(root, store)
    assert done.arrays == {"101": 3}
    assert [run.job for run in store.runs().values()] == ["101_0", "101_1", "101_2"]
    (token,) = {run.token for run in store.runs().values()}
    table = (root.slurm / token / "index").read_text().splitlines()
    assert table == [str(root.run_dir(run).path) for run in store.runs()]
    (call,) = stub_slurm.calls
    assert call["script"] == (root.slurm / token / "submission.sh").read_text()
    assert f"--job-name=orch-{token}" in call["script"]


def test_that_sbatch_inherits_neither_an_enclosing_job_nor_a_secret(
    root: Root, store: Store, stub_slurm: StubSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "SLURM_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SBATCH_PARTITION",
        "SRUN_DEBUG",
        "MLFLOW_TRACKING_PASSWORD",
        "API_TOKEN",
    ):
        monkeypatch.setenv(name, "1")
    plan(root, store, counts(1))
    submit(root, store)
    environment = stub_slurm.calls[0]["environment"]
    assert "PATH" in environment
    assert not [name for name in environment if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "MLFLOW_", "API_"))]


def test_that_a_pipeline_is_chained_by_the_ids_that_sbatch_gave(root: Root, store: Store, stub_slurm: StubSlurm) -> None:
    trains = [RunRecord(id=f"train-{i}", kind="train", state=RunState.PLANNED, needs={"prepare": "prepare-0"}) for i in range(2)]
    plan(root, store, [RunRecord(id="prepare-0", kind="prepare", state=RunState.PLANNED), *trains])
    submit(root, store)
    assert "#SBATCH --dependency=afterok:101_0\n" in stub_slurm.calls[1]["script"]


def test_that_a_planned_need_is_submitted_along(root: Root, store: Store, stub_slurm: StubSlurm) -> None:
    train = RunRecord(id="train-0", kind="train", state=RunState.PLANNED, needs={"prepare": "prepare-0"})
    plan(root, store, [RunRecord(id="prepare-0", kind="prepare", state=RunState.PLANNED), train])
    assert tick.submit_planned(root, store, ["train-0"], Limits()).arrays == {"101": 1, "102": 1}


def test_that_what_is_queued_counts_against_the_sites_limit(root: Root, store: Store, stub_slurm: StubSlurm) -> None:
    plan(root, store, counts(5))
    store.apply([Change(run="count-0", state=RunState.QUEUED, job="9_0")], now=NOW)
    done = submit(root, store, Limits(max_tasks=3))
    assert done.arrays == {"101": 2}
    assert sorted(done.held) == ["count-3", "count-4"]
    assert "limit" in store.runs()["count-4"].reason


def test_that_submitting_removes_an_old_cancel_mark_and_remembers_the_newest_attempt(
    root: Root, store: Store, stub_slurm: StubSlurm
) -> None:
    plan(root, store, counts(1))
    run_dir = root.run_dir("count-0")
    run_dir.cancel_mark.touch()
    claim(run_dir, Attempt(number=0, claimant="x"))
    submit(root, store)
    assert not run_dir.cancel_mark.exists()
    assert store.runs()["count-0"].after_attempt == 1


def test_that_a_refusal_is_worded_and_later_batches_stay_planned(root: Root, store: Store, stub_slurm: StubSlurm) -> None:
    stub_slurm.answers(stub_slurm.taken, stub_slurm.refused)
    plan(root, store, counts(3))
    with pytest.raises(ClusterError, match="Invalid partition name") as refusal:
        submit(root, store, Limits(max_array_size=1))
    assert not isinstance(refusal.value, AnswerLost)
    assert states(store) == ["queued", "planned", "planned"]
    assert len(stub_slurm.calls) == 2


LOST = {
    "a socket timed out": {"out": "", "err": "sbatch: error: Batch job submission failed: Socket timed out", "code": 1},
    "no job id is printed": {"out": "thank you\n"},
    "sbatch does not answer": {"sleep_s": 30},
}


@pytest.mark.parametrize("answer", LOST)
def test_that_a_lost_answer_leaves_the_intent_and_the_next_look_adopts_the_job(
    answer: str, root: Root, store: Store, stub_slurm: StubSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.slurm.submit.SBATCH_TIMEOUT_S", 1.0)
    stub_slurm.answers(LOST[answer])
    plan(root, store, counts(2))
    with pytest.raises(AnswerLost):
        submit(root, store)
    assert states(store) == ["submitting", "submitting"]
    tick.look(root, store, SlurmCommand())
    assert [(run.state.value, run.job) for run in store.runs().values()] == [("queued", "101_0"), ("queued", "101_1")]
    assert len(stub_slurm.calls) == 1


# --- death between two lines -----------------------------------------------------------------------------------------


class Died(BaseException):
    """The process was killed here."""


def test_that_death_before_sbatch_plans_the_runs_again_once_the_intent_is_old(root: Root, store: Store) -> None:
    plan(root, store, counts(1))
    store.intend("t", ["count-0"], after={}, now=NOW)
    slurm = FakeSlurm()
    tick.look(root, store, slurm, now=NOW + 60)
    assert states(store) == ["submitting"]
    tick.look(root, store, slurm, now=NOW + 600)
    assert states(store) == ["planned"]


def test_that_death_after_sbatch_is_healed_by_the_jobs_name(root: Root, store: Store) -> None:
    plan(root, store, counts(2))
    slurm = FakeSlurm()
    user = tick.user_name()
    store.intend("t", ["count-0", "count-1"], after={}, now=NOW)
    array = slurm.submit(name="orch-t", count=2, user=user)
    slurm.start(f"{array}_0")
    tick.look(root, store, slurm, now=NOW + 1)
    assert states(store) == ["running", "queued"]


def test_that_a_job_too_old_for_squeue_is_adopted_by_its_attempt_record(root: Root, store: Store) -> None:
    plan(root, store, counts(1))
    store.intend("t", ["count-0"], after={}, now=NOW)
    claim(root.run_dir("count-0"), Attempt(number=0, claimant="x", token="t", job_id="77_0"))
    tick.look(root, store, FakeSlurm(), now=NOW + 600)
    assert store.runs()["count-0"].job == "77_0"


def test_that_a_submission_withdrawn_too_early_is_found_again(root: Root, store: Store) -> None:
    plan(root, store, counts(1))
    store.intend("t", ["count-0"], after={}, now=NOW)
    slurm = FakeSlurm()
    tick.look(root, store, slurm, now=NOW + 600)
    assert states(store) == ["planned"]
    slurm.submit(name="orch-t", count=1, user=tick.user_name())
    tick.look(root, store, slurm, now=NOW + 700)
    assert states(store) == ["queued"]


@pytest.mark.parametrize("line", ["intend", "sbatch", "submitted"])
def test_that_after_death_at_any_line_every_run_is_queued_exactly_once(
    line: str, root: Root, store: Store, stub_slurm: StubSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(root, store, counts(2))

    def dies(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(*((apply, "sbatch") if line == "sbatch" else (store, line)), dies)
        with pytest.raises(Died):
            submit(root, store)
    slurm = SlurmCommand()
    tick.look(root, store, slurm)
    tick.look(root, store, slurm, now=4e9)  # long after: what never reached Slurm is planned again
    submit(root, store)
    assert states(store) == ["queued", "queued"]
    assert len(stub_slurm.calls) == 1


# --- looking ---------------------------------------------------------------------------------------------------------


def watched(root: Root, store: Store, number: int = 1) -> tuple[FakeSlurm, str]:
    """Runs in a fake queue, as after a submission."""
    plan(root, store, counts(number))
    slurm = FakeSlurm(now=NOW)
    ids = [f"count-{i}" for i in range(number)]
    store.intend("t", ids, after={}, now=NOW)
    array = slurm.submit(name="orch-t", count=number, user=tick.user_name())
    store.submitted("t", array, now=NOW)
    return slurm, array


def test_that_a_look_asks_once_whatever_the_number_of_runs(root: Root, store: Store) -> None:
    slurm, array = watched(root, store, 50)
    slurm.start(array)
    slurm.fail(f"{array}_0", SlurmState.NODE_FAIL)
    slurm.advance(1000)
    slurm.calls.clear()
    tick.look(root, store, slurm, now=NOW + 1000)
    assert sorted(slurm.calls) == ["history", "jobs"]
    assert store.runs()["count-0"].state is RunState.LOST


def test_that_nothing_active_asks_slurm_nothing(root: Root, store: Store) -> None:
    plan(root, store, counts(2))
    slurm = FakeSlurm()
    tick.look(root, store, slurm)
    assert slurm.calls == []


def test_that_a_run_lives_through_eviction_and_ends_by_its_outcome(root: Root, store: Store) -> None:
    slurm, array = watched(root, store)
    seen: list[str] = []
    run_dir = root.run_dir("count-0")

    def look() -> None:
        tick.look(root, store, slurm, now=slurm.now)
        seen.append(store.runs()["count-0"].state.value)

    look()
    slurm.start(array)
    claim(run_dir, Attempt(number=0, claimant="x", token="t", job_id=f"{array}_0"))
    look()
    slurm.evict(array)
    look()
    slurm.advance(10)
    slurm.start(array)
    claim(run_dir, Attempt(number=0, claimant="y", token="t", job_id=f"{array}_0", restart_count=1))
    look()
    write_outcome(run_dir, Outcome(status=Status.DONE, attempt=2))
    slurm.finish(array)
    look()
    assert seen == ["queued", "running", "queued", "running", "done"]


def test_that_a_silent_cluster_changes_nothing(root: Root, store: Store) -> None:
    slurm, array = watched(root, store)
    slurm.start(array)
    tick.look(root, store, slurm, now=NOW)
    slurm.down = True
    with pytest.raises(ClusterError):
        tick.look(root, store, slurm, now=NOW + 1e5)
    assert states(store) == ["running"]


@pytest.mark.parametrize("accounting", [True, False])
def test_that_a_job_that_slurm_forgot_is_lost_and_its_late_outcome_still_counts(
    accounting: bool, root: Root, store: Store
) -> None:
    slurm, array = watched(root, store)
    slurm.accounting = accounting
    slurm.start(array)
    slurm.lose(array)
    for seconds in (1, 40, 80, 120):
        tick.look(root, store, slurm, now=NOW + seconds)
    lost = store.runs()["count-0"]
    assert (lost.state, lost.reason) == (RunState.LOST, "Slurm no longer knows it, and there is no outcome")
    claim(root.run_dir("count-0"), Attempt(number=0, claimant="x", token="t"))
    write_outcome(root.run_dir("count-0"), Outcome(status=Status.DONE, attempt=1))
    tick.look(root, store, slurm, now=NOW + 200)
    assert states(store) == ["done"]


def test_that_garbage_in_a_run_directory_is_never_done(root: Root, store: Store) -> None:
    slurm, array = watched(root, store)
    slurm.start(array)
    run_dir = root.run_dir("count-0")
    for text in ("", "{", "null", "[]", '{"status": "done"}', '{"status": "finished", "attempt": 1}'):
        run_dir.outcome.write_text(text)
        tick.look(root, store, slurm, now=NOW)
        assert states(store) == ["running"], text


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_that_cancelling_marks_first_and_then_tells_slurm(root: Root, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, _ = watched(root, store, 2)
    marked: list[bool] = []
    told = slurm.cancel

    def cancel(jobs: Iterable[str]) -> None:
        marked.extend(root.run_dir(run).cancel_mark.exists() for run in store.runs())
        told(list(jobs))

    monkeypatch.setattr(slurm, "cancel", cancel)
    apply.cancel(root, store, slurm, store.runs().values())
    assert marked == [True, True]
    assert states(store) == ["cancelled", "cancelled"]
    assert {task.state for task in slurm.tasks.values()} == {SlurmState.CANCELLED}


def test_that_a_running_run_is_cancelled_when_it_has_ended_not_before(root: Root, store: Store) -> None:
    slurm, array = watched(root, store)
    slurm.start(array)
    tick.look(root, store, slurm, now=NOW)
    apply.cancel(root, store, slurm, store.runs().values())
    assert states(store) == ["running"]
    tick.look(root, store, slurm, now=NOW + 1)
    assert states(store) == ["cancelled"]


def test_that_a_cluster_that_does_not_answer_leaves_the_marks_and_the_states(root: Root, store: Store) -> None:
    slurm, _ = watched(root, store)
    slurm.down = True
    with pytest.raises(ClusterError):
        apply.cancel(root, store, slurm, store.runs().values())
    assert root.run_dir("count-0").cancel_mark.exists()
    assert states(store) == ["queued"]


def test_that_what_has_ended_is_not_cancelled(root: Root, store: Store) -> None:
    plan(root, store, counts(1))
    store.apply([Change(run="count-0", state=RunState.QUEUED), Change(run="count-0", state=RunState.DONE)], now=NOW)
    assert apply.cancel(root, store, FakeSlurm(), store.runs().values()) == []
    assert not root.run_dir("count-0").cancel_mark.exists()
