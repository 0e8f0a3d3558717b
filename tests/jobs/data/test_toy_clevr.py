"""Toy-CLEVR: a frame is a function of (seed, clip, frame), looks like what its sentence says, and never changes."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from jobs.data.clips_actions import COLORS, FRAMES, NOT_NAMED, PHASE_OF_FRAME, SHAPES, Phase, Relation
from jobs.data.clips_frames import FrameBatch
from jobs.data.toy_clevr import ToyClevrFrames, open_toy_clevr
from jobs.data.toy_clevr_draw import RGB, draw_frames
from jobs.data.toy_clevr_scene import HALF_SIZES, SCRIPTS, Scenes, draw_scenes
from jobs.data_spec import RecordRange, ToyClevrSpec

SMALL = ToyClevrSpec(seed=3, resolution=64, train=RecordRange(first=0, count=40), test=RecordRange(first=40, count=10))
CLIPS = 300


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_scenes(SMALL, np.arange(CLIPS))


@pytest.fixture(scope="module")
def last_labels(scenes: Scenes) -> dict[int, np.ndarray]:
    """Masks of every clip at the last frame of both moves."""
    return {frame: draw_frames(scenes, np.full(CLIPS, frame), resolution=64)[1] for frame in (20, 33)}


def digest(batch: FrameBatch) -> str:
    arrays = (batch.images_BSS3, batch.labels_BSS, batch.sentences_B, batch.named_B2)
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


@pytest.mark.parametrize(("resolution", "expected"), [(64, "3b694f2bd0e83b5f"), (224, "edf749e4aa19d035")])
def test_that_the_frames_of_a_seed_never_change(resolution: int, expected: str) -> None:
    frames = open_toy_clevr(ToyClevrSpec(seed=0, resolution=resolution)).train
    assert digest(frames.read(np.array([0, 3, 14, 20, 33, 5 * FRAMES + 27, 15_999 * FRAMES + 9]))) == expected


def test_that_a_frame_does_not_depend_on_what_else_is_read() -> None:
    frames = open_toy_clevr(SMALL).train
    indices = np.random.default_rng(0).integers(0, frames.count, 50)
    together = frames.read(indices)
    for row in (0, 31, 32, 49):
        alone = frames.read(indices[row : row + 1])
        assert np.array_equal(alone.images_BSS3[0], together.images_BSS3[row])
        assert np.array_equal(alone.labels_BSS[0], together.labels_BSS[row])
        assert alone.sentences_B[0] == together.sentences_B[row]
        assert alone.named_B2[0].tolist() == together.named_B2[row].tolist()


def test_that_the_test_split_goes_on_in_the_same_series() -> None:
    shifted = SMALL.model_copy(update={"train": RecordRange(first=40, count=10), "test": RecordRange(first=0, count=1)})
    assert digest(open_toy_clevr(SMALL).test.read(np.arange(20))) == digest(open_toy_clevr(shifted).train.read(np.arange(20)))


def test_that_seeds_and_clips_differ() -> None:
    made = {
        digest(open_toy_clevr(ToyClevrSpec(seed=seed, resolution=64)).train.read(np.array([clip * FRAMES])))
        for seed in (0, 1)
        for clip in (0, 1, 2)
    }
    assert len(made) == 6


@pytest.mark.parametrize("index", [-1, 40 * FRAMES])
def test_that_a_frame_out_of_range_is_an_error(index: int) -> None:
    frames = open_toy_clevr(SMALL).train
    assert frames.count == 40 * FRAMES
    with pytest.raises(IndexError, match=f"frame {index} does not exist; there are 1360"):
        frames.read(np.array([0, index]))


def test_that_arrays_have_the_promised_types_and_shapes() -> None:
    frames = open_toy_clevr(SMALL).train
    batch = frames.read(np.arange(5))
    assert (batch.images_BSS3.shape, batch.images_BSS3.dtype) == ((5, 64, 64, 3), np.uint8)
    assert (batch.labels_BSS.shape, batch.labels_BSS.dtype) == ((5, 64, 64), np.uint8)
    assert (batch.sentences_B.shape, batch.sentences_B.dtype) == ((5,), np.int64)
    assert (batch.named_B2.shape, batch.named_B2.dtype) == ((5, 2), np.int64)
    assert frames.has_labels
    assert frames.resolution == 64


def box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """left, top, right, bottom of what is visible, in parts of the side."""
    rows, columns = np.nonzero(mask)
    return columns.min() / 64, rows.min() / 64, (columns.max() + 1) / 64, (rows.max() + 1) / 64


@pytest.mark.parametrize("frame", [20, 33])
def test_that_relations_are_true_in_the_picture_after_the_move(
    scenes: Scenes, last_labels: dict[int, np.ndarray], frame: int
) -> None:
    seen: Counter[Relation] = Counter()
    for clip in range(CLIPS):
        actions = scenes.actions(clip)
        first = frame == 20
        relation, source, other = (actions.first, 2, 1) if first else (actions.second, 3, actions.reference)
        moved, fixed = (last_labels[frame][clip] == number for number in (source, other))
        assert min(moved.sum(), fixed.sum()) >= 10
        (left, top, right, bottom), (left_of, top_of, right_of, bottom_of) = box(moved), box(fixed)
        middle, middle_of = (left + right) / 2, (left_of + right_of) / 2
        seen[relation] += 1
        match relation:
            case Relation.LEFT:
                assert middle < middle_of - 0.1
            case Relation.RIGHT:
                assert middle > middle_of + 0.1
            case Relation.ON_TOP:
                assert abs(middle - middle_of) < 0.07
                assert abs(bottom - top_of) < 0.04
            case Relation.IN_FRONT:
                assert abs(middle - middle_of) < 0.07
                assert bottom > bottom_of
            case Relation.BEHIND:
                assert abs(middle - middle_of) < 0.07
                assert bottom < bottom_of
                assert top < top_of
    assert min(seen[relation] for relation in Relation) > CLIPS / 20


def test_that_every_object_is_visible_after_a_move(scenes: Scenes, last_labels: dict[int, np.ndarray]) -> None:
    for labels_NSS in last_labels.values():
        for clip, number in enumerate(scenes.number_N.tolist()):
            assert np.bincount(labels_NSS[clip].ravel(), minlength=number + 1).min() >= 10


def test_that_only_the_acting_object_moves_in_a_phase(scenes: Scenes) -> None:
    movers = {Phase.LIFT: 0, Phase.PUT_DOWN: 0, Phase.FIRST_MOVE: 1, Phase.SECOND_MOVE: 2}
    for frame in range(1, FRAMES):
        (foot, height), (foot_before, height_before) = (scenes.positions(np.full(CLIPS, at)) for at in (frame, frame - 1))
        moved = (np.abs(foot - foot_before).max(axis=2) > 1e-12) | (np.abs(height - height_before) > 1e-12)
        mover = movers[PHASE_OF_FRAME[frame]]
        assert moved[:, mover].all()
        assert not np.delete(moved, mover, axis=1).any()


def test_that_the_lifted_object_is_up_after_phase_0_and_down_after_phase_1(scenes: Scenes) -> None:
    heights = [scenes.positions(np.full(CLIPS, frame))[1][:, 0] for frame in (0, 3, 7, 20)]
    assert (heights[0] < heights[1]).all()
    assert (heights[1] > 0.1).all()
    assert not heights[2].any()
    assert not heights[3].any()


def test_that_objects_start_on_the_ground_apart_from_each_other(scenes: Scenes) -> None:
    for clip in range(CLIPS):
        feet = scenes.foot_NK2[clip, : scenes.number_N[clip]]
        gaps = np.abs(feet[:, None] - feet[None])[~np.eye(len(feet), dtype=bool)]
        assert (gaps.max(axis=1) > 0.11).all()
        assert ((feet > 0.1) & (feet < 0.9)).all()


def test_that_counts_colors_shapes_and_sizes_all_occur_and_no_name_twice(scenes: Scenes) -> None:
    counts = Counter(scenes.number_N.tolist())
    assert sorted(counts) == [3, 4, 5, 6]
    assert min(counts.values()) > CLIPS / 6
    nouns = [scenes.nouns(clip) for clip in range(CLIPS)]
    assert all(len(set(named)) == len(named) for named in nouns)
    assert {noun.color for named in nouns for noun in named} == set(COLORS)
    assert {noun.shape for named in nouns for noun in named} == set(SHAPES)
    assert set(scenes.size_NK[:, 0].tolist()) == {0, 1}


def test_that_the_mask_of_an_object_has_its_color_and_size(scenes: Scenes) -> None:
    images, labels = draw_frames(scenes, np.zeros(CLIPS, np.int64), resolution=64)
    for clip in range(40):
        for slot, noun in enumerate(scenes.nouns(clip)):
            inside = labels[clip] == slot + 1
            if inside.sum() < 40:
                continue
            mean = images[clip][inside].mean(axis=0)
            near = min(RGB, key=lambda color: float(np.abs(np.array(RGB[color]) - mean).sum()))
            assert near == noun.color
            assert inside.sum() <= (2.4 * HALF_SIZES[scenes.size_NK[clip, slot]] * 64) ** 2
        assert set(np.unique(labels[clip])) <= set(range(int(scenes.number_N[clip]) + 1))


def test_that_edges_are_antialiased() -> None:
    scenes = draw_scenes(SMALL, np.arange(4))
    coarse, fine = (draw_frames(scenes, np.zeros(4, np.int64), resolution=side)[0].astype(float) for side in (96, 480))
    averaged = fine.reshape(4, 96, 5, 96, 5, 3).mean(axis=(2, 4))
    assert np.percentile(np.abs(averaged - coarse), 99) < 5  # hard edges: 26


def test_that_light_falls_from_the_upper_left() -> None:
    images, labels = draw_frames(draw_scenes(SMALL, np.arange(4)), np.zeros(4, np.int64), resolution=96)
    for clip in range(4):
        rows, columns = np.nonzero(labels[clip] == labels[clip].max())
        brightness = images[clip].sum(axis=2)[rows, columns]
        upper_left = rows + columns < (rows + columns).mean()
        assert brightness[upper_left].mean() > 1.05 * brightness[~upper_left].mean()


def test_that_geometry_scales_with_the_resolution() -> None:
    scenes = draw_scenes(SMALL, np.arange(20))
    frame = np.full(20, 20)
    (_, small), (_, large) = (draw_frames(scenes, frame, resolution=side) for side in (64, 192))
    for number in range(1, 7):
        assert np.abs((small == number).mean(axis=(1, 2)) - (large == number).mean(axis=(1, 2))).max() < 0.004
    assert (small == large[:, 1::3, 1::3]).mean() > 0.995


@pytest.mark.parametrize("nearer", [0, 1])
def test_that_a_nearer_object_hides_a_farther_one(scenes: Scenes, nearer: int) -> None:
    foot_NK2 = scenes.foot_NK2.copy()
    foot_NK2[:, :2] = 0.5
    foot_NK2[:, nearer, 1] = 0.53
    foot_NK2[:, 2:] = 0.1
    labels_NSS = draw_frames(dataclasses.replace(scenes, foot_NK2=foot_NK2), np.full(CLIPS, 7), resolution=64)[1]
    rows_N = ((0.53 - scenes.half_heights[:, nearer]) * 64).astype(int)
    assert (labels_NSS[np.arange(CLIPS), rows_N, 32] == nearer + 1).all()


@pytest.mark.parametrize("fine_grained", [True, False])
def test_that_sentences_and_named_objects_follow_the_phase(fine_grained: bool) -> None:
    data = open_toy_clevr(SMALL.model_copy(update={"fine_grained": fine_grained}))
    scenes = draw_scenes(SMALL, np.arange(40))
    for clip in (0, 1, 7):
        batch = data.train.read(np.arange(clip * FRAMES, (clip + 1) * FRAMES))
        nouns, actions = scenes.nouns(clip), scenes.actions(clip)
        words = {0: "on top of", 1: "in front of", 2: "to the right of", 3: "to the left of", 4: "behind"}
        other = nouns[actions.reference - 1]
        expected = [
            f"lift up the {nouns[0].color} {nouns[0].shape}",
            f"put down the {nouns[0].color} {nouns[0].shape}",
            f"put the {nouns[1].color} {nouns[1].shape} {words[actions.first]} the {nouns[0].color} {nouns[0].shape}",
            f"put the {nouns[2].color} {nouns[2].shape} {words[actions.second]} the {other.color} {other.shape}",
        ]
        ends = {0: 3, 1: 7, 2: 20, 3: 33}
        for frame in range(FRAMES):
            phase = next(phase for phase, end in ends.items() if frame <= end)
            text = data.texts.text(int(batch.sentences_B[frame]))
            assert text == (expected[phase] if fine_grained else ", ".join(expected))
            named = [[1, NOT_NAMED], [1, NOT_NAMED], [2, 1], [3, actions.reference]][phase]
            assert batch.named_B2[frame].tolist() == named


def test_that_no_script_puts_two_objects_in_one_place() -> None:
    assert len(SCRIPTS) == 37
    assert Counter(script.actions.first for script in SCRIPTS).keys() == set(Relation)
    assert Counter(script.actions.second for script in SCRIPTS).keys() == set(Relation)
    for script in SCRIPTS:
        actions = script.actions
        assert not (actions.reference == 1 and actions.first == actions.second)


def test_that_more_objects_than_six_fit() -> None:
    spec = SMALL.model_copy(update={"min_n_objects": 8, "max_n_objects": 8})
    frames: ToyClevrFrames = ToyClevrFrames(spec=spec, clips=spec.train, texts=open_toy_clevr(spec).texts)
    assert set(np.unique(frames.read(np.arange(0, frames.count, FRAMES)).labels_BSS)) == set(range(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_n_objects": 5, "max_n_objects": 4}, "min_n_objects 5 is larger than max_n_objects 4"),
        ({"min_n_objects": 2}, "greater than or equal to 3"),
        ({"test": {"first": 15_999, "count": 10}}, "train and test share clips from 15999 on"),
    ],
)
def test_that_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ToyClevrSpec.model_validate(change)


def test_that_drawing_needs_neither_torch_nor_a_video_library() -> None:
    script = "import jobs.data.toy_clevr, sys\nprint([name for name in ('torch', 'av', 'PIL', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
