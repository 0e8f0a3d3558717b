"""The repository's own sweeps, and what is left of them after a person's mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from jobs.metrics import METRICS, NOISE_SD
from jobs.spec import JOB_KINDS, EvaluateSpec, TrainSpec
from models.spec import CosineObjective, CovarianceObjective, SlotAutoencoderSpec
from orchestrator.errors import UserError
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import load_sweep, parse_sweep
from orchestrator.sweep.plan import Plan, plan

SWEEPS = ("table1", "demo", "count")
SIZES = {"table1": (9, 19), "demo": (10, 21), "count": (8, 8)}


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
    assert table.paper == {"slot_attn": {"mdsprites": 90.71}, "covloss": {"mdsprites": 87.42}, "cosine": {"mdsprites": 88.82}}
    assert table.paper_source
    assert table.protocol


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
