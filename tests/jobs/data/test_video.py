"""Training clips: where one begins is a function of (seed, epoch, video) and of nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from jobs.data.video import ClipWindows
from jobs.randomness import generator

WINDOWS = ClipWindows(seed=5, video_frames=24, clip_frames=6, frame_step=2)


def test_that_a_clip_is_a_function_of_seed_epoch_and_video() -> None:
    videos = np.random.default_rng(0).permutation(300)
    together = WINDOWS.frames(3, videos)
    for row in (0, 17, 299):
        again = ClipWindows(seed=5, video_frames=24, clip_frames=6, frame_step=2).frames(3, videos[row : row + 1])
        assert np.array_equal(again[0], together[row])
        start = int(generator(5, "clip", 3, int(videos[row])).integers(14))
        assert together[row].tolist() == [start + 2 * at for at in range(6)]


def test_that_epochs_seeds_and_videos_draw_anew() -> None:
    videos = np.arange(300)
    first = WINDOWS.frames(0, videos)
    other = ClipWindows(seed=6, video_frames=24, clip_frames=6, frame_step=2)
    for drawn in (WINDOWS.frames(1, videos), other.frames(0, videos), WINDOWS.frames(0, videos + 300)):
        assert 0.85 < (drawn[:, 0] != first[:, 0]).mean() < 1


def test_that_every_start_is_as_likely_and_none_leaves_the_video() -> None:
    assert WINDOWS.starts == 14
    frames = WINDOWS.frames(0, np.arange(2800))
    counts = np.bincount(frames[:, 0], minlength=14)
    assert len(counts) == 14
    assert counts.min() > 140
    assert frames.max() == 23


def test_that_global_random_state_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    WINDOWS.frames(0, np.arange(10))
    assert np.array_equal(before, np.random.get_state()[1])


def test_that_a_clip_as_long_as_its_video_begins_at_0() -> None:
    whole = ClipWindows(seed=0, video_frames=6, clip_frames=6)
    assert whole.frames(9, np.arange(4)).tolist() == [[0, 1, 2, 3, 4, 5]] * 4


def test_that_a_clip_longer_than_its_video_is_refused() -> None:
    with pytest.raises(ValueError, match="6 frames, 5 apart, do not fit into 24"):
        ClipWindows(seed=0, video_frames=24, clip_frames=6, frame_step=5)


def test_that_another_process_draws_the_same() -> None:
    script = (
        "import numpy as np\nfrom jobs.data.video import ClipWindows\n"
        "print(ClipWindows(seed=5, video_frames=24, clip_frames=6, frame_step=2).frames(2, np.arange(5))[:, 0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(WINDOWS.frames(2, np.arange(5))[:, 0].tolist())
