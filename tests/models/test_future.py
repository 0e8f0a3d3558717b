"""Future prediction: sizes, the formula, and whom its gradient reaches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from video_terms import FRAMES, built, objective, output_of, seeded, terms_of, without_gradient

from models.future import FuturePrediction
from models.initialisation import Weights
from models.video_slots import slot_reconstructions

KINDS = {"future_masks": 1, "future_slots": 3}


def predictor(image_channels: int, *, channels: int = 4, detach_target: bool = False) -> FuturePrediction:
    weights = Weights(scheme="covloss", generator=seeded(3))
    return FuturePrediction(image_channels=image_channels, channels=channels, detach_target=detach_target, weights=weights)


def images(image_channels: int, frames: int = FRAMES) -> Tensor:
    return torch.rand(2, frames, 3, image_channels, 16, 16, generator=seeded(4))


def plain(module: FuturePrediction, image: Tensor) -> Tensor:
    """One slot's image [I,H,W] through the layers, by hand."""
    hidden = image[None]
    for layer in module.halving:
        hidden = torch.relu(F.conv2d(hidden, layer.weight, layer.bias, stride=2, padding=2))
    for layer in module.doubling:
        hidden = torch.relu(F.conv_transpose2d(hidden, layer.weight, layer.bias, stride=2, padding=2, output_padding=1))
    return F.conv2d(hidden, module.last.weight, module.last.bias, padding=1)[0]


@pytest.mark.parametrize(("image_channels", "expected"), [(1, 129_281), (3, 131_459)])
def test_that_the_autoencoder_has_the_sheets_layers(image_channels: int, expected: int) -> None:
    """Three convolutions and three transposed ones of 32 channels and kernel 5, 3 x 3 to the image."""
    module = predictor(image_channels, channels=32)
    assert sum(parameter.numel() for parameter in module.parameters()) == expected
    sides = []
    for layer in (*module.halving, *module.doubling):
        layer.register_forward_hook(lambda layer, given, output: sides.append(output.shape[-1]))
    module(torch.rand(1, 2, 1, image_channels, 128, 128))
    assert sides == [64, 32, 16, 32, 64, 128]


@pytest.mark.parametrize("image_channels", [1, 3])
def test_that_the_error_is_that_of_every_slot_and_pair_of_frames_by_hand(image_channels: int) -> None:
    module, given = predictor(image_channels), images(image_channels)
    errors = []
    for clip in given:
        for now, following in pairwise(clip):
            predicted = torch.stack([plain(module, slot) for slot in now])
            if image_channels == 1:
                predicted = torch.softmax(predicted, dim=0)
            errors.append(((predicted - following) ** 2).mean())
    torch.testing.assert_close(module.errors(given), torch.stack(errors).view(2, -1).mean(dim=1), atol=1e-6, rtol=1e-5)


def test_that_predicted_masks_sum_to_one_over_slots() -> None:
    predicted = predictor(1)(images(1))
    assert predicted.shape == (2, FRAMES - 1, 3, 1, 16, 16)
    torch.testing.assert_close(predicted.sum(dim=2), torch.ones_like(predicted[:, :, 0]))


@pytest.mark.parametrize("kind", KINDS)
def test_that_a_detached_target_gets_no_gradient_and_its_past_does(kind: str) -> None:
    for detach_target in (False, True):
        given = images(KINDS[kind], frames=2).requires_grad_(True)
        predictor(KINDS[kind], detach_target=detach_target).errors(given).mean().backward()
        assert given.grad is not None
        assert [bool(frame.any()) for frame in given.grad.unbind(1)] == [True, not detach_target]


@pytest.mark.parametrize("detach_target", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_that_the_term_alone_reaches_slots_decoder_and_its_own_network(kind: str, detach_target: bool) -> None:
    model, loss = built(), objective(**{kind: 0.01, "detach_target": detach_target})
    assert without_gradient(model, terms_of(loss, output_of(model)).total_B.mean()) == []
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in loss.parameters())


def test_that_masks_or_slot_reconstructions_are_what_is_predicted() -> None:
    output = output_of(built())
    masks, shown = objective(future_masks=0.5), objective(future_slots=0.5)
    assert masks.future_masks is not None
    assert shown.future_slots is not None
    torch.testing.assert_close(
        terms_of(masks, output).total_B, 0.5 * masks.future_masks.errors(output.masks_BTKHW[:, :, :, None])
    )
    torch.testing.assert_close(terms_of(shown, output).total_B, 0.5 * shown.future_slots.errors(slot_reconstructions(output)))


def test_that_clips_of_one_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="two frames or more"):
        predictor(1).errors(images(1, frames=1))
