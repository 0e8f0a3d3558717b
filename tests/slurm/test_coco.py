"""The COCO sweeps on the real Slurm, in miniature: one embed run for all cells, two stages, evicted on the way, and exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.compare import differences
from jobs.contract import read_attempts
from tests.slurm.cluster import SlurmCluster
from tests.slurm.orch import FULL, Orch

pytestmark = pytest.mark.slurm

SWEEPS = Path(__file__).parents[2] / "sweeps"
TABLE_3 = [
    "data=coco_covloss_mini", "data.generator.train_images=48", "data.resolution=64", "backbone=vit_tiny_random",
    "shard_images=8", "miniature=coco", "model.decoder.hidden=64", "steps=80", "batch_size=8", "noise_seeds=[0, 1]",
]  # fmt: skip
SMALL = [
    "data=coco_mini", "data.generator.train_images=240", "data.resolution=160", "backbone=vit_tiny_random", "backbone.tokens=100",
    "shard_images=20", "miniature=coco", "model.tokens=100", "model.slot_size=32", "model.decoder.hidden=64", "steps=80",
    "batch_size=8", "noise_seeds=[0, 1]",
]  # fmt: skip
"""Longer than their start-up, so that there is something to strike."""


def on_two_nodes(name: str, folder: Path) -> Path:
    """The sweep of the repository with this cluster's partitions: all but `prepare` as two tasks on two nodes."""
    sweep = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))
    for step, resources in sweep["resources"].items():
        resources.clear()
        resources |= {"partition": "low", "timeout_min": 30, "signal_delay_s": 30}
        if step != "prepare":
            resources |= {"nodes": 2, "tasks_per_node": 1}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return path


def submit(orch: Orch, sweep: Path, only: str, settings: Sequence[str]) -> None:
    overrides = [word for setting in settings for word in ("--set", setting)]
    orch("submit", sweep, "--only", only, *overrides)


def of_kind(orch: Orch, kind: str) -> dict[str, dict[str, Any]]:
    return {run: one for run, one in orch.runs().items() if one["kind"] == kind}


def strike(orch: Orch, runs: Collection[str]) -> None:
    """Evict the first of them, in the middle of its work, and see all of them go on."""
    orch.gather(runs, 1)
    orch.cluster.evict(orch.runs()[next(iter(runs))]["job"])
    for run in runs:
        orch.wait_for_attempt(run, 2, timeout_s=300)


def stages(orch: Orch) -> tuple[list[str], list[str]]:
    """Training runs of the first stage, and of the second, which need the first."""
    needs = {run: json.loads(orch.run_dir(run).spec.read_text(encoding="utf-8"))["needs"] for run in of_kind(orch, "train")}
    return [run for run in needs if "train" not in needs[run]], [run for run in needs if "train" in needs[run]]


@pytest.mark.skipif(not FULL, reason="ORCH_FULL=1: four more minutes")
@pytest.mark.timeout(1200)
def test_that_adaslot_in_two_stages_survives_evictions_exactly(
    slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    """Embed run and both stages on two tasks each, all of them evicted: tokens and weights are those of untouched runs."""
    sweep = on_two_nodes("adaslot", tmp_path)
    struck, calm = (make_orch(slurm_cluster, tmp_path / name) for name in ("struck", "calm"))
    only = "method=stage1,method=paper,protocol=official,seed=0"
    with slurm_cluster.closed():
        submit(struck, sweep, only, SMALL)
        embed = of_kind(struck, "embed")
    assert len(embed) == 1
    first, second = stages(struck)
    assert (len(first), len(second)) == (1, 1)
    strike(struck, embed)
    strike(struck, first)
    strike(struck, second)
    struck.wait_for_state("adaslot", ["done"], timeout_s=400)
    assert all(len(read_attempts(struck.run_dir(run))) >= 2 for run in (*embed, *first, *second))

    submit(calm, sweep, only, SMALL)
    calm.wait_for_state("adaslot", ["done"], timeout_s=400)
    (run,) = embed
    one, other = (sorted((root.run_dir(run).output / "features").rglob("*.npy")) for root in (struck, calm))
    assert [path.name for path in one] == [path.name for path in other]
    assert all(left.read_bytes() == right.read_bytes() for left, right in zip(one, other, strict=True))
    for run in (*first, *second):
        assert differences(struck.run_dir(run), calm.run_dir(run)) == []
        assert (struck.run_dir(run).output / "model.pt").read_bytes() == (calm.run_dir(run).output / "model.pt").read_bytes()
    for run in of_kind(struck, "evaluate"):
        assert [one.world_size for one in read_attempts(struck.run_dir(run))] == [2]
        assert (struck.run_dir(run).output / "scores.json").read_bytes() == (
            calm.run_dir(run).output / "scores.json"
        ).read_bytes()
    table = struck("table", "adaslot")
    print(table)
    assert "AdaSlot, sparsity 0.5" in table
    assert "39.0" in table


@pytest.mark.skipif(not FULL, reason="ORCH_FULL=1: two more minutes")
@pytest.mark.timeout(1200)
def test_that_table_3_shares_one_embed_run_and_survives_evictions(
    slurm_cluster: SlurmCluster, make_orch: Callable[[SlurmCluster, Path], Orch], tmp_path: Path
) -> None:
    orch = make_orch(slurm_cluster, tmp_path / "root")
    with slurm_cluster.closed():
        submit(orch, on_two_nodes("table3", tmp_path), "seed=0", TABLE_3)
        training = of_kind(orch, "train")
    assert (len(of_kind(orch, "prepare")), len(of_kind(orch, "embed")), len(training)) == (1, 1, 4)
    strike(orch, training)
    orch.wait_for_state("table3", ["done"], timeout_s=400)
    assert [len(read_attempts(orch.run_dir(run))) for run in of_kind(orch, "embed")] == [1]
    table = orch("table", "table3")
    print(table)
    assert table.count("(1/3)") == 12
