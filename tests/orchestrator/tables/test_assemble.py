"""What a table says about every kind of cell."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Axis, Option, Table, Value
from orchestrator.tables.assemble import assemble, metrics_of
from orchestrator.tables.layout import number
from orchestrator.tables.model import Mark
from orchestrator.tracking.record import CellEntry, RunSummary, SweepRecord


def cell(record, values, row, column=0, block=0):
    model = assemble(record, values)
    return model.blocks[block].cells[[one.option for one in model.rows].index(row)][column]


def test_that_a_number_is_mean_and_sample_sd_over_seeds_in_table_units(record, values):
    found = cell(record, values, "slot_attn")
    seeds = [91.23456789, 90.0, 92.0]
    assert found.mean == pytest.approx(statistics.fmean(seeds))
    assert found.sd == pytest.approx(statistics.stdev(seeds))
    assert (found.n, found.expected) == (3, 3)
    assert number(found, digits=1) == "91.1 ± 1.0 (3)"
    assert [(sample.cell, sample.run) for sample in found.samples] == [(f"seed={i}", f"ev-slot_attn-{i}") for i in range(3)]


def test_that_one_run_has_no_spread(record, values):
    few = {run: one for run, one in values.items() if run == "ev-slot_attn-0"}
    found = cell(record, few, "slot_attn")
    assert (found.sd, number(found, digits=1)) == (None, "91.2 (1/3)")


def test_that_a_cell_with_missing_seeds_says_how_many_and_why(record, values):
    found = cell(record, values, "covloss")
    assert number(found, digits=1) == "87.5 ± 0.7 (2/3)"
    assert found.marks == (Mark.FEWER,)
    notes = assemble(record, values).blocks[0].footnotes
    assert "CovLoss & 100 % of α_1, ColoredMdSprites: 2 of 3 runs (seed=2: running 63 %)" in notes


def test_that_a_cell_without_a_number_gives_the_reasons(record, values):
    assert number(cell(record, values, "cosine"), digits=1) == "failed: out of memory; queued x 2"
    never = replace(record, runs={})
    assert number(cell(never, values, "slot_attn"), digits=1) == "not submitted x 3"


def test_that_the_reason_is_the_first_step_that_is_not_done(record, values):
    behind = RunSummary(kind="evaluate", state=RunState.QUEUED, reason="queued")
    held = replace(record, runs={**record.runs, "ev-cosine-0": behind})
    assert cell(held, values, "cosine").gaps[0].reason == "failed: out of memory"


def test_that_a_running_run_has_no_number_yet_even_when_its_metric_is_there(record, values):
    early = {**values, "ev-covloss-2": {"eval/fg_ari": 0.5}}
    running = RunSummary(kind="evaluate", state=RunState.RUNNING, reason="running 10 %")
    watched = replace(
        record,
        runs={
            **record.runs,
            "tr-covloss-2": replace(record.runs["tr-covloss-1"]),
            "ev-covloss-2": running,
        },
    )
    found = cell(watched, early, "covloss")
    assert (found.n, found.gaps[0].reason) == (2, "running 10 %")


def test_that_a_finished_run_without_the_metric_says_so(record, values):
    bare = {run: one for run, one in values.items() if run != "ev-slot_attn-1"}
    assert cell(record, bare, "slot_attn").gaps[0].reason == "no value of eval/fg_ari"


def test_that_a_further_metric_that_no_finished_run_has_is_a_note_and_no_block(record, values):
    bare = {run: {"eval/fg_ari": one["eval/fg_ari"]} for run, one in values.items()}
    model = assemble(record, bare)
    assert [block.metric for block in model.blocks] == ["eval/fg_ari"]
    assert model.notes[0] == "no value of: eval/stripe"
    for kept in (bare | {"ev-untrained-1": values["ev-untrained-1"]}, values):
        model = assemble(record, kept)
        assert [block.metric for block in model.blocks] == ["eval/fg_ari", "eval/stripe"]
        assert not any("no value of:" in note for note in model.notes)


def test_that_a_metric_that_no_run_could_have_yet_and_the_main_one_keep_their_blocks(record):
    waiting = {run: replace(one, state=RunState.QUEUED) for run, one in record.runs.items()}
    for model in (
        assemble(replace(record, runs=waiting), {}),
        assemble(replace(record, table=replace(record.table, more=())), {}),
    ):
        assert model.blocks[0].metric == "eval/fg_ari"
        assert not any("no value of:" in note for note in model.notes)
    assert len(assemble(replace(record, runs=waiting), {}).blocks) == 2


def test_that_a_value_that_is_not_finite_is_a_gap_and_not_a_number(record, values):
    broken = {**values, "ev-slot_attn-1": {"eval/fg_ari": math.nan}}
    found = cell(record, broken, "slot_attn")
    assert (found.n, found.gaps[0].reason) == (2, "the value is nan")


def test_that_mixed_code_and_mixed_budgets_are_marked(record, values):
    assert cell(record, values, "slot_attn").marks == (Mark.CODE,)
    assert cell(record, values, "untrained").marks == (Mark.BUDGET,)
    notes = assemble(record, values).blocks[0].footnotes
    assert "Slot-Attn, ColoredMdSprites: mixed code versions in train: tree-a, tree-b" in notes
    assert "untrained, ColoredMdSprites: mixed budgets in train: 500, 400 steps" in notes


def test_that_a_remark_is_made_once_however_many_metrics_share_it(record, values):
    first, second = assemble(record, values).blocks
    assert first.footnotes
    assert not set(first.footnotes) & set(second.footnotes)


def test_that_a_cited_number_is_shown_with_its_source_and_does_not_compete(record, values):
    found = cell(record, values, "slot_attn", column=1)
    assert (found.cited, found.mean, found.marks, found.best) == (20.0, None, (Mark.CITED,), False)
    notes = assemble(record, values).blocks[0].footnotes
    assert "Slot-Attn, COCO: cited, not run here: project page (DINOSAUR itself: 21.4)" in notes
    assert cell(record, values, "slot_attn", column=1, block=1).cited is None


def test_that_the_paper_stands_beside_ours_with_the_difference(record, values):
    found = cell(record, values, "slot_attn")
    assert found.paper == 90.71
    assert found.delta == pytest.approx(found.mean - 90.71)
    assert cell(record, values, "cosine").delta is None
    assert "paper: arXiv 2306.02577, Table 1" in assemble(record, values).notes


def test_that_the_best_of_a_column_follows_higher_and_lower(record, values):
    model = assemble(record, values)
    best = [[row[0].best for row in block.cells] for block in model.blocks]
    assert best == [[True, False, False, False], [False, False, False, True]]


def test_that_a_combination_that_the_sweep_leaves_out_is_empty(record, values):
    assert number(cell(record, values, "covloss", column=1), digits=1) == "-"


def test_that_a_table_without_columns_takes_the_paper_of_the_row(record, values):
    only = tuple(one for one in record.cells if one.coordinates["dataset"] == "mds")
    plain = replace(record, cells=only, table=replace(record.table, columns=None, paper={"covloss": {"": 87.42}}, more=()))
    model = assemble(plain, values)
    assert [column.label for column in model.columns] == [""]
    assert [row[0].paper for row in model.blocks[0].cells] == [None, 87.42, None, None]


def test_that_a_sweep_without_a_table_is_the_users_to_mend(record):
    with pytest.raises(UserError, match="declares no table"):
        assemble(replace(record, table=None), {})


def test_that_the_metrics_of_a_table_are_named_once(record):
    assert metrics_of(record) == ("eval/fg_ari", "eval/stripe")


def small(numbers: list[list[float | None]], better: str) -> tuple[SweepRecord, dict[str, dict[str, float]]]:
    rows = {f"r{i}": Option(name=f"r{i}", label=f"r{i}") for i in range(len(numbers))}
    cells = tuple(
        CellEntry(coordinates={"row": f"r{i}", "seed": str(j)}, runs={"train": f"{i}-{j}"})
        for i, row in enumerate(numbers)
        for j in range(len(row))
    )
    done = RunSummary(kind="train", state=RunState.DONE, reason="done")
    record = SweepRecord(
        name="s",
        title="t",
        axes={"row": Axis(name="row", options=rows)},
        cells=cells,
        table=Table(rows="row", columns=None, value=Value(metric="m", step="train", better=better)),
        runs={run: done for one in cells for run in one.runs.values()},
    )
    known = {f"{i}-{j}": {"m": x} for i, row in enumerate(numbers) for j, x in enumerate(row) if x is not None}
    return record, known


score = st.none() | st.floats(-1e6, 1e6)


@given(
    numbers=st.lists(st.lists(score, min_size=1, max_size=4), min_size=1, max_size=5),
    better=st.sampled_from(["higher", "lower"]),
)
def test_that_every_planned_run_is_a_sample_or_a_gap_and_the_best_is_best(numbers, better):
    model = assemble(*small(numbers, better))
    cells = [row[0] for row in model.blocks[0].cells]
    for row, found in zip(numbers, cells, strict=True):
        assert [sample.value for sample in found.samples] == [x for x in row if x is not None]
        assert found.n + len(found.gaps) == found.expected == len(row)
        assert (Mark.FEWER in found.marks) == (0 < found.n < found.expected)
    means = [found.mean for found in cells if found.mean is not None]
    winners = [found.mean for found in cells if found.best]
    if len(means) > 1:
        assert set(winners) == {max(means) if better == "higher" else min(means)}
    else:
        assert winners == []


def two_stages(runs: dict[str, RunSummary]) -> SweepRecord:
    """A row of the first stage and one of the second, which share it; the table shows the evaluation of either."""
    rows = {name: Option(name=name, label=name) for name in ("first", "second")}
    return SweepRecord(
        name="s",
        title="s",
        axes={"method": Axis(name="method", options=rows)},
        cells=(
            CellEntry(coordinates={"method": "first"}, runs={"stage1": "train-1", "evaluate": "evaluate-1"}),
            CellEntry(
                coordinates={"method": "second"}, runs={"stage1": "train-1", "stage2": "train-2", "evaluate": "evaluate-2"}
            ),
        ),
        table=Table(
            rows="method",
            columns=None,
            value=Value(metric="eval/fg_ari", step="evaluate"),
            more=(Value(metric="train/kept_slots", step="stage2"), Value(metric="train/loss", step="stage1")),
            paper={"first": {"": 1.0}},
            paper_source="a paper",
            protocol="a way",
        ),
        runs=runs,
    )


def summary(kind: str, state: RunState, *needs: str) -> RunSummary:
    return RunSummary(kind=kind, state=state, reason=state.value, needs=needs)


def test_that_each_number_comes_from_its_own_step_and_rows_without_it_are_empty():
    done = {name: summary(name.partition("-")[0], RunState.DONE) for name in ("train-1", "train-2", "evaluate-1", "evaluate-2")}
    values = {
        "train-1": {"train/loss": 3.0}, "train-2": {"train/kept_slots": 9.0, "train/loss": 7.0},
        "evaluate-1": {"eval/fg_ari": 0.4}, "evaluate-2": {"eval/fg_ari": 0.5},
    }  # fmt: skip
    scores, kept, loss = (
        [[row[0].mean, row[0].expected] for row in block.cells] for block in assemble(two_stages(done), values).blocks
    )
    assert scores == [[0.4, 1], [0.5, 1]]
    assert kept == [[None, 0], [9.0, 1]]
    assert loss == [[3.0, 1], [3.0, 1]]


def test_that_a_gaps_reason_is_a_step_that_the_number_waits_for():
    runs = {
        "train-1": summary("train", RunState.DONE),
        "train-2": summary("train", RunState.FAILED, "train-1"),
        "evaluate-1": summary("evaluate", RunState.QUEUED, "train-1"),
        "evaluate-2": summary("evaluate", RunState.PLANNED, "train-2"),
    }
    record = two_stages(runs)
    other = replace(record.cells[0], runs={"stage1": "train-1", "stage2": "train-2", "evaluate": "evaluate-1"})
    found = assemble(replace(record, cells=(other, record.cells[1])), {}).blocks[0].cells
    assert [row[0].gaps[0].reason for row in found] == ["queued", "failed"]


def test_that_a_protocol_by_column_is_a_note_per_column(record, values):
    table = replace(record.table, protocol={"coco": "masks at 320"})
    assert "the paper's protocol (COCO): masks at 320" in assemble(replace(record, table=table), values).notes
    read = SweepRecord.from_json(replace(record, table=table).to_json())
    assert read.table == table


def test_that_a_record_keeps_overrides_for_one_step_and_reads_older_ones(record):
    axis = Axis(name="m", options={"a": Option(name="a", label="a", steps={"train": ("seed=1",)})})
    with_steps = replace(record, axes={**record.axes, "m": axis})
    assert SweepRecord.from_json(with_steps.to_json()) == with_steps
    assert SweepRecord.from_json(record.to_json().replace('"steps": {},', "")) == record
