from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import Problem, UserError
from orchestrator.identity import run_id
from orchestrator.lifecycle import RunState
from orchestrator.submission import content_of
from orchestrator.sweep.plan import Known, Plan

Planner = Callable[..., Plan]
Complaint = Callable[[Callable[[], object]], str]

TWO = """
base: [data=mdsprites_easy, experiment=demo]
axes:
  method: {one: {set: [objective=reconstruction]}, two: {set: [objective=covariance]}}
  seed: {key: seed, values: [0, 1]}
resources: {train: {gpus_per_node: 2, setup: [module load x], additional_parameters: {nice: 5}}}
"""
COUNT = """
axes: {seed: {key: seed, values: [0, 1]}}
pipeline: {count: {job: count}}
"""


def test_that_cells_share_the_runs_that_resolve_to_one_config(planned: Planner) -> None:
    plan = planned(TWO)
    kinds = [run.kind for run in plan.runs.values()]
    assert (kinds.count("prepare"), kinds.count("train"), kinds.count("evaluate")) == (1, 4, 4)
    assert len({cell.runs["prepare"] for cell in plan.cells}) == 1
    assert len({cell.runs["train"] for cell in plan.cells}) == 4


def test_that_a_run_names_what_it_needs_and_comes_after_it(planned: Planner) -> None:
    plan = planned(TWO)
    seen: set[str] = set()
    for run in plan.runs.values():
        assert set(run.needs.values()) <= seen
        assert run.id == run_id(run.spec, run.needs)
        seen.add(run.id)
    cell = plan.cells[0]
    assert plan.runs[cell.runs["evaluate"]].needs == {"prepare": cell.runs["prepare"], "train": cell.runs["train"]}


def test_that_a_seed_reaches_training_alone(planned: Planner) -> None:
    first, second = planned(TWO, only=["method=one"]).cells
    assert first.runs["prepare"] == second.runs["prepare"]
    assert first.runs["train"] != second.runs["train"]
    other = planned(TWO, only=["method=one,seed=0"], overrides=["data.generator.seed=1"]).cells[0]
    assert other.runs["prepare"] != first.runs["prepare"]
    assert other.runs["train"] != first.runs["train"]


def test_that_a_steps_own_settings_stay_in_that_step(planned: Planner) -> None:
    text = (
        TWO
        + "pipeline: {prepare: {job: prepare, set: [runtime.threads=2]}, train: {job: train, needs: [prepare], set: [steps=5]}}\n"
    )
    plan = planned(text, overrides=["runtime.workers=3"])
    for run in plan.runs.values():
        assert run.spec.runtime.workers == 3
        assert run.spec.runtime.threads == (2 if run.kind == "prepare" else 1)
        assert run.config.get("steps") == (5 if run.kind == "train" else None)


def test_that_resources_are_the_launchers_defaults_with_the_steps_own_over_them(planned: Planner) -> None:
    runs = {run.kind: run for run in planned(TWO).runs.values()}
    assert runs["prepare"].resources["gpus_per_node"] is None
    assert runs["train"].resources["gpus_per_node"] == 2
    assert runs["train"].resources["setup"] == ["export SLURM_KILL_BAD_EXIT=1", "module load x"]
    assert runs["train"].resources["additional_parameters"] == {"requeue": True, "nice": 5}


def test_that_resources_are_not_identity(planned: Planner) -> None:
    assert set(planned(TWO).runs) == set(planned(TWO.replace("gpus_per_node: 2", "gpus_per_node: 1")).runs)


def test_that_world_sizes_are_not_identity_and_reach_the_run(planned: Planner) -> None:
    elastic = planned(TWO.replace("gpus_per_node: 2", "gpus_per_node: 2, nodes: 2, elastic: [8, 2, 4]"))
    assert set(elastic.runs) == set(planned(TWO).runs)
    assert {run.kind: run.resources.get("elastic") for run in elastic.runs.values()} == {
        "prepare": None, "train": [8, 2, 4], "evaluate": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ("nodes: 3, elastic: [2, 4]", ("the configured size is none", "value:   3 tasks (nodes: 3, 1 on each)", "allowed: 2, 4")),
        (
            "elastic: [2]",
            ("the configured size is none", "value:   1 tasks (nodes: 1, 1 on each)", "hint: add 1, or set `nodes`"),
        ),
        ("gpus_per_node: 4, elastic: [4, 6]", ("a multiple of the 4 tasks on a node", "value:   6", "allowed: multiples of 4")),
        ("gpus_per_task: 1, elastic: [1]", ("does not go with gpus_per_task", "value:   1", "use gpus_per_node")),
        (
            "additional_parameters: {ntasks: 2}, elastic: [1]",
            ("train.additional_parameters: does not go with a number", "ntasks", "leave it"),
        ),
    ],
)
def test_that_world_sizes_must_suit_the_steps_other_resources(
    resources: str, words: tuple[str, ...], planned: Planner, complaint: Complaint
) -> None:
    text = TWO.replace("gpus_per_node: 2, setup: [module load x], additional_parameters: {nice: 5}", resources)
    said = complaint(lambda: planned(text))
    assert said.count("sweeps/s.yaml: resources.train.") == 1
    for word in words:
        assert word in said


def test_that_a_data_file_counts_by_its_content_and_not_by_its_place(planned: Planner) -> None:
    text = TWO.replace("data=mdsprites_easy", "data=mdsprites")
    asked: list[str] = []

    def content(kind: str, path: str) -> str:
        assert kind == "mdsprites"
        asked.append(path)
        return "a" * 64

    at = ["model=slot_attention"]
    here = planned(text, overrides=[*at, "data.path=/here/f.tfrecords"], content=content)
    there = planned(text, overrides=[*at, "data.path=/there/f.tfrecords"], content=content)
    changed = planned(text, overrides=[*at, "data.path=/here/f.tfrecords"], content=lambda kind, path: "b" * 64)
    assert asked == ["/here/f.tfrecords", "/there/f.tfrecords"]
    assert set(here.runs) == set(there.runs)
    assert not set(here.runs) & set(changed.runs)
    prepare = next(iter(here.runs.values()))
    assert prepare.config["data"]["content"] == "a" * 64


def test_that_a_relative_data_path_is_made_absolute_for_the_job(planned: Planner) -> None:
    plan = planned(TWO, overrides=["model=slot_attention", "data=mdsprites", "data.path=some/f.tfrecords"])
    assert next(iter(plan.runs.values())).config["data"]["path"] == str(Path.cwd() / "some" / "f.tfrecords")


def test_that_a_missing_data_file_is_named_once_with_its_place(planned: Planner, complaint: Complaint) -> None:
    def missing(kind: str, path: str) -> str:
        raise UserError(Problem(what="no such data file", value=path, hint="download it"))

    said = complaint(lambda: planned(TWO, overrides=["data=mdsprites", "model=slot_attention"], content=missing))
    assert said.count("no such data file") == 1
    assert said.startswith("sweeps/s.yaml: prepare: data.path: no such data file")
    assert "hint: download it; in cell method=one,seed=0; method=one,seed=1; method=two,seed=0 and 1 more" in said


def test_that_a_pinned_content_must_be_the_files(planned: Planner, complaint: Complaint) -> None:
    pinned = ["data=mdsprites", "model=slot_attention", f"data.content={'d' * 64}"]
    assert "other content" in complaint(lambda: planned(TWO, overrides=pinned))
    assert planned(TWO, overrides=pinned, content=lambda kind, path: "d" * 64).runs


def test_that_a_cited_cell_has_no_runs(planned: Planner) -> None:
    plan = planned(TWO + "where: [{if: {method: two}, cite: 3, source: x}]\n")
    assert [bool(cell.runs) for cell in plan.cells] == [True, True, False, False]
    assert sum(run.kind == "train" for run in plan.runs.values()) == 2


def test_that_two_cells_with_one_config_are_an_error_naming_both(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO, overrides=["seed=5"]))
    assert "two cells with one config" in said
    assert "value:   method=one,seed=0 and method=one,seed=1" in said
    assert "value:   method=two,seed=0 and method=two,seed=1" in said


def test_that_invalid_values_are_named_with_path_value_and_cells_once(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO, overrides=["optimizer.learning_rate=fast", "model.num_slots=0", "noise_seeds=[]"]))
    assert said.count("optimizer.learning_rate") == 1
    assert "sweeps/s.yaml: train: optimizer.learning_rate: input should be a valid number" in said
    assert "value:   'fast'" in said
    assert "sweeps/s.yaml: train: model.num_slots: input should be greater than or equal to 1" in said
    assert "method=one,seed=0; method=one,seed=1; method=two,seed=0 and 1 more" in said


def test_that_a_problem_of_one_option_names_the_cells_of_that_option(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO.replace("objective=covariance]", "objective=covariance, objective.weight=-1]")))
    assert "sweeps/s.yaml: train: objective.weight" in said
    assert "in cell method=two,seed=0; method=two,seed=1" in said
    assert "method=one" not in said


def test_that_an_override_that_matches_nothing_is_named_with_its_line(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO.replace("objective=covariance]", "modle.num_slots=3]")))
    assert said.startswith("sweeps/s.yaml:4: override matches nothing in `prepare`, `train`, `evaluate`")
    assert "did you mean `model.num_slots`?" in said


def test_that_a_wrong_axis_key_is_named_with_its_line(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO.replace("key: seed", "key: sead")))
    assert "sweeps/s.yaml:5: override matches nothing" in said


def test_that_every_wrong_override_comes_at_once(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO, overrides=["lr=1", "objective=covarianse", "seed=1,2"]))
    assert said.count("--set: ") == 3
    assert "--set: unknown option of config group `objective`" in said


def test_that_an_unknown_key_below_a_known_one_is_named(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO, overrides=["optimizer.lerning_rate=1"]))
    assert "--set: train: unknown key of `train`" in said
    assert "did you mean `optimizer.learning_rate`?" in said


def test_that_steps_that_do_not_fit_are_named(planned: Planner, complaint: Complaint) -> None:
    assert "differs from the data's 16 x 16 images" in complaint(lambda: planned(TWO, overrides=["model.resolution=32"]))
    lonely = COUNT.replace("count: {job: count}", "train: {job: train}")
    assert "a `train` step needs a step of kind `prepare`" in complaint(lambda: planned(lonely))


def test_that_a_plan_says_what_is_new_cached_unfinished_and_changed(planned: Planner) -> None:
    ids = list(planned(COUNT).runs)
    store = {ids[0]: Known(state=RunState.DONE, code_tree="old"), ids[1]: Known(state=RunState.FAILED, code_tree="now")}
    plan = planned(COUNT, existing=store.get, code_tree="now")
    assert ([run.id for run in plan.cached], [run.id for run in plan.unfinished], plan.new) == ([ids[0]], [ids[1]], ())
    assert [run.id for run in plan.changed] == [ids[0]]
    assert [run.id for run in planned(COUNT, code_tree="now").new] == ids


def test_that_planning_ten_thousand_cells_takes_seconds(planned: Planner) -> None:
    seeds = ", ".join(map(str, range(10_000)))
    start = time.process_time()
    plan = planned(f"axes: {{seed: {{key: seed, values: [{seeds}]}}}}\npipeline: {{count: {{job: count}}}}\n")
    assert len(plan.runs) == 10_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text", ["steps=0", "steps=1.5", "steps=null", "seed=-1", "fail_at=x", "runtime=null", "runtime.workers=many"]
)
def test_that_a_wrong_value_is_the_users_error(planned: Planner, text: str, complaint: Complaint) -> None:
    assert "sweeps/s.yaml: count" in complaint(lambda: planned(COUNT, overrides=[text], only=["seed=0"])) or "--set" in complaint(
        lambda: planned(COUNT, overrides=[text])
    )


TWO_STAGES = """
base: [data=coco_mini, backbone=vit_tiny_random, miniature=coco]
axes:
  method:
    base: {}
    weak: {steps: {stage2: [objective=sparsity_released]}}
    strong: {steps: {stage2: [objective=sparsity_paper], evaluate: [gate=deterministic]}}
  seed: {key: seed, values: [0, 1]}
pipeline:
  prepare: {job: prepare}
  embed: {job: embed, needs: [prepare]}
  stage1: {job: train, needs: [prepare, embed], set: [experiment=adaslot_stage1]}
  stage2: {job: train, needs: [prepare, embed, stage1], set: [experiment=adaslot], only: {method: [weak, strong]}}
  evaluate: {job: evaluate, needs: [prepare, embed, [stage2, stage1]]}
"""


def test_that_two_stages_share_the_first_and_the_second_starts_from_it(planned: Planner) -> None:
    plan = planned(TWO_STAGES)
    steps = [run.step for run in plan.runs.values()]
    assert {step: steps.count(step) for step in steps} == {"prepare": 1, "embed": 1, "stage1": 2, "stage2": 4, "evaluate": 6}
    for cell in plan.cells:
        first, second = cell.runs["stage1"], cell.runs.get("stage2")
        assert (second is None) == (cell.cell.coordinates["method"] == "base")
        assert plan.runs[first].needs == {"prepare": cell.runs["prepare"], "embed": cell.runs["embed"]}
        assert plan.runs[cell.runs["evaluate"]].needs["train"] == (second or first)
        if second is not None:
            assert plan.runs[second].needs == {**plan.runs[first].needs, "train": first}
            assert plan.runs[second].spec.seed == plan.runs[first].spec.seed


def test_that_overrides_for_one_step_stay_in_it_and_follow_the_others(planned: Planner) -> None:
    runs = {run.step: run for run in planned(TWO_STAGES, only=["method=strong,seed=0"]).runs.values()}
    assert runs["stage2"].config["objective"] == {"kind": "reconstruction", "sparsity": 0.5}
    assert runs["stage1"].config["objective"] == {"kind": "reconstruction", "sparsity": 0.0}
    assert runs["evaluate"].config["gate"] == "deterministic"
    text = TWO_STAGES.replace("base: {}", "base: {set: [steps=7], steps: {stage1: [steps=8]}}")
    text = text.replace("experiment=adaslot_stage1]", "experiment=adaslot_stage1, steps=9]")
    found = {run.step: run for run in planned(text, only=["method=base,seed=0"]).runs.values()}
    assert found["stage1"].config["steps"] == 8  # after the option's `set` and the step's own


def test_that_the_command_line_comes_after_everything_in_the_file(planned: Planner) -> None:
    text = TWO_STAGES.replace("experiment=adaslot]", "experiment=adaslot, steps=9]").replace(
        "weak: {steps: {stage2: [", "weak: {steps: {stage2: [steps=10, "
    )
    for run in planned(text, overrides=["steps=2"]).runs.values():
        assert run.config.get("steps", 2) == 2


def test_that_an_override_for_one_step_that_does_not_reach_it_is_named_with_its_line(
    planned: Planner, complaint: Complaint
) -> None:
    said = complaint(lambda: planned(TWO_STAGES.replace("gate=deterministic", "backbone=dino_vitb16")))
    assert said.startswith("sweeps/s.yaml:7: override matches nothing in `evaluate`")


def test_that_online_features_leave_the_embed_step_out(planned: Planner) -> None:
    plan = planned(TWO_STAGES, overrides=["features=online", "backbone@online=vit_tiny_random"])
    assert "embed" not in {run.kind for run in plan.runs.values()}
    assert all("embed" not in run.needs for run in plan.runs.values())
    assert all(run.config["online"]["name"] == "vit_tiny_patch16_224" for run in plan.runs.values() if run.kind == "train")


def test_that_online_tokens_of_another_backbone_than_the_embed_steps_are_refused(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO_STAGES, overrides=["features=online"]))
    assert "sweeps/s.yaml: stage1: online.name is not that of the `embed` step" in said
    assert "value:   vit_base_patch16_224.dino\n  allowed: vit_tiny_patch16_224\n  hint: `backbone@online=OPTION`" in said
    fed_otherwise = ["features=online", "backbone@online=vit_tiny_random", "backbone.normalise=none"]
    assert "stage2: online.normalise is not" in complaint(lambda: planned(TWO_STAGES, overrides=fed_otherwise))


@pytest.mark.parametrize(
    "where", [["backbone.tokens=25"], ["features=online", "backbone@online=vit_tiny_random", "online.tokens=25"]]
)
def test_that_images_of_another_side_than_the_backbones_grid_are_refused(
    where: list[str], planned: Planner, complaint: Complaint
) -> None:
    said = complaint(lambda: planned(TWO_STAGES, overrides=[*where, "model.tokens=25"]))
    assert "data.resolution is 64, and vit_tiny_patch16_224 with 25 tokens takes 5 x 5 patches of 16 pixels" in said


def test_that_a_batch_larger_than_a_training_set_of_known_size_is_refused(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO_STAGES, overrides=["batch_size=33", "data.max_train=32"]))
    assert "stage1: batch_size 33 is larger than the training set of 32 with drop_last" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model.slot_size=64", "model.slot_size is 64, the earlier model's 256"),
        ("model.decoder.hidden=64", "model.decoder.hidden is 64, the earlier model's 2048"),
        ("'warm_start.fresh=[]'", "the earlier model has no gate, and warm_start.fresh does not declare it"),
        ("model=dinosaur, objective=reconstruction", "warm_start.fresh names a gate, and the model has none"),
    ],
)
def test_that_a_stage_which_cannot_start_from_the_one_before_is_refused(
    change: str, expected: str, planned: Planner, complaint: Complaint
) -> None:
    second = TWO_STAGES.replace("objective=sparsity_released", change).replace("objective=sparsity_paper", change)
    assert f"sweeps/s.yaml: stage2: {expected}" in complaint(lambda: planned(second)).replace(
        "cannot start from the earlier weights: ", ""
    )


def test_that_a_stage_may_start_from_another_number_of_slots_and_other_initial_positions(planned: Planner) -> None:
    planned(TWO_STAGES.replace("objective=sparsity_released", "model.num_slots=5, model.decoder.positions=xavier"))


def test_that_a_stage_without_its_need_is_named(planned: Planner, complaint: Complaint) -> None:
    lonely = TWO_STAGES.replace("needs: [prepare, embed, stage1]", "needs: [prepare, embed]")
    assert "sweeps/s.yaml: stage2: warm_start and a need of kind `train` go together" in complaint(lambda: planned(lonely))


def test_that_weights_count_by_their_content_and_not_by_their_place(planned: Planner) -> None:
    asked: list[tuple[str, str]] = []

    def content(kind: str, path: str) -> str:
        asked.append((kind, path))
        return "e" * 64

    def at(path: str) -> list[str]:
        return ["backbone.weights=file", f"backbone.path={path}"]

    here, there = (planned(TWO_STAGES, overrides=at(path), content=content) for path in ("/here/w.pth", "/there/w.pth"))
    assert asked == [("weights", "/here/w.pth"), ("weights", "/there/w.pth")]
    assert set(here.runs) == set(there.runs)
    assert {run.config["backbone"]["content"] for run in here.runs.values() if run.kind == "embed"} == {"e" * 64}
    online = ["features=online", "backbone@online=vit_tiny_random", "online.weights=file", "online.path=/here/w.pth"]
    trains = [run for run in planned(TWO_STAGES, overrides=online, content=content).runs.values() if run.kind == "train"]
    assert {run.config["online"]["content"] for run in trains} == {"e" * 64}


VIDEO = """
title: videos
base: [experiment=video_slots, data=video_files, data.path=/here/videos]
axes:
  method: {v0: {label: V0, set: []}}
pipeline:
  prepare: {job: prepare}
  train: {job: train, needs: [prepare]}
table: {rows: method, value: {metric: train/loss, step: train}}
"""


def test_that_videos_and_an_lpips_net_count_by_their_content(planned: Planner) -> None:
    asked: list[tuple[str, str]] = []

    def content(kind: str, path: str) -> str:
        asked.append((kind, path))
        return "e" * 64

    settings = ["objective.perceptual=1", "objective.lpips.weights=file", "objective.lpips.path=/here/alex.pth"]
    runs = planned(VIDEO, overrides=settings, content=content).runs
    assert asked == [("video_files media", "/here/videos"), ("weights", "/here/alex.pth")]
    settings[-1] = "objective.lpips.path=/there/alex.pth"
    assert set(planned(VIDEO, overrides=[*settings, "data.path=/there/videos"], content=content).runs) == set(runs)
    found = {run.kind: run.config for run in runs.values()}
    assert (found["prepare"]["data"]["content"], found["train"]["objective"]["lpips"]["content"]) == ("e" * 64, "e" * 64)


PARTS = """
title: parts
base: [experiment=part_slots, data=toy_creatures]
axes:
  method: {p0: {label: P0, set: []}}
pipeline:
  prepare: {job: prepare}
  train: {job: train, needs: [prepare]}
table: {rows: method, value: {metric: train/loss, step: train}}
"""


def test_that_a_trunk_and_a_feature_net_count_by_their_content(planned: Planner, complaint: Complaint) -> None:
    def content(kind: str, path: str) -> str:
        return {"resnet50.pth": "d", "vgg19.pth": "e"}[Path(path).name] * 64

    def at(folder: str) -> list[str]:
        trunk = ["model.trunk.weights=file", f"model.trunk.path={folder}/resnet50.pth"]
        return [*trunk, "objective.features.weights=file", f"objective.features.path={folder}/vgg19.pth"]

    here, there = (planned(PARTS, overrides=at(folder), content=content).runs for folder in ("/here", "/there"))
    assert set(here) == set(there)
    (train,) = (run.config for run in here.values() if run.kind == "train")
    assert (train["model"]["trunk"]["content"], train["objective"]["features"]["content"]) == ("d" * 64, "e" * 64)
    other = planned(PARTS, overrides=at("/here"), content=lambda kind, path: "f" * 64).runs
    assert set(other) != set(here)
    said = complaint(lambda: planned(PARTS, overrides=at("/nowhere"), content=content_of))
    assert "sweeps/s.yaml: train: model.trunk.path: no such file of weights\n  value:   /nowhere/resnet50.pth" in said
    assert "sweeps/s.yaml: train: objective.features.path: no such file of weights" in said


def test_that_missing_weights_and_a_missing_folder_are_both_named(planned: Planner, complaint: Complaint) -> None:
    wrong = ["data=coco", "data.path=/nowhere/coco", "backbone.weights=file", "backbone.path=/nowhere/w.pth"]
    said = complaint(lambda: planned(TWO_STAGES, overrides=wrong[:2], content=content_of))
    assert said.startswith("sweeps/s.yaml: prepare: data.path: no such folder\n  value:   /nowhere/coco")
    assert "train2017" in said
    said = complaint(lambda: planned(TWO_STAGES, overrides=wrong[2:], content=content_of))
    assert said.startswith("sweeps/s.yaml: embed: backbone.path: no such file of weights\n  value:   /nowhere/w.pth")


def test_that_the_content_of_weights_is_the_files_sha256(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert content_of("weights", str(tmp_path / "w.pth")) == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(UserError, match="is not a file of weights"):
        content_of("weights", str(tmp_path))
    with pytest.raises(UserError, match="is not a folder"):
        content_of("coco", str(tmp_path / "w.pth"))


def test_that_tokens_of_other_data_than_the_steps_own_are_refused(planned: Planner, complaint: Complaint) -> None:
    text = TWO_STAGES.replace(
        "  prepare: {job: prepare}\n", "  prepare: {job: prepare}\n  other: {job: prepare, set: [data.max_train=9]}\n"
    ).replace("embed: {job: embed, needs: [prepare]}", "embed: {job: embed, needs: [other]}")
    said = complaint(lambda: planned(text, only=["method=base,seed=0"]))
    assert "stage1: it needs prepare-" in said
    assert "but its embed run stands on prepare-" in said


def test_that_a_gate_without_noise_needs_a_gate(planned: Planner, complaint: Complaint) -> None:
    said = complaint(lambda: planned(TWO_STAGES, only=["method=base,seed=0"], overrides=["gate=deterministic"]))
    assert "evaluate: gate=deterministic is for models with a gate (model.gate)" in said
