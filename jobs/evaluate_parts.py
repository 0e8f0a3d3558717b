"""Scores a training run of a part model, piece by piece: what differs from other images in jobs/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jobs.attempt import Refused
from jobs.data.part_store import PartStore
from jobs.pieces import Pieces, joined
from jobs.scoring import Scored
from jobs.scoring_parts import EVALUATION, FIT, PartTruth, pooled_means, regression_means, score_parts
from models.slot_model import SlotModel
from models.spec_parts import PartSlotsSpec

PIECE_IMAGES = 1000
"""What a kill without notice costs at most."""


@dataclass(kw_only=True)
class PartEvaluation(Pieces):
    """Pieces of the test images and, where there are keypoints, of training images behind them, for the regression."""

    store: PartStore
    model: SlotModel
    test: PartTruth = field(init=False)
    fit: PartTruth = field(init=False)

    def __post_init__(self) -> None:
        """Raises Refused without test images, and DataError as `PartTruth.of`."""
        self.test, self.fit = PartTruth.of(self.store, "test"), PartTruth.of(self.store, "train")
        if not len(self.test.split):
            raise Refused("the data have no test images: give the `prepare` step some")

    @property
    def test_N(self) -> np.ndarray:  # noqa: N802  # the suffix is the shape
        """Numbers of the test images that are scored."""
        return np.arange(0, len(self.test.split), self.spec.every)

    @property
    def fit_N(self) -> np.ndarray:  # noqa: N802  # the suffix is the shape
        """Numbers of the training images whose part centres are found."""
        found, first = len(self.fit.split), self.store.manifest.fit_images
        return np.arange((found if first is None else min(first, found)) if self.fit.keypoints else 0)

    @property
    def count(self) -> int:
        """How many images that are."""
        return len(self.test_N) + len(self.fit_N)

    @property
    def piece_size(self) -> int:
        """As PIECE_IMAGES says."""
        return PIECE_IMAGES

    @property
    def batch_size(self) -> int:
        """As the specification says."""
        return self.spec.batch_size

    @property
    def noise_seeds(self) -> tuple[int, ...]:
        """One alone where nothing is drawn."""
        model = self.trained.model
        drawn = not isinstance(model, PartSlotsSpec) or model.start == "gaussian"
        return self.spec.noise_seeds if drawn else self.spec.noise_seeds[:1]

    def score(self, noise_seed: int, first: int, count: int, *, keep: int) -> Scored:
        """Score images; a batch that reaches into the training images is cut there, on any number of ranks alike."""
        found: list[Scored] = []
        tested, size, device = len(self.test_N), self.batch_size, self.group.device
        for start in range(first, first + count, size):
            stop, left = min(start + size, first + count), keep - sum(len(one.parts) for one in found)
            test_B, fit_B = self.test_N[start:stop], self.fit_N[max(0, start - tested) : max(0, stop - tested)]
            for truth, images, purpose in ((self.test, test_B, EVALUATION), (self.fit, fit_B, FIT)):
                found.append(
                    score_parts(
                        self.model,
                        truth,
                        images,
                        noise_seed=noise_seed,
                        batch_size=size,
                        device=device,
                        purpose=purpose,
                        keep=max(0, left),
                    )
                )
        return joined(found, keep=keep) if count else Scored(per_image={}, objects_N=np.zeros(0, np.int64))

    def means(self, per_image: dict[str, np.ndarray]) -> dict[str, float]:
        """Scores of the whole test set at once."""
        tested = len(self.test_N)
        test, fit = ({name: column_N[rows] for name, column_N in per_image.items()} for rows in (np.s_[:tested], np.s_[tested:]))
        found = pooled_means(test)
        if len(self.fit_N):
            places = self.fit.places(self.fit_N, fit), self.test.places(self.test_N, test)
            found |= regression_means(*places, eye_distance=self.test.eye_distance)
        return found

    def counts(self) -> dict[str, float]:
        """Images, and those that the regression was fitted on."""
        counts = {"eval/images": float(len(self.test_N))}
        return counts | {"eval/fit_images": float(len(self.fit_N))} if len(self.fit_N) else counts
