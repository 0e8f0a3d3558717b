"""One sweep record that shows every kind of cell, and its scores."""

from __future__ import annotations

import pytest

from orchestrator.goodput import Spent, Usage
from orchestrator.lifecycle import RunState
from orchestrator.sweep.model import Axis, Option, Table, Value
from orchestrator.tracking.record import CellEntry, RunSummary, SweepRecord

SCORES = {
    "slot_attn": (0.9123456789, 0.9, 0.92),
    "covloss": (0.87, 0.88, None),  # one is still running
    "cosine": (None, None, None),  # failed, waiting, queued
    "untrained": (0.1, 0.1, 0.1),
}
STATES = {
    ("covloss", 2): (RunState.RUNNING, "running 63 %"),
    ("cosine", 0): (RunState.FAILED, "failed: out of memory"),
    ("cosine", 1): (RunState.QUEUED, "queued"),
    ("cosine", 2): (RunState.QUEUED, "queued"),
}

HOUR = 3_600_000
USAGE = Usage(
    gpus=Spent(productive_ms=4 * HOUR, checkpointing_ms=HOUR // 20, restarting_ms=HOUR // 4, replayed_ms=HOUR // 10),
    queued_ms=HOUR,
)
"""Of each training run that was started."""


def option(name: str, label: str, note: str = "") -> Option:
    return Option(name=name, label=label, note=note)


AXES = {
    "method": Axis(
        name="method",
        options={
            "slot_attn": option("slot_attn", "Slot-Attn"),
            "covloss": option("covloss", "CovLoss & 100 % of α_1"),
            "cosine": option("cosine", "Cosine|Loss <b>"),
            "untrained": option("untrained", "untrained", "0 steps"),
        },
    ),
    "dataset": Axis(name="dataset", options={"mds": option("mds", "ColoredMdSprites"), "coco": option("coco", "COCO")}),
    "seed": Axis(name="seed", options={str(i): option(str(i), str(i)) for i in range(3)}),
}
MAIN = Value(metric="eval/fg_ari", step="evaluate", scale=100, digits=1, better="higher", over="seed", label="FG-ARI")
STRIPE = Value(metric="eval/stripe", step="evaluate", scale=1, digits=3, better="lower", over="seed", label="stripe share")


def runs_of(method: str, seed: int) -> dict[str, str]:
    return {step: f"{step[:2]}-{method}-{seed}" for step in ("train", "evaluate")}


def table1() -> SweepRecord:
    cells, runs = [], {}
    for method in AXES["method"].options:
        for seed in range(3):
            of = runs_of(method, seed)
            cells.append(CellEntry(coordinates={"method": method, "dataset": "mds", "seed": str(seed)}, runs=of))
            state, reason = STATES.get((method, seed), (RunState.DONE, "done"))
            tree = "tree-b" if (method, seed) == ("slot_attn", 2) else "tree-a"
            steps = 400 if (method, seed) == ("untrained", 2) else 500
            usage = None if state is RunState.QUEUED else USAGE
            runs[of["train"]] = RunSummary(kind="train", state=state, reason=reason, code_tree=tree, steps=steps, usage=usage)
            if state is RunState.DONE:
                runs[of["evaluate"]] = RunSummary(kind="evaluate", state=state, reason=reason, code_tree="tree-a")
        if method == "slot_attn":
            for seed in range(3):
                where = {"method": method, "dataset": "coco", "seed": str(seed)}
                cells.append(CellEntry(coordinates=where, cite=20.0, source="project page (DINOSAUR itself: 21.4)"))
    return SweepRecord(
        name="table1",
        title="Table 1: FG-ARI_100 % of 5 & more",
        note="one column of the paper",
        comment="the second try",
        axes=AXES,
        cells=tuple(cells),
        table=Table(
            rows="method",
            columns="dataset",
            value=MAIN,
            more=(STRIPE,),
            paper={"slot_attn": {"mds": 90.71, "coco": 20.0}, "covloss": {"mds": 87.42}, "cosine": {"mds": 88.82}},
            paper_source="arXiv 2306.02577, Table 1",
            protocol="single run, one noise draw",
        ),
        runs=runs,
    )


def scores() -> dict[str, dict[str, float]]:
    return {
        runs_of(method, seed)["evaluate"]: {"eval/fg_ari": value, "eval/stripe": round(value / 3, 4)}
        for method, values in SCORES.items()
        for seed, value in enumerate(values)
        if value is not None
    }


@pytest.fixture
def record() -> SweepRecord:
    return table1()


@pytest.fixture
def values() -> dict[str, dict[str, float]]:
    return scores()
