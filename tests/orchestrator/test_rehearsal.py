"""What a dry run and a resume proof ask of the warm process, and how an embed run's cost is worded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.data_spec import ClipsSpec, CocoGeneratorSpec, CocoSpec, RecordRange, ToyClevrSpec, ToyVideoSpec, VideoFilesSpec
from jobs.spec import EmbedSpec, PrepareSpec, parse_job_spec
from models.spec_language import ClipSpec
from orchestrator.cli import dry_run, verify
from orchestrator.rehearsal import Chain, distinct_chains
from orchestrator.sweep.compose import Composer
from orchestrator.sweep.expand import expand
from orchestrator.sweep.grammar import load_sweep
from orchestrator.sweep.plan import plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chains() -> list[Chain]:
    """Two stages: the first alone, and both."""
    sweep = load_sweep(ROOT / "sweeps" / "adaslot.yaml")
    cells = expand(sweep, only=["method=stage1,method=paper,protocol=official"])
    made = plan(sweep, cells, Composer(ROOT / "jobs" / "conf"), content=lambda kind, path: "c" * 64, existing=lambda run_id: None)
    return distinct_chains(made)


def needs_come_first(runs: Sequence[dict[str, object]], known: set[str]) -> None:
    for one in runs:
        assert isinstance(one["needs"], dict)
        assert set(one["needs"].values()) <= known
        known.add(str(one["id"]))


def test_that_a_dry_run_of_two_stages_is_cut_short_and_whole(chains: list[Chain]) -> None:
    asked = dry_run.request(chains, Path("/tmp/x"))["chains"]
    assert [[step["name"] for step in chain["steps"]] for chain in asked] == [
        ["prepare", "embed", "stage1", "evaluate"],
        ["prepare", "embed", "stage1", "stage2", "evaluate"],
    ]
    for chain in asked:
        needs_come_first(chain["steps"], set())
        for step in chain["steps"]:
            parse_job_spec(step["config"])
            assert step["config"].get("steps", 0) <= 3
    prepare, embed = (step["config"] for step in asked[0]["steps"][:2])
    assert (prepare["data"]["max_train"], prepare["data"]["max_val"]) == (72, 16)
    assert 2 <= 72 / embed["shard_images"] <= 4


def test_that_a_generated_data_set_is_made_smaller_too() -> None:
    spec = PrepareSpec(data=CocoSpec(generator=CocoGeneratorSpec(train_images=500, val_images=100), max_val=5))
    short = dry_run_shorten(spec)
    assert (short["generator"]["train_images"], short["generator"]["val_images"]) == (12, 16)
    assert (short["max_train"], short["max_val"]) == (12, 5)


def test_that_videos_are_made_fewer_and_not_shorter() -> None:
    short = dry_run_shorten(PrepareSpec(data=ToyVideoSpec()))
    assert short["train"] == {"first": 0, "count": 8}
    assert short["test"] == {"first": 8, "count": 3}
    assert short["video_frames"] == ToyVideoSpec().video_frames
    assert dry_run_shorten(PrepareSpec(data=VideoFilesSpec(path="videos")))["max_videos"] == 8


def dry_run_shorten(spec: PrepareSpec) -> dict[str, dict[str, int]]:
    from jobs.rehearsal_config import shorten

    found: dict[str, dict[str, int]] = shorten(spec.model_dump(mode="json"), batch_size=4)["data"]
    return found


def test_that_a_resume_proof_strikes_both_stages_with_their_data_first(chains: list[Chain]) -> None:
    asked = verify.request(chains, Path("/tmp/x"), kills=6, steps=20, ranks=1, seed=0)
    assert [one["config"]["kind"] for one in asked["first"]] == ["prepare", "embed"]
    assert [sorted(one["needs"]) for one in asked["runs"]] == [["embed", "prepare"], ["embed", "prepare", "train"]]
    needs_come_first([*asked["first"], *asked["runs"]], set())
    assert asked["runs"][1]["needs"]["train"] == asked["runs"][0]["id"]


def test_that_an_embed_runs_bytes_and_time_are_those_of_the_whole_data_set(tmp_path: Path) -> None:
    for folder, count in (("train2017", 30), ("val2017", 5)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number:012d}.jpg").touch()
    prepared = PrepareSpec(data=CocoSpec(path=str(tmp_path), content="c"))
    assert dry_run.embed_bytes(EmbedSpec(), prepared) == (2 * 30 + 5) * 196 * 768 * 2
    assert dry_run.embed_bytes(EmbedSpec(flips=False, dtype="fp32"), prepared) == (30 + 5) * 196 * 768 * 4
    limited = PrepareSpec(data=CocoSpec(path=str(tmp_path), content="c", max_train=10, max_val=2))
    assert dry_run.embed_bytes(EmbedSpec(), limited) == (2 * 10 + 2) * 196 * 768 * 2
    said = dry_run.embed_cost(EmbedSpec(), prepared, {"images_per_s": 0.01}, gpus=1)
    assert said == (
        "whole data set: 30 training images and their mirrors, 5 validation, 19.6 MB, about 1.8 h at 0.01 images/s per process"
    )
    assert "about 54 min" in dry_run.embed_cost(EmbedSpec(), prepared, {"images_per_s": 0.01}, gpus=2)
    assert dry_run.embed_cost(EmbedSpec(), prepared, {}, gpus=1).endswith("19.6 MB")


def test_that_the_bytes_of_clips_are_those_of_all_their_frames(tmp_path: Path) -> None:
    tokens, texts = EmbedSpec(backbone=ClipSpec(), flips=False), EmbedSpec(backbone=ClipSpec(), flips=False, images="none")
    drawn = ToyClevrSpec(train=RecordRange(first=0, count=3), test=RecordRange(first=3, count=2))
    for name, count in (("train_annos.json", 3), ("val_annos.json", 2)):
        (tmp_path / name).write_text(json.dumps([f"CLEVR_new_{number:06d}.json" for number in range(count)]))
    for data in (drawn, ClipsSpec(path=str(tmp_path), content="c")):
        assert dry_run.embed_bytes(tokens, PrepareSpec(data=data)) == 5 * 34 * 49 * 768 * 2
        assert dry_run.embed_bytes(texts, PrepareSpec(data=data)) == 0
        assert dry_run.embed_cost(tokens, PrepareSpec(data=data), {}, gpus=1).startswith(
            "whole data set: 102 training images, 68 "
        )
        assert dry_run.embed_cost(texts, PrepareSpec(data=data), {}, gpus=1) == "sentences alone (images=none)"
