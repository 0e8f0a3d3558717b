"""LPIPS between frames, against the lpips package itself; frozen, in eval mode, without a place in checkpoints.

Trunks have random weights: torchvision's cannot be had without a download. The linear heads are the package's own.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping

import lpips
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from video_terms import FRAMES, built, frozen_lpips, objective, output_of, seeded, terms_of, without_gradient

from models.perceptual import FrameLpips, LpipsError, build_lpips, slot_distances
from models.spec_video import LpipsSpec
from models.video_slots import slot_reconstructions

RANDOM = LpipsSpec(weights="random")
FILE = LpipsSpec(weights="file", path="alexnet.pth")


@pytest.fixture
def frozen() -> FrameLpips:
    return frozen_lpips()


def images(rows: int = 2, frames: int = FRAMES, *, spread: float = 1.0) -> Tensor:
    return (torch.rand(rows, frames, 3, 32, 32, generator=seeded(5)) * 2 - 1) * spread


@functools.cache
def the_package(net: str = "alex") -> nn.Module:
    """The package's own module, with the same random trunk."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        return lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False)


def trunk_state(seed: int) -> dict[str, Tensor]:
    """In torchvision's names of AlexNet, of the trunk and a part of the classifier."""
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    found = {"classifier.1.bias": torch.zeros(4096)}
    for layer, shape in shapes.items():
        found[f"features.{layer}.weight"] = torch.randn(shape, generator=seeded(seed)) / math.sqrt(math.prod(shape[1:]))
        found[f"features.{layer}.bias"] = torch.randn(shape[0], generator=seeded(seed))
    return found


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_that_distances_are_those_of_the_package_and_smaller_images_are_too_small(net: str) -> None:
    spec = LpipsSpec.model_validate({"net": net, "weights": "random"})
    ours = frozen_lpips() if net == "alex" else build_lpips(spec, state=None)
    package, given = the_package(net), images()
    expected = torch.stack([package(given[:, index], given[:, index + 1]).flatten() for index in range(FRAMES - 1)], dim=1)
    torch.testing.assert_close(ours(given), expected.detach(), atol=1e-7, rtol=1e-5)
    assert bool((expected > 1e-3).all())
    side = spec.smallest_side
    assert ours(torch.zeros(1, 2, 3, side, side)).shape == (1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        ours(torch.zeros(1, 2, 3, side - 1, side - 1))


def test_that_gradients_to_the_images_are_those_of_the_package(frozen: FrameLpips) -> None:
    ours, theirs = images(frames=2).requires_grad_(True), images(frames=2).requires_grad_(True)
    frozen(ours).sum().backward()
    the_package()(theirs[:, 0], theirs[:, 1]).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-8, rtol=1e-4)


def test_that_the_heads_are_the_sheets_five_and_come_with_the_package(frozen: FrameLpips) -> None:
    heads = [head.model[1].weight.flatten() for head in frozen.net.lins]
    assert [len(head) for head in heads] == [64, 192, 384, 256, 256]
    assert all(bool((head >= 0).all()) and bool(head.any()) for head in heads)


def test_that_features_are_computed_once_per_frame(frozen: FrameLpips) -> None:
    seen: list[int] = []
    handle = frozen.net.net.slice1.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    frozen(images(rows=2, frames=4))
    handle.remove()
    assert seen == [8]


def test_that_values_beyond_the_units_are_clamped(frozen: FrameLpips) -> None:
    wide = images(spread=1.5)
    assert torch.equal(frozen(wide), frozen(wide.clamp(-1, 1)))
    assert not torch.equal(frozen(wide), frozen(wide / 1.5))


def test_that_empty_slots_are_at_no_distance_and_their_gradients_are_finite(frozen: FrameLpips) -> None:
    white = torch.ones(1, 2, 3, 32, 32, requires_grad=True)
    distance = frozen(white)
    assert float(distance.detach()) == 0
    distance.sum().backward()
    assert white.grad is not None
    assert bool(white.grad.isfinite().all())


def test_that_the_net_is_frozen_in_eval_mode_and_out_of_checkpoints(frozen: FrameLpips) -> None:
    loss = objective(perceptual=1.0)
    assert loss.lpips is not None
    loss.train()
    assert not [name for name, module in loss.lpips.named_modules() if module.training]
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    assert loss.load_state_dict({}, strict=True) is not None
    moved = [value for _, value in loss.lpips.named_buffers()]
    assert sum(value.numel() for value in moved) == 2_469_696 + 1152 + 6  # trunk, heads, shift and scale
    assert not any(value.requires_grad for value in moved)


def test_that_the_term_alone_reaches_slots_and_decoder_and_nothing_of_the_net() -> None:
    model, loss = built(), objective(perceptual=0.01)
    assert loss.lpips is not None
    assert without_gradient(model, terms_of(loss, output_of(model)).total_B.mean()) == []
    assert all(value.grad is None for value in loss.lpips.buffers())


def test_that_the_term_is_the_mean_over_a_clips_slots_and_pairs_of_frames(frozen: FrameLpips) -> None:
    output, package = output_of(built()), the_package()
    shown = slot_reconstructions(output).detach()
    distances = [
        package(shown[clip, frame, slot].clamp(-1, 1)[None], shown[clip, frame + 1, slot].clamp(-1, 1)[None]).item()
        for clip in range(2)
        for frame in range(FRAMES - 1)
        for slot in range(3)
    ]
    found = slot_distances(frozen, shown, output.masks_BTKHW, min_area=0.0)
    assert found.tolist() == pytest.approx(torch.tensor(distances).view(2, -1).mean(dim=1).tolist(), rel=1e-5)


def test_that_slots_without_area_in_any_frame_count_with_zero_and_are_not_computed(frozen: FrameLpips) -> None:
    shown = images(rows=6).unflatten(0, (2, 3)).transpose(1, 2)
    masks = torch.zeros(2, FRAMES, 3, 32, 32)
    masks[:, :, 0] = 1
    masks[1, 2, 1] = 0.5  # seen in a single frame
    seen: list[int] = []
    handle = frozen.net.net.slice1.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    some = slot_distances(frozen, shown, masks, min_area=0.01)
    handle.remove()
    assert seen == [3 * FRAMES]
    one, other = shown[:1, :, 0], torch.stack([shown[1, :, 0], shown[1, :, 1]])
    expected = torch.stack([frozen(one).sum(), frozen(other).sum()]) / (3 * (FRAMES - 1))
    torch.testing.assert_close(some, expected)
    assert slot_distances(frozen, shown, torch.zeros_like(masks), min_area=0.01).tolist() == [0, 0]


def test_that_building_leaves_the_global_random_state_alone_and_is_the_same_each_time(frozen: FrameLpips) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    again = build_lpips(RANDOM, state=None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(frozen.buffers(), again.buffers(), strict=True))


def test_that_the_trunk_is_loaded_from_torchvisions_state_dict(frozen: FrameLpips) -> None:
    state = trunk_state(1)
    whole = build_lpips(FILE, state=state).net
    net = whole.net
    loaded = {0: net.slice1, 3: net.slice2, 6: net.slice3, 8: net.slice4, 10: net.slice5}
    for layer, part in loaded.items():
        convolution = part.get_submodule(str(layer))
        assert torch.equal(convolution.weight, state[f"features.{layer}.weight"])
        assert torch.equal(convolution.bias, state[f"features.{layer}.bias"])
    assert all(torch.equal(a, b) for a, b in zip(whole.lins.buffers(), frozen.net.lins.buffers(), strict=True))


@pytest.mark.parametrize(
    ("spec", "state", "said"),
    [
        (RANDOM, trunk_state(1), "weights=random and a state dict given"),
        (FILE, None, "weights=file and a state dict missing"),
        (LpipsSpec(), None, "weights=pretrained and a state dict missing"),
        (FILE, {"features.0.weight": torch.zeros(1)}, r"features.0.weight is \[1\], not \[64, 3, 11, 11\]"),
        (FILE, {k: v for k, v in trunk_state(1).items() if k != "features.8.bias"}, "features.8.bias is missing"),
    ],
)
def test_that_weights_that_do_not_fit_are_refused(spec: LpipsSpec, state: Mapping[str, Tensor] | None, said: str) -> None:
    with pytest.raises(LpipsError, match=said):
        build_lpips(spec, state=state)


def test_that_a_path_and_weights_from_a_file_go_together() -> None:
    for changes in ({"weights": "file"}, {"weights": "random", "path": "x"}):
        with pytest.raises(ValidationError, match="weights=file and path go together"):
            LpipsSpec.model_validate(changes)


def test_that_it_computes_in_fp32_under_autocast(frozen: FrameLpips) -> None:
    full = frozen(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frozen(images()), full)


def test_that_clips_of_one_frame_are_refused(frozen: FrameLpips) -> None:
    with pytest.raises(ValueError, match="two frames or more"):
        slot_distances(frozen, torch.zeros(1, 1, 3, 3, 32, 32), torch.ones(1, 1, 3, 32, 32), min_area=0.0)
