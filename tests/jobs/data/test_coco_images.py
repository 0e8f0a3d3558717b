"""Pixels of COCO images: both preprocessings against torch and torchvision, and JPEGs that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from jobs.data.coco_annotations import CocoImage
from jobs.data.coco_images import cropped, nearest_exact, open_jpeg, resized_size, squares
from jobs.data.errors import DataError

SIZES = [(48, 64), (64, 48), (50, 50), (33, 97), (20, 23)]


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def listed(height: int, width: int) -> CocoImage:
    return CocoImage(id=42, file_name="42.jpg", height=height, width=width)


@pytest.mark.parametrize("size", SIZES)
def test_that_official_images_are_those_of_the_original_transforms(size: tuple[int, int]) -> None:
    theirs = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC, antialias=False),
            lambda image: image.clamp(0.0, 1.0),
            transforms.CenterCrop(32),
        ]
    )(noise(*size))
    (ours,) = squares(noise(*size), "official", (32,))
    assert ours.dtype == np.uint8
    assert np.abs(ours / 255 - theirs.permute(1, 2, 0).numpy()).max() < 0.5 / 255 + 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_that_covloss_images_are_exactly_those_of_the_original_transforms(size: tuple[int, int]) -> None:
    ours = squares(noise(*size), "covloss", (32, 16))
    for side, image in zip((32, 16), ours, strict=True):
        theirs = transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor()])(noise(*size))
        assert torch.equal(torch.from_numpy(image.copy()).permute(2, 0, 1) / 255, theirs)


def test_that_a_second_side_is_made_from_the_original() -> None:
    image = noise(48, 64)
    large, small = squares(image, "official", (32, 16))
    assert np.array_equal(small, cropped(np.asarray(image, dtype=np.float32), 16))
    assert not np.array_equal(small, cropped(large.astype(np.float32), 16))


@pytest.mark.parametrize("size", [33, 97, 427, 480, 500, 612, 640])
@pytest.mark.parametrize("resized", [112, 320, 341, 480])
def test_that_nearest_exact_is_torchs(size: int, resized: int) -> None:
    pixels = torch.arange(size, dtype=torch.float32).reshape(1, 1, size, 1)
    theirs = torch.nn.functional.interpolate(pixels, size=(resized, 1), mode="nearest-exact").flatten().long().numpy()
    assert np.array_equal(nearest_exact(size, resized), theirs)


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (640, 425), (333, 500), (64, 64)])
def test_that_the_size_is_torchvisions(size: tuple[int, int]) -> None:
    theirs = transforms.Resize(224)(torch.zeros(1, *size))
    assert resized_size(*size, 224) == tuple(theirs.shape[1:])


def test_that_a_grey_image_has_three_equal_channels(tmp_path: Path) -> None:
    path = tmp_path / "grey.jpg"
    noise(20, 30).convert("L").save(path)
    pixels = np.asarray(open_jpeg(path, listed(20, 30)))
    assert pixels.shape == (20, 30, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_that_a_truncated_jpeg_is_named(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "42.jpg"
    noise(64, 64).save(path, quality=95)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(DataError, match=r"42.jpg: image 42 cannot be decoded") as caught:
        open_jpeg(path, listed(64, 64))
    assert "images.cocodataset.org" in caught.value.hint


def test_that_a_missing_jpeg_and_one_of_another_size_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"42.jpg: image 42: no such file"):
        open_jpeg(tmp_path / "42.jpg", listed(64, 64))
    noise(64, 48).save(tmp_path / "42.jpg")
    with pytest.raises(DataError, match=r"image 42 is 48 x 64 pixels") as caught:
        open_jpeg(tmp_path / "42.jpg", listed(48, 64))
    assert caught.value.expected == "64 x 48, as its annotation file says"
