"""The generator: a function of (seed, index), and the measured constants of the original."""

from __future__ import annotations

import colorsys
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.multi_dsprites import FACTORS, Record, encode, label_map
from jobs.data.shapes import HEART_CURVE_AREA, HEART_CURVE_CENTROID, Shape, rasterise
from jobs.data.sprites import SATURATED_BACKGROUND_BYTES, generate
from jobs.data_spec import SpriteGeneratorSpec

COLUMN = {name: FACTORS.index(name) for name in FACTORS}
ORIGINAL = SpriteGeneratorSpec(seed=0)
EASY = SpriteGeneratorSpec(
    seed=0, resolution=16, min_sprites=3, max_sprites=3, scales=(11 / 12, 1.0, 13 / 12), palette="saturated"
)


@pytest.fixture(scope="module")
def many() -> list[Record]:
    return generate(ORIGINAL, first=0, count=1000)


def digest(records: list[Record]) -> str:
    return hashlib.sha256(b"".join(map(encode, records))).hexdigest()[:16]


@pytest.mark.parametrize(("spec", "expected"), [(ORIGINAL, "bcf47413edb56f99"), (EASY, "5fc119afdd89f962")])
def test_that_the_records_of_a_seed_never_change(spec: SpriteGeneratorSpec, expected: str) -> None:
    assert digest(generate(spec, first=0, count=64)) == expected


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 10**6), count=st.integers(1, 6), at=st.integers(0, 5))
def test_that_a_record_depends_on_seed_and_index_alone(first: int, count: int, at: int) -> None:
    spec = SpriteGeneratorSpec(seed=11, resolution=16)
    at %= count
    assert digest(generate(spec, first=first, count=count)[at : at + 1]) == digest(generate(spec, first=first + at, count=1))


def test_that_seeds_and_indices_give_different_records() -> None:
    made = [generate(SpriteGeneratorSpec(seed=seed, resolution=16), first=i, count=1) for seed in (0, 1, 2) for i in (0, 1, 2)]
    assert len({digest(records) for records in made}) == 9


def test_that_masks_part_every_image(many: list[Record]) -> None:
    for record in many:
        assert set(np.unique(record.masks_EHW)) <= {0, 255}
        assert (record.masks_EHW.astype(int).sum(axis=0) == 255).all()


def test_that_every_pixel_has_its_entity_color(many: list[Record]) -> None:
    for record in many:
        colors_E3 = np.rint(record.factors_E9[:, -3:] * 255).astype(np.uint8)
        assert np.array_equal(record.image_HW3, colors_E3[label_map(record)])


def test_that_there_are_as_many_colors_as_visible_entities(many: list[Record]) -> None:
    for record in many:
        colors = len(np.unique(record.image_HW3.reshape(-1, 3), axis=0))
        assert colors == record.factors_E9[:, COLUMN["visibility"]].sum()


def test_that_visible_means_at_least_one_pixel(many: list[Record]) -> None:
    hidden = 0
    for record in many:
        visible_E = record.factors_E9[:, COLUMN["visibility"]] == 1
        assert np.array_equal(visible_E, record.masks_EHW.any(axis=(1, 2)))
        hidden += int(((record.factors_E9[:, COLUMN["scale"]] > 0) & ~visible_E).sum())
    assert 0 < hidden < 50


def test_that_sprite_counts_are_uniform_and_slots_no_prefix(many: list[Record]) -> None:
    exists_NK = np.array([record.factors_E9[1:, COLUMN["scale"]] > 0 for record in many])
    counts = np.bincount(exists_NK.sum(axis=1), minlength=5)
    assert counts[0] == 0
    assert (np.abs(counts[1:] - 250) < 60).all()
    share_K = exists_NK.mean(axis=0)
    assert (np.abs(share_K - 0.625) < 0.06).all()


def test_that_null_entities_and_the_background_have_zero_factors(many: list[Record]) -> None:
    for record in many:
        null_E = record.factors_E9[:, COLUMN["scale"]] == 0
        assert null_E[0]
        assert not record.factors_E9[1:][null_E[1:]].any()
        assert record.factors_E9[0, : COLUMN["color_r"]].tolist() == [0, 0, 0, 1, 0, 0]


def test_that_factors_span_their_measured_ranges(many: list[Record]) -> None:
    rows = np.concatenate([record.factors_E9[1:] for record in many])
    rows = rows[rows[:, COLUMN["scale"]] > 0]
    assert set(np.unique(rows[:, COLUMN["shape"]])) == {1, 2, 3}
    assert np.allclose(np.unique(rows[:, COLUMN["scale"]]), np.float32(0.5 + np.arange(6) / 12))
    for name, top in (("x", 1), ("y", 1), ("orientation", 2 * np.pi)):
        values = rows[:, COLUMN[name]]
        assert 0 <= values.min() < 0.01 * top
        assert 0.99 * top < values.max() <= top
        assert abs(values.mean() - top / 2) < 0.03 * top
    assert abs(rows[:, COLUMN["color_r"] :].mean() - 0.5) < 0.02


def test_that_sprites_never_leave_the_canvas_of_the_original(many: list[Record]) -> None:
    for record in many:
        background = record.masks_EHW[0]
        assert background[[0, -1], :].all()
        assert background[:, [0, -1]].all()


def test_that_centroids_lie_where_they_were_measured(many: list[Record]) -> None:
    found = []
    for record in many:
        (present,) = np.nonzero(record.factors_E9[:, COLUMN["scale"]])
        if len(present) == 1:
            row, column = (axis.mean() for axis in np.nonzero(record.masks_EHW[present[0]]))
            x, y = record.factors_E9[present[0], :2]
            assert abs(column - (15.5 + 32 * x)) < 0.5
            assert abs(row - (15.5 + 32 * y)) < 0.5
            found += [row, column]
    assert 15 < min(found) < 17
    assert 46 < max(found) < 48


# Areas in pixels of unoccluded sprites on images of the original, by scale in twelfths.
MEASURED_AREAS = {
    Shape.SQUARE: {6: (132, 133), 7: (182, 182), 8: (238, 238), 10: (369, 369)},
    Shape.ELLIPSE: {6: (103, 107), 7: (140, 141), 8: (183, 184), 9: (237, 237), 10: (287, 290)},
    Shape.HEART: {6: (81, 81), 7: (108, 112), 9: (181, 186), 10: (226, 226)},
}


@pytest.mark.parametrize(
    ("shape", "twelfths", "low", "high"),
    [(shape, twelfths, *areas) for shape, table in MEASURED_AREAS.items() for twelfths, areas in table.items()],
)
def test_that_areas_are_those_of_the_original(shape: Shape, twelfths: int, low: int, high: int) -> None:
    count = 100
    draw = np.random.default_rng(0)
    inside_SHW = rasterise(
        shape_S=np.full(count, shape),
        center_S2=draw.uniform(15.5, 47.5, (count, 2)),
        scale_S=np.full(count, twelfths / 12),
        orientation_S=draw.uniform(0, 2 * np.pi, count),
        resolution=64,
    )
    area_S = inside_SHW.sum(axis=(1, 2))
    assert 0.975 * low < area_S.mean() < 1.025 * high
    assert area_S.std() < 0.04 * area_S.mean()


def test_that_the_heart_is_the_classic_curve() -> None:
    t = np.linspace(0, 2 * np.pi, 20001)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    area = np.trapezoid(y, x)
    assert abs(area) == pytest.approx(HEART_CURVE_AREA, rel=1e-6)
    assert np.trapezoid(y * y / 2, x) / area == pytest.approx(HEART_CURVE_CENTROID, rel=1e-5)


def test_that_the_heart_drawn_is_the_inside_of_that_curve() -> None:
    side = 64
    inside_SHW = rasterise(
        shape_S=np.array([Shape.HEART]),
        center_S2=np.array([[31.3, 30.8]]),
        scale_S=np.array([10 / 12]),
        orientation_S=np.array([0.0]),
        resolution=side,
    )
    t = np.linspace(0, 2 * np.pi, 4001)
    unit = (10 / 12) * np.sqrt(324 / HEART_CURVE_AREA)
    x = 31.3 + unit * 16 * np.sin(t) ** 3
    y = 30.8 - unit * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t) - HEART_CURVE_CENTROID)
    columns, rows = np.meshgrid(np.arange(side), np.arange(side))
    # Winding number of the curve around each pixel centre.
    angle = np.unwrap(np.arctan2(y[:, None, None] - rows, x[:, None, None] - columns), axis=0)
    winding = np.rint((angle[-1] - angle[0]) / (2 * np.pi)).astype(int)
    assert np.array_equal(inside_SHW[0], winding != 0)


def test_that_a_higher_slot_is_drawn_on_top() -> None:
    spec = SpriteGeneratorSpec(seed=5, min_sprites=4)
    for record in generate(spec, first=0, count=100):
        top = record.factors_E9[4]
        inside_SHW = rasterise(
            shape_S=np.array([int(top[COLUMN["shape"]])]),
            center_S2=15.5 + 32 * top[None, :2].astype(np.float64),
            scale_S=top[COLUMN["scale"]][None].astype(np.float64),
            orientation_S=top[COLUMN["orientation"]][None].astype(np.float64),
            resolution=64,
        )
        assert (inside_SHW[0] != (record.masks_EHW[4] == 255)).sum() <= 2  # factors are rounded to float32


def test_that_geometry_scales_with_the_resolution() -> None:
    small, large = (generate(SpriteGeneratorSpec(seed=2, resolution=side), first=0, count=50) for side in (32, 128))
    for one, other in zip(small, large, strict=True):
        assert np.array_equal(one.factors_E9[:, COLUMN["scale"]], other.factors_E9[:, COLUMN["scale"]])
        share_one, share_other = (record.masks_EHW[0].mean() for record in (one, other))
        assert abs(share_one - share_other) < 0.03 * 255


def test_that_the_easy_variant_has_three_big_sprites_of_distinct_hues_on_black() -> None:
    visible = []
    for record in generate(EASY, first=0, count=300):
        assert record.image_HW3.shape == (16, 16, 3)
        assert record.masks_EHW.shape == (4, 16, 16)
        colors_E3 = record.factors_E9[:, -3:]
        assert (colors_E3[0] * 255).max() < SATURATED_BACKGROUND_BYTES
        hues = []
        for color in colors_E3[1:]:
            hue, saturation, value = colorsys.rgb_to_hsv(*map(float, color))
            assert saturation > 0.99
            assert value > 0.79
            hues.append(hue)
        gaps = np.diff(sorted(hues), append=min(hues) + 1)
        assert gaps.min() > 0.24
        visible.append(record.factors_E9[1:, COLUMN["visibility"]].sum())
    assert np.mean(visible) > 2.9


def test_that_the_data_package_does_not_import_torch() -> None:
    names = "errors, inflate, tfrecord, example, multi_dsprites, shapes, sprites, source, store, writer"
    script = f"from jobs.data import {names}\nimport jobs.prepare, sys\nprint('torch' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
