"""Toy creatures: image i is a function of (seed, split, i), parts and keypoints lie where plain geometry says."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.interpolate import RBFInterpolator  # type: ignore[import-untyped]  # scipy has no stubs

from jobs.data.part_store import PartRecord
from jobs.data.toy_creatures import open_toy_creatures
from jobs.data.toy_creatures_draw import draw_creature
from jobs.data.toy_creatures_scene import (
    BACKGROUNDS,
    HIPS,
    KEYPOINTS,
    PARTS,
    SCALES,
    SHIFT,
    SIZE,
    TEXTURES,
    WARP_CONTROLS,
    Piece,
    Scene,
    draw_scene,
)
from jobs.data_spec_parts import ToyCreaturesSpec

SMALL = ToyCreaturesSpec(seed=3, resolution=32, train_images=40, test_images=10)
SCENES = 300


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(5, "train", index) for index in range(SCENES)]


@pytest.fixture(scope="module")
def drawn(scenes: list[Scene]) -> list[PartRecord]:
    return [draw_creature(scene, resolution=32) for scene in scenes]


def digest(records: Sequence[PartRecord]) -> str:
    arrays = [array for record in records for array in dataclasses.astuple(record)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


@pytest.mark.parametrize(("resolution", "expected"), [(64, "37831af7290a2961"), (128, "817ad78a23158481")])
def test_that_the_creatures_of_a_seed_never_change(resolution: int, expected: str) -> None:
    creatures = open_toy_creatures(ToyCreaturesSpec(resolution=resolution))
    records = [*creatures.read("train", 0, 12), *creatures.read("train", 7_999, 1), *creatures.read("test", 0, 4)]
    assert digest(records) == expected


def test_that_a_creature_does_not_depend_on_what_else_is_read() -> None:
    creatures = open_toy_creatures(SMALL)
    together = creatures.read("train", 5, 20)
    for row in (0, 7, 19):
        assert digest(creatures.read("train", 5 + row, 1)) == digest(together[row : row + 1])
    more = open_toy_creatures(SMALL.model_copy(update={"train_images": 400, "test_images": 100}))
    assert digest(more.read("train", 5, 20)) == digest(together)
    assert digest(more.read("test", 0, 10)) == digest(creatures.read("test", 0, 10))


def test_that_splits_and_seeds_have_creatures_of_their_own() -> None:
    one, other = open_toy_creatures(SMALL), open_toy_creatures(SMALL.model_copy(update={"seed": 4}))
    train, test, reseeded = one.read("train", 0, 10), one.read("test", 0, 10), other.read("train", 0, 10)
    assert len({digest([record]) for record in (*train, *test, *reseeded)}) == 30


def test_that_the_manifest_names_parts_and_keypoints() -> None:
    manifest = open_toy_creatures(SMALL).manifest
    assert manifest.counts == {"train": 40, "test": 10}
    assert manifest.part_names == ("head", "torso", "legs", "tail", "ear")
    assert len(manifest.keypoint_names) == len(set(manifest.keypoint_names)) == 10
    assert (manifest.has_parts, manifest.has_foreground) == (True, True)
    assert ToyCreaturesSpec.model_validate(manifest.source) == SMALL


def test_that_records_have_the_promised_types_and_shapes(drawn: list[PartRecord]) -> None:
    for record in drawn:
        assert (record.image_SS3.shape, record.image_SS3.dtype) == ((32, 32, 3), np.dtype(np.uint8))
        assert (record.parts_SS.shape, record.parts_SS.dtype) == ((32, 32), np.dtype(np.uint8))
        assert (record.foreground_SS.shape, record.foreground_SS.dtype) == ((32, 32), np.dtype(np.uint8))
        assert (record.keypoints_Q2.shape, record.keypoints_Q2.dtype) == ((10, 2), np.dtype(np.float32))
        assert (record.visible_Q.shape, record.visible_Q.dtype) == ((10,), np.dtype(np.uint8))
        assert record.scale_2.tolist() == [32, 32]
        assert record.scale_2.dtype == np.float32
        assert np.array_equal(record.foreground_SS, record.parts_SS > 0)


@pytest.mark.parametrize(("split", "at", "count"), [("train", 39, 2), ("test", 10, 1), ("train", -1, 1)])
def test_that_a_number_out_of_range_is_an_error(split: str, at: int, count: int) -> None:
    with pytest.raises(IndexError, match="do not exist"):
        open_toy_creatures(SMALL).read(split, at, count)  # type: ignore[arg-type]  # a split


def test_that_small_images_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 32"):
        ToyCreaturesSpec(resolution=31)


def warp(scene: Scene) -> RBFInterpolator:
    """The same spline by scipy: from places in image sides to displacements."""
    line = np.linspace(-0.5, 0.5, WARP_CONTROLS)
    controls = np.array([(x, y) for y in line for x in line])
    return RBFInterpolator(controls, scene.warp_C2, kernel="thin_plate_spline", degree=1)


def to_creature(scene: Scene, places: np.ndarray) -> np.ndarray:
    """From pixels (x, y) of images of 32 px to the creature's own frame."""
    sides = (places + 0.5) / 32 - 0.5
    moved = sides + warp(scene)(sides) - np.array(scene.shift)
    return np.asarray(moved / scene.scale * np.array([-1 if scene.mirrored else 1, 1]))


def depth(piece: Piece, x: float, y: float) -> float:
    """Something that is positive inside of a piece, 0 on its outline, and no steeper than a distance times ten."""
    x, y = x - piece.at[0], y - piece.at[1]
    if not piece.limb:
        return 0.1 * (1 - math.hypot(x / piece.radii[0], y / piece.radii[1]))
    length = math.hypot(*piece.axis)
    share = min(max((x * piece.axis[0] + y * piece.axis[1]) / length**2, 0), 1)
    width = piece.radii[0] + share * (piece.radii[1] - piece.radii[0])
    return width - math.hypot(x - share * piece.axis[0], y - share * piece.axis[1])


def test_that_a_pixel_belongs_to_the_front_piece_that_its_centre_lies_in(scenes: list[Scene], drawn: list[PartRecord]) -> None:
    columns, rows = np.meshgrid(np.arange(32), np.arange(32))
    skipped = 0
    for scene, record in zip(scenes[:8], drawn[:8], strict=True):
        places = to_creature(scene, np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float))
        for (x, y), found in zip(places.tolist(), record.parts_SS.ravel().tolist(), strict=True):
            depths = [depth(piece, x, y) for piece in scene.pieces]
            if min(abs(value) for value in depths) < 1e-5:
                skipped += 1
                continue
            assert found == next(
                (piece.part for piece, value in zip(scene.pieces[::-1], depths[::-1], strict=True) if value > 0), 0
            )
    assert skipped < 8


def test_that_keypoints_follow_pose_placement_and_warp(scenes: list[Scene], drawn: list[PartRecord]) -> None:
    for scene, record in zip(scenes[:60], drawn[:60], strict=True):
        found = to_creature(scene, record.keypoints_Q2.astype(float))
        assert np.abs(found - scene.keypoints_Q2).max() < 1e-4


def test_that_a_keypoint_lies_within_its_part(scenes: list[Scene]) -> None:
    for scene in scenes:
        for (x, y), part in zip(scene.keypoints_Q2.tolist(), KEYPOINTS.values(), strict=True):
            assert max(depth(piece, x, y) for piece in scene.pieces if PARTS[piece.part - 1] == part) > 0


def test_that_a_keypoint_is_visible_where_its_part_owns_the_pixel(scenes: list[Scene]) -> None:
    """With the keypoints' places handed on to one another: in a creature as drawn no part hides a keypoint of another."""
    outside = hidden = shown = 0
    for scene in scenes:
        moved = dataclasses.replace(scene, keypoints_Q2=np.roll(scene.keypoints_Q2, 1, axis=0))
        record = draw_creature(moved, resolution=32)
        for (x, y), part, visible in zip(
            record.keypoints_Q2.tolist(), KEYPOINTS.values(), record.visible_Q.tolist(), strict=True
        ):
            column, row = math.floor(x + 0.5), math.floor(y + 0.5)
            inside = 0 <= column < 32 and 0 <= row < 32
            owner = record.parts_SS[row, column] if inside else 0
            assert visible == (owner == PARTS.index(part) + 1)
            outside, hidden, shown = outside + (not inside), hidden + (owner > 0 and not visible), shown + visible
    assert min(outside, hidden, shown) > 20


def test_that_joints_bend_by_35_degrees_at_most(scenes: list[Scene]) -> None:
    bends: list[float] = []
    down = (0.0, 1.0)
    for scene in scenes:
        legs = [piece.axis for piece in scene.pieces if piece.part == PARTS.index("legs") + 1]
        assert len(legs) == 2 * len(HIPS)
        for upper, lower in zip(legs[::2], legs[1::2], strict=True):
            bends += [angle(down, upper), angle(upper, lower)]
    assert min(bends) > -35.01
    assert max(bends) < 35.01
    assert np.histogram(bends, bins=7, range=(-35, 35))[0].min() > 0.8 * len(bends) / 7


def angle(one: tuple[float, float], other: tuple[float, float]) -> float:
    """In degrees, signed."""
    return math.degrees(math.atan2(one[0] * other[1] - one[1] * other[0], one[0] * other[0] + one[1] * other[1]))


def test_that_limbs_hang_together(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        limbs = [piece for piece in scene.pieces if piece.limb and PARTS[piece.part - 1] in ("legs", "tail")]
        for upper, lower in zip(limbs[::2], limbs[1::2], strict=True):
            assert np.allclose(np.add(upper.at, upper.axis), lower.at)
            assert upper.radii[1] == lower.radii[0]


def test_that_sizes_places_and_directions_fill_their_ranges(scenes: list[Scene]) -> None:
    sizes = np.array([scene.scale for scene in scenes]) / SIZE
    places = np.array([scene.shift for scene in scenes])
    steps = np.array([scene.warp_C2 for scene in scenes])
    assert SCALES[0] <= sizes.min() < 0.63
    assert 1.07 < sizes.max() <= SCALES[1]
    assert 0.14 < np.abs(places).max(axis=0).min() <= SHIFT
    assert 1 / 33 < np.abs(steps).max() <= 1 / 32
    assert 0.4 < np.mean([scene.mirrored for scene in scenes]) < 0.6


def test_that_a_mirrored_creature_is_its_mirror_image(scenes: list[Scene]) -> None:
    for scene in scenes[:10]:
        still = dataclasses.replace(scene, warp_C2=np.zeros_like(scene.warp_C2))
        turned = dataclasses.replace(still, mirrored=not still.mirrored, shift=(-still.shift[0], still.shift[1]))
        one, other = draw_creature(still, resolution=64), draw_creature(turned, resolution=64)
        assert np.array_equal(one.parts_SS, other.parts_SS[:, ::-1])
        assert np.allclose(one.keypoints_Q2[:, 0], 63 - other.keypoints_Q2[:, 0], atol=1e-4)
        assert np.array_equal(one.visible_Q, other.visible_Q)


def test_that_every_part_shows(drawn: list[PartRecord]) -> None:
    shown = np.array([np.bincount(record.parts_SS.ravel(), minlength=6) > 0 for record in drawn])
    assert shown[:, 1:].mean() > 0.99
    assert shown[:, :4].all()


def test_that_textures_belong_to_parts_and_colors_to_images(scenes: list[Scene]) -> None:
    seen = {(piece.part, piece.texture) for scene in scenes for piece in scene.pieces}
    face = {(PARTS.index("head") + 1, "plain")}
    assert seen - face == {(row + 1, TEXTURES[part]) for row, part in enumerate(PARTS)}
    assert len(set(TEXTURES.values())) == len(PARTS)
    torsos = {piece.colors for scene in scenes for piece in scene.pieces if piece.part == 2}
    assert len(torsos) == SCENES


def inner(record: PartRecord, part: int) -> np.ndarray:
    """Colours [M, 3] of the pixels that have only pixels of their own part around them."""
    own = np.pad(record.parts_SS == part, 1)
    side = len(record.parts_SS)
    around = [own[y : y + side, x : x + side] for y in range(3) for x in range(3)]
    return record.image_SS3[np.logical_and.reduce(around)].astype(float) / 255


def test_that_pixels_have_the_colors_of_their_part(scenes: list[Scene]) -> None:
    for scene in scenes[:12]:
        record = draw_creature(scene, resolution=128)
        paints = {
            piece.part: np.array(piece.colors) for piece in scene.pieces if piece.texture == TEXTURES[PARTS[piece.part - 1]]
        }
        ear, torso = inner(record, 5), inner(record, 2)
        assert np.abs(ear - paints[5][0]).max() < 0.5 / 255 + 1e-6
        for color in paints[2]:  # dots and ground
            assert (np.abs(torso - color).max(axis=1) < 1 / 255).mean() > 0.1
        one, other = paints[2]
        share = ((torso - one) @ (other - one)) / ((other - one) @ (other - one))
        assert np.abs(torso - one - share[:, None] * (other - one)).max() < 1.5 / 255
        assert share.min() > -0.02
        assert share.max() < 1.02


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_that_an_image_is_the_mean_of_a_finer_one(background: str, scenes: list[Scene]) -> None:
    """Edges and textures are antialiased, and what is seen does not depend on the resolution."""
    for scene in [scene for scene in scenes if scene.background == background][:4]:
        coarse, fine = (draw_creature(scene, resolution=side).image_SS3.astype(float) for side in (128, 512))
        difference = np.abs(fine.reshape(128, 4, 128, 4, 3).mean(axis=(1, 3)) - coarse)
        assert difference.mean() < 1.5
        assert np.quantile(difference, 0.99) < 25


def test_that_every_kind_of_background_is_as_likely(scenes: list[Scene]) -> None:
    counts = Counter(scene.background for scene in scenes)
    assert set(counts) == set(BACKGROUNDS)
    assert min(counts.values()) > 0.25 * SCENES
    kinds = Counter(litter.kind for scene in scenes for litter in scene.clutter)
    assert len(kinds) == 4
    assert all(bool(scene.clutter) == (scene.background == "clutter") for scene in scenes)
