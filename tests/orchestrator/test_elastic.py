"""`resources.elastic`: what Slurm is asked for, what the script takes, what a run is frozen with, and what a person is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from jobs.contract import Attempt, claim
from orchestrator import elastic
from orchestrator.causes import AttemptSeen, Ended
from orchestrator.endings import more_accumulation
from orchestrator.lifecycle import RunState
from orchestrator.slurm.submit import ArrayRequest
from orchestrator.workspace import Root, freeze, refreeze_config, refreeze_runtime
from tests.orchestrator.stub import Command, StubSlurm

SWEEP = """
base: [experiment=demo, data=mdsprites_easy]
axes: {{seed: {{key: seed, values: [0]}}}}
resources: {{train: {{{resources}}}}}
"""


def script(**resources: object) -> str:
    return ArrayRequest(token="0123456789ab", folder=Path("/r/slurm/t"), tasks=1, resources=resources, python="python").script()


def write(folder: Path, resources: str) -> Path:
    path = folder / "sizes.yaml"
    path.write_text(SWEEP.format(resources=resources))
    return path


def planned_tasks(orch: Command) -> dict[str, int]:
    """By kind of run, as frozen."""
    specs = [json.loads(path.read_text()) for path in (orch.root / "runs").glob("*/spec.json")]
    return {spec["config"]["kind"]: spec["planned_tasks"] for spec in specs}


@pytest.mark.parametrize(
    ("sizes", "per_node", "taken"),
    [([2, 4, 8], 1, {2: 2, 3: 2, 4: 4, 7: 4, 8: 8}), ([4, 8, 16], 4, {1: 4, 2: 8, 3: 8, 4: 16}), ([4], 2, {2: 4})],
)
def test_that_the_script_starts_the_largest_size_that_the_allocation_holds(
    sizes: list[int], per_node: int, taken: dict[int, int]
) -> None:
    resources = {"nodes": sizes[0] // per_node, "tasks_per_node": per_node, "elastic": sizes}
    begun = elastic.srun_options(resources)
    for nodes, tasks in taken.items():
        lines = f"{elastic.choice(resources)}\necho {begun}"
        said = subprocess.run(["bash", "-euc", lines], env={"SLURM_JOB_NUM_NODES": str(nodes)}, capture_output=True, text=True)
        assert said.stdout.split() == [f"--nodes={tasks // per_node}", f"--ntasks={tasks}", f"--ntasks-per-node={per_node}"], said


def test_that_a_range_of_nodes_has_room_for_the_tasks_of_a_node_and_counts_none() -> None:
    for cpus, resources in {
        "3": {"nodes": 2, "cpus_per_task": 3, "elastic": [1, 2]},
        "12": {"nodes": 1, "cpus_per_task": 3, "tasks_per_node": 4, "elastic": [4, 8]},
        "8": {"nodes": 1, "cpus_per_task": 2, "gpus_per_node": 4, "elastic": [4, 8]},
        "20": {"nodes": 1, "cpus_per_gpu": 5, "gpus_per_node": 4, "elastic": [4, 8]},
    }.items():
        header, _, body = script(**resources).partition("# setup")
        assert "#SBATCH --nodes=1-2\n" in header
        assert f"#SBATCH --mincpus={cpus}\n" in header
        assert "ntasks" not in header
        assert "exec srun --nodes=" in body


def test_that_a_step_with_one_size_asks_for_it_as_before() -> None:
    assert elastic.planned_tasks({"nodes": 4, "gpus_per_node": 2}) == 0
    assert "mincpus" not in script(nodes=4)
    assert "exec srun --unbuffered" in script(nodes=4)


def test_that_a_run_is_frozen_with_the_size_that_its_accumulation_is_meant_for(
    orch: Command, stub_slurm: StubSlurm, tmp_path: Path
) -> None:
    orch("submit", write(tmp_path, "nodes: 2, elastic: [1, 2]"))
    assert planned_tasks(orch) == {"prepare": 0, "train": 2, "evaluate": 0}


def test_that_a_size_chosen_later_reaches_an_unfinished_run_and_its_script(
    orch: Command, stub_slurm: StubSlurm, tmp_path: Path
) -> None:
    orch("submit", write(tmp_path, "nodes: 2"))
    before = orch.runs()
    assert planned_tasks(orch)["train"] == 0
    orch("cancel", "sizes")
    stub_slurm.forget()
    orch("submit", write(tmp_path, "nodes: 2, elastic: [1, 2]"))
    assert orch.runs().keys() == before.keys()
    assert planned_tasks(orch)["train"] == 2
    orch("resume", "sizes")
    assert any("#SBATCH --nodes=1-2\n" in call["script"] for call in stub_slurm.calls)


def test_that_sizes_that_the_site_never_gives_are_left_out_with_a_warning(
    orch: Command, stub_slurm: StubSlurm, tmp_path: Path
) -> None:
    """The cluster has two nodes; accumulation is still meant for the configured size."""
    said = orch("submit", write(tmp_path, "nodes: 4, elastic: [1, 2, 4, 8]"))
    place = f"{tmp_path}/sizes.yaml: resources.train.elastic"
    assert f"warning: {place}: no run will have 4, 8 tasks: this site gives a job at most 2 nodes" in said.err
    (train,) = [call["script"] for call in stub_slurm.calls if "mincpus" in call["script"]]
    assert "#SBATCH --nodes=1-2\n" in train
    assert "for size in 1 2; do" in train
    assert planned_tasks(orch)["train"] == 4


def test_that_a_smallest_size_that_cannot_run_is_exit_2_with_nothing_written(
    orch: Command, stub_slurm: StubSlurm, tmp_path: Path
) -> None:
    said = orch("submit", write(tmp_path, "nodes: 4, elastic: [4, 8]"), expect=2)
    assert "resources.train.elastic: partition low gives a job at most 2 nodes" in said.err
    assert (orch.root.exists(), stub_slurm.calls) == (False, [])


def test_that_code_from_before_there_were_sizes_can_still_read_a_run_that_has_one_only(root: Root) -> None:
    old = {"id": "count-1", "config": {"runtime": {"workers": 1}}}
    freeze(root, "count-1", old, tree="t")
    spec = root.run_dir("count-1").spec
    refreeze_config(root, "count-1", {"runtime": {"workers": 2}}, planned_tasks=0)
    assert json.loads(spec.read_text()) == {"id": "count-1", "config": {"runtime": {"workers": 2}}}
    refreeze_config(root, "count-1", {"runtime": {"workers": 2}}, planned_tasks=4)
    refreeze_runtime(root, "count-1", {"workers": 3})
    assert json.loads(spec.read_text()) == {"id": "count-1", "config": {"runtime": {"workers": 3}}, "planned_tasks": 4}
    refreeze_config(root, "count-1", {"runtime": {"workers": 3}}, planned_tasks=0)
    assert json.loads(spec.read_text())["planned_tasks"] == 0


def test_that_show_says_the_world_size_of_each_attempt(orch: Command, stub_slurm: StubSlurm, tmp_path: Path) -> None:
    orch("submit", write(tmp_path, "nodes: 2, elastic: [1, 2]"))
    train = next(run for run, one in orch.runs().items() if one["kind"] == "train")
    for size in (2, 1):
        claim(Root(orch.root).run_dir(train), Attempt(number=0, claimant=f"rank 0 of {size}", world_size=size))
    shown = [line.strip() for line in orch("show", train).out.splitlines() if "world size" in line]
    assert [line[0] + line.partition("world size ")[2][:2] for line in shown] == ["12,", "21,"]


@pytest.mark.parametrize(("planned", "world_size", "expected"), [(4, 2, 2), (4, 8, 2), (8, 2, None), (0, 8, None), (0, 2, 2)])
def test_that_the_micro_batch_is_halved_as_long_as_that_of_the_configured_size_can_be(
    root: Root, planned: int, world_size: int, expected: int | None
) -> None:
    config = {"kind": "train", "batch_size": 8, "runtime": {"accumulation": 1}}
    freeze(root, "train-1", {"config": config, "planned_tasks": planned}, tree="t")
    attempts = [AttemptSeen(number=1, world_size=world_size)]
    assert more_accumulation(root, Ended(run="train-1", state=RunState.FAILED, attempts=attempts)) == expected
