"""Scores a training run on whole videos, piece by piece: what differs from images in jobs/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.data.video import Int64, Videos
from jobs.pieces import Pieces
from jobs.scoring import Scored
from jobs.scoring_video import NoiseSource, score_videos
from models.video_slots import VideoSlots

PIECE_FRAMES = 1000
"""About what a kill without notice costs at most; a piece is at least one video."""


@dataclass(kw_only=True)
class VideoEvaluation(Pieces):
    """Pieces of whole videos."""

    model: VideoSlots
    videos: Videos

    @property
    def chosen_N(self) -> Int64:  # noqa: N802  # the suffix is the shape
        """Numbers of the videos that are scored."""
        return np.arange(0, self.videos.count, self.spec.every)

    @property
    def count(self) -> int:
        """How many that are."""
        return len(self.chosen_N)

    @property
    def piece_size(self) -> int:
        """As many whole videos as PIECE_FRAMES holds."""
        return max(1, PIECE_FRAMES // self.videos.video_frames)

    @property
    def batch_size(self) -> int:
        """Videos whose chunks make the specification's number of frames."""
        return max(1, self.spec.batch_size // min(self.spec.chunk, self.videos.video_frames))

    @property
    def noise_seeds(self) -> tuple[int, ...]:
        """One alone where nothing is drawn."""
        return self.spec.noise_seeds[:1] if self.spec.noise == "fixed" else self.spec.noise_seeds

    def score(self, noise_seed: int, first: int, count: int, *, keep: int) -> Scored:
        """Score videos; of the first `keep` a film is kept."""
        return score_videos(
            self.model,
            self.videos,
            self.chosen_N[first : first + count],
            noise=NoiseSource(self.spec.noise, self.model.eval_noise_KD),
            noise_seed=noise_seed,
            batch_size=self.batch_size,
            chunk=self.spec.chunk,
            device=self.group.device,
            keep=keep,
            beat=self.watchdog.beat,
        )

    def counts(self) -> dict[str, float]:
        """Videos, and those without an object where masks are known."""
        counts = {"eval/videos": float(self.count)}
        if self.videos.has_labels:
            counts["eval/videos_without_objects"] = float(self.progress.without_objects)
        return counts
