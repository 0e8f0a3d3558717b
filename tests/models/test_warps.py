"""Second views of images: what 0.5 and the ends of the numbers mean, each image by itself, against torchvision and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from models.warps import CONTROL_SIDE, CONTROL_STD, WARP_NUMBERS, colour_jitter, control_points, pixel_places, warp_grid, warped

ANGLE, SHIFT_X, SHIFT_Y, SIZE = range(4)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(WARP_NUMBERS - 4, WARP_NUMBERS)


def numbers(images: int = 1, **changes: float) -> Tensor:
    """No change of anything but what is named."""
    found = torch.full((images, WARP_NUMBERS), 0.5)
    for name, value in changes.items():
        found[:, globals()[name]] = value
    return found


def drawn(images: int, seed: int = 0) -> Tensor:
    return torch.rand(images, WARP_NUMBERS, generator=torch.Generator().manual_seed(seed))


def pictures(images: int = 4, side: int = 32) -> Tensor:
    return torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("side", [32, 33])
def test_that_numbers_of_one_half_change_nothing(side: int) -> None:
    images, grid = pictures(2, side), warp_grid(numbers(2), side)
    identity = F.affine_grid(torch.eye(2, 3).expand(2, -1, -1), [2, 3, side, side], align_corners=False)
    torch.testing.assert_close(grid, identity, atol=2e-7, rtol=0)
    torch.testing.assert_close(warped(images, grid), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(colour_jitter(images, numbers(2)), images, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "matrix"),
    [
        ({"ANGLE": 1.0}, [[0.5, -math.sqrt(0.75), 0], [math.sqrt(0.75), 0.5, 0]]),
        ({"ANGLE": 0.0}, [[0.5, math.sqrt(0.75), 0], [-math.sqrt(0.75), 0.5, 0]]),
        ({"SHIFT_X": 1.0, "SHIFT_Y": 0.25}, [[1, 0, 0.2], [0, 1, -0.1]]),
        ({"SIZE": 1.0}, [[0.5, 0, 0], [0, 0.5, 0]]),
        ({"SIZE": 0.0}, [[1 / 0.7, 0, 0], [0, 1 / 0.7, 0]]),
        ({"SIZE": 0.75}, [[math.sqrt(0.5), 0, 0], [0, math.sqrt(0.5), 0]]),
        ({"ANGLE": 0.75, "SHIFT_X": 1.0, "SIZE": 1.0}, [[math.sqrt(0.75) / 2, -0.25, 0.2], [0.25, math.sqrt(0.75) / 2, 0]]),
    ],
)
def test_that_the_ends_of_the_numbers_are_those_of_the_sheet(changes: dict[str, float], matrix: list[list[float]]) -> None:
    expected = F.affine_grid(torch.tensor(matrix)[None], [1, 3, 32, 32], align_corners=False)
    torch.testing.assert_close(warp_grid(numbers(**changes), 32), expected, atol=1e-6, rtol=0)


def test_that_control_points_move_the_image_as_a_thin_plate_spline() -> None:
    given = numbers()
    count = CONTROL_SIDE**2
    given[0, 4 : 4 + 2 * count] = torch.rand(2 * count, generator=torch.Generator().manual_seed(3))
    offsets = torch.special.ndtri(given[0, 4 : 4 + 2 * count].double()).view(count, 2) * CONTROL_STD
    spline = RBFInterpolator(control_points().numpy(), offsets.numpy(), kernel="thin_plate_spline", degree=1)
    places = pixel_places(32).flatten(0, 1)
    expected = places + torch.from_numpy(spline(places.numpy()))
    torch.testing.assert_close(warp_grid(given, 32).view(-1, 2).double(), expected, atol=1e-6, rtol=0)


def test_that_control_points_move_by_the_sheets_standard_deviation_and_stay_finite() -> None:
    moved = warp_grid(torch.cat((numbers(200)[:, :4], drawn(200)[:, 4:]), dim=1), 16) - pixel_places(16).float()
    assert 0.005 < float(moved.std()) < 0.015
    edge = numbers()
    edge[0, 4:54] = 0.0
    edge[0, 4] = 1 - 2**-24
    assert bool(warp_grid(edge, 16).isfinite().all())


def test_that_an_image_is_the_same_whatever_batch_it_is_in() -> None:
    given, images = drawn(9), pictures(9)

    def view(rows: slice) -> Tensor:
        return warped(colour_jitter(images[rows], given[rows]), warp_grid(given[rows], 32))

    whole = view(slice(None))
    for first, last in ((0, 1), (3, 4), (2, 7), (8, 9)):
        assert torch.equal(view(slice(first, last)), whole[first:last])
    assert not torch.equal(whole[0], whole[1])


def test_that_outside_of_the_image_there_is_nothing() -> None:
    view = warped(torch.ones(1, 3, 32, 32), warp_grid(numbers(SIZE=0.0), 32))
    assert float(view[0, 0, 0, 0]) == 0
    assert float(view[0, 0, 16, 16]) == 1


@pytest.mark.parametrize(
    ("name", "end", "theirs"),
    [
        ("BRIGHTNESS", 1.0, lambda image: TF.adjust_brightness(image, 1.3)),
        ("BRIGHTNESS", 0.0, lambda image: TF.adjust_brightness(image, 0.7)),
        ("CONTRAST", 1.0, lambda image: TF.adjust_contrast(image, 1.3)),
        ("CONTRAST", 0.0, lambda image: TF.adjust_contrast(image, 0.7)),
        ("SATURATION", 1.0, lambda image: TF.adjust_saturation(image, 1.2)),
        ("SATURATION", 0.0, lambda image: TF.adjust_saturation(image, 0.8)),
        ("HUE", 1.0, lambda image: TF.adjust_hue(image, 0.2)),
        ("HUE", 0.0, lambda image: TF.adjust_hue(image, -0.2)),
    ],
)
def test_that_colours_move_as_torchvisions(name: str, end: float, theirs: Callable[[Tensor], Tensor]) -> None:
    images = pictures()
    expected = torch.stack([theirs(image) for image in images])
    torch.testing.assert_close(colour_jitter(images, numbers(4, **{name: end})), expected, atol=1e-4, rtol=0)
    assert float((expected - images).abs().max()) > 0.02


def test_that_jitters_are_done_in_their_order_and_stay_in_range() -> None:
    images, given = pictures(), drawn(4)
    signed = (given[:, -4:] * 2 - 1).tolist()
    expected = []
    for image, (brightness, contrast, saturation, hue) in zip(images, signed, strict=True):
        bright = TF.adjust_brightness(image, 1 + 0.3 * brightness)
        contrasted = TF.adjust_contrast(bright, 1 + 0.3 * contrast)
        expected.append(TF.adjust_hue(TF.adjust_saturation(contrasted, 1 + 0.2 * saturation), 0.2 * hue))
    found = colour_jitter(images, given)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_that_greys_have_no_hue_to_move() -> None:
    grey = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(-1, 3, -1, -1)
    torch.testing.assert_close(colour_jitter(grey, numbers(HUE=0.9, SATURATION=0.1)), grey, atol=1e-6, rtol=0)


@pytest.mark.parametrize("view", [lambda given: warp_grid(given, 8), lambda given: colour_jitter(torch.zeros(1, 3, 8, 8), given)])
def test_that_another_number_of_numbers_is_refused(view: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="takes 58 numbers per image, not 57"):
        view(torch.zeros(1, WARP_NUMBERS - 1))
