"""`orch watch --submit`: the script, and that one is enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.watch_job import WatchRequest
from tests.orchestrator.stub import Command, StubSlurm

GOLDEN = Path(__file__).parent / "golden"
Sweep = Callable[..., Path]


def test_that_the_script_is_the_golden_one() -> None:
    request = WatchRequest(
        root=Path("/shared/my root"), sweeps=("table1", "it's"), every_s=60.0, halve_micro_batch=True, partition="cpu",
        tracking_uri="https://tracker.example/?a=b c", python="/venv/bin/python",
    )  # fmt: skip
    assert request.script() == (GOLDEN / "watch.sh").read_text()


def test_that_a_watch_is_queued_once_for_a_set_of_sweeps(orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep) -> None:
    orch("submit", count_sweep(seeds=[0]))
    before = len(stub_slurm.calls)
    said = orch("watch", "counting", "--submit", "--partition", "cpu").out
    assert "watches until counting has settled" in said
    (call,) = stub_slurm.calls[before:]
    assert "#SBATCH --partition=cpu\n" in call["script"]
    assert "export MLFLOW_TRACKING_URI=http://127.0.0.1:9\n" in call["script"]
    assert not [name for name in call["environment"] if name.startswith("MLFLOW_")]
    (folder,) = (orch.root / "slurm").glob("orchwatch-*")
    assert call["cwd"] == str(folder)
    assert "watches already" in orch("watch", "counting", "--submit").out
    assert "watches until it is cancelled" in orch("watch", "--submit").out
    assert len(stub_slurm.calls) == before + 2


def test_that_no_password_gets_into_a_script(
    orch: Command, stub_slurm: StubSlurm, count_sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    orch("submit", count_sweep(seeds=[0]))
    before = len(stub_slurm.calls)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:geheim@tracker.example")
    said = orch("watch", "--submit", expect=2).err
    assert "~/.mlflow/credentials" in said
    assert "geheim" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracker.example")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "geheim")
    said = orch("watch", "--submit")
    assert "MLFLOW_TRACKING_TOKEN will not be there" in said.err
    assert "geheim" not in stub_slurm.calls[before]["script"]
    assert len(stub_slurm.calls) == before + 1


@pytest.mark.parametrize("words", [("--partition", "cpu"), ("--submit", "--once")])
def test_that_options_that_do_not_go_together_are_refused(orch: Command, words: tuple[str, ...]) -> None:
    orch("watch", *words, expect=2)
