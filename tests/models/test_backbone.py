"""Frozen backbones: which tokens they give, from which weights, and what they refuse."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from models.backbone import Backbone, BackboneError, build_backbone
from models.imagenet_pixels import IMAGENET_MEAN, IMAGENET_STD
from models.spec import BackboneSpec

REPOSITORY = Path(__file__).parents[2]
TINY = "vit_tiny_patch16_224"
CREATE = timm.create_model


def spec(**changes: Any) -> BackboneSpec:
    """ViT-Tiny on 32 px images: 2 x 2 tokens."""
    return BackboneSpec.model_validate(
        {"name": TINY, "weights": "random", "block": 2, "tokens": 4, "feature_size": 192, "normalise": "none"} | changes
    )


def from_state(state: Mapping[str, Tensor], **changes: Any) -> Backbone:
    return build_backbone(spec(weights="pretrained", **changes), state=state)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A whole state dict at the architecture's own resolution, whose parameters are all different from their defaults."""
    torch.manual_seed(3)
    whole = CREATE(TINY)
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.05)
    return dict(whole.state_dict())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def hooked(vit: Any, images: Tensor, block: int) -> Tensor:
    """The output of a block (from 1) as a hook sees it in a whole forward pass, CLS dropped."""
    seen: list[Tensor] = []
    handle = vit.blocks[block - 1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        vit(images)
    handle.remove()
    return seen[0][:, vit.num_prefix_tokens :]


def resized(state: Mapping[str, Tensor]) -> Any:
    """timm's own ViT-Tiny at 32 px with the weights of `state`."""
    vit = CREATE(TINY)
    vit.load_state_dict(state)
    vit.set_input_size(img_size=(32, 32))
    return vit.eval()


@pytest.mark.parametrize("block", [1, 2, 12])
def test_that_tokens_are_the_blocks_output_before_the_final_norm(block: int, state: dict[str, Tensor], images: Tensor) -> None:
    tokens = from_state(state, block=block)(images)
    assert tokens.shape == (3, 4, 192)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, hooked(resized(state), images, block))


def test_that_pixels_are_normalised_when_asked(state: dict[str, Tensor], images: Tensor) -> None:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    tokens = from_state(state, normalise="imagenet")(images)
    assert torch.equal(tokens, hooked(resized(state), (images - mean) / std, 2))
    assert not torch.allclose(tokens, from_state(state)(images))


def test_that_later_blocks_are_not_there(state: dict[str, Tensor]) -> None:
    names = {name.split(".")[2] for name in from_state(state).state_dict() if name.startswith("vit.blocks.")}
    assert names == {"0", "1"}


def test_that_registers_are_dropped_too() -> None:
    backbone = build_backbone(spec(name="vit_small_patch14_reg4_dinov2", block=1, feature_size=384), state=None)
    assert backbone.resolution == 28
    assert backbone(torch.zeros(1, 3, 28, 28)).shape == (1, 4, 384)


def test_that_it_is_frozen_and_stays_in_eval_mode() -> None:
    backbone = build_backbone(spec(), state=None)
    outer = nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert outer.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def digest(backbone: nn.Module) -> str:
    parts = (value.numpy().tobytes() for _, value in sorted(backbone.state_dict().items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_that_random_weights_are_the_same_in_two_processes() -> None:
    program = "import sys, torch; torch.manual_seed(99); import test_backbone as t; "
    program += "print(t.digest(t.build_backbone(t.spec(), state=None)))"
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    other = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    torch.manual_seed(7)
    assert other.stdout.split() == [digest(build_backbone(spec(), state=None))]


def test_that_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_backbone(spec(), state=None)
    assert torch.equal(torch.rand(3), expected)


def test_that_every_wrong_key_of_a_state_dict_is_named(state: dict[str, Tensor]) -> None:
    broken = {name: value for name, value in state.items() if name != "blocks.1.attn.qkv.weight"}
    broken["neck.weight"] = torch.zeros(1)
    broken["pos_embed"] = torch.zeros(1, 5, 192)
    with pytest.raises(BackboneError) as caught:
        from_state(broken)
    said = str(caught.value)
    assert "1 missing (blocks.1.attn.qkv.weight)" in said
    assert "1 unexpected (neck.weight)" in said
    assert "pos_embed [1, 5, 192], not [1, 197, 192]" in said


def test_that_parts_that_are_not_used_may_be_missing(state: dict[str, Tensor], images: Tensor) -> None:
    used = {name: value for name, value in state.items() if not name.startswith(("head", "norm", "blocks.5", "blocks.11"))}
    assert torch.equal(from_state(used)(images), from_state(state)(images))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block": 13}, "backbone.block is 13, vit_tiny_patch16_224 has 12 blocks"),
        ({"feature_size": 384}, "backbone.feature_size is 384, tokens of vit_tiny_patch16_224 have 192 features"),
        ({"tokens": 5}, "backbone.tokens 5 is no square grid"),
        ({"name": "vit_tinny_patch16_224"}, "backbone.name 'vit_tinny_patch16_224'"),
        ({"name": "resnet18"}, "is a ResNet, not a ViT"),
    ],
)
def test_that_another_architecture_than_the_spec_says_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BackboneError, match=said.replace("(", r"\(")):
        build_backbone(spec(**changes), state=None)


def test_that_images_of_another_side_are_refused() -> None:
    with pytest.raises(BackboneError, match="images of 48 x 48 pixels, the backbone takes 32 x 32"):
        build_backbone(spec(), state=None)(torch.zeros(1, 3, 48, 48))
