"""The LPIPS net of a configuration: from a file whose content is the planned one, and never without weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from jobs.data.errors import DataError
from jobs.weights import load_lpips
from jobs.weights_file import weights_content
from models.spec_video import LpipsSpec

CPU = torch.device("cpu")
SHAPES = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """AlexNet's trunk in torchvision's names, all values 0.01."""
    state = {f"features.{layer}.weight": torch.full(shape, 0.01) for layer, shape in SHAPES.items()}
    state |= {f"features.{layer}.bias": torch.full(shape[:1], 0.01) for layer, shape in SHAPES.items()}
    torch.save(state, tmp_path / "alex.pth")
    return tmp_path / "alex.pth"


def test_that_the_trunk_comes_from_the_planned_file(trunk: Path) -> None:
    spec = LpipsSpec(weights="file", path=str(trunk))
    net = load_lpips(spec.model_copy(update={"content": weights_content(spec)}), CPU)
    values = [value for name, value in net.named_buffers() if "slice" in name]
    assert sum(value.numel() for value in values) == sum(math.prod(shape) + shape[0] for shape in SHAPES.values())
    assert all(bool((value == 0.01).all()) for value in values)


def test_that_a_file_that_is_not_the_planned_one_or_no_trunk_is_refused(trunk: Path) -> None:
    with pytest.raises(DataError, match="as when the run was planned"):
        load_lpips(LpipsSpec(weights="file", path=str(trunk), content="0" * 64), CPU)
    torch.save({"features.0.weight": torch.zeros(1)}, trunk)
    with pytest.raises(DataError, match=r"alex\.pth: .*features\.0\.weight is \[1\], not \[64, 3, 11, 11\]"):
        load_lpips(LpipsSpec(weights="file", path=str(trunk)), CPU)


def test_that_pretrained_weights_that_cannot_be_had_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "checkpoints").write_text("no folder")
    with pytest.raises(DataError, match="LPIPS's trunk vgg16 are not here and cannot be downloaded") as caught:
        load_lpips(LpipsSpec(net="vgg"), CPU)
    assert "torchvision.models.vgg16" in caught.value.hint
