"""The trunk of part models: torchvision's function, the sheet's sizes, frozen norms, statistics of random weights, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.dilated_resnet import SIZES, DilatedResNet, NormedConv, TrunkError, build_trunk
from models.imagenet_pixels import IMAGENET_MEAN, IMAGENET_STD
from models.initialisation import Weights
from models.spec_parts import TrunkSpec

TINY = TrunkSpec(name="tiny", weights="random")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(seed: int = 0) -> DilatedResNet:
    return build_trunk(TINY, weights=Weights(scheme="covloss", generator=seeded(seed)))


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=seeded(1))


def theirs() -> Any:
    """Torchvision's ResNet-50 with the sheet's two changes and norms whose constants all differ from their defaults."""
    torch.manual_seed(4)
    net = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    net.maxpool.ceil_mode = True
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight.data, 0.5, 0.9),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.6, 1.9),
            ):
                nn.init.uniform_(value, low, high)
    return net.eval()


def test_that_with_published_weights_it_is_torchvisions_resnet() -> None:
    published = theirs()
    ours = DilatedResNet(SIZES["resnet50"], weights=Weights(scheme="covloss", generator=seeded(0)))
    ours.load_published(published.state_dict())
    seen = images(1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (seen - mean) / std
    with torch.no_grad():
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            expected = getattr(published, name)(expected)
        found = ours(seen)
    assert found.dtype == torch.float32
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 23_454_912


@pytest.mark.parametrize(("side", "grid"), [(128, 17), (160, 21), (192, 25), (224, 29), (256, 33), (321, 41), (32, 5), (127, 17)])
def test_that_other_inputs_have_the_sheets_feature_sizes(side: int, grid: int) -> None:
    with torch.no_grad():
        assert built()(images(1, side)).shape == (1, 128, grid, grid)
    assert TINY.grid(side) == TrunkSpec().grid(side) == grid
    assert TINY.channels == 128
    assert TrunkSpec().channels == 2048


def test_that_the_tiny_trunk_has_the_strides_and_dilations_of_the_large_one() -> None:
    large = DilatedResNet(SIZES["resnet50"], weights=Weights(scheme="covloss", generator=seeded(0)))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        mine, theirs = getattr(built(), name)[0], getattr(large, name)[0]
        for conv in ("conv1", "conv2", "conv3", "downsample"):
            assert vars(getattr(mine, conv))["_stride"] == vars(getattr(theirs, conv))["_stride"]
            assert vars(getattr(mine, conv))["_dilation"] == vars(getattr(theirs, conv))["_dilation"]
    assert [large.get_submodule(f"layer{stage}.1.conv2")._dilation for stage in (1, 2, 3, 4)] == [1, 1, 2, 4]


def test_that_training_moves_weights_and_leaves_norms() -> None:
    trunk = built().train()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    optimizer = torch.optim.SGD(trunk.parameters(), lr=1e-3)
    first = trunk(images())
    first.square().mean().backward()
    optimizer.step()
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.endswith(".weight")), name
    assert not torch.equal(trunk(images()), first)
    assert torch.equal(trunk.eval()(images()), trunk.train()(images()))
    norms = [module for module in trunk.modules() if isinstance(module, NormedConv)]
    assert len(norms) == 1 + 4 * 4
    assert len(before) == 5 * len(norms)
    assert len(list(trunk.parameters())) == len(norms)


def test_that_random_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = built(3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    again, other = built(3).state_dict(), built(4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith((".weight", ".mean", ".variance")))


def test_that_random_weights_are_kaimings_by_fan_out() -> None:
    for name, value in built().state_dict().items():
        if name.endswith(".weight") and value.numel() > 1000:
            outputs, _, height, width = value.shape
            torch.testing.assert_close(value.square().mean(), torch.tensor(2 / (outputs * height * width)), rtol=0.2, atol=0)


@pytest.mark.parametrize("kind", ["white", "smooth", "flat"])
def test_that_random_features_neither_die_out_nor_grow(kind: str) -> None:
    drawn = torch.rand(4, 3, {"white": 64, "smooth": 8, "flat": 1}[kind], 1, generator=seeded(6))
    seen = torch.nn.functional.interpolate(drawn.expand(-1, -1, -1, drawn.shape[2]), size=(64, 64), mode="bilinear")
    with torch.no_grad():
        features = built()(seen)
    assert 0.1 < float(features.std()) < 5
    assert 0.1 < float((features > 0).float().mean()) < 0.9


def as_published(trunk: DilatedResNet) -> dict[str, Tensor]:
    """The state dict in torchvision's names, of new values, with what only torchvision has."""
    norm = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}
    found = {"fc.weight": torch.zeros(7, 128), "fc.bias": torch.zeros(7), "bn1.num_batches_tracked": torch.tensor(3)}
    for name, value in trunk.state_dict().items():
        *block, layer, part = name.split(".")
        conv, bn = ("downsample.0", "downsample.1") if layer == "downsample" else (layer, layer.replace("conv", "bn"))
        key = f"{conv}.weight" if part == "weight" else f"{bn}.{norm[part]}"
        found[".".join([*block, key])] = torch.rand(value.shape, generator=seeded(len(found)))
    return found


def test_that_published_weights_are_copied_into_their_places() -> None:
    trunk = built()
    published = as_published(trunk)
    trunk.load_published(published)
    state = trunk.state_dict()
    assert len(published) == len(state) + 3
    assert torch.equal(state["conv1.weight"], published["conv1.weight"])
    assert torch.equal(state["conv1.scale"], published["bn1.weight"])
    assert torch.equal(state["layer3.0.conv2.mean"], published["layer3.0.bn2.running_mean"])
    assert torch.equal(state["layer4.0.downsample.weight"], published["layer4.0.downsample.0.weight"])
    assert torch.equal(state["layer4.0.downsample.shift"], published["layer4.0.downsample.1.bias"])
    assert torch.equal(state["layer1.0.downsample.variance"], published["layer1.0.downsample.1.running_var"])


def test_that_every_wrong_key_is_named_and_nothing_is_loaded_then() -> None:
    trunk = built()
    broken = as_published(trunk)
    del broken["layer1.0.bn3.running_var"]
    broken["layer3.1.conv1.weight"] = torch.zeros(1)
    broken["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(TrunkError) as caught:
        trunk.load_published(broken)
    said = str(caught.value)
    assert "1 missing (layer1.0.bn3.running_var)" in said
    assert "1 unexpected (layer3.1.conv1.weight)" in said
    assert "1 of another shape (conv1.weight [16, 3, 3, 3], not [16, 3, 7, 7])" in said
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_that_an_error_names_few_of_many_keys() -> None:
    with pytest.raises(TrunkError, match=r"85 missing \(bn1\.bias, .*, \.\.\.\)$") as caught:
        built().load_published({})
    assert str(caught.value).count(",") == 8


def test_that_bf16_autocast_gives_fp32_features_close_to_the_exact_ones() -> None:
    trunk = built()
    exact = trunk(images()).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = trunk(images())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=0.05 * float(exact.abs().max()), rtol=0)
