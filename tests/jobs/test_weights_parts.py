"""The trunk and the feature net of part slots: from a file whose content is the planned one, and never without weights."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision  # type: ignore[import-untyped]  # ships no marker

from jobs.data.errors import DataError
from jobs.weights import load_feature_net, load_trunk
from jobs.weights_file import TORCHVISION_FILES, AnyWeights, check_weights, weights_content
from models.dilated_resnet import DilatedResNet, build_trunk
from models.imagenet_pixels import normalised
from models.initialisation import Weights
from models.part_objective import feature_layers
from models.spec_parts import FeatureNetSpec, PartsObjective, TrunkSpec

CPU = torch.device("cpu")
CHANNELS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
"""Of VGG19's convolutions up to relu3_2."""


@pytest.fixture
def vgg19(tmp_path: Path) -> Path:
    """Its first layers in torchvision's names: each averages its input's channels, and its biases are the layer's number."""
    state = {}
    for layer, (inputs, outputs) in CHANNELS.items():
        state[f"features.{layer}.weight"] = torch.zeros(outputs, inputs, 3, 3)
        state[f"features.{layer}.weight"][:, :, 1, 1] = 1 / inputs
        state[f"features.{layer}.bias"] = torch.full((outputs,), float(layer))
    torch.save(state, tmp_path / "vgg19.pth")
    return tmp_path / "vgg19.pth"


def planned(spec: Any) -> Any:
    return spec.model_copy(update={"content": weights_content(spec)})


def test_that_the_feature_net_comes_from_the_planned_file(vgg19: Path) -> None:
    net = load_feature_net(planned(FeatureNetSpec(weights="file", path=str(vgg19))), ["relu3_2"], CPU)
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(2, 3, 16, 16)  # 0 once it is normalised
    (features,) = net(grey)
    torch.testing.assert_close(features, torch.full((2, 256, 4, 4), float(sum(CHANNELS))))


def test_that_the_layers_asked_for_come_in_their_order() -> None:
    net = load_feature_net(FeatureNetSpec(name="tiny", weights="random"), ["relu5_4", "relu3_2"], CPU)
    assert [tuple(one.shape) for one in net(torch.rand(1, 3, 32, 32))] == [(1, 64, 2, 2), (1, 16, 8, 8)]


def test_that_a_file_that_is_not_the_planned_one_or_no_feature_net_is_refused(vgg19: Path) -> None:
    spec = FeatureNetSpec(weights="file", path=str(vgg19))
    with pytest.raises(DataError, match="as when the run was planned"):
        load_feature_net(spec.model_copy(update={"content": "0" * 64}), ["relu3_2"], CPU)
    with pytest.raises(DataError, match=r"vgg19\.pth: .*features\.14\.weight is missing") as caught:
        load_feature_net(spec, ["relu5_4"], CPU)
    assert caught.value.hint.startswith("objective.features.path must name torchvision's own parameters of vgg19")


@pytest.fixture(scope="module")
def drawn() -> DilatedResNet:
    weights = Weights(scheme="covloss", generator=torch.Generator().manual_seed(0))
    return build_trunk(TrunkSpec(weights="random"), weights=weights)


def test_that_the_trunks_weights_come_from_the_planned_file_or_are_drawn(tmp_path: Path, drawn: DilatedResNet) -> None:
    before = {name: value.clone() for name, value in drawn.state_dict().items()}
    load_trunk(drawn, TrunkSpec(weights="random"))
    assert all(torch.equal(value, before[name]) for name, value in drawn.state_dict().items())

    file = tmp_path / "resnet50.pth"
    spec = TrunkSpec(weights="file", path=str(file))
    torch.save({"conv1.weight": torch.full((64, 3, 7, 7), 0.25)}, file)
    with pytest.raises(DataError, match=r"resnet50\.pth: .*missing") as caught:
        load_trunk(drawn, spec)
    assert caught.value.hint.startswith("model.trunk.path must name torchvision's own parameters of resnet50")
    with pytest.raises(DataError, match="as when the run was planned"):
        load_trunk(drawn, spec.model_copy(update={"content": "0" * 64}))
    assert all(torch.equal(value, before[name]) for name, value in drawn.state_dict().items()), "nothing half-loaded"

    published = torchvision.models.resnet50(weights=None).eval()
    torch.save(published.state_dict(), file)
    load_trunk(drawn, planned(spec))
    published.maxpool.ceil_mode = True
    images = torch.rand(1, 3, 32, 32)
    stem = torch.nn.Sequential(published.conv1, published.bn1, published.relu, published.maxpool, published.layer1)
    expected = stem(normalised(images))
    seen: list[torch.Tensor] = []
    drawn.layer1.register_forward_hook(lambda module, given, output: seen.append(output))
    drawn(images)
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-3)

    file.write_bytes(b"no weights")
    with pytest.raises(DataError, match="not a state dict") as caught:
        load_trunk(drawn, spec)
    assert caught.value.expected == "a state dict of torchvision's resnet50"


@pytest.mark.parametrize(
    ("spec", "titled", "key"),
    [
        (TrunkSpec(), "the trunk resnet50", "model.trunk"),
        (TrunkSpec(name="resnet101"), "the trunk resnet101", "model.trunk"),
        (FeatureNetSpec(), "the feature net vgg19", "objective.features"),
    ],
)
def test_that_pretrained_weights_are_taken_from_the_cache_or_explained(
    spec: TrunkSpec | FeatureNetSpec,
    titled: str,
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drawn: DilatedResNet,
) -> None:
    def load() -> Any:
        return load_trunk(drawn, spec) if isinstance(spec, TrunkSpec) else load_feature_net(spec, ["relu3_2"], CPU)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.parent.mkdir()
    cache.write_text("no folder")
    with pytest.raises(DataError, match=f"pretrained weights of {titled} are not here and cannot be downloaded") as caught:
        load()
    assert f"set {key}.weights=file {key}.path=FILE" in caught.value.hint
    assert f"torchvision.models.{spec.name}(weights='IMAGENET1K_V1')" in caught.value.hint
    environ = {"TORCH_HOME": str(tmp_path)}
    assert check_weights(spec, environ)[0] == f"{titled} is not in {cache}: the job will try to download it"
    cache.unlink()
    cache.mkdir()
    (cache / TORCHVISION_FILES[spec.name]).write_bytes(b"damaged")
    assert check_weights(spec, environ) == [f"{titled} from {cache / TORCHVISION_FILES[spec.name]}"]


def test_that_cached_files_have_torchvisions_names() -> None:
    for name, file in TORCHVISION_FILES.items():
        url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        assert url.rpartition("/")[2] == file


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (TrunkSpec(weights="file", path="absent.pth"), "model.trunk.path"),
        (FeatureNetSpec(weights="file", path="absent.pth"), "objective.features.path"),
    ],
)
def test_that_a_missing_file_is_explained_by_its_own_key(spec: AnyWeights, key: str) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        weights_content(spec)
    assert caught.value.hint == f"{key} must be a readable file"


def test_that_features_are_looked_at_where_a_term_with_a_weight_asks_for_layers() -> None:
    terms = ("semantic", "concentration", "equivariance", "landmarks", "compactness", "contrast", "colour_variance")
    for count in (1, 2):
        for names in combinations(terms, count):
            spec = PartsObjective(**{"semantic": 0.0, **dict.fromkeys(names, 0.5)})
            assert spec.looks_at_features == bool(feature_layers(spec)), names
