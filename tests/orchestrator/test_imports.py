"""What may import what: the contracts of pyproject.toml, and what a command has really loaded when it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "mlflow", "submitit", "numpy", "scipy", "matplotlib", "sqlalchemy", "hydra")

PROBE = """
import json, sys
from orchestrator.cli.main import cli
code = 0
try:
    cli.main({arguments!r}, standalone_mode=False)
except SystemExit as ended:
    code = ended.code
print()
print(json.dumps([code, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def loaded_by(*arguments: str, root: Path) -> set[str]:
    """Top-level packages in memory after a command has run in a fresh interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"ORCH_ROOT": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=list(arguments))],
        capture_output=True, text=True, env=environment, cwd=CHECKOUT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout
    return set(modules)


@pytest.fixture
def root_with_a_run(tmp_path: Path) -> Path:
    """A root whose store holds one lost run: status has something to look at."""
    from orchestrator.lifecycle import RunState
    from orchestrator.records import CellRecord, RunRecord
    from orchestrator.store.runs import Store
    from orchestrator.workspace import Root

    root = Root(tmp_path / "root")
    root.create()
    store = Store(root.store)
    run = RunRecord(id="count-0", kind="count", state=RunState.PLANNED, reason="resumed", steps=10)
    store.add(
        name="s", path="s.yaml", title="", definition="", comment="", partial=False,
        cells=[CellRecord(coordinates={"seed": "0"}, runs={"count": "count-0"})], runs=[run],
    )  # fmt: skip
    store.close()
    return root.path


@pytest.mark.parametrize("arguments", [("--help",), ("status",), ("status", "--json"), ("status", "--help")], ids=" ".join)
def test_that_help_and_status_load_nothing_heavy(arguments: tuple[str, ...], root_with_a_run: Path) -> None:
    assert loaded_by(*arguments, root=root_with_a_run) & {*HEAVY, "pydantic", "omegaconf", "yaml"} == set()


def test_that_gc_loads_neither_torch_nor_mlflow(root_with_a_run: Path) -> None:
    assert loaded_by("gc", root=root_with_a_run) & {*HEAVY, "pydantic", "omegaconf", "yaml"} == set()


@pytest.mark.parametrize("sweep", ["sweeps/count.yaml", "sweeps/demo.yaml", "sweeps/text2slot.yaml"])
def test_that_plan_loads_neither_torch_nor_mlflow(sweep: str, tmp_path: Path) -> None:
    assert (
        loaded_by("plan", sweep, root=tmp_path / "nothing") & {"torch", "mlflow", "submitit", "sqlalchemy", "scipy", "matplotlib"}
        == set()
    )


def test_that_every_import_contract_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=CHECKOUT, timeout=120)
    assert done.returncode == 0, done.stdout


def test_that_the_contracts_say_what_the_design_says() -> None:
    """The linter checks what its configuration names: the configuration itself must not be watered down."""
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    by_name = {contract["name"]: contract for contract in contracts}
    known = by_name["The control plane knows of the jobs only their contract"]["ignore_imports"]
    assert {line.removeprefix("orchestrator.** -> ") for line in known} == {
        "jobs.checkpoint", "jobs.contract", "jobs.data_spec",
        "jobs.data_spec_parts", "jobs.data.errors", "jobs.data.source", "jobs.environment", "jobs.journal",
        "jobs.metrics", "jobs.rehearsal_config", "jobs.needs", "jobs.picture_file", "jobs.spec", "jobs.times",
        "jobs.weights_file",
        "models.spec", "models.spec_base", "models.spec_language", "models.spec_parts", "models.spec_video",
    }  # fmt: skip
    pure = by_name["Pure modules touch neither processes, files, clocks nor databases"]
    assert {"orchestrator.decide", "orchestrator.batches", "orchestrator.identity"} <= set(pure["source_modules"])
    assert {"os", "sqlite3", "subprocess", "time"} <= set(pure["forbidden_modules"])
    inside = by_name["Inside the control plane every file has its place"]
    assert inside["exhaustive"] is True
