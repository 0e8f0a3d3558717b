"""The dry run's miniature of an embed run: killed after its first shard, restored, and compared byte for byte."""

from __future__ import annotations

from pathlib import Path

from jobs.compare import output_differences
from jobs.contract import RunDir, read_attempts
from jobs.rehearse import rehearse_run

BACKBONE = {"name": "vit_tiny_patch16_224", "weights": "random", "block": 1, "tokens": 4, "feature_size": 192}
DATA = {"kind": "coco", "generator": {"train_images": 5, "val_images": 2, "largest_side": 64}, "resolution": 32}


def test_that_an_embed_run_is_killed_restored_and_compared(tmp_path: Path) -> None:
    prepare = {"name": "prepare", "id": "data", "kind": "prepare", "config": {"kind": "prepare", "data": DATA}, "needs": {}}
    config = {"kind": "embed", "backbone": BACKBONE, "shard_images": 2}
    embed = {"name": "embed", "id": "tokens", "kind": "embed", "config": config, "needs": {"prepare": "data"}}
    assert "error" not in rehearse_run(tmp_path, prepare)
    found = rehearse_run(tmp_path, embed)
    assert found["differences"] == []
    assert len(read_attempts(RunDir(tmp_path / "struck" / "tokens"))) == 2
    assert len(read_attempts(RunDir(tmp_path / "tokens"))) == 1


def test_that_outputs_are_compared_byte_for_byte(tmp_path: Path) -> None:
    one, other = (RunDir(tmp_path / name) for name in ("one", "other"))
    assert output_differences(one, other) == ["no output to compare"]
    for run, content in ((one, b"abc"), (other, b"abd")):
        (run.output / "train").mkdir(parents=True)
        (run.output / "same").write_bytes(b"x")
        (run.output / "train" / "0.npy").write_bytes(content)
    (other.output / "more").write_bytes(b"")
    assert output_differences(one, other) == ["output more differs", "output train/0.npy differs"]
    assert output_differences(one, one) == []
