"""A root, a store and a stand-in for Slurm's commands: shared by the tests of the control plane."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import shipping
from orchestrator.slurm.parse import SEPARATOR
from orchestrator.store.runs import Store
from orchestrator.workspace import Root
from tests.orchestrator.stub import QUIET, SBATCH, SQUEUE, Command, StubSlurm

COUNT = """
title: counting
base: [steps={steps}, step_s={step_s}]
axes:
  seed: {{key: seed, values: {seeds}}}
pipeline:
  count: {{job: count, set: [{extra}]}}
resources:
  count: {{timeout_min: 10, cpus_per_task: 1}}
table:
  rows: seed
  value: {{metric: count/value, step: count, digits: 0}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = Root(tmp_path / "root")
    made.create()
    return made


@pytest.fixture
def store(root: Root) -> Iterator[Store]:
    opened = Store(root.store)
    yield opened
    opened.close()


@pytest.fixture
def count_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep of counting runs: `count_sweep("name", seeds=[0, 1], steps=5)`."""

    def write(
        name: str = "counting", *, seeds: list[int] | None = None, steps: int = 5, step_s: float = 0, extra: str = ""
    ) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(COUNT.format(steps=steps, step_s=step_s, seeds=[0, 1] if seeds is None else seeds, extra=extra))
        return path

    return write


@pytest.fixture
def stub_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubSlurm:
    """The commands of a cluster that queues everything and starts nothing, first on PATH."""
    folder, state = tmp_path / "bin", tmp_path / "stub"
    folder.mkdir()
    state.mkdir()
    answers = Path(__file__).parent / "slurm" / "answers"
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE} | dict.fromkeys(("scancel", "sacct", "sacctmgr", "scontrol"), QUIET)
    for name, text in scripts.items():
        (folder / name).write_text(
            text.format(python=sys.executable, state=str(state), separator=SEPARATOR, answers=str(answers))
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    stub = StubSlurm(state=state)
    stub.answers()
    return stub


@pytest.fixture
def orch(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """On a root that does not exist yet, with a tracker that does not answer (no test here is about the tracker)."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(shipping, "try_to_ship", lambda *_: "it does not answer")  # MLflow alone would take seconds to import
    monkeypatch.setattr("os.sync", lambda: None)  # power cuts are not tested, and other processes' writes would be waited for
    monkeypatch.chdir(tmp_path)
    return Command(root=tmp_path / "root", capture=capsys, patch=monkeypatch)
