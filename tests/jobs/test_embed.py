"""The `embed` job: the same bytes however often it was interrupted and on however many ranks, and whole or absent."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from running import REPOSITORY, attempt, outcome_of, python_m_jobs, said, until
from safetensors.torch import save_file

from jobs import embed as job
from jobs import embed_images, forks
from jobs.contract import Cause, Outcome, RunDir, Status, write_outcome
from jobs.data.coco_store import CocoManifest
from jobs.data.errors import DataError
from jobs.data.feature_manifest import Layout, Shard
from jobs.data.feature_writer import FeatureWriter
from jobs.data.features import FeatureStore
from jobs.data.store import write_manifest
from jobs.embed_shard import embed_shard
from jobs.journal import AT_WORK, read_journal
from jobs.preemption import Flag
from jobs.weights import load_backbone, weights_digest
from jobs.weights_file import check_weights, weights_content
from models.backbone import build_backbone
from models.spec import BackboneSpec

COUNTS = {"train": 13, "test": 5}
IMAGES = 31
"""13 training images, twice, and 5 test images."""
TINY = {
    "name": "vit_tiny_patch16_224", "weights": "random", "block": 2, "tokens": 4, "feature_size": 192, "normalise": "imagenet"
}  # fmt: skip


def config(**changes: Any) -> dict[str, Any]:
    runtime = {"hang_timeout_s": 60.0, "max_attempts_without_progress": 1000} | changes.pop("runtime", {})
    return {"kind": "embed", "backbone": TINY, "shard_images": 4, "batch_size": 3, "runtime": runtime} | changes


def spec(**changes: Any) -> BackboneSpec:
    return BackboneSpec.model_validate(TINY | changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one finished `prepare` run, `data`: 13 training and 5 test images of 32 x 32 pixels."""
    root = tmp_path_factory.mktemp("prepared")
    data = {"kind": "coco", "generator": {}, "resolution": 32, "protocols": ["gd"]}
    run_dir = forks.make_run(root, "data", {"kind": "prepare", "data": data}, {})
    manifest = CocoManifest(
        counts=COUNTS, resolution=32, target_resolution=None, preprocessing="official", protocols={"gd": 4}, source={}
    )
    store, rng = run_dir.output / "store", np.random.default_rng(0)
    for name, (dtype, shape) in manifest.arrays().items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(store / name, rng.integers(0, 256, size=shape).astype(dtype))
    write_manifest(store, manifest)
    write_outcome(run_dir, Outcome(status=Status.DONE, attempt=1))
    return root


def embed_run(root: Path, prepared: Path, **changes: Any) -> RunDir:
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "data").exists():
        (root / "data").symlink_to(prepared / "data")
    return forks.make_run(root, "embedded", config(**changes), {"prepare": "data"})


def tree(path: Path) -> dict[str, str]:
    """Every file below a directory with its checksum."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def features(run_dir: RunDir) -> dict[str, str]:
    """The checksums of the finished store."""
    assert (run_dir.output / "features").is_dir(), said(run_dir)
    return tree(run_dir.output / "features")


@pytest.fixture(scope="module")
def untouched(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that nobody interrupted, on one rank."""
    run_dir = embed_run(tmp_path_factory.mktemp("untouched"), prepared)
    assert attempt(run_dir) == [0], said(run_dir)
    return run_dir


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_images, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(embed_images, "CHECKPOINT_EVERY_S", 0.0)


def test_that_tokens_are_the_backbones_within_the_dtypes_precision(untouched: RunDir, prepared: Path) -> None:
    store = FeatureStore.open(untouched.output / "features")
    store.verify()
    backbone = load_backbone(spec(), torch.device("cpu"))
    for split in ("train", "test"):
        images = torch.from_numpy(np.load(prepared / "data" / "output" / "store" / split / "images.npy"))
        plain_BCHW = images.permute(0, 3, 1, 2).float() / 255
        for mirrored in (False, True) if split == "train" else (False,):
            part = "train_mirrored" if mirrored else split
            exact = backbone(plain_BCHW.flip(3) if mirrored else plain_BCHW)
            count = len(images)
            tokens = store.split(split).read(np.arange(count), np.full(count, mirrored))
            torch.testing.assert_close(tokens.float(), exact, rtol=2**-8, atol=1e-5)
            floor = (tokens.float() - exact).square().mean().item()
            assert store.manifest.error_floor[part] == pytest.approx(floor, rel=0.01)


def test_that_tokens_from_before_backbones_had_kinds_are_still_valid(untouched: RunDir) -> None:
    store = FeatureStore.open(untouched.output / "features")
    assert dict(store.manifest.backbone) == {name: value for name, value in TINY.items() if name != "path"} | {"content": None}
    store.check_backbone(spec(), resolution=32)


def test_that_the_outcome_names_every_file_and_the_journal_the_progress(untouched: RunDir) -> None:
    outcome = outcome_of(untouched)
    assert outcome.status is Status.DONE
    assert outcome.step == IMAGES
    assert set(outcome.files) == {f"output/features/{name}" for name in features(untouched)}
    assert 0 < outcome.values["embed/error_floor"] < 1e-3
    assert not (untouched.path / "work").exists()
    names = {name for entry in read_journal(untouched.journals).counting() for name in entry.metrics}
    assert names == {"embed/images", "embed/images_per_s", "embed/error_floor"}
    assert next(read_journal(untouched.journals).counting()).event == AT_WORK  # before the first shard


def test_that_bytes_and_time_are_said_before_it_starts(untouched: RunDir) -> None:
    line = re.search(
        r"31 of 31 images to embed on cpu x 1: .* \(1536 bytes per image\), about \d+ s at [\d.]+ images/s", said(untouched)
    )
    assert line is not None


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_that_other_dtypes_keep_more(dtype: str, untouched: RunDir, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared, dtype=dtype, flips=False)
    assert attempt(run_dir) == [0], said(run_dir)
    floor = FeatureStore.open(run_dir.output / "features").manifest.error_floor
    assert set(floor) == {"train", "test"}
    assert floor["train"] < FeatureStore.open(untouched.output / "features").manifest.error_floor["train"] / 10
    assert (floor["train"] == 0.0) == (dtype == "fp32")


def kill_at(commits: int, number: int) -> Callable[[], None]:
    """A hook for a fork: at its n-th commit the shard is renamed, and its facts are never written."""

    def hook() -> None:
        real, count = os.rename, iter(range(1_000_000))

        def rename(source: Any, target: Any) -> None:
            real(source, target)
            if "features" in str(target) and next(count) == commits:
                os.kill(os.getpid(), number)
                time.sleep(30)

        os.rename = rename  # type: ignore[assignment]  # in this fork only

    return hook


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_that_kills_and_ranks_change_no_byte(world_size: int, untouched: RunDir, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)
    for commits in (0, 1):
        codes = attempt(run_dir, world_size=world_size, hook=kill_at(commits, signal.SIGKILL))
        assert -signal.SIGKILL in codes
        assert not (run_dir.output / "features").exists()
    assert attempt(run_dir, world_size=world_size) == [0] * world_size, said(run_dir)
    assert features(run_dir) == features(untouched)
    assert not (run_dir.path / "work").exists()


def test_that_ranks_share_the_shards(untouched: RunDir, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)

    def listed() -> None:
        real = FeatureWriter.commit

        def commit(writer: FeatureWriter, shard: Shard, *args: Any, **named: Any) -> bool:
            with open(tmp_path / f"rank{os.environ['RANK']}", "a") as file:
                file.write(f"{shard.name}\n")
            return real(writer, shard, *args, **named)

        FeatureWriter.commit = commit  # type: ignore[method-assign]  # in the forks only

    pids = forks.run_group(run_dir, ranks=3, launch="shared", hook=listed)
    assert [one.code for one in forks.end_group(pids)] == [0, 0, 0], said(run_dir)
    shares = [(tmp_path / f"rank{rank}").read_text().split() for rank in range(3)]
    assert sorted(len(share) for share in shares) == [3, 3, 4]
    assert sorted(name for share in shares for name in share) == sorted(set(features(run_dir)) - {"manifest.json"})


@pytest.mark.parametrize("world_size", [1, 2])
def test_that_a_signal_ends_all_ranks_and_the_next_attempt_goes_on(
    world_size: int, untouched: RunDir, prepared: Path, tmp_path: Path
) -> None:
    run_dir = embed_run(tmp_path, prepared)

    def slowly() -> None:
        real = embed_images.embed_shard

        def slow(*args: Any, **named: Any) -> Any:
            time.sleep(0.1)
            return real(*args, **named)

        embed_images.embed_shard = slow

    pids = forks.run_group(run_dir, ranks=world_size, launch=f"signal-{world_size}", hook=slowly)
    until(lambda: len(list((run_dir.path / "work" / "facts").rglob("*.json"))) >= 3)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert [one.code for one in forks.end_group(pids)] == [75] + [0] * (world_size - 1), said(run_dir)
    outcome = outcome_of(run_dir)
    assert outcome.status is Status.STOPPED
    assert 0 < outcome.step < IMAGES
    there = {path: path.stat().st_mtime_ns for path in (run_dir.path / "work" / "facts").rglob("*.json")}

    def keep() -> None:
        commit = FeatureWriter.commit

        def watched(writer: FeatureWriter, shard: Shard, *args: Any, **named: Any) -> bool:
            assert not any(str(path).endswith(f"{shard.part}/{shard.number:05d}.json") for path in there), "computed again"
            return commit(writer, shard, *args, **named)

        FeatureWriter.commit = watched  # type: ignore[method-assign]  # in the forks only

    pids = forks.run_group(run_dir, ranks=world_size, launch=f"again-{world_size}", hook=keep)
    assert [one.code for one in forks.end_group(pids)] == [0] * world_size, said(run_dir)
    assert features(run_dir) == features(untouched)


def test_that_a_warning_alone_makes_no_further_rank_leave(untouched: RunDir, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)
    launch = f"warned-{time.monotonic_ns()}"

    def warned() -> None:
        if os.environ["RANK"] == "1":
            Flag.__bool__ = lambda flag: True  # type: ignore[method-assign]  # in this fork only

    pids = forks.run_group(run_dir, ranks=2, launch=launch, hook=warned)
    assert [one.code for one in forks.end_group(pids)] == [0, 0], said(run_dir)
    assert features(run_dir) == features(untouched)


def test_that_a_rank_that_waits_bears_the_scratch_directory_being_cleared(
    untouched: RunDir, prepared: Path, tmp_path: Path
) -> None:
    run_dir = embed_run(tmp_path, prepared)

    def vanishing() -> None:
        if os.environ["RANK"] == "1":
            listed, end = FeatureWriter.ended, FeatureWriter.end

            def gone(writer: FeatureWriter, *, attempt: int) -> dict[int, bool]:
                FeatureWriter.ended = listed  # type: ignore[method-assign]  # as all below: in this fork only
                raise FileNotFoundError("a file that was listed a moment ago")

            def ended(writer: FeatureWriter, *, attempt: int, rank: int, done: bool) -> None:
                FeatureWriter.ended = gone  # type: ignore[method-assign]
                end(writer, attempt=attempt, rank=rank, done=done)

            FeatureWriter.end = ended  # type: ignore[method-assign]
        else:
            compute = embed_images.embed_shard

            def slow(*args: Any, **named: Any) -> Any:
                time.sleep(0.1)  # rank 1 is to wait for rank 0
                return compute(*args, **named)

            embed_images.embed_shard = slow

    pids = forks.run_group(run_dir, ranks=2, launch=f"vanishing-{time.monotonic_ns()}", hook=vanishing)
    assert [one.code for one in forks.end_group(pids)] == [0, 0], said(run_dir)
    assert features(run_dir) == features(untouched)


def test_that_damaged_shards_of_an_earlier_attempt_are_made_again(untouched: RunDir, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)
    attempt(run_dir, hook=kill_at(5, signal.SIGKILL))
    shards = run_dir.path / "work" / "features"
    content = bytearray((shards / "train" / "00000.npy").read_bytes())
    content[-1] ^= 1
    (shards / "train" / "00000.npy").write_bytes(bytes(content))
    (shards / "train" / "00001.npy").write_bytes(b"half")
    (shards / "train" / "00002.npy").unlink()
    (run_dir.path / "work" / "facts" / "train" / "00003.json").write_text("{")
    (run_dir.path / "work" / "new" / "train-00003.dead").write_text("x")
    assert attempt(run_dir) == [0], said(run_dir)
    assert features(run_dir) == features(untouched)


def test_that_an_attempt_killed_before_its_outcome_has_nothing_to_compute(
    untouched: RunDir, prepared: Path, tmp_path: Path
) -> None:
    run_dir = embed_run(tmp_path, prepared)

    def die() -> None:
        job.pooled_error_floor = lambda manifest: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]  # in this fork only

    assert attempt(run_dir, hook=die) == [-signal.SIGKILL]
    assert features(run_dir) == features(untouched)

    def never() -> None:
        job.load_backbone = None  # type: ignore[assignment]  # calling it would fail

    assert attempt(run_dir, world_size=2, hook=never) == [0, 0], said(run_dir)
    assert features(run_dir) == features(untouched)


def test_that_a_rank_without_a_word_is_given_up_with_a_reason(prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared, runtime={"hang_timeout_s": 1.0})

    def hang() -> None:
        if os.environ["RANK"] == "1":
            embed_images.embed_shard = lambda *args, **named: time.sleep(60)  # type: ignore[assignment]  # in this fork only
            embed_images.Watchdog.start = lambda self: self  # type: ignore[method-assign]  # it does not even know that it hangs

    pids = forks.run_group(run_dir, ranks=2, launch="hang", hook=hang)
    assert forks.wait(pids[0]).code == 1
    os.kill(pids[1], signal.SIGKILL)
    forks.wait(pids[1])
    outcome = outcome_of(run_dir)
    assert outcome.cause is Cause.HANG
    assert "waiting for shards of rank 1" in outcome.reason


def test_that_a_rank_that_hangs_in_its_own_work_ends_with_a_reason(prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared, runtime={"hang_timeout_s": 1.0})

    def hang() -> None:
        embed_images.embed_shard = lambda *args, **named: time.sleep(60)  # type: ignore[assignment]  # in this fork only

    assert attempt(run_dir, hook=hang) == [1]
    outcome = outcome_of(run_dir)
    assert outcome.cause is Cause.HANG
    assert "rank 0 finished no step for" in outcome.reason


def test_that_images_of_another_size_than_the_backbones_are_refused(prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared, backbone=TINY | {"tokens": 9})
    assert attempt(run_dir) == [1]
    outcome = outcome_of(run_dir)
    assert outcome.cause is Cause.REFUSED
    assert "prepared images have 32 x 32 pixels" in outcome.reason
    assert "takes 48 x 48" in outcome.reason


def test_that_a_real_process_survives_a_kill(untouched: RunDir, prepared: Path, tmp_path: Path) -> None:
    run_dir = embed_run(tmp_path, prepared)
    process = python_m_jobs(run_dir)
    until(
        lambda: (run_dir.path / "work" / "facts" / "train" / "00000.json").exists() or (run_dir.output / "features").exists(),
        timeout_s=90,
    )
    process.kill()
    process.communicate()
    assert attempt(run_dir) == [0], said(run_dir)
    assert features(run_dir) == features(untouched)


class Loud(torch.nn.Module):
    """Tokens beyond what fp16 holds."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 1, 1), 1e5)


def test_that_tokens_too_large_for_the_dtype_are_told() -> None:
    layout = Layout(counts={"train": 2, "test": 0}, flips=False, shard_images=2, tokens=1, feature_size=1, dtype="fp16")
    with pytest.raises(DataError, match="not finite in fp16"):
        embed_shard(
            Loud(), np.zeros((2, 4, 4, 3), np.uint8), next(layout.shards()), layout,
            batch_size=2, device=torch.device("cpu"), on_batch=lambda: None,
        )  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State dicts of a random backbone as .pth (wrapped), .safetensors, and damaged ones."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    save_file(state, folder / "good.safetensors")
    torch.save({"state_dict": state}, folder / "good.pth")
    torch.save({name: value for name, value in state.items() if name != "cls_token"}, folder / "lacks.pth")
    torch.save({"model": torch.nn.Linear(1, 1)}, folder / "hostile.pth")
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:1000])
    (folder / "empty.pth").touch()
    (folder / "weights.txt").write_text("x")
    return folder


@pytest.mark.parametrize("name", ["good.pth", "good.safetensors"])
def test_that_weights_come_from_a_file(name: str, weights: Path) -> None:
    chosen = spec(weights="file", path=str(weights / name))
    content = weights_content(chosen)
    assert content == hashlib.sha256((weights / name).read_bytes()).hexdigest()
    loaded = load_backbone(chosen.model_copy(update={"content": content}), torch.device("cpu"))
    torch.manual_seed(1)

    expected = build_backbone(spec(weights="pretrained"), state=timm.create_model("vit_tiny_patch16_224").state_dict())
    assert weights_digest(loaded) == weights_digest(expected)
    assert weights_digest(loaded) != weights_digest(load_backbone(spec(), torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lacks.pth", r"lacks.pth: the weights do not fit vit_tiny_patch16_224: 1 missing \(cls_token\)"),
        ("hostile.pth", r"hostile.pth: not a state dict \(UnpicklingError"),
        ("cut.safetensors", r"cut.safetensors: not a state dict"),
        ("empty.pth", r"empty.pth: is empty"),
        ("absent.pth", r"absent.pth: cannot be read \(No such file"),
        ("weights.txt", r"weights.txt: suffix '.txt'"),
    ],
)
def test_that_bad_weights_are_told(name: str, problem: str, weights: Path) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        load_backbone(spec(weights="file", path=str(weights / name)), torch.device("cpu"))
    assert caught.value.hint


def test_that_changed_weights_are_noticed(weights: Path) -> None:
    chosen = spec(weights="file", path=str(weights / "good.pth"), content="0" * 64)
    with pytest.raises(DataError, match="sha256 is") as caught:
        load_backbone(chosen, torch.device("cpu"))
    assert "changed or replaced" in caught.value.hint


def test_that_unavailable_pretrained_weights_name_what_was_wanted_and_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, *, pretrained: bool) -> None:
        raise OSError("no network")

    monkeypatch.setattr("jobs.weights.timm.create_model", unreachable)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(DataError) as caught:
        load_backbone(spec(weights="pretrained", name="vit_base_patch16_224.dino"), torch.device("cpu"))
    for part in ("vit_base_patch16_224.dino", "no network", str(tmp_path / "hub"), "weights=file path=FILE", "HF_HOME"):
        assert part in str(caught.value)


def test_that_the_cache_is_looked_at_without_torch(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    chosen = spec(weights="pretrained", name="vit_base_patch16_224.dino")
    assert (
        check_weights(chosen, environ)[0]
        == f"vit_base_patch16_224.dino is not in {tmp_path / 'hub'}: the job will try to download it"
    )
    file = tmp_path / "hub" / "models--timm--vit_base_patch16_224.dino" / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert check_weights(chosen, environ) == [f"vit_base_patch16_224.dino from {file}"]
    assert check_weights(spec(weights="pretrained", name="vit_base_patch16_224"), environ) == [
        f"vit_base_patch16_224 from {file}"
    ]


def test_that_the_login_nodes_look_needs_no_torch() -> None:
    program = "import sys, jobs.weights_file, jobs.data.feature_manifest; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "False\n"
