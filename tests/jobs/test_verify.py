"""`jobs.verify` and `jobs.rehearse` find no difference where there is none, and report one that was planted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import DATA, train_config

from jobs import forks, loop, rehearse, state, verify
from jobs.rehearsal_config import shorten
from jobs.spec import TrainSpec

untouched = verify.untouched
COUNT = {"kind": "count", "steps": 40, "step_s": 0.02, "runtime": {"max_attempts_without_progress": 1000}}


def planted() -> None:
    """In a fork: the noise depends on the attempt, and in a rehearsal on whether it is the first step of a process."""
    one_step, calls = loop.Training._one_step, iter(range(1000))

    def watched(training: loop.Training, batch: Any, forward: Any) -> None:
        scale = 1.0 + 0.001 * training.run.attempt.number + (0.001 if next(calls) == 0 else 0.0)
        one_step(training, batch._replace(noise_BKZ=batch.noise_BKZ * scale), forward)

    loop.Training._one_step = watched  # type: ignore[method-assign]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    start = forks.start

    def spoilt(run_dir: Any, *, environment: Any = None, hook: Callable[[], None] | None = None) -> int:
        return start(run_dir, environment=environment, hook=lambda: (planted(), hook() if hook else None)[0])  # type: ignore[func-returns-value]

    monkeypatch.setattr(forks, "start", spoilt)
    monkeypatch.setattr(rehearse, "start", spoilt)


def verified(data: Path, tmp_path: Path, config: dict[str, Any], *, kills: int = 2, ranks: int = 1) -> dict[str, Any]:
    (tmp_path / "data").symlink_to(data / "data")
    needs = {"prepare": "data"} if config["kind"] == "train" else {}
    one = {"id": "one", "config": config, "needs": needs, "kills": kills, "ranks": ranks}
    return verify.verify(tmp_path, one, random.Random(5))


def test_that_a_counting_run_verifies(data: Path, tmp_path: Path) -> None:
    found = verified(data, tmp_path, COUNT, kills=4)
    assert found["differences"] == []
    assert found["kills"] == 4


@pytest.mark.parametrize("ranks", [1, 2])
def test_that_a_training_run_verifies(ranks: int, data: Path, tmp_path: Path) -> None:
    found = verified(data, tmp_path, train_config(steps=30), ranks=ranks)
    assert found.get("differences") == [], found
    assert found["kills"] == 2


def test_that_a_run_faster_than_its_kills_is_made_anew_until_all_have_struck(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "untouched", lambda run_dir, ranks: (untouched(run_dir, ranks), 60.0)[1])
    found = verified(data, tmp_path, COUNT | {"steps": 2}, kills=3)
    assert found["differences"] == []
    assert found["kills"] == 3


def test_that_verifying_reports_a_planted_difference(data: Path, tmp_path: Path, plant: None) -> None:
    found = verified(data, tmp_path, train_config(steps=40), kills=3)
    assert any(line.startswith("state state/model/") for line in found["differences"])


def test_that_verifying_reports_a_run_that_fails_anyway(data: Path, tmp_path: Path) -> None:
    found = verified(data, tmp_path, COUNT | {"fail_at": 2})
    assert found["error"] == "the run fails without any kill: ValueError: the configuration asks to fail at step 2"


def chain(config: dict[str, Any]) -> dict[str, Any]:
    scored = shorten({"kind": "evaluate", "noise_seeds": [0, 1]}, batch_size=6)
    steps = [
        {"name": "prepare", "id": "data", "kind": "prepare", "config": shorten(DATA, batch_size=6), "needs": {}},
        {"name": "train", "id": "trained", "kind": "train", "config": config, "needs": {"prepare": "data"}},
        {
            "name": "evaluate", "id": "scored", "kind": "evaluate", "config": scored,
            "needs": {"prepare": "data", "train": "trained"},
        },
    ]  # fmt: skip
    return {"name": "cell", "steps": steps}


def test_that_a_rehearsal_measures_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "LOADER_S", 0.05)
    short = shorten(train_config(steps=5000), batch_size=6)
    assert short["steps"] == 3
    report = json.loads(json.dumps(rehearse.rehearse(tmp_path, chain(short), {})))["steps"]
    found = report["train"]
    assert "error" not in report["evaluate"]
    assert found["differences"] == []
    parameters = state.build_state(TrainSpec.model_validate(short), torch.device("cpu")).parameters()
    assert found["parameters"] >= sum(parameter.numel() for parameter in parameters)
    assert found["checkpoint_bytes"] > 4 * found["parameters"]
    assert found["step_s"] > 0
    assert set(found["loader"]) == {"0", "1", "2", "4"}


def test_that_a_rehearsal_reports_a_planted_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: None) -> None:
    monkeypatch.setattr(rehearse, "loader_rates", lambda *_: {})
    report = rehearse.rehearse(tmp_path, chain(shorten(train_config(), batch_size=6)), {})["steps"]
    assert any(line.startswith("state state/model/") for line in report["train"]["differences"])


def test_that_a_rehearsal_says_why_a_cell_would_fail(tmp_path: Path) -> None:
    config = shorten(train_config(), batch_size=6)
    config["model"] = config["model"] | {"resolution": 32}
    report = rehearse.rehearse(tmp_path, chain(config), {})["steps"]
    assert report["train"]["error"].startswith("exception: ")
    assert "evaluate" not in report
