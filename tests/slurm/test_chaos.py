"""A bounded slice of the fault campaign (`make chaos`), and that its known mistakes can still be made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.broken import MISTAKES, armed_copy
from tests.chaos.campaign import OPTIONS, REPOSITORY, Plan, campaign
from tests.chaos.faults import FAULTS
from tests.chaos.scene import unmount
from tests.chaos.weather import COUNTING, WEATHERS
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import Options

SMALL = replace(WEATHERS[0], work=replace(COUNTING, runs=5, steps=250))


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_that_a_storm_of_faults_loses_nothing(slurm_cluster_factory: Callable[[Options], SlurmCluster], tmp_path: Path) -> None:
    cluster = slurm_cluster_factory(OPTIONS)
    plan = Plan(seed=7, injections=8, per_storm=8, weathers=[SMALL])
    try:
        report = campaign(cluster, plan, tmp_path, code=armed_copy(REPOSITORY, tmp_path / "code"))
    finally:
        for mounted in tmp_path.glob("*/root"):
            unmount(mounted)
    print(report.table(plan.faults, "seed 7"))
    assert report.problems == []
    assert report.struck.total() >= 4


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_that_the_code_still_has_the_place_of_a_known_mistake(name: str, tmp_path: Path) -> None:
    broken = armed_copy(REPOSITORY, tmp_path / "code", name)
    path = MISTAKES[name].file
    assert (broken / path).read_text() != (REPOSITORY / path).read_text()
    compile((broken / path).read_text(), path, "exec")
    assert set(MISTAKES[name].shown_by) <= {fault.name for fault in FAULTS}
    shutil.rmtree(broken)
