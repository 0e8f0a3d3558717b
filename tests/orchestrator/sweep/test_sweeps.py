"""The repository's own sweeps, and what is left of them after a person's mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs.data_spec import CocoSpec
from jobs.metrics import METRICS, NOISE_SD
from jobs.spec import JOB_KINDS, TOWER_KEYS, EmbedSpec, EvaluateSpec, PrepareSpec, TrainSpec, WarmStartSpec
from models.spec import (
    CocoAdaptiveDecoder,
    CosineObjective,
    CovarianceObjective,
    DinosaurSpec,
    GateSpec,
    PatchMlpDecoder,
    PatchTransformerDecoder,
    ReconstructionObjective,
    SlotAutoencoderSpec,
)
from models.spec_language import LanguageSlotsSpec, MlpText2Slot, NoText2Slot
from orchestrator.errors import UserError
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import load_sweep, parse_sweep
from orchestrator.sweep.model import Factorial
from orchestrator.sweep.plan import Plan, plan

SWEEPS = ("table1", "table3", "dinosaur", "adaslot", "text2slot", "text2slot_factorial", "video", "parts", "demo", "count")
SIZES = {
    "table1": (18, 33), "table3": (12, 26), "dinosaur": (24, 38), "adaslot": (45, 56), "text2slot": (81, 167),
    "text2slot_factorial": (128, 258), "video": (111, 214), "parts": (69, 140), "demo": (10, 21), "count": (8, 8),
}  # fmt: skip
LANGUAGE_MINIATURE = ("data=toy_clevr_mini", "backbone=clip_tiny", "miniature=language")
MINIATURE = ("backbone=vit_tiny_random", "miniature=coco")


@pytest.fixture(scope="module")
def plans(repository: Path, composer: Composer) -> dict[str, Plan]:
    found: dict[str, Plan] = {}
    for name in SWEEPS:
        sweep = load_sweep(repository / "sweeps" / f"{name}.yaml")
        found[name] = plan(sweep, expand(sweep), composer, content=lambda kind, path: "c" * 64, existing=lambda run_id: None)
    return found


@pytest.mark.parametrize("name", SWEEPS)
def test_that_a_sweep_has_its_cells_and_runs(plans: dict[str, Plan], name: str) -> None:
    assert (len(plans[name].cells), len(plans[name].runs)) == SIZES[name]


def test_that_table_1_trains_with_the_settings_of_the_published_commands(plans: dict[str, Plan]) -> None:
    for cell in plans["table1"].cells:
        if cell.cell.coordinates["dataset"] != "mdsprites":
            continue
        spec = plans["table1"].runs[cell.runs["train"]].spec
        assert isinstance(spec, TrainSpec)
        assert isinstance(spec.model, SlotAutoencoderSpec)
        assert (spec.steps, spec.batch_size, spec.model.num_slots, spec.model.slot_size) == (500_000, 64, 5, 64)
        assert (spec.optimizer.learning_rate, spec.optimizer.warmup_steps, spec.optimizer.decay_steps) == (4e-4, 10_000, 100_000)
        assert spec.objective.kind == {"slot_attn": "reconstruction", "covloss": "covariance"}.get(
            cell.cell.coordinates["method"], "cosine"
        )
        if isinstance(spec.objective, CovarianceObjective):
            assert spec.objective == CovarianceObjective(weight=1, var_weight=0, cov_weight=1, std_target=0)
            assert (spec.objective.projection.size, spec.objective.projection.norm) == (1024, "layernorm")
        if isinstance(spec.objective, CosineObjective):
            assert (spec.objective.weight, spec.objective.warmup_steps, spec.objective.projection.size) == (0.01, 0, 64)


def test_that_table_1_stands_beside_the_papers_numbers(plans: dict[str, Plan]) -> None:
    table = plans["table1"].sweep.table
    assert table is not None
    assert table.paper == {
        "slot_attn": {"mdsprites": 90.71},
        "covloss": {"mdsprites": 87.42, "coco": 29.55},
        "cosine": {"mdsprites": 88.82, "coco": 34.23},
    }
    assert table.paper_source
    assert set(table.protocol) == {"mdsprites", "coco"}
    cited = [cell for cell in plans["table1"].cells if cell.cell.cite is not None]
    assert {(cell.cell.coordinates["method"], cell.cell.coordinates["dataset"], cell.cell.cite) for cell in cited} == {
        ("slot_attn", "coco", 20.0)
    }


def trained(plans: dict[str, Plan], sweep: str, step: str = "train", **at: str) -> tuple[TrainSpec, Plan, Mapping[str, str]]:
    """The training configuration of the first cell at some coordinates, the plan, and the cell's runs."""
    made = plans[sweep]
    cells = [cell for cell in made.cells if cell.cell.coordinates.items() >= at.items()]
    spec = made.runs[cells[0].runs[step]].spec
    assert isinstance(spec, TrainSpec)
    return spec, made, cells[0].runs


@pytest.mark.parametrize(("method", "slot_size", "kind"), [("covloss", 64, "covariance"), ("cosine", 128, "cosine")])
def test_that_table_1_on_coco_trains_with_the_published_settings(
    plans: dict[str, Plan], method: str, slot_size: int, kind: str
) -> None:
    spec, made, runs = trained(plans, "table1", method=method, dataset="coco")
    assert isinstance(spec.model, DinosaurSpec)
    assert spec.model == DinosaurSpec(
        num_slots=7, slot_size=slot_size, adapter="covloss", init="covloss", decoder=CocoAdaptiveDecoder()
    )
    assert (spec.steps, spec.batch_size, spec.flip, spec.objective.kind) == (500_000, 64, False, kind)
    assert (spec.optimizer.grad_clip, spec.optimizer.decay) == (1.0, "during_warmup")
    embed, prepare, evaluate = (made.runs[runs[step]].spec for step in ("embed", "prepare", "evaluate"))
    assert isinstance(embed, EmbedSpec)
    assert (embed.backbone.normalise, embed.flips) == ("none", False)
    assert isinstance(prepare, PrepareSpec)
    assert isinstance(prepare.data, CocoSpec)
    assert (prepare.data.preprocessing, prepare.data.target_resolution, prepare.data.train_images) == (
        "covloss",
        128,
        "annotated",
    )
    assert isinstance(evaluate, EvaluateSpec)
    assert evaluate.protocol == "covloss"


def test_that_the_data_column_of_table_1_needs_no_embed_run(plans: dict[str, Plan]) -> None:
    for cell in plans["table1"].cells:
        assert ("embed" in cell.runs) == (cell.cell.coordinates["dataset"] == "coco" and cell.cell.cite is None)
    ids = {cell.runs["train"] for cell in plans["table1"].cells if cell.cell.coordinates["dataset"] == "mdsprites"}
    assert all(set(plans["table1"].runs[one].needs) == {"prepare"} for one in ids)


@pytest.mark.parametrize(
    ("method", "slot_size"), [("dinosaur", 256), ("covloss", 256), ("dinosaur_large", 1024), ("covloss_large", 1024)]
)
def test_that_table_3_trains_with_the_published_settings(plans: dict[str, Plan], method: str, slot_size: int) -> None:
    spec, _, runs = trained(plans, "table3", method=method)
    decoder = PatchMlpDecoder(hidden=3072, layers=4, positions="xavier")
    assert spec.model == DinosaurSpec(num_slots=7, slot_size=slot_size, adapter="covloss", init="covloss", decoder=decoder)
    assert spec.optimizer.grad_clip == 1.0
    if method.startswith("covloss"):
        assert isinstance(spec.objective, CovarianceObjective)
        assert (spec.objective.weight, spec.objective.var_weight, spec.objective.cov_weight) == (1.0, 1.0, 1.0)
        assert (spec.objective.std_target, spec.objective.divide_by) == (1.0, "features")
        assert (spec.objective.projection.kind, spec.objective.projection.size) == ("identity", slot_size)
    else:
        assert spec.objective == ReconstructionObjective()
    assert runs["embed"] == trained(plans, "table1", method="covloss", dataset="coco")[2]["embed"]  # one run for both tables


def test_that_adaslot_has_the_published_stages(plans: dict[str, Plan]) -> None:
    for method, sparsity in (("paper", 0.5), ("released", 0.1)):
        first, _, _ = trained(plans, "adaslot", step="stage1", method=method)
        second, made, runs = trained(plans, "adaslot", step="stage2", method=method)
        assert isinstance(first.model, DinosaurSpec)
        assert isinstance(second.model, DinosaurSpec)
        assert (first.steps, first.model.num_slots, first.model.gate, first.warm_start) == (200_000, 7, None, None)
        assert (second.steps, second.model.num_slots, second.model.gate) == (500_000, 33, GateSpec(temperature=1.0))
        assert second.objective == ReconstructionObjective(sparsity=sparsity)
        assert second.warm_start == WarmStartSpec(fresh=("gate",))
        for spec in (first, second):
            assert (spec.flip, spec.optimizer.decay, spec.optimizer.grad_clip) == (True, "during_warmup", 1.0)
        assert made.runs[runs["stage2"]].needs["train"] == runs["stage1"]


def test_that_evaluations_with_and_without_the_gates_noise_share_their_training(plans: dict[str, Plan]) -> None:
    cells = {tuple(cell.cell.coordinates.values()): cell.runs for cell in plans["adaslot"].cells}
    noisy, still = cells["paper", "official", "0"], cells["paper_no_noise", "gd", "0"]
    assert noisy["stage2"] == still["stage2"]
    assert noisy["evaluate"] != still["evaluate"]
    assert "stage2" not in cells["stage1", "official", "0"]


def test_that_dinosaur_has_both_decoders_and_schedules(plans: dict[str, Plan]) -> None:
    found = {
        method: trained(plans, "dinosaur", method=method)[0]
        for method in ("mlp", "transformer", "mlp_early_decay", "transformer_early_decay")
    }
    assert {name: spec.optimizer.decay for name, spec in found.items()} == {
        "mlp": "after_warmup", "transformer": "after_warmup",
        "mlp_early_decay": "during_warmup", "transformer_early_decay": "during_warmup",
    }  # fmt: skip
    assert found["mlp"].model == DinosaurSpec()
    assert found["transformer"].model == DinosaurSpec(decoder=PatchTransformerDecoder())


@pytest.mark.parametrize(
    ("name", "only", "data"),
    [
        ("table1", ["dataset=coco"], "coco_covloss_mini"),
        ("table3", [], "coco_covloss_mini"),
        ("dinosaur", [], "coco_mini"),
        ("adaslot", [], "coco_mini"),
    ],
)
def test_that_a_coco_sweep_runs_in_miniature_with_the_overrides_of_its_header(
    repository: Path, composer: Composer, name: str, only: list[str], data: str
) -> None:
    sweep = load_sweep(repository / "sweeps" / f"{name}.yaml")
    header = sweep.text[: sweep.text.index("title:")]
    assert all(f"--set {text}" in header for text in (f"data={data}", *MINIATURE))
    cells = expand(sweep, only=only, overrides=[f"data={data}", *MINIATURE])
    made = plan(sweep, cells, composer, content=lambda kind, path: "c" * 64, existing=lambda run_id: None)
    for run in made.runs.values():
        if isinstance(run.spec, TrainSpec):
            assert (run.spec.steps, run.spec.batch_size, run.spec.precision) == (6, 4, "fp32")
        if isinstance(run.spec, PrepareSpec):
            assert run.spec.data.path is None


def seed_0(plans: dict[str, Plan]) -> dict[str, TrainSpec]:
    """Row of the language ablation -> the training configuration of its first seed."""
    found = {}
    for cell in plans["text2slot"].cells:
        spec = plans["text2slot"].runs[cell.runs["train"]].spec
        assert isinstance(spec, TrainSpec)
        if cell.cell.coordinates["seed"] == "0":
            found[cell.cell.coordinates["method"]] = spec
    return found


def changed(spec: TrainSpec, base: TrainSpec) -> dict[str, Any]:
    """Dotted key -> value, where a configuration differs from another; what merely follows from the towers is left out."""
    mine, theirs = (flat(one.model_dump(exclude={"kind"})) for one in (spec, base))
    follows = {f"model.{key}" for key in TOWER_KEYS} | {f"online.{key}" for key in TOWER_KEYS if key != "global_features"}
    return {key: value for key, value in mine.items() if theirs.get(key, ...) != value and key not in follows}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


FOUR, KERNEL = {"model.decoder.channels": (64, 64, 64, 64), "model.decoder.initial_resolution": 14}, "model.decoder.kernel_size"
HIDDEN, DISTRIBUTION = "model.text2slot.hidden_sizes", "model.text2slot.distribution"
GRIDS: Mapping[str, dict[str, Any]] = {
    "base": {},
    "global_feats": {"online.global_features": True},
    "slots3": {"model.num_slots": 3},
    "slots5": {"model.num_slots": 5},
    "dec14": FOUR,
    "kernel5": {KERNEL: 5},
    "dec14_kernel5": {**FOUR, KERNEL: 5},
    "resize_conv": {"model.decoder.upsample": "resize_conv"},
    "channels128": {"model.slot_size": 128, "model.decoder.channels": (128, 64, 64, 64, 64)},
    "hidden_none": {HIDDEN: ()},
    "mu_per_slot": {DISTRIBUTION: False},
    "mu_per_slot_hidden_none": {HIDDEN: (), DISTRIBUTION: False},
    "enc_pos": {"model.enc_pos_enc": True},
    "rn50": {"online.name": "RN50-quickgelu", "model.token_norm": True},
    "slot_size128": {"model.slot_size": 128},
    "slot_mlp256": {"model.slot_mlp_size": 256},
    "iterations2": {"model.num_iterations": 2},
    "iterations5": {"model.num_iterations": 5},
    "shuffled": {"told": "shuffled"},
    "hidden512": {HIDDEN: (512,)},
    "vit_b16": {"online.name": "ViT-B-16-quickgelu"},
}
"""language_slots.md 4, grids A, B and C: what a row sets besides the base; C01, S and the transformer change kinds."""


def test_that_the_language_ablation_changes_one_factor_at_a_time_as_the_grids_say(plans: dict[str, Plan]) -> None:
    specs = seed_0(plans)
    for row, expected in GRIDS.items():
        assert changed(specs[row], specs["base"]) == expected, row
    model = specs["base"].model
    assert isinstance(model, LanguageSlotsSpec)
    assert (model.num_slots, model.slot_size, model.num_iterations, model.slot_mlp_size) == (7, 64, 3, 128)
    assert model.text2slot == MlpText2Slot(hidden_sizes=(256,), distribution=True)
    assert (specs["base"].steps, specs["base"].batch_size, specs["base"].optimizer.learning_rate) == (60_000, 64, 4e-4)
    assert isinstance(specs["no_text"].model, LanguageSlotsSpec)
    assert specs["no_text"].model.text2slot == NoText2Slot()
    objectives = {row: spec.objective for row, spec in specs.items() if spec.objective.kind != "reconstruction"}
    assert {row: (one.contrastive > 0, one.text > 0, one.names > 0) for row, one in objectives.items()} == {
        "contrastive": (True, False, False), "text": (False, True, False), "names": (False, False, True),
        "names_no_text": (False, False, True),
    }  # fmt: skip
    assert set(specs) == {*GRIDS, "no_text", "contrastive", "text", "names", "names_no_text", "transformer"}


def test_that_rows_have_the_tokens_of_their_towers(plans: dict[str, Plan]) -> None:
    specs = seed_0(plans)
    sizes = {row: (spec.model.tokens, spec.model.feature_size, spec.model.global_features) for row, spec in specs.items()}
    assert sizes.pop("global_feats") == (1, 512, True)
    assert sizes.pop("rn50") == (49, 2048, False)
    assert sizes.pop("vit_b16") == (196, 768, False)
    assert set(sizes.values()) == {(49, 768, False)}


def test_that_language_rows_share_their_data_and_sentences(plans: dict[str, Plan]) -> None:
    made = plans["text2slot"]
    assert len({cell.runs["prepare"] for cell in made.cells}) == 1
    embeds = {cell.cell.coordinates["method"]: cell.runs["embed"] for cell in made.cells}
    assert len(set(embeds.values())) == 4
    assert all(embeds[row] == embeds["base"] for row in embeds if row not in ("rn50", "vit_b16", "transformer"))
    spec = made.runs[embeds["transformer"]].spec
    assert isinstance(spec, EmbedSpec)
    assert (spec.images, spec.text, spec.flips) == ("none", "tokens", False)


def test_that_every_row_of_the_language_ablation_carries_a_verdict_and_stands_against_base(plans: dict[str, Plan]) -> None:
    sweep = plans["text2slot"].sweep
    notes = {name: option.note for name, option in sweep.axes["method"].options.items()}
    assert notes.pop("base") == ""
    assert set(notes.values()) == {"should try", "should try (maybe)", "could try", "no need", "ours"}
    assert {row for row, note in notes.items() if note == "no need"} == {"iterations2", "iterations5"}
    assert {row for row, note in notes.items() if note == "could try"} == {"rn50", "slot_size128", "slot_mlp256"}
    assert sweep.table is not None
    assert sweep.table.base == "base"


def test_that_the_factorial_crosses_seven_factors_whose_first_options_are_the_ablations_base(plans: dict[str, Plan]) -> None:
    made = plans["text2slot_factorial"]
    assert made.sweep.table is not None
    assert made.sweep.table.factorial == Factorial(
        factors=("global", "slots", "decoder", "kernel", "upsample", "hidden", "init"), within={"global": ("patches",)}
    )
    levels = [(axis, tuple(made.sweep.axes[axis].options)) for axis in made.sweep.table.factorial.factors]
    cells = {tuple(cell.cell.coordinates[axis] for axis, _ in levels): cell.runs["train"] for cell in made.cells}
    assert len(cells) == 2**7
    assert len(set(cells.values())) == 2**7
    rows = {
        cell.cell.coordinates["method"]: cell.runs["train"]
        for cell in plans["text2slot"].cells
        if cell.cell.coordinates["seed"] == "0"
    }
    base = tuple(first for _, (first, _) in levels)
    assert cells[base] == rows["base"]
    alone = ("global_feats", "slots3", "dec14", "kernel5", "resize_conv", "hidden_none", "mu_per_slot")
    for j, row in enumerate(alone):
        assert cells[(*base[:j], levels[j][1][1], *base[j + 1 :])] == rows[row], row


@pytest.mark.parametrize(
    ("name", "left_out", "cells"), [("text2slot", {"method": {"vit_b16"}}, 26), ("text2slot_factorial", {}, 128)]
)
def test_that_a_language_sweep_runs_in_miniature_with_the_overrides_of_its_header(
    repository: Path, composer: Composer, name: str, left_out: dict[str, set[str]], cells: int
) -> None:
    sweep = load_sweep(repository / "sweeps" / f"{name}.yaml")
    header = sweep.text[: sweep.text.index("title:")]
    assert all(f"--set {text}" in header for text in LANGUAGE_MINIATURE)
    kept = [f"{axis}={one}" for axis, names in left_out.items() for one in sweep.axes[axis].options if one not in names]
    small = expand(sweep, only=["seed=0", *kept], overrides=LANGUAGE_MINIATURE)
    made = plan(sweep, small, composer, content=lambda kind, path: "c" * 64, existing=lambda run_id: None)
    assert len(made.cells) == cells
    for run in made.runs.values():
        if isinstance(run.spec, TrainSpec):
            assert (run.spec.steps, run.spec.batch_size, run.spec.model.resolution) == (6, 4, 64)
    named = re.search(r"--only (\S+)", header)
    assert named is not None
    assert expand(sweep, only=[named[1]])  # its rows exist


@pytest.mark.parametrize("name", SWEEPS)
def test_that_a_header_says_question_command_cost_and_expected_result(repository: Path, name: str) -> None:
    header = (repository / "sweeps" / f"{name}.yaml").read_text().partition("title:")[0]
    assert all(f"# {word}:" in header for word in ("question", "command", "cost", "expected"))


def test_that_the_demonstration_has_two_rows_without_training(plans: dict[str, Plan]) -> None:
    steps = {
        cell.cell.coordinates["method"]: plans["demo"].runs[cell.runs["train"]].config["steps"] for cell in plans["demo"].cells
    }
    assert (steps["random_masks"], steps["untrained"]) == (0, 0)
    assert all(steps[method] > 0 for method in ("slot_attn", "covloss", "cosine"))


def test_that_metrics_are_listed_for_every_kind_of_job() -> None:
    assert set(METRICS) == set(JOB_KINDS)
    assert "eval/fg_ari" + NOISE_SD in METRICS["evaluate"]
    assert "eval/images" + NOISE_SD not in METRICS["evaluate"]
    assert EvaluateSpec().kind in METRICS


def test_that_two_hundred_broken_sweeps_are_valid_or_the_users_error(
    repository: Path, composer: Composer, mutations: ModuleType
) -> None:
    texts = [(repository / "sweeps" / f"{name}.yaml").read_text() for name in SWEEPS]
    valid = 0
    for text in mutations.mutations(texts, count=200, seed=0):
        try:
            sweep = parse_sweep(text, "broken.yaml")
            plan(sweep, expand(sweep), composer, content=lambda kind, path: "c" * 64, existing=lambda run_id: None)
            valid += 1
        except UserError as error:
            said = [str(problem) for problem in error.problems]
            assert said, text
            assert all(line.startswith("broken.yaml") and line.splitlines()[0].count(": ") for line in said), (said, text)
    assert 10 <= valid <= 120  # else the mutations are too mild or too wild to prove anything


def test_that_reading_a_sweep_imports_neither_torch_nor_mlflow_and_its_model_not_even_hydra(repository: Path) -> None:
    program = (
        "import sys, orchestrator.sweep.model\n"
        "assert not {'hydra', 'omegaconf', 'pydantic', 'yaml'} & sys.modules.keys()\n"
        "import orchestrator.sweep.grammar, orchestrator.sweep.expand\n"
        "assert not {'hydra', 'omegaconf', 'pydantic'} & sys.modules.keys()\n"
        "import orchestrator.sweep.plan\n"
        "assert not {'torch', 'mlflow', 'submitit'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=repository)
