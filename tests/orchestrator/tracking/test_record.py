"""Records say what the control plane knew, in words, and survive the way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.goodput import Spent, Usage
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import (
    Axis,
    Cell,
    Claim,
    Factorial,
    Hypothesis,
    Join,
    Option,
    Relation,
    Step,
    Sweep,
    Table,
    Value,
)
from orchestrator.tracking.record import AttemptFacts, RunFacts, SweepRecord, describe, sweep_record

USAGE = Usage(gpus=Spent(productive_ms=5, replayed_ms=1), tasks=Spent(restarting_ms=2), queued_ms=3)


def facts(run: str = "r1", state: RunState = RunState.DONE, **more) -> RunFacts:
    return RunFacts(run_id=run, kind="train", state=state, run_dir=Path("/shared/runs") / run, **more)


def sweep() -> Sweep:
    value = Value(metric="loss", step="train", over="seed")
    table = Table(rows="method", columns=None, value=value, more=(value,), paper={"a": {"": 1.5}}, paper_source="p. 3")
    return Sweep(
        name="s1",
        path="sweeps/s1.yaml",
        title="A title",
        note="why",
        base=("experiment=x",),
        axes={"method": Axis(name="method", options={"b": Option(name="b", label="B", set=("x=1",), note="n")})},
        where=(),
        pipeline={"train": Step(name="train", job="train")},
        resources={},
        table=table,
        text="title: A title\n",
    )


def test_that_a_record_survives_json():
    cells = [
        Cell(coordinates={"method": "b"}, overrides=()),
        Cell(coordinates={"method": "a"}, overrides=(), cite=3.0, source="p. 4"),
    ]
    known = {"r1": facts(code_tree="t", steps=5, usage=USAGE)}
    record = sweep_record(sweep(), cells, [{"prepare": "r0", "train": "r1"}, {}], known, "a comment")
    assert SweepRecord.from_json(record.to_json()) == record
    assert list(record.cells[0].runs) == ["prepare", "train"]
    assert (list(record.runs), record.runs["r1"].steps, record.comment) == (["r1"], 5, "a comment")
    assert record.definition == "title: A title\n"
    assert record.runs["r1"].usage == USAGE


def test_that_a_record_keeps_what_a_table_asks_for_besides_means():
    value = Value(metric="loss", step="train", better="neutral")
    factorial = Factorial(factors=("a", "b"), within={"a": ("x",)})
    claim = Claim(left="a", right="b", metric="loss", relation=Relation.EQUAL, margin=0.5)
    hypothesis = Hypothesis(name="H1", text="none", join=Join.ANY, claims=(claim,))
    for table in (
        Table(rows="method", columns=None, value=value, base="b"),
        Table(rows=None, columns=None, value=value, factorial=factorial),
        Table(rows="method", columns=None, value=value, hypotheses=(hypothesis,)),
    ):
        record = sweep_record(replace(sweep(), table=table), [], [], {})
        assert SweepRecord.from_json(record.to_json()).table == table


def test_that_a_record_from_before_there_were_effects_is_read():
    record = sweep_record(sweep(), [], [], {})
    raw = json.loads(record.to_json())
    del raw["table"]["base"], raw["table"]["factorial"], raw["table"]["hypotheses"]
    assert SweepRecord.from_json(json.dumps(raw)) == record


def test_that_a_record_from_before_anybody_counted_time_is_read():
    record = sweep_record(sweep(), [Cell(coordinates={"method": "b"}, overrides=())], [{"train": "r1"}], {"r1": facts()})
    raw = json.loads(record.to_json())
    del raw["runs"]["r1"]["usage"]
    assert SweepRecord.from_json(json.dumps(raw)) == record


def test_that_a_record_of_another_format_is_refused():
    record = sweep_record(sweep(), [], [], {})
    with pytest.raises(ValueError, match="another version"):
        SweepRecord.from_json(record.to_json().replace('"format": 1', '"format": 2'))


def test_that_facts_survive_json():
    one = facts(attempts=(AttemptFacts(job_id="1_0", restart_count=2, node="n"),), config={"a": {"b": 1}}, progress=0.5)
    for facts_ in (one, replace(one, usage=USAGE)):
        assert RunFacts.from_json(facts_.to_json()) == facts_


def test_that_a_cell_without_its_runs_is_our_bug():
    with pytest.raises(ValueError, match="zip"):
        sweep_record(sweep(), [Cell(coordinates={"method": "b"}, overrides=())], [], {})


@pytest.mark.parametrize(
    ("state", "more", "words"),
    [
        (RunState.PLANNED, {}, "not submitted"),
        (RunState.PLANNED, {"reason": "run r0 has no outcome"}, "waiting: run r0 has no outcome"),
        (RunState.SUBMITTING, {}, "queued"),
        (RunState.QUEUED, {"reason": "Priority"}, "queued"),
        (RunState.RUNNING, {"progress": 0.639}, "running 63 %"),
        (RunState.RUNNING, {}, "running"),
        (RunState.DONE, {}, "done"),
        (RunState.FAILED, {"reason": "out of memory"}, "failed: out of memory"),
        (RunState.TIMED_OUT, {}, "timed out"),
        (RunState.LOST, {"reason": "Slurm no longer knows it"}, "lost: Slurm no longer knows it"),
        (RunState.CANCELLED, {}, "cancelled"),
        (RunState.STOPPED, {}, "stopped"),
    ],
)
def test_that_every_state_has_words(state, more, words):
    assert describe(facts(state=state, **more)) == words
