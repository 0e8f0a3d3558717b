"""A bounded slice of the fault campaign (`make chaos`), and that its known mistakes can still be made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.broken import MISTAKES, broken_copy
from tests.chaos.campaign import REPOSITORY, Plan, campaign
from tests.chaos.faults import FAULTS
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import Options


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_that_a_storm_of_faults_loses_nothing(slurm_cluster_factory: Callable[[Options], SlurmCluster], tmp_path: Path) -> None:
    cluster = slurm_cluster_factory(Options(nodes=3, grace_s=3, kill_wait_s=3))
    plan = Plan(seed=7, injections=8, runs=5, steps=250, per_storm=8)
    report = campaign(cluster, plan, tmp_path)
    print(report.table(plan))
    assert report.problems == []
    assert report.struck.total() >= 4


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_that_the_code_still_has_the_place_of_a_known_mistake(name: str, tmp_path: Path) -> None:
    broken = broken_copy(REPOSITORY, tmp_path / "code", name)
    path = MISTAKES[name].file
    assert (broken / path).read_text() != (REPOSITORY / path).read_text()
    assert set(MISTAKES[name].shown_by) <= {fault.name for fault in FAULTS}
    shutil.rmtree(broken)
