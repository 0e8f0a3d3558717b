"""The site profile and the check of resources against it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.site import (
    NodeShape,
    Site,
    check_resources,
    from_json,
    load,
    most_nodes,
    probe,
    save,
    site_from_facts,
    to_json,
)
from orchestrator.slurm.fake import FakeSlurm
from orchestrator.slurm.parse import parse_config, parse_nodes, parse_partitions, parse_qos
from orchestrator.slurm.rows import ClusterFacts

ANSWERS = Path(__file__).parent / "slurm" / "answers"


def facts(**config: str) -> ClusterFacts:
    """A real two-node cluster's answers, with some configuration replaced."""
    return ClusterFacts(
        config=parse_config((ANSWERS / "scontrol_config.txt").read_text()) | config,
        partitions=parse_partitions((ANSWERS / "scontrol_partition.txt").read_text()).rows,
        nodes=parse_nodes((ANSWERS / "scontrol_node.txt").read_text()).rows,
        qos=parse_qos("normal||cluster|00:00:00|\nscavenger|low|REQUEUE|00:02:00|5000\n").rows,
        max_submit_jobs=400,
        accounting=True,
    )


@pytest.fixture
def site() -> Site:
    return site_from_facts(facts(), probed_at=5.0)


def words(site: Site, **resources: Any) -> list[str]:
    return [f"{problem.where} {problem.allowed}" for problem in check_resources(site, resources)]


def test_that_the_profile_holds_what_submit_and_jobs_must_know() -> None:
    found = probe(FakeSlurm(cluster_facts=facts()), user="me", clock=lambda: 5.0)
    assert (found.slurm_version, found.max_array_size, found.max_job_count, found.max_submit_jobs) == (
        "22.05.8",
        1001,
        40_000,
        400,
    )
    assert (found.kill_wait_s, found.min_job_age_s, found.requeue_delay_s) == (5, 30, 5)
    assert found.user_signal_on_preemption
    assert found.requeue_allowed
    assert found.default_partition is not None
    assert found.default_partition.shapes == (NodeShape(count=2, cpus=8, gpus=4, memory_mib=16_000),)
    assert found.largest_chunk == 400


def test_that_missing_configuration_takes_slurms_own_defaults() -> None:
    found = site_from_facts(ClusterFacts(config={}), probed_at=0.0)
    assert (found.max_array_size, found.max_job_count, found.kill_wait_s, found.min_job_age_s) == (1001, 10_000, 30, 300)
    assert (found.requeue_delay_s, found.preempt_type, found.user_signal_on_preemption) == (120, "preempt/none", False)
    assert found.largest_chunk == 1001


def test_that_a_cred_expire_that_slurm_refuses_is_its_default() -> None:
    assert site_from_facts(facts(AuthInfo="socket=/s,cred_expire=60"), probed_at=0.0).requeue_delay_s == 60
    assert site_from_facts(facts(AuthInfo="cred_expire=1"), probed_at=0.0).requeue_delay_s == 120


def test_that_preemption_is_read_where_the_site_keeps_it(site: Site) -> None:
    assert site.preemption("low") == ("REQUEUE", 10)
    assert site.preemption("low_cancel") == ("CANCEL", 10)
    assert site.preemption("high") == ("OFF", 0)
    by_qos = dataclasses.replace(site, preempt_type="preempt/qos")
    assert by_qos.preemption("low_cancel", "scavenger") == ("REQUEUE", 120)
    assert by_qos.preemption("low_cancel") == ("CANCEL", 0)
    assert dataclasses.replace(site, preempt_type="preempt/none").preemption("low") == ("OFF", 0)


def test_that_a_profile_survives_the_disk(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    assert load(path) is None
    save(site, path)
    assert load(path) == site
    assert [entry.name for entry in tmp_path.iterdir()] == ["site.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"schema": 99}', '{"schema": 1, "partitions": 3, "qos": []}'])
def test_that_an_unreadable_profile_names_the_command_that_mends_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    path.write_text(text)
    with pytest.raises(UserError, match="orch doctor") as caught:
        load(path)
    assert str(path) in str(caught.value)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_that_any_json_is_a_profile_or_a_value_error(content: object) -> None:
    with pytest.raises(ValueError, match=r".*"):
        from_json(json.dumps(content))


def test_that_what_fits_is_no_problem(site: Site) -> None:
    for resources in (
        {},
        {"partition": "low", "gpus_per_node": 4, "cpus_per_task": 2, "nodes": 2, "mem_gb": 15, "timeout_min": 100_000},
        {"partition": "short", "timeout_min": 1},
        {"partition": "short,low", "timeout_min": 60},
        {"gres": "gpu:2", "mem_per_cpu": "500M"},
        {"partition": "hold"},
        {"partition": None, "gpus_per_node": None, "mem_gb": None},
    ):
        assert check_resources(site, resources) == []


@pytest.mark.parametrize(
    ("resources", "found"),
    [
        ({"partition": "lwo"}, ["resources.partition low, low_cancel, low_nograce, short, high, hold"]),
        ({"gpus_per_node": 5}, ["resources.gpus_per_node at most 4"]),
        ({"gres": "gpu:a100:8"}, ["resources.gpus_per_node at most 4"]),
        ({"cpus_per_task": 9}, ["resources.cpus_per_task at most 8 per node, over all its tasks"]),
        ({"gpus_per_node": 4, "cpus_per_task": 3}, ["resources.cpus_per_task at most 8 per node, over all its tasks"]),
        ({"mem_gb": 16}, ["resources.mem_gb at most 16000 MiB per node"]),
        ({"mem_per_gpu": "5G", "gpus_per_node": 4}, ["resources.mem_gb at most 16000 MiB per node"]),
        ({"nodes": 3}, ["resources.nodes 1 to 2"]),
        ({"partition": "short", "timeout_min": 2}, ["resources.timeout_min at most 1"]),
        ({"partition": "short", "timeout_min": 2, "nodes": 3}, ["resources.timeout_min at most 1", "resources.nodes 1 to 2"]),
        ({"gpus_per_node": "four"}, ["resources.gpus_per_node at least 0"]),
        ({"nodes": 0}, ["resources.nodes at least 1"]),
        ({"timeout_min": True}, ["resources.timeout_min at least 1"]),
        ({"mem_gb": "plenty"}, ["resources.mem_gb 16, 4000M, 16G"]),
        ({"mem_per_cpu": "nan"}, ["resources.mem_per_cpu 16, 4000M, 16G"]),
    ],
)
def test_that_the_impossible_is_named_with_what_is_allowed(site: Site, resources: dict[str, Any], found: list[str]) -> None:
    assert words(site, **resources) == found


def test_that_of_several_world_sizes_the_smallest_must_be_able_to_run(site: Site) -> None:
    assert words(site, nodes=4, elastic=[2, 4, 8]) == []
    assert words(site, nodes=4, elastic=[4, 8]) == ["resources.elastic 1 to 2"]
    assert words(site, nodes=2, gpus_per_node=4, elastic=[4, 8, 16]) == []


def test_that_the_largest_allocation_is_known(site: Site) -> None:
    """A partition's own limit counts: of a range that exceeds it not even the smallest size would ever start."""
    low, *others = site.partitions
    assert most_nodes(site, {}) == 2
    limited = dataclasses.replace(site, partitions=(dataclasses.replace(low, max_nodes=1), *others))
    assert (most_nodes(limited, {}), most_nodes(limited, {"partition": "low,high"})) == (1, 2)
    shapes = (NodeShape(count=3, cpus=64, gpus=0, memory_mib=64_000), NodeShape(count=1, cpus=8, gpus=4, memory_mib=16_000))
    mixed = dataclasses.replace(site, partitions=(dataclasses.replace(low, shapes=shapes, max_nodes=4),))
    assert (most_nodes(mixed, {}), most_nodes(mixed, {"gpus_per_node": 4}), most_nodes(mixed, {"gpus_per_node": 8})) == (4, 1, 0)


def test_that_a_partition_that_takes_no_jobs_is_named(site: Site) -> None:
    drained = dataclasses.replace(site.partitions[0], state="DRAIN")
    problems = check_resources(dataclasses.replace(site, partitions=(drained, *site.partitions[1:])), {})
    assert [problem.value for problem in problems] == ["low"]
    assert "DRAIN" in problems[0].what


def test_that_one_node_must_have_it_all_at_once(site: Site) -> None:
    big, gpu = NodeShape(count=3, cpus=64, gpus=0, memory_mib=64_000), NodeShape(count=1, cpus=8, gpus=4, memory_mib=16_000)
    mixed = dataclasses.replace(site.partitions[0], shapes=(big, gpu), max_nodes=4)
    cluster = dataclasses.replace(site, partitions=(mixed,))
    assert words(cluster, gpus_per_node=4, cpus_per_task=1) == []
    assert words(cluster, gpus_per_node=4, cpus_per_task=8) == [
        "resources 3 x 0 GPUs, 64 CPUs, 64000 MiB; 1 x 4 GPUs, 8 CPUs, 16000 MiB"
    ]
    assert words(cluster, gpus_per_node=1, nodes=2) != []


def test_that_a_cluster_without_a_default_partition_wants_one_named(site: Site) -> None:
    nameless = tuple(dataclasses.replace(partition, default=False) for partition in site.partitions)
    (problem,) = check_resources(dataclasses.replace(site, partitions=nameless), {"timeout_min": 5})
    assert "no default" in problem.what


def test_that_the_text_of_a_profile_reads_back(site: Site) -> None:
    assert from_json(to_json(site)) == site
