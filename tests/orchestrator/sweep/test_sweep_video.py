"""The video sweep: its rows are those of the ablation grid, share what they can, and are claimed about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.data_spec import ToyVideoSpec
from jobs.spec import AdamSpec, EvaluateSpec, PrepareSpec, TrainSpec, WindowSpec
from models.spec_video import Recurrence, TransformerPredictor, VideoObjective, VideoSlotsSpec
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import load_sweep
from orchestrator.sweep.model import Relation
from orchestrator.sweep.plan import Plan, plan


@pytest.fixture(scope="module")
def made(repository: Path, composer: Composer) -> Plan:
    sweep = load_sweep(repository / "sweeps" / "video.yaml")
    return plan(sweep, expand(sweep), composer, content=lambda kind, path: "c" * 64, existing=lambda run_id: None)


def seed_0(made: Plan) -> dict[str, tuple[TrainSpec, EvaluateSpec, Mapping[str, str]]]:
    """Row -> what its first seed trains and evaluates, and its runs."""
    found = {}
    for cell in made.cells:
        train, evaluate = (made.runs[cell.runs[step]].spec for step in ("train", "evaluate"))
        assert isinstance(train, TrainSpec)
        assert isinstance(evaluate, EvaluateSpec)
        if cell.cell.coordinates["seed"] == "0":
            found[cell.cell.coordinates["method"]] = (train, evaluate, cell.runs)
    return found


RECURRENT = {"recurrence": Recurrence(detach_every=1)}
BASES: Mapping[str, dict[str, Any]] = {"v0": {}, "v3": RECURRENT, "v7": {"start": "learned"}}
SAVI = {"recurrence": Recurrence(detach_every=0, predictor=TransformerPredictor()), "start": "learned"}
TERMS = {"masks": "future_masks", "slots": "future_slots", "lpips": "perceptual"}
ROWS: Mapping[str, dict[str, Any]] = {
    **BASES,
    "v1": {},
    "v2": {"recurrence": Recurrence(detach_every=0)},
    "v3_v7": {**RECURRENT, "start": "learned"},
    "v9": SAVI,
    "v9_slow": SAVI,
    **{f"{term}_{base}_{level}": changes for term in TERMS for base, changes in BASES.items() for level in ("low", "high")},
    "v2_clip": {"recurrence": Recurrence(detach_every=0)},
    **{f"v3_t{frames}": RECURRENT for frames in (2, 5, 10)},
    "as_drawn": {"trainable_start": False},
    "v1_draws": {},
    "v8": RECURRENT,
    "v1b": {"noise": "clip"},
    **{kind: {"encoder_time": kind} for kind in ("conv_gru", "conv_lstm", "conv3d")},
}
"""video_slots.md 10, R00 to R32: what a row's model has besides the base's."""


def test_that_rows_are_those_of_the_grid(made: Plan) -> None:
    rows = seed_0(made)
    base = rows["v0"][0]
    assert base.model == VideoSlotsSpec(resolution=64, num_slots=7, slot_size=64, num_iterations=3)
    assert (base.batch_size, base.clip, base.optimizer.learning_rate) == (32, WindowSpec(frames=6, step=1), 4e-4)
    assert base.steps == 80_000
    assert base.optimizer == AdamSpec(
        learning_rate=4e-4, warmup_steps=base.steps // 50, decay_rate=0.5, decay_steps=base.steps // 5, decay="during_warmup"
    )
    assert set(rows) == set(ROWS)
    for row, (spec, _, _) in rows.items():
        assert spec.model == base.model.model_copy(update=ROWS[row]), row
        term, _, rest = row.partition("_")
        weights = {TERMS[term]: {"low": 0.01, "high": 1.0}[rest.partition("_")[2]]} if term in TERMS else {}
        assert spec.objective == VideoObjective(**weights), row
        changed = {"v2_clip": {"grad_clip": 0.05}, "v9_slow": {"grad_clip": 0.05, "learning_rate": 1e-4}}.get(row, {})
        assert spec.optimizer == base.optimizer.model_copy(update=changed), row
        assert spec.clip == WindowSpec(frames=int(row[4:]) if row.startswith("v3_t") else 6, step=1)
        others = {"model", "objective", "optimizer", "clip"}
        assert spec.model_dump(exclude=others) == base.model_dump(exclude=others), row


def test_that_rows_that_differ_in_evaluation_alone_share_their_training(made: Plan) -> None:
    rows = seed_0(made)
    for row, trained_as in (("v1", "v0"), ("v1_draws", "v0"), ("v8", "v3")):
        assert rows[row][2]["train"] == rows[trained_as][2]["train"]
        assert rows[row][2]["evaluate"] != rows[trained_as][2]["evaluate"]
    assert len({runs["train"] for _, _, runs in rows.values()}) == len(rows) - 3
    assert len({runs["prepare"] for _, _, runs in rows.values()}) == 1
    noise = {row: spec.noise for row, (_, spec, _) in rows.items() if spec.noise != "fresh"}
    by_row = dict.fromkeys(("v1", "v8", "v1b", "conv_gru", "conv_lstm", "conv3d"), "fixed") | {"v1_draws": "fixed_per_seed"}
    assert noise == by_row
    assert len(rows["v1_draws"][1].noise_seeds) == 5


def test_that_every_row_sees_the_sheets_videos_and_has_the_sheets_columns(made: Plan) -> None:
    (prepared,) = {run.spec for run in made.runs.values() if isinstance(run.spec, PrepareSpec)}
    assert isinstance(prepared.data, ToyVideoSpec)
    assert (prepared.data.video_frames, prepared.data.resolution, prepared.data.crossings) == (24, 64, 0.0)
    table = made.sweep.table
    assert table is not None
    assert {value.metric.removeprefix("eval/"): value.better for value in (table.value, *table.more)} == {
        "video_fg_ari": "higher", "fg_ari": "higher", "tube_miou": "higher", "tube_mbo": "higher", "mota": "higher",
        "idf1": "higher", "mse": "lower", "fg_ari_gap": "neutral", "id_switches_per_100_frames": "neutral",
        "slots_used": "neutral", "largest_share": "neutral", "video_fg_ari_noise_sd": "neutral",
    }  # fmt: skip


def test_that_terms_between_frames_are_held_against_their_own_control(made: Plan) -> None:
    sweep = made.sweep
    assert sweep.table is not None
    found = {one.name: one for one in sweep.table.hypotheses}
    assert list(found) == ["H1", "H2", "H3a", "H3b", "H3c", "H4", "H5"]
    assert {(one.left, one.right, one.metric, one.relation) for one in (*found["H1"].claims, *found["H5"].claims)} == {
        ("v1", "v0", "eval/video_fg_ari", Relation.HIGHER), ("v1", "v0", "eval/fg_ari", Relation.EQUAL),
        *((kind, "v1", "eval/video_fg_ari", Relation.HIGHER) for kind in ("conv_gru", "conv_lstm", "conv3d")),
    }  # fmt: skip
    compared = {claim.left: claim.right for name in ("H3a", "H3b", "H3c") for claim in found[name].claims}
    assert compared == {f"{term}_{base}_{level}": base for term in TERMS for base in BASES for level in ("low", "high")}
    assert {(one.left, one.right, one.relation) for one in (*found["H2"].claims, *found["H4"].claims)} == {
        ("v2", "v3", Relation.LOWER), ("v7", "v1", Relation.EQUAL),
    }  # fmt: skip
    assert sweep.table.base == "v0"
    labels = [option.label for option in sweep.axes["method"].options.values()]
    assert labels == sorted(labels, key=lambda label: label[:3])
    assert {int(label[1:3]) for label in labels} == set(range(33))


def test_that_the_video_sweep_runs_in_miniature_with_the_overrides_of_its_header(repository: Path, composer: Composer) -> None:
    sweep = load_sweep(repository / "sweeps" / "video.yaml")
    header = sweep.text[: sweep.text.index("title:")]
    small = ("data=toy_video_mini", "miniature=video")
    assert all(f"--set {text}" in header for text in small)
    cells = expand(sweep, only=["seed=0"], overrides=small)
    small_plan = plan(sweep, cells, composer, content=lambda kind, path: "c" * 64, existing=lambda run_id: None)
    assert (len(small_plan.cells), len(small_plan.runs)) == (37, 72)
    for run in small_plan.runs.values():
        if isinstance(run.spec, TrainSpec):
            assert isinstance(run.spec.objective, VideoObjective)
            assert (run.spec.steps, run.spec.model.resolution, run.spec.objective.lpips.weights) == (6, 32, "random")
