"""The parts sweep: its rows are those of the ablation grid, differ in what they say, and are claimed about."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs.data_spec_parts import PART_FILES
from jobs.metrics import METRICS
from jobs.spec import PrepareSpec, TrainSpec
from models.spec_parts import (
    AttentionMasks,
    ConvBroadcast,
    LinearHead,
    MlpBroadcast,
    PartSlotsSpec,
    PartsObjective,
    PixelHead,
    SlotPixelProduct,
    TrunkSpec,
)
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import load_sweep
from orchestrator.sweep.plan import Plan, plan

MINIATURE = ("data=toy_creatures_mini", "miniature=parts")
AS_SEED = {"foreground": "none", "resolution": None}
SCOPS = {"concentration": 1e-3, "equivariance": 0.1, "landmarks": 1e-2, "orthonormality": 1e-5}
CHOUDHURY = {
    "semantic": 0, "compactness": 5e-3, "contrast": 2.3, "colour_variance": 0.03, "equivariance": 200, "background": 1,
}  # fmt: skip
ROWS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "p00": ({"masks": LinearHead(), "start": "gaussian"}, AS_SEED),
    "p01": ({"masks": LinearHead(), "start": "gaussian", "train_slots": False}, AS_SEED),
    "p02": ({"masks": ConvBroadcast(), "start": "gaussian"}, AS_SEED),
    "p03": ({}, {}),
    "p03_linear": ({"masks": LinearHead()}, {}),
    "p03_frozen": ({"train_slots": False}, {}),
    "p04": ({"start": "gaussian"}, {}),
    "p05": ({"masks": AttentionMasks()}, {}),
    "p06": ({"masks": SlotPixelProduct()}, {}),
    "p07": ({}, {"foreground": "none"}),
    "p08": ({}, {"background_row": True}),
    "p08_alone": ({}, {"background_row": True, "foreground": "none"}),
    "p09_3": ({"num_parts": 3}, {}),
    "p09_8": ({"num_parts": 8}, {}),
    "p10": ({"slot_size": 128}, {}),
    "p11": ({}, {"concentration": 1e-3}),
    "p12": ({}, {"equivariance": 0.1, "landmarks": 1e-2}),
    "p13": ({}, {"orthonormality": 1e-5}),
    "p14": ({}, SCOPS),
    "p15": ({}, CHOUDHURY),
    "p16": ({"masks": PixelHead()}, {}),
    "p17": ({"resolution": 224}, {}),
    "p18": ({"slot_size": 256}, {}),
}
"""scops_slots.md 6, P00 to P18: what a row's model and objective have besides the base's."""


def planned(repository: Path, composer: Composer, *, only: tuple[str, ...] = (), overrides: tuple[str, ...] = ()) -> Plan:
    sweep = load_sweep(repository / "sweeps" / "parts.yaml")
    cells = expand(sweep, only=only, overrides=overrides)
    return plan(sweep, cells, composer, content=lambda kind, path: "c" * 64, existing=lambda run_id: None)


@pytest.fixture(scope="module")
def made(repository: Path, composer: Composer) -> Plan:
    return planned(repository, composer)


def trained(made: Plan) -> dict[str, tuple[TrainSpec, PrepareSpec]]:
    found = {}
    for cell in made.cells:
        train, prepare = (made.runs[cell.runs[step]].spec for step in ("train", "prepare"))
        assert isinstance(train, TrainSpec)
        assert isinstance(prepare, PrepareSpec)
        found[cell.cell.coordinates["method"]] = (train, prepare)
    return found


def test_that_rows_are_those_of_the_grid(made: Plan) -> None:
    rows = trained(made)
    assert set(rows) == set(ROWS)
    base = PartSlotsSpec(
        resolution=128, num_parts=5, slot_size=64, num_iterations=3, trunk=TrunkSpec(name="resnet50"), start="learned",
        masks=MlpBroadcast(),
    )  # fmt: skip
    for row, (spec, prepare) in rows.items():
        model, objective = ROWS[row]
        assert spec.model == base.model_copy(update=model), row
        assert spec.objective == PartsObjective(resolution=32).model_copy(update=objective), row
        assert (spec.batch_size, spec.optimizer.learning_rate, spec.optimizer.trunk_rate) == (16, 4e-4, 1e-5)
        assert prepare.data.resolution == spec.model.resolution
    labels = [option.label for option in made.sweep.axes["method"].options.values()]
    assert labels == sorted(labels, key=lambda label: label[:3])
    assert {int(label[1:3]) for label in labels} == set(range(19))


def test_that_each_repair_is_held_against_the_row_without_it(made: Plan) -> None:
    table = made.sweep.table
    assert table is not None
    assert table.base == "p03"
    claims = {one.name: {(claim.left, claim.right) for claim in one.claims} for one in table.hypotheses}
    assert claims == {
        "H1": {("p03", "p03_frozen")}, "H2": {("p03", "p03_linear")}, "H3": {("p03", "p04")}, "H4": {("p17", "p03")},
        "H5": {("p10", "p03"), ("p18", "p03")},
    }  # fmt: skip


def test_that_the_parts_sweep_runs_in_miniature_with_the_overrides_of_its_header(repository: Path, composer: Composer) -> None:
    made = planned(repository, composer, only=("seed=0",), overrides=MINIATURE)
    header = made.sweep.text[: made.sweep.text.index("title:")]
    assert all(f"--set {text}" in header for text in MINIATURE)
    rows = trained(made)
    assert len(rows) == len(ROWS)
    assert all(
        spec.steps == 6 and spec.model.trunk.name == "tiny" for spec, _ in rows.values() if spec.model.kind == "part_slots"
    )


@pytest.mark.parametrize("kind", PART_FILES)
def test_that_photographs_are_an_override_away(repository: Path, composer: Composer, kind: str, tmp_path: Path) -> None:
    overrides = (f"data={kind}", f"data.path={tmp_path}", *(["objective.foreground=none"] if kind == "celeba" else []))
    made = planned(repository, composer, only=("method=p03,seed=0",), overrides=overrides)
    assert trained(made)["p03"][1].data.kind == kind


def commands(text: str) -> list[list[str]]:
    """The words of each command of the sweep, continued lines joined."""
    found = re.findall(r"^ +(orch submit sweeps/parts\.yaml\b.*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(command) for command in found]


def after(flag: str, words: list[str]) -> tuple[str, ...]:
    return tuple(value for name, value in pairwise(words) if name == flag)


@pytest.mark.parametrize("file", ["README.md", "jobs/data/README.md"])
def test_that_each_command_of_a_readme_can_be_planned(repository: Path, composer: Composer, file: str) -> None:
    found = commands((repository / file).read_text())
    kinds = set()
    for words in found:
        made = planned(repository, composer, only=(*after("--only", words), "seed=0"), overrides=after("--set", words))
        kinds |= {prepare.data.kind for _, prepare in trained(made).values()}
    assert kinds >= ({*PART_FILES} if file == "README.md" else {"cub"})


def test_that_the_header_says_what_the_readme_says_of_photographs(repository: Path) -> None:
    text = (repository / "sweeps" / "parts.yaml").read_text()
    header = " ".join(text[: text.index("title:")].replace("#", " ").split())
    for words in commands((repository / "README.md").read_text()):
        asked = [text for flag in ("--set", "--only") for text in after(flag, words)]
        assert all(f" {text}" in header for text in asked if "category" not in text), words


def test_that_percentages_are_not_scaled_in_any_sweep(repository: Path) -> None:
    percentages = {name for name, text in METRICS["evaluate"].items() if "in percent" in text and "_noise_sd" not in name}
    assert percentages == {"eval/keypoint_error", "eval/landmark_nme"}
    shown = []
    for path in sorted((repository / "sweeps").glob("*.yaml")):
        table = load_sweep(path).table
        shown += [] if table is None else [value for value in (table.value, *table.more) if value.metric in percentages]
    assert {value.metric for value in shown} == percentages
    assert {value.scale for value in shown} == {1}
