"""Planned runs become as few sbatch calls as the dependencies and the site allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.batches import Batch, Cut, Limits, Task, cut, dependency, waits_for
from orchestrator.lifecycle import ACTIVE, RunState
from orchestrator.records import RunRecord

SMALL = {"cpus_per_task": 1}
LARGE = {"cpus_per_task": 8}


def run(
    name: str,
    *needs: str,
    state: RunState = RunState.PLANNED,
    resources: Mapping[str, object] = SMALL,
    job: str = "",
) -> RunRecord:
    by_kind = {need.partition("-")[0]: need for need in needs}
    return RunRecord(id=name, kind=name.partition("-")[0], state=state, needs=by_kind, resources=resources, job=job)


def cut_all(runs: Iterable[RunRecord], limits: Limits | None = None) -> Cut:
    """Cut every planned run among them."""
    records = {one.id: one for one in runs}
    return cut([one for one in records.values() if one.state is RunState.PLANNED], records, limits or Limits())


def texts(made: Cut) -> list[str]:
    """The dependency of each batch, with array job ids 100, 101, ..."""
    return [dependency(batch, [str(100 + i) for i in range(len(made.batches))]) for batch in made.batches]


def table(seeds: int, state: RunState = RunState.PLANNED, job: str = "") -> list[RunRecord]:
    """prepare <- train (one per seed) <- evaluate, as in table 1."""
    trains = [run(f"train-{i}", "prepare-0", resources=LARGE) for i in range(seeds)]
    evaluations = [run(f"evaluate-{i}", "prepare-0", f"train-{i}") for i in range(seeds)]
    return [run("prepare-0", state=state, job=job), *trains, *evaluations]


def test_that_runs_without_needs_are_one_array() -> None:
    made = cut_all(run(f"count-{i}") for i in range(5))
    assert [batch.runs for batch in made.batches] == [tuple(f"count-{i}" for i in range(5))]
    assert texts(made) == [""]


def test_that_distinct_resources_are_distinct_arrays() -> None:
    made = cut_all([run("count-0"), run("count-1", resources=LARGE), run("count-2")])
    assert [batch.runs for batch in made.batches] == [("count-0", "count-2"), ("count-1",)]


def test_that_a_pipeline_is_three_arrays_and_evaluations_follow_their_own_training() -> None:
    made = cut_all(table(4))
    assert [len(batch.runs) for batch in made.batches] == [1, 4, 4]
    assert texts(made) == ["", "afterok:100_0", "aftercorr:101"]


def test_that_two_data_sets_do_not_cost_an_array_per_evaluation() -> None:
    runs = [run("prepare-a"), run("prepare-b")]
    for i in range(6):
        data = "prepare-a" if i % 2 else "prepare-b"
        runs += [run(f"train-{i}", data, resources=LARGE), run(f"evaluate-{i}", data, f"train-{i}")]
    made = cut_all(runs)
    assert texts(made) == ["", "afterok:100_1", "afterok:100_0", "aftercorr:101", "aftercorr:102"]


def test_that_a_need_already_in_slurm_is_waited_for_by_its_job() -> None:
    assert texts(cut_all(table(2, state=RunState.QUEUED, job="55_0"))) == ["afterok:55_0", "aftercorr:100"]


def test_that_a_need_that_is_done_is_not_waited_for() -> None:
    assert texts(cut_all(table(2, state=RunState.DONE, job="55_0"))) == ["", "aftercorr:100"]


def test_that_arrays_are_cut_at_the_largest_that_the_site_takes() -> None:
    made = cut_all([run(f"count-{i}") for i in range(25)], Limits(max_array_size=10))
    assert [len(batch.runs) for batch in made.batches] == [10, 10, 5]
    assert sorted(one for batch in made.batches for one in batch.runs) == sorted(f"count-{i}" for i in range(25))


def test_that_cut_arrays_are_aligned_piece_by_piece() -> None:
    made = cut_all(table(5), Limits(max_array_size=2))
    assert texts(made) == ["", *["afterok:100_0"] * 3, "aftercorr:101", "aftercorr:102", "aftercorr:103"]
    for batch in made.batches[4:]:
        assert batch.aligned_with is not None
        trained = made.batches[batch.aligned_with].runs
        assert [one.partition("-")[2] for one in batch.runs] == [one.partition("-")[2] for one in trained]


def test_that_differing_index_tables_depend_task_by_task() -> None:
    """Evaluation 0 exists already: the index tables differ, so `aftercorr` would pair the wrong tasks."""
    runs = [one for one in table(3, state=RunState.DONE) if one.id != "evaluate-0"]
    made = cut_all([*runs, run("evaluate-0", "prepare-0", "train-0", state=RunState.DONE)])
    assert texts(made) == ["", "afterok:100_1", "afterok:100_2"]


def test_that_a_run_with_several_waiting_needs_names_them_all() -> None:
    made = cut_all([run("prepare-0"), run("embed-0", resources=LARGE), run("train-0", "prepare-0", "embed-0")])
    assert texts(made) == ["", "", "afterok:100_0:101_0"]


# --- packed -----------------------------------------------------------------------------------------------------------

PACKED = {"gpus_per_node": 1, "runs_per_gpu": 4}


def packed(trains: int, *, together: bool = False) -> list[RunRecord]:
    """A packed training run per seed, an evaluation each, packed as well or not."""
    found = [run("prepare-0", state=RunState.DONE), *(run(f"train-{i}", "prepare-0", resources=PACKED) for i in range(trains))]
    return found + [run(f"evaluate-{i}", f"train-{i}", resources=PACKED if together else SMALL) for i in range(trains)]


def test_that_packed_runs_share_tasks_and_limits_count_tasks() -> None:
    runs = [run(f"count-{i}", resources=PACKED) for i in range(11)]
    made = cut_all(runs, Limits(max_array_size=2))
    assert [(len(batch.runs), batch.runs_per_task, batch.tasks) for batch in made.batches] == [(8, 4, 2), (3, 3, 1)]
    made = cut_all(runs, Limits(max_tasks=2))
    assert [(len(batch.runs), batch.tasks) for batch in made.batches] == [(8, 2)]
    assert sorted(made.held) == ["count-10", "count-8", "count-9"]
    made = cut_all([*runs[:6], *(run(f"lone-{i}") for i in range(2))], Limits(max_tasks=4))
    assert [batch.tasks for batch in made.batches] == [2, 2]


def test_that_a_run_alone_is_no_pack() -> None:
    (batch,) = cut_all([run("count-0", resources=PACKED)]).batches
    assert (batch.runs_per_task, batch.tasks) == (1, 1)


def test_that_runs_of_different_code_share_no_pack() -> None:
    runs = [replace(run(f"count-{i}", resources=PACKED), code_tree="ab"[i % 2]) for i in range(6)]
    made = cut_all(runs)
    assert [batch.runs for batch in made.batches] == [("count-0", "count-2", "count-4"), ("count-1", "count-3", "count-5")]
    lone = [replace(one, resources=SMALL) for one in runs]
    assert len(cut_all(lone).batches) == 1


def test_that_dependencies_of_packs_speak_of_tasks() -> None:
    made = cut_all(packed(6))
    assert [(batch.runs, text) for batch, text in zip(made.batches[1:], texts(made)[1:], strict=True)] == [
        (tuple(f"evaluate-{i}" for i in range(4)), "afterok:100_0"),
        (("evaluate-4", "evaluate-5"), "afterok:100_1"),
    ]


def test_that_packs_follow_packs_task_by_task_where_their_index_tables_are_identical() -> None:
    made = cut_all(packed(6, together=True))
    assert [batch.tasks for batch in made.batches] == [2, 2]
    assert texts(made) == ["", "aftercorr:100"]
    without = [one for one in packed(6, together=True) if one.id != "evaluate-1"]
    made = cut_all(without)
    assert [batch.runs for batch in made.batches[1:]] == [
        ("evaluate-0", "evaluate-2", "evaluate-3", "evaluate-4"),
        ("evaluate-5",),
    ]
    assert texts(made)[1:] == ["afterok:100_0:100_1", "afterok:100_1"]


def test_that_a_pack_of_runs_that_follow_lone_tasks_waits_for_them_all() -> None:
    runs = [replace(one, resources=SMALL if one.kind == "train" else PACKED) for one in packed(6, together=True)]
    assert texts(cut_all(runs)) == ["", "afterok:100_0:100_1:100_2:100_3", "afterok:100_4:100_5"]


# --- held back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.LOST, RunState.CANCELLED, RunState.TIMED_OUT, RunState.STOPPED])
def test_that_whoever_needs_a_run_that_ended_badly_is_held_with_the_way_out(state: RunState) -> None:
    made = cut_all(table(1, state=state))
    assert made.batches == ()
    assert made.held["train-0"] == f"waits for prepare-0 ({state.value}): `orch resume prepare-0`"
    assert set(made.held) == {"train-0", "evaluate-0"}


def test_that_one_held_run_does_not_hold_its_neighbours() -> None:
    runs = [run("prepare-a", state=RunState.FAILED), run("prepare-b", state=RunState.DONE)]
    for i, data in enumerate(["prepare-a", "prepare-b", "prepare-b"]):
        runs += [run(f"train-{i}", data), run(f"evaluate-{i}", f"train-{i}", resources=LARGE)]
    made = cut_all(runs)
    assert [batch.runs for batch in made.batches] == [("train-1", "train-2"), ("evaluate-1", "evaluate-2")]
    assert made.held == {
        "train-0": "waits for prepare-a (failed): `orch resume prepare-a`",
        "evaluate-0": "waits for train-0, which is held back",
    }


def test_that_a_planned_need_that_nobody_asked_for_holds_its_dependents() -> None:
    records = {one.id: one for one in table(1)}
    made = cut([records["train-0"], records["evaluate-0"]], records, Limits())
    assert made.held["train-0"] == "waits for prepare-0 (planned, not asked for)"
    assert set(made.held) == {"train-0", "evaluate-0"}


def test_that_a_need_that_runs_outside_slurm_is_never_named_to_slurm() -> None:
    made = cut_all(table(1, state=RunState.RUNNING, job="local:node:123"))
    assert made.batches == ()
    assert "outside Slurm" in made.held["train-0"]


def test_that_an_unknown_need_is_a_reason() -> None:
    assert waits_for(run("train-0", "prepare-9"), {}) == "waits for prepare-9 (unknown): `orch resume prepare-9`"


def test_that_the_sites_limit_takes_what_fits_and_holds_the_rest() -> None:
    made = cut_all([run(f"count-{i}") for i in range(25)], Limits(max_array_size=10, max_tasks=13))
    assert [len(batch.runs) for batch in made.batches] == [10, 3]
    assert len(made.held) == 12
    assert all("limit" in reason for reason in made.held.values())


def test_that_nothing_fits_into_a_full_queue() -> None:
    made = cut_all(table(3), Limits(max_tasks=0))
    assert made.batches == ()
    assert len(made.held) == 7


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def pipelines(draw: st.DrawFn) -> list[RunRecord]:
    """Random prepare <- train <- evaluate forests in random states."""
    states = st.sampled_from(list(RunState))
    resources = st.sampled_from([SMALL, LARGE, {"runs_per_gpu": 2}, {"runs_per_gpu": 3}])
    runs: list[RunRecord] = []
    for kind, below in (("prepare", None), ("train", "prepare"), ("evaluate", "train")):
        candidates = [one for one in runs if one.kind == below]
        for i in range(draw(st.integers(1, 6))):
            needed = draw(st.sampled_from(candidates)) if candidates else None
            needs = () if needed is None else (needed.id, *(needed.needs.values()))
            state = draw(states)
            job = f"9_{len(runs)}" if state in (RunState.QUEUED, RunState.RUNNING) else ""
            runs.append(run(f"{kind}-{i}", *needs, state=state, resources=draw(resources), job=job))
    return runs


def in_task(batch: Batch, index: int) -> set[str]:
    """The runs of one task."""
    return set(batch.runs[index * batch.runs_per_task :][: batch.runs_per_task])


@settings(max_examples=300, deadline=None)
@given(runs=pipelines(), size=st.integers(1, 4), room=st.none() | st.integers(0, 12))
def test_that_every_planned_run_is_placed_once_or_held_and_never_before_its_needs(
    runs: list[RunRecord], size: int, room: int | None
) -> None:
    records = {one.id: one for one in runs}
    made = cut_all(runs, Limits(max_array_size=size, max_tasks=room))
    placed = {one: (b, i) for b, batch in enumerate(made.batches) for i, one in enumerate(batch.runs)}
    planned = {one.id for one in runs if one.state is RunState.PLANNED}
    assert sorted([*placed, *made.held]) == sorted(planned)
    assert sum(len(batch.runs) for batch in made.batches) == len(placed)
    assert all(1 <= batch.tasks <= size for batch in made.batches)
    assert room is None or sum(batch.tasks for batch in made.batches) <= room
    for one, (b, i) in placed.items():
        batch = made.batches[b]
        assert records[one].resources == batch.resources
        waited = {name for t in batch.after for name in (in_task(made.batches[t.batch], t.index) if isinstance(t, Task) else [t])}
        if batch.aligned_with is not None:
            waited |= in_task(made.batches[batch.aligned_with], i // batch.runs_per_task)
        for need in records[one].needs.values():
            match records[need].state:
                case RunState.DONE:
                    pass
                case RunState.PLANNED:
                    assert placed[need][0] < b
                case state:
                    assert state in ACTIVE
        waited |= {upstream.id for upstream in runs if upstream.job in waited}
        waited |= {deeper for need in waited & set(records) for deeper in records[need].needs.values()}
        assert {need for need in records[one].needs.values() if records[need].state is RunState.PLANNED} <= waited


# --- two stages of one kind ------------------------------------------------------------------------------------------


def two_stages(seeds: int, variants: int, *, first: RunState = RunState.PLANNED, job: str = "") -> list[RunRecord]:
    """prepare <- embed <- stage 1 per seed <- several stages 2 per seed <- an evaluation each."""
    data = ("prepare-0", "embed-0")
    found = [run("prepare-0"), run("embed-0", "prepare-0", resources=LARGE)]
    for seed in range(seeds):
        found.append(run(f"train-first{seed}", *data, resources=LARGE, state=first, job=job and f"{job}_{seed}"))
        for variant in range(variants):
            found.append(run(f"train-second{seed}v{variant}", *data, f"train-first{seed}", resources=LARGE))
            found.append(run(f"evaluate-{seed}v{variant}", *data, f"train-second{seed}v{variant}"))
    return found


def test_that_a_second_stage_follows_its_own_first_stage() -> None:
    made = cut_all(two_stages(3, 1))
    assert [len(batch.runs) for batch in made.batches] == [1, 1, 3, 3, 3]
    assert texts(made) == ["", "afterok:100_0", "afterok:101_0", "aftercorr:102", "aftercorr:103"]
    first, second = made.batches[2].runs, made.batches[3].runs
    assert [one.removeprefix("train-first") for one in first] == [one.removeprefix("train-second")[0] for one in second]


def test_that_second_stages_share_a_first_stage_without_waiting_for_another_cells() -> None:
    made = cut_all(two_stages(2, 3))
    text = dict(zip((batch.runs for batch in made.batches), texts(made), strict=True))
    for seed in range(2):
        assert text[tuple(f"train-second{seed}v{variant}" for variant in range(3))] == f"afterok:102_{seed}"


def test_that_a_second_stage_waits_for_a_first_stage_that_slurm_has_already() -> None:
    made = cut_all(two_stages(2, 1, first=RunState.RUNNING, job="77"))
    text = dict(zip((batch.runs for batch in made.batches), texts(made), strict=True))
    assert [text["train-second0v0",], text["train-second1v0",]] == ["afterok:77_0", "afterok:77_1"]


def test_that_a_failed_first_stage_holds_its_own_cells_alone() -> None:
    records = {one.id: one for one in two_stages(2, 1)}
    records["train-first0"] = run("train-first0", "prepare-0", "embed-0", state=RunState.FAILED)
    made = cut_all(records.values())
    assert set(made.held) == {"train-second0v0", "evaluate-0v0"}
    assert made.held["train-second0v0"] == "waits for train-first0 (failed): `orch resume train-first0`"
    assert {"train-second1v0", "evaluate-1v0"} <= {one for batch in made.batches for one in batch.runs}
