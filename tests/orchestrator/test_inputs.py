"""What the login node says of COCO folders and of a backbone's weights, before anything is queued."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.contract import Outcome, Status, write_outcome
from jobs.data.coco_generator import write_miniature
from jobs.data_spec import CocoGeneratorSpec, VideoFilesSpec
from jobs.data_spec_parts import CubSpec
from jobs.spec import AnyJob, EmbedSpec, PrepareSpec, TrainSpec, WindowSpec
from models.spec_language import ClipSpec, LanguageSlotsSpec
from models.spec_parts import FeatureNetSpec, PartSlotsSpec, PartsObjective, TrunkSpec
from models.spec_video import LpipsSpec, VideoObjective, VideoSlotsSpec
from orchestrator.errors import UserError
from orchestrator.lifecycle import RunState
from orchestrator.submission import check_inputs
from orchestrator.workspace import Root
from tests.orchestrator.stub import Command, StubSlurm

SWEEP = """
title: tokens
base: [data=coco, miniature=coco, backbone=vit_tiny_random, data.path={folder}, data.resolution=64]
axes:
  shard: {{key: shard_images, values: [8, 16]}}
pipeline:
  prepare: {{job: prepare}}
  embed: {{job: embed, needs: [prepare]}}
  train: {{job: train, needs: [prepare, embed], set: [experiment=dinosaur]}}
table:
  rows: shard
  value: {{metric: train/loss, step: train}}
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco") / "coco"
    write_miniature(CocoGeneratorSpec(train_images=3, val_images=2, largest_side=80), folder, should_stop=lambda: False)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A COCO folder to damage."""
    return Path(shutil.copytree(original, tmp_path / "coco"))


@pytest.fixture
def submit(orch: Command, stub_slurm: StubSlurm, folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Submits the sweep with overrides; returns what was said on stderr."""
    sweep = tmp_path / "tokens.yaml"
    sweep.write_text(SWEEP.format(folder=folder))

    def run(*overrides: str, only: str = "shard=8,shard=16", expect: int = 0) -> str:
        settings = (part for text in ("batch_size=2", *overrides) for part in ("--set", text))
        said = orch("submit", sweep, "--only", only, *settings, expect=expect)
        if expect:
            assert not orch.root.exists()
            assert not (stub_slurm.state / "queue").exists()
        return said.err

    return run


def first_jpeg(folder: Path, split: str) -> Path:
    return min((folder / split).iterdir())


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_that_a_missing_jpeg_is_named(split: str, folder: Path, submit: Callable[..., str]) -> None:
    image = first_jpeg(folder, split)
    image.unlink()
    said = submit(expect=2)
    assert f"tokens.yaml: prepare: data.path: {image}: image " in said
    assert "no such file" in said
    assert "hint: was the archive unpacked to its end?" in said


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_that_an_undecodable_first_jpeg_is_named(split: str, folder: Path, submit: Callable[..., str]) -> None:
    image = first_jpeg(folder, split)
    image.write_bytes(image.read_bytes()[:300])
    said = submit(expect=2)
    assert f"tokens.yaml: prepare: data.path: {image}: image " in said
    assert "cannot be decoded" in said
    assert said.count("cannot be decoded") == 1


@pytest.mark.parametrize("missing", ["train2017", "val2017", "annotations/instances_val2017.json"])
def test_that_a_missing_part_of_the_layout_is_named(missing: str, folder: Path, submit: Callable[..., str]) -> None:
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"{path}: no such f" in submit(expect=2)


def test_that_images_which_are_not_asked_for_may_be_missing(folder: Path, submit: Callable[..., str]) -> None:
    max((folder / "train2017").iterdir()).unlink()
    assert "no such file" in submit(expect=2)
    assert "warning" not in submit("data.max_train=2")


def test_that_jpegs_are_not_missed_once_they_are_prepared(orch: Command, folder: Path, submit: Callable[..., str]) -> None:
    submit()
    (run,) = (run for run in orch.runs() if run.startswith("prepare"))
    write_outcome(Root(orch.root).run_dir(run), Outcome(status=Status.DONE, attempt=1, reason=""))
    assert orch.runs()[run]["state"] == "done"
    first_jpeg(folder, "train2017").unlink()
    submit()


@pytest.mark.parametrize("where", ["backbone", "online"])
def test_that_a_file_that_holds_no_weights_is_refused(where: str, tmp_path: Path, submit: Callable[..., str]) -> None:
    online = ["features=online", "backbone@online=vit_tiny_random"] if where == "online" else []
    wrong = tmp_path / "weights.txt"
    asked = [*online, f"{where}.weights=file", f"{where}.path={wrong}"]
    assert f"{where}.path: no such file of weights" in submit(*asked, only="shard=8", expect=2)
    wrong.write_text("0.1 0.2")
    said = submit(*asked, only="shard=8", expect=2)
    assert f": {where}: {wrong}: suffix '.txt'" in said
    assert ".safetensors, .pth" in said
    wrong.rename(tmp_path / "weights.pth")
    assert "warning" not in submit(*asked[:-1], f"{where}.path={tmp_path / 'weights.pth'}", only="shard=8")


def test_that_pretrained_weights_that_are_not_here_are_a_warning_and_no_error(
    orch: Command, tmp_path: Path, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    said = submit("backbone.weights=pretrained")
    line = f"warning: vit_tiny_patch16_224 is not in {tmp_path / 'cache'}: the job will try to download it"
    assert said.count(line) == 1  # and not once for each of the two embed runs
    assert "hint: copy a state dict here and set weights=file" in said
    assert len([run for run in orch.runs() if run.startswith("embed")]) == 2
    cached = tmp_path / "cache" / "models--timm--vit_tiny_patch16_224.augreg" / "snapshots" / "0" / "model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"0")
    assert "warning" not in submit("backbone.weights=pretrained")


def plan_of(spec: AnyJob) -> Any:
    """A plan of one run, as far as the look at inputs goes."""
    return SimpleNamespace(
        sweep=SimpleNamespace(path="words.yaml"), runs={"a": SimpleNamespace(spec=spec, step="one", needs={}, known=None)}
    )


@pytest.mark.parametrize("where", ["backbone", "online"])
def test_that_clip_towers_are_looked_at_too(where: str, tmp_path: Path) -> None:
    def plan_with(**clip: Any) -> Any:
        towers = ClipSpec(**clip)
        return plan_of(EmbedSpec(backbone=towers) if where == "backbone" else TrainSpec(model=LanguageSlotsSpec(), online=towers))

    environ = {"HF_HUB_CACHE": str(tmp_path)}
    warnings = check_inputs(plan_with(), environ)
    assert warnings[0] == f"warning: ViT-B-32-quickgelu (openai) is not in {tmp_path}: the job will try to download it"
    with pytest.raises(UserError) as caught:
        check_inputs(plan_with(name="ViT-B-32"), environ)
    (problem,) = caught.value.problems
    assert problem.where == f"words.yaml: one: {where}"
    assert problem.what == "open_clip: name 'ViT-B-32' computes GELU, pretrained 'openai' needs QuickGELU"
    assert problem.hint == "set name=ViT-B-32-quickgelu"
    absent = tmp_path / "absent.pt"
    with pytest.raises(UserError, match=r"absent\.pt"):
        check_inputs(plan_with(weights="file", path=str(absent)), environ)


def test_that_an_lpips_net_is_looked_at_when_its_term_has_a_weight(tmp_path: Path) -> None:
    def plan_with(weight: float, **lpips: Any) -> Any:
        objective = VideoObjective(perceptual=weight, lpips=LpipsSpec(**lpips))
        return plan_of(TrainSpec(model=VideoSlotsSpec(), objective=objective, clip=WindowSpec()))

    environ = {"TORCH_HOME": str(tmp_path)}
    assert check_inputs(plan_with(0.0), environ) == []
    cache = tmp_path / "hub" / "checkpoints"
    warnings = check_inputs(plan_with(1.0), environ)
    assert warnings[0] == f"warning: LPIPS's trunk alexnet is not in {cache}: the job will try to download it"
    assert "torchvision.models.alexnet(weights=" in warnings[1]
    cache.mkdir(parents=True)
    (cache / "alexnet-owt-7be5be79.pth").write_bytes(b"0")
    assert check_inputs(plan_with(1.0), environ) == []
    with pytest.raises(
        UserError, match=r"(?s)absent\.pth: cannot be read.*objective\.lpips\.path must be a readable file"
    ) as caught:
        check_inputs(plan_with(1.0, weights="file", path=str(tmp_path / "absent.pth")), environ)
    assert caught.value.problems[0].where == "words.yaml: one: objective.lpips"


def test_that_a_trunk_and_a_feature_net_are_looked_at_when_a_term_needs_them(tmp_path: Path) -> None:
    def plan_with(trunk: TrunkSpec, features: FeatureNetSpec, **weights: float) -> Any:
        objective = PartsObjective(features=features, **weights)
        return plan_of(TrainSpec(model=PartSlotsSpec(trunk=trunk), objective=objective))

    environ, cache = {"TORCH_HOME": str(tmp_path)}, tmp_path / "hub" / "checkpoints"
    warnings = check_inputs(plan_with(TrunkSpec(name="resnet101"), FeatureNetSpec()), environ)
    assert warnings[::2] == [
        f"warning: {one} is not in {cache}: the job will try to download it"
        for one in ("the trunk resnet101", "the feature net vgg19")
    ]
    assert "torchvision.models.resnet101(weights=" in warnings[1]
    assert "set objective.features.weights=file" in warnings[3]
    unseen = check_inputs(plan_with(TrunkSpec(), FeatureNetSpec(), semantic=0.0, concentration=1.0), environ)
    assert [line for line in unseen if "vgg19" in line] == []
    assert len(unseen) == 2
    cache.mkdir(parents=True)
    (cache / "resnet50-0676ba61.pth").write_bytes(b"0")
    (cache / "vgg19-dcbb9e9d.pth").write_bytes(b"0")
    assert check_inputs(plan_with(TrunkSpec(), FeatureNetSpec()), environ) == []
    absent = {"weights": "file", "path": str(tmp_path / "absent.pth")}
    with pytest.raises(UserError) as caught:
        check_inputs(plan_with(TrunkSpec(**absent), FeatureNetSpec(**absent)), environ)
    assert [(problem.where, problem.hint) for problem in caught.value.problems] == [
        ("words.yaml: one: model.trunk", "model.trunk.path must be a readable file"),
        ("words.yaml: one: objective.features", "objective.features.path must be a readable file"),
    ]


def test_that_a_true_foreground_of_birds_without_masks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.data.source.check_source", lambda spec: [])

    def plan_with(foreground: str, known: Any = None) -> Any:
        trunk, features = (kind(name="tiny", weights="random") for kind in (TrunkSpec, FeatureNetSpec))
        objective = PartsObjective.model_validate({"foreground": foreground, "features": features})
        train = TrainSpec(model=PartSlotsSpec(trunk=trunk), objective=objective)
        runs = {
            "p": SimpleNamespace(spec=PrepareSpec(data=CubSpec(path=str(tmp_path))), step="prepare", needs={}, known=None),
            **{name: SimpleNamespace(spec=train, step="train", needs={"prepare": "p"}, known=known) for name in ("t", "u")},
        }
        return SimpleNamespace(sweep=SimpleNamespace(path="birds.yaml"), runs=runs)

    with pytest.raises(UserError) as caught:
        check_inputs(plan_with("truth"), {})
    [problem] = caught.value.problems
    assert problem.where == "birds.yaml: train: objective.foreground"
    assert f"{tmp_path / 'segmentations'} is missing" in problem.what
    assert problem.hint is not None
    assert "objective.foreground=none" in problem.hint
    assert check_inputs(plan_with("none"), {}) == []
    assert check_inputs(plan_with("truth", SimpleNamespace(state=RunState.DONE)), {}) == []
    (tmp_path / "segmentations").mkdir()
    assert check_inputs(plan_with("truth"), {}) == []


def test_that_folders_of_videos_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "train" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no videos"):
        check_inputs(plan_of(PrepareSpec(data=VideoFilesSpec(path=str(tmp_path)))), {})
