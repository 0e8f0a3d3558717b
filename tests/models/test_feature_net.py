"""The frozen feature net against torchvision's VGG19 (with random weights: the published ones need a download)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.feature_net import FeatureNetError, Layer, build_feature_net
from models.spec_parts import FeatureNetSpec

BOTH: tuple[Layer, ...] = ("relu3_2", "relu5_4")
TINY = FeatureNetSpec(name="tiny", weights="random")
FILE = FeatureNetSpec(weights="file", path="vgg19.pth")


def images(count: int = 1, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def the_package() -> nn.Sequential:
    """torchvision's features with weights of our own; without its classifier, which is most of it."""
    with torch.device("meta"):
        features: nn.Sequential = torchvision.models.vgg19().features
    features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in features.parameters():
        nn.init.normal_(parameter, 0, (2 / max(1, parameter[0].numel())) ** 0.5, generator=generator)
    return features.eval()


@pytest.fixture(scope="module")
def package() -> nn.Sequential:
    return the_package()


@torch.no_grad()
def test_that_layers_are_numbers_13_and_35_of_torchvisions_vgg19_of_normalised_images(package: nn.Sequential) -> None:
    state = {f"features.{name}": value for name, value in package.state_dict().items()}
    found = build_feature_net(FILE, layers=BOTH, state=state)(images())
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    normalised = (images() - mean) / std
    for ours, index in zip(found, (13, 35), strict=True):
        torch.testing.assert_close(ours, package[: index + 1](normalised))
        assert isinstance(package[index], nn.ReLU)
    assert isinstance(package[36], nn.MaxPool2d)


@pytest.mark.parametrize(("name", "side"), [("vgg19", 128), ("tiny", 128), ("tiny", 72)])
def test_that_shapes_are_those_of_the_sheets_row_20_and_of_the_spec(name: Literal["vgg19", "tiny"], side: int) -> None:
    spec = FeatureNetSpec(name=name, weights="random")
    third, fifth = build_feature_net(spec, layers=BOTH, state=None)(images(side=side))
    assert third.shape == (1, spec.channels["relu3_2"], side // 4, side // 4)
    assert fifth.shape == (1, spec.channels["relu5_4"], side // 16, side // 16)
    if name == "vgg19":
        assert fifth.shape == (1, 512, 8, 8)
    for layer in (third, fifth):  # random weights say something, of a usable size
        assert 0.01 < float(layer.square().mean()) < 100
        places = nn.functional.normalize(layer[0].flatten(1), dim=0)
        assert float((places.T @ places).mean()) < 0.95


@pytest.mark.parametrize("layers", [("relu3_2",), ("relu5_4",), ("relu5_4", "relu3_2")])
def test_that_layers_come_in_the_order_asked_for_and_no_more_is_built(layers: tuple[Layer, ...]) -> None:
    both = dict(zip(BOTH, build_feature_net(TINY, layers=BOTH, state=None)(images()), strict=True))
    net = build_feature_net(TINY, layers=layers, state=None)
    for name, found in zip(layers, net(images()), strict=True):
        assert torch.equal(found, both[name])
    assert len(net.layers) == (4 if layers == ("relu3_2",) else 8)


def test_that_the_net_is_frozen_in_eval_mode_and_out_of_checkpoints() -> None:
    net = build_feature_net(TINY, layers=BOTH, state=None).train()
    assert not [name for name, module in net.named_modules() if module.training]
    assert list(net.parameters()) == []
    assert net.state_dict() == {}
    assert sum(value.numel() for value in net.buffers()) == 6 + sum(
        16 * inputs * outputs + outputs for inputs, outputs in ((3, 8), (8, 16), (16, 32), (32, 64))
    )
    assert not any(layer.requires_grad for layer in net(images().requires_grad_(True)))


def test_that_building_leaves_the_global_random_state_alone_and_is_the_same_each_time() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, other = (build_feature_net(TINY, layers=BOTH, state=None) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_that_it_computes_in_fp32_under_autocast() -> None:
    net = build_feature_net(TINY, layers=BOTH, state=None)
    full = net(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(net(images()), full, strict=True))


def test_that_images_are_left_as_they_were() -> None:
    given = images()
    build_feature_net(TINY, layers=BOTH, state=None)(given)
    assert torch.equal(given, images())


@pytest.mark.parametrize(
    ("spec", "layers", "state", "said"),
    [
        (TINY, BOTH, {}, "tiny: weights=random and a state dict given"),
        (FILE, BOTH, None, "vgg19: weights=file and a state dict missing"),
        (FeatureNetSpec(), BOTH, None, "weights=pretrained and a state dict missing"),
        (FILE, BOTH, {}, r"features.0.weight is missing"),
        (FILE, BOTH, {"features.0.weight": torch.zeros(1)}, r"features.0.weight is \[1\], not \[64, 3, 3, 3\]"),
        (TINY, (), None, r"name one layer or more, each once, not \[\]"),
        (TINY, ("relu3_2", "relu3_2"), None, "each once"),
    ],
)
def test_that_what_does_not_fit_is_refused(
    spec: FeatureNetSpec, layers: Sequence[Layer], state: Mapping[str, Tensor] | None, said: str
) -> None:
    with pytest.raises(FeatureNetError, match=said):
        build_feature_net(spec, layers=layers, state=state)
