"""Toy videos: a frame is a function of (seed, video, frame), objects bounce, hide each other, cross and come out again."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from jobs.data.toy_video import open_toy_video
from jobs.data.toy_video_draw import draw_videos
from jobs.data.toy_video_scene import OCCLUDER_HALF_WIDTH, RGB, SPEEDS, VideoScenes, draw_scenes
from jobs.data.video import VideoBatch
from jobs.data_spec import RecordRange, ToyVideoSpec

SMALL = ToyVideoSpec(seed=3, train=RecordRange(first=0, count=40), test=RecordRange(first=40, count=10))
EVENTS = SMALL.model_copy(update={"crossings": 0.5, "occluders": 0.5})
VIDEOS, FRAMES = 200, 24
EVERY = np.tile(np.arange(FRAMES), (VIDEOS, 1))
PIXEL = 1 / 64


@pytest.fixture(scope="module")
def scenes() -> VideoScenes:
    return draw_scenes(EVENTS, np.arange(VIDEOS))


@pytest.fixture(scope="module")
def drawn(scenes: VideoScenes) -> tuple[np.ndarray, np.ndarray]:
    return draw_videos(scenes, EVERY, resolution=64)


def digest(batch: VideoBatch) -> str:
    return hashlib.sha256(batch.images_BTSS3.tobytes() + np.asarray(batch.labels_BTSS).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("resolution", "expected"), [(64, "9b0eb92721293a8f"), (128, "2c517c066eed7729")])
def test_that_the_videos_of_a_seed_never_change(resolution: int, expected: str) -> None:
    spec = ToyVideoSpec(resolution=resolution, crossings=0.5, occluders=0.5)
    videos = np.array([0, 1, 2, 3, 9_999])
    assert digest(open_toy_video(spec).train.read(videos, np.tile([0, 9, 12, 23], (5, 1)))) == expected


def test_that_a_frame_does_not_depend_on_what_else_is_read() -> None:
    videos = open_toy_video(EVENTS).train
    chosen = np.random.default_rng(0).integers(0, 40, 30)
    frames = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(FRAMES), (30, 1)), axis=1)[:, :5], axis=1)
    together = videos.read(chosen, frames)
    assert together.labels_BTSS is not None
    for row in (0, 12, 13, 29):
        alone = videos.read(chosen[row : row + 1], frames[row : row + 1, 2:3])
        assert alone.labels_BTSS is not None
        assert np.array_equal(alone.images_BTSS3[0, 0], together.images_BTSS3[row, 2])
        assert np.array_equal(alone.labels_BTSS[0, 0], together.labels_BTSS[row, 2])


def test_that_the_test_split_goes_on_in_the_same_series() -> None:
    shifted = SMALL.model_copy(update={"train": RecordRange(first=40, count=10), "test": RecordRange(first=0, count=1)})
    wanted = (np.arange(10), EVERY[:10, :2])
    assert digest(open_toy_video(SMALL).test.read(*wanted)) == digest(open_toy_video(shifted).train.read(*wanted))
    assert digest(open_toy_video(SMALL).test.read(*wanted)) != digest(open_toy_video(SMALL).train.read(*wanted))


def test_that_arrays_have_the_promised_types_and_shapes() -> None:
    videos = open_toy_video(SMALL).train
    batch = videos.read(np.arange(3), EVERY[:3, :5])
    assert batch.labels_BTSS is not None
    assert (batch.images_BTSS3.shape, batch.images_BTSS3.dtype) == ((3, 5, 64, 64, 3), np.uint8)
    assert (batch.labels_BTSS.shape, batch.labels_BTSS.dtype) == ((3, 5, 64, 64), np.uint8)
    assert (videos.count, videos.video_frames, videos.resolution, videos.has_labels) == (40, 24, 64, True)


def test_that_masks_stay_below_the_number_of_labels(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    assert open_toy_video(SMALL).train.num_labels == 6
    assert open_toy_video(EVENTS).train.num_labels == 7
    assert drawn[1].max() == 6


@pytest.mark.parametrize(("video", "frame", "message"), [(40, 0, "video 40 does not exist"), (0, 24, "frame 24 does not exist")])
def test_that_a_number_out_of_range_is_an_error(video: int, frame: int, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        open_toy_video(SMALL).train.read(np.array([video]), np.array([[frame]]))


def test_that_objects_move_evenly_bounce_and_stay_inside(scenes: VideoScenes) -> None:
    centers = scenes.centers(np.tile(np.arange(200), (VIDEOS, 1)))
    radius = scenes.radius_NK[:, None, :, None]
    assert (centers >= radius - 1e-9).all()
    assert (centers <= 1 - radius + 1e-9).all()
    step = np.diff(centers, axis=1)
    speed = np.abs(scenes.velocity_NK2)[:, None]
    even = np.abs(np.abs(step) - speed) < 1e-9
    assert (np.abs(step) <= speed + 1e-9).all()
    assert even.mean() > 0.9
    turned = np.abs(np.diff(np.sign(step), axis=1)) > 1  # only at a wall
    near = np.minimum(centers - radius, 1 - radius - centers)[:, 1:-1] < SPEEDS[1]
    assert turned.any(axis=1).mean() > 0.9
    assert near[turned].all()


def test_that_speeds_lie_in_their_range(scenes: VideoScenes) -> None:
    speed = np.sqrt((scenes.velocity_NK2**2).sum(axis=2))
    assert speed.min() >= SPEEDS[0]
    assert speed.max() <= SPEEDS[1] + 1e-12


def test_that_masks_follow_the_positions(scenes: VideoScenes, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    centers = scenes.centers(EVERY)
    for video in np.nonzero(~scenes.occluder_N)[0][:30].tolist():
        front = int(scenes.number_N[video])
        for frame in range(FRAMES):
            rows, columns = np.nonzero(drawn[1][video, frame] == front)
            middle = np.array([(columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2]) * PIXEL
            assert np.abs(middle - centers[video, frame, front - 1]).max() < 1.6 * PIXEL


def test_that_a_higher_number_hides_a_lower_one(scenes: VideoScenes, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    centers, hidden = scenes.centers(EVERY), 0
    for video in np.nonzero(~scenes.occluder_N)[0].tolist():
        for frame in range(FRAMES):
            number = int(scenes.number_N[video])
            column, row = (centers[video, frame, number - 1] * 64).astype(int)
            assert drawn[1][video, frame, row, column] == number
            below = np.abs(centers[video, frame, : number - 1] - centers[video, frame, number - 1]).max(axis=1)
            hidden += int((below < PIXEL).any())
    assert hidden > 0


def test_that_a_mask_has_the_color_of_its_object(scenes: VideoScenes, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    palette = np.array(list(RGB.values()))
    images, labels = drawn
    for video in range(40):
        for slot in range(int(scenes.number_N[video])):
            pixels = images[video][labels[video] == slot + 1].astype(int)
            if len(pixels) < 40:
                continue  # hidden nearly always
            assert (np.median(pixels, axis=0) == palette[scenes.color_NK[video, slot]]).all()


def test_that_no_two_objects_look_alike_without_a_crossing(scenes: VideoScenes) -> None:
    for video in range(VIDEOS):
        colors = scenes.color_NK[video, : scenes.number_N[video]].tolist()
        assert len(set(colors)) == len(colors) - int(scenes.crosses_N[video])


def test_that_a_crossing_pair_looks_alike_meets_and_parts(scenes: VideoScenes) -> None:
    centers = scenes.centers(EVERY)
    assert 70 < scenes.crosses_N.sum() < 130
    for video in np.nonzero(scenes.crosses_N)[0].tolist():
        for looks in (scenes.color_NK, scenes.shape_NK, scenes.radius_NK):
            assert looks[video, 0] == looks[video, 1]
        gap = np.abs(centers[video, :, 0] - centers[video, :, 1]).max(axis=1)
        meeting = int(gap[8:16].argmin()) + 8
        radius = scenes.radius_NK[video, 0]
        assert gap[meeting] <= 0.3 * radius + 1e-9
        assert gap[:meeting].max() > 2 * radius
        assert gap[meeting:].max() > 2 * radius
        before, after = (centers[video, at, 0, 0] - centers[video, at, 1, 0] for at in (meeting - 3, meeting + 3))
        assert before * after < 0  # they pass through each other


def test_that_an_object_vanishes_behind_the_occluder_and_comes_out_again(
    scenes: VideoScenes, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    assert 70 < scenes.occluder_N.sum() < 130
    for video in np.nonzero(scenes.occluder_N)[0].tolist():
        number = int(scenes.number_N[video])
        visible = (drawn[1][video] == number).any(axis=(1, 2))
        gone = [frame for frame in range(8, 16) if not visible[frame]]
        assert gone
        assert visible[: gone[0]].any()
        assert visible[gone[-1] :].any()
        bar = drawn[1][video] == number + 1
        assert (bar == bar[0]).all()
        assert abs(bar[0].mean() - 2 * OCCLUDER_HALF_WIDTH) <= PIXEL


def test_that_the_shortest_video_with_crossings_shows_the_pair_apart_before_and_after() -> None:
    spec = SMALL.model_copy(update={"video_frames": 20, "crossings": 1.0})
    scenes = draw_scenes(spec, np.arange(2000))
    centers = scenes.centers(np.tile(np.arange(20), (2000, 1)))
    gap_NT = np.abs(centers[:, :, 0] - centers[:, :, 1]).max(axis=2)
    for part in (gap_NT[:, :6], gap_NT[:, 14:]):
        assert (part.max(axis=1) > 2 * scenes.radius_NK[:, 0] - PIXEL).all()


def test_that_shares_of_none_and_all_hold() -> None:
    for share in (0.0, 1.0):
        spec = SMALL.model_copy(update={"crossings": share, "occluders": share})
        scenes = draw_scenes(spec, np.arange(50))
        assert (scenes.crosses_N == bool(share)).all()
        assert (scenes.occluder_N == bool(share)).all()
        assert (open_toy_video(spec).train.crossings(np.arange(5)) == bool(share)).all()


def test_that_counts_colors_and_shapes_all_occur(scenes: VideoScenes) -> None:
    assert sorted(set(scenes.number_N.tolist())) == [3, 4, 5]
    assert set(scenes.shape_NK.ravel().tolist()) == {0, 1, 2}
    assert set(scenes.color_NK.ravel().tolist()) == set(range(8))


def test_that_eight_objects_fit() -> None:
    spec = SMALL.model_copy(update={"min_objects": 8, "max_objects": 8, "crossings": 1.0, "occluders": 1.0})
    batch = open_toy_video(spec).train.read(np.arange(40), EVERY[:40])
    assert set(np.unique(batch.labels_BTSS)) == set(range(10))


def test_that_edges_are_antialiased(scenes: VideoScenes) -> None:
    few = draw_scenes(EVENTS, np.arange(6))
    coarse, fine = (draw_videos(few, EVERY[:6, :1], resolution=side)[0][:, 0].astype(float) for side in (64, 512))
    averaged = fine.reshape(6, 64, 8, 64, 8, 3).mean(axis=(2, 4))
    assert np.abs(averaged - coarse).max() < 70  # hard edges: above 100
    assert np.percentile(np.abs(averaged - coarse), 99) < 5


def test_that_geometry_scales_with_the_resolution(scenes: VideoScenes, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    few = draw_scenes(EVENTS, np.arange(20))
    large = draw_videos(few, EVERY[:20, :3], resolution=192)[1]
    assert (drawn[1][:20, :3] == large[:, :, 1::3, 1::3]).mean() > 0.998


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_objects": 5, "max_objects": 4}, "min_objects 5 is larger than max_objects 4"),
        ({"video_frames": 19, "crossings": 0.5}, "video_frames 19 is too short for crossings"),
        ({"min_objects": 2, "crossings": 0.5, "occluders": 0.5}, "min_objects 2 is too small"),
        ({"test": {"first": 9_999, "count": 10}}, "train and test share videos from 9999 on"),
    ],
)
def test_that_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ToyVideoSpec.model_validate(change)


def test_that_drawing_needs_neither_torch_nor_a_video_library() -> None:
    script = "import jobs.data.toy_video, sys\nprint([name for name in ('torch', 'av', 'PIL', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_that_no_videos_make_empty_arrays() -> None:
    batch = open_toy_video(SMALL).train.read(np.zeros(0, np.int64), np.zeros((0, 6), np.int64))
    assert batch.images_BTSS3.shape == (0, 6, 64, 64, 3)
    assert batch.labels_BTSS is not None
    assert batch.labels_BTSS.shape == (0, 6, 64, 64)
