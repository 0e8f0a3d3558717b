"""Owns the second view of an image: a random warp and other colours, from uniform numbers that come in (scops_slots.md 3).

Every row is computed by itself, so that an image's view does not depend on the batch it is in.

Legend: B images, A numbers of one view, H x W pixels (H = W for grids), 5 x 5 control points, 2 coordinates (x, y) in [-1, 1]
from edge to edge, as `grid_sample` has them with align_corners=False.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROTATION_DEG = 60.0
"""At most, either way."""
TRANSLATION = 0.1
"""At most, either way along each axis, as a share of the side."""
SCALE = (0.7, 2.0)
"""Of what the image shows: 2 makes it twice as large."""
CONTROL_SIDE = 5
CONTROL_STD = 0.01
"""Of the control points' offsets, in coordinates."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, 0.3, 0.2, 0.2
"""Factors 1 +- these; the hue moves by at most this share of its circle."""
WARP_NUMBERS = 4 + 2 * CONTROL_SIDE**2 + 4
"""Rotation, translation (x, y), scale, control points (x, y each, row by row), brightness, contrast, saturation, hue.

Uniform in [0, 1); 0.5 is no change of any of them. The scale is log-uniform from 0.7 to 1 below 0.5 and from 1 to 2 above.
"""
GREY = (0.299, 0.587, 0.114)
"""Luma of red, green and blue (ITU-R BT.601), as torchvision has it."""
SMALLEST = 2.0**-25
"""What a number is kept away from 0 and 1 by where it becomes a normal one."""


def pixel_places(size: int) -> Float[Tensor, "{size} {size} 2"]:
    """Coordinates of the pixels' centres, in float64."""
    along = (torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1
    rows_HW, columns_HW = torch.meshgrid(along, along, indexing="ij")
    return torch.stack((columns_HW, rows_HW), dim=-1)


def warp_grid(numbers_BA: Float[Tensor, "B A"], size: int) -> Float[Tensor, "B {size} {size} 2"]:
    """Where in the image each pixel of its second view comes from.

    A thin-plate spline moves the pixel, then it is turned, divided by the scale and shifted. Raises ValueError for another
    number of numbers than WARP_NUMBERS.
    """
    values_BA = _checked(numbers_BA)
    signed_BA = values_BA * 2 - 1
    angle_B = signed_BA[:, 0] * math.radians(ROTATION_DEG)
    shrunk_B, grown_B = signed_BA[:, 3].clamp(max=0), signed_BA[:, 3].clamp(min=0)
    scale_B = torch.exp(grown_B * math.log(SCALE[1]) - shrunk_B * math.log(SCALE[0]))
    cosine_B11, sine_B11 = ((of(angle_B) / scale_B).float()[:, None, None] for of in (torch.cos, torch.sin))
    shift_B2 = (signed_BA[:, 1:3] * (2 * TRANSLATION)).float()

    control_BA = values_BA[:, 4 : 4 + 2 * CONTROL_SIDE**2].clamp(SMALLEST, 1 - SMALLEST)
    offsets_BM2 = (torch.special.ndtri(control_BA) * CONTROL_STD).float().unflatten(1, (CONTROL_SIDE**2, 2))
    spline_MHW = _spline(size).to(numbers_BA.device)
    x_HW, y_HW = pixel_places(size).float().to(numbers_BA.device).unbind(dim=-1)
    x_BHW, y_BHW = x_HW.expand(len(values_BA), -1, -1), y_HW.expand(len(values_BA), -1, -1)
    for point, influence_HW in enumerate(spline_MHW):  # one by one: a product of matrices rounds by the size of the batch
        x_BHW = x_BHW + offsets_BM2[:, point, 0, None, None] * influence_HW
        y_BHW = y_BHW + offsets_BM2[:, point, 1, None, None] * influence_HW
    turned_BHW2 = torch.stack((cosine_B11 * x_BHW - sine_B11 * y_BHW, sine_B11 * x_BHW + cosine_B11 * y_BHW), dim=-1)
    return turned_BHW2 + shift_B2[:, None, None]


def warped(images_BCHW: Float[Tensor, "B C H W"], grid_BHW2: Float[Tensor, "B h w 2"]) -> Float[Tensor, "B C h w"]:
    """Images, or maps of any channels, looked up where the grid says (bilinear); 0 outside of them."""
    return F.grid_sample(images_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)


def colour_jitter(images_B3HW: Float[Tensor, "B 3 H W"], numbers_BA: Float[Tensor, "B A"]) -> Float[Tensor, "B 3 H W"]:
    """Brightness, contrast, saturation and hue of images in [0, 1], changed in this order; values beyond are clamped.

    Contrast and saturation mix an image with its mean grey and with its greys. Raises ValueError like `warp_grid`.
    """
    signed_B4111 = (_checked(numbers_BA)[:, -4:] * 2 - 1).float()[:, :, None, None, None]
    brightness_B111, contrast_B111, saturation_B111, hue_B111 = signed_B4111.unbind(dim=1)
    bright_B3HW = (images_B3HW * (1 + BRIGHTNESS * brightness_B111)).clamp(0, 1)
    mean_B111 = _grey(bright_B3HW).double().mean(dim=(1, 2, 3), keepdim=True).float()
    contrasted_B3HW = _mixed(bright_B3HW, mean_B111, 1 + CONTRAST * contrast_B111)
    saturated_B3HW = _mixed(contrasted_B3HW, _grey(contrasted_B3HW), 1 + SATURATION * saturation_B111)
    return _hue_moved(saturated_B3HW, HUE * hue_B111)


def _checked(numbers_BA: Tensor) -> Tensor:
    """In float64, so that what functions of them round to does not depend on how a device groups rows."""
    if numbers_BA.shape[1] != WARP_NUMBERS:
        raise ValueError(f"a second view takes {WARP_NUMBERS} numbers per image, not {numbers_BA.shape[1]}")
    return numbers_BA.double()


@functools.cache
def _spline(size: int) -> Tensor:
    """How much each control point's offset moves each pixel [M,H,W] (Bookstein 1989): 1 at its own place, 0 at the others'."""
    control_M2, places_N2 = control_points(), pixel_places(size).flatten(0, 1)
    points = len(control_M2)
    system = torch.zeros(points + 3, points + 3, dtype=torch.float64)
    system[:points, :points] = _bending(control_M2, control_M2)
    system[:points, points:] = _affine(control_M2)
    system[points:, :points] = _affine(control_M2).T
    at_places = torch.cat((_bending(places_N2, control_M2), _affine(places_N2)), dim=1)
    influence_NM: Tensor = torch.linalg.solve(system, at_places, left=False)[:, :points]
    return influence_NM.T.reshape(points, size, size).float()


def control_points() -> Float[Tensor, "M 2"]:
    """The control points, row by row, from edge to edge, in float64."""
    along = torch.linspace(-1, 1, CONTROL_SIDE, dtype=torch.float64)
    rows, columns = torch.meshgrid(along, along, indexing="ij")
    return torch.stack((columns, rows), dim=-1).flatten(0, 1)


def _bending(places_N2: Tensor, control_M2: Tensor) -> Tensor:
    """r^2 log r^2 of their distances, 0 at none."""
    squares_NM = (places_N2[:, None] - control_M2).square().sum(dim=-1)
    bending_NM: Tensor = torch.special.xlogy(squares_NM, squares_NM)
    return bending_NM


def _affine(places_N2: Tensor) -> Tensor:
    return torch.cat((torch.ones_like(places_N2[:, :1]), places_N2), dim=1)


def _grey(images_B3HW: Tensor) -> Tensor:
    red_BHW, green_BHW, blue_BHW = images_B3HW.unbind(dim=1)
    return (GREY[0] * red_BHW + GREY[1] * green_BHW + GREY[2] * blue_BHW)[:, None]


def _mixed(images_B3HW: Tensor, other: Tensor, share_B111: Tensor) -> Tensor:
    return (share_B111 * images_B3HW + (1 - share_B111) * other).clamp(0, 1)


def _hue_moved(images_B3HW: Tensor, by_B111: Tensor) -> Tensor:
    """Hue on its circle of length 1 moved, value and chroma kept (hexcone model, Smith 1978)."""
    value_B1HW = images_B3HW.amax(dim=1, keepdim=True)
    chroma_B1HW = value_B1HW - images_B3HW.amin(dim=1, keepdim=True)
    safe_B1HW = torch.where(chroma_B1HW > 0, chroma_B1HW, 1.0)
    red_B1HW, green_B1HW, blue_B1HW = images_B3HW[:, :1], images_B3HW[:, 1:2], images_B3HW[:, 2:]
    sixths_B1HW = torch.where(
        value_B1HW == red_B1HW,
        (green_B1HW - blue_B1HW) / safe_B1HW,
        torch.where(value_B1HW == green_B1HW, 2 + (blue_B1HW - red_B1HW) / safe_B1HW, 4 + (red_B1HW - green_B1HW) / safe_B1HW),
    )
    moved_B1HW = sixths_B1HW + 6 * by_B111
    corner_3 = torch.tensor([5.0, 3.0, 1.0], device=images_B3HW.device)[:, None, None]
    place_B3HW = torch.remainder(corner_3 + moved_B1HW, 6)
    return value_B1HW - chroma_B1HW * torch.minimum(place_B3HW, 4 - place_B3HW).clamp(0, 1)
