"""Owns how an evaluation goes through its pieces: shares between ranks, checkpoints, means and spreads. Computes no score.

A piece is one noise seed on an index range of images or videos. Ranks share each piece by whole batches, in order, and rank 0
puts their scores one behind the other: nothing counts twice, and every batch is what one process would have made of it.
"""

from __future__ import annotations

import json
import math
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jobs import films, panels, part_panels, plots
from jobs.attempt import Finished, Run, Superseded
from jobs.contract import write_atomically
from jobs.data.sampler import share
from jobs.distributed import Group, leave_together
from jobs.journal import START
from jobs.scoring import Scored, mean_scores
from jobs.spec import EvaluateSpec, TrainSpec
from jobs.watchdog import Watchdog

Means = Callable[[dict[str, np.ndarray]], dict[str, float]]
"""Columns [N] of all images -> scores."""


@dataclass(kw_only=True)
class Progress:
    """What the finished pieces have found; all that a checkpoint holds."""

    per_seed: dict[str, dict[str, float]] = field(default_factory=dict)
    """Finished noise seed -> score -> mean over images."""
    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)
    """Per-image scores of the unfinished noise seed's pieces."""
    without_objects: int = 0
    """Images without an object, counted over the first noise seed."""
    kept: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(objects, kept slots) -> number of images, over all noise seeds; empty without a gate."""

    def add(self, scored: Scored, *, first_seed: bool) -> None:
        """Count one piece."""
        self.pieces.append(scored.per_image)
        if first_seed:
            self.without_objects += int((scored.objects_N == 0).sum())
        if "kept_slots" in scored.per_image:
            slots_N = scored.per_image["kept_slots"].round().astype(int)
            self.kept.update(zip(scored.objects_N.tolist(), slots_N.tolist(), strict=True))

    def finish(self, noise_seed: int, means: Means = mean_scores) -> None:
        """Make scores of a noise seed's pieces."""
        whole = {name: np.concatenate([piece[name] for piece in self.pieces]) for name in self.pieces[0]}
        self.per_seed[str(noise_seed)] = means(whole)
        self.pieces = []

    def save(self, folder: Path) -> None:
        """Write `scores.json`, and the unfinished seed's pieces as one array [scores, images] each."""
        kept = [[*pair, images] for pair, images in sorted(self.kept.items())]
        names = [list(piece) for piece in self.pieces]
        state = {"per_seed": self.per_seed, "without_objects": self.without_objects, "kept": kept, "pieces": names}
        (folder / "scores.json").write_text(json.dumps(state), encoding="utf-8")
        for number, piece in enumerate(self.pieces):
            np.save(folder / f"piece-{number}.npy", np.stack(list(piece.values())))

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """Read back what `save` wrote."""
        state = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        arrays = [np.load(folder / f"piece-{number}.npy", allow_pickle=False) for number in range(len(state["pieces"]))]
        return cls(
            per_seed=state["per_seed"],
            pieces=[dict(zip(names, rows, strict=True)) for names, rows in zip(state["pieces"], arrays, strict=True)],
            without_objects=state["without_objects"],
            kept=Counter({(objects, slots): images for objects, slots, images in state["kept"]}),
        )


def summarise(per_seed: dict[str, dict[str, float]]) -> dict[str, float]:
    """noise seed -> score -> mean over images: the mean over seeds, and of several their sd as `<score>_noise_sd`."""
    values: dict[str, float] = {}
    for name in next(iter(per_seed.values())):
        found = [scores[name] for scores in per_seed.values() if not math.isnan(scores[name])]
        if found:
            values[f"eval/{name}"] = statistics.fmean(found)
        if len(found) > 1:
            values[f"eval/{name}_noise_sd"] = statistics.stdev(found)
    return values


def share_of_piece(first: int, count: int, *, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """(first, count) of the images of a piece that a rank scores: whole batches of it, contiguous in rank order."""
    batches = share(math.ceil(count / batch_size), rank, world_size)
    begin, end = batches.start * batch_size, min(batches.stop * batch_size, count)
    return first + begin, max(0, end - begin)


def joined(parts: list[Scored], *, keep: int) -> Scored:
    """What ranks found, in rank order, as one."""
    parts = [part for part in parts if part.per_image]
    per_image = {name: np.concatenate([part.per_image[name] for part in parts]) for name in parts[0].per_image}
    return Scored(
        per_image=per_image,
        objects_N=np.concatenate([part.objects_N for part in parts]),
        kept=[look for part in parts for look in part.kept][:keep],
        films=[film for part in parts for film in part.films][:keep],
        parts=[look for part in parts for look in part.parts][:keep],
    )


@dataclass(kw_only=True)
class Pieces(ABC):
    """One rank's share of one attempt of an evaluation."""

    run: Run
    spec: EvaluateSpec
    group: Group
    watchdog: Watchdog
    trained: TrainSpec
    progress: Progress = field(default_factory=Progress)
    """Rank 0's; what the others hold of it is nothing."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many images or videos are scored."""

    @property
    @abstractmethod
    def piece_size(self) -> int:
        """How many of them make a piece, from data alone: what a kill without notice costs at most."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """How many of them are scored at a time."""

    @property
    def noise_seeds(self) -> tuple[int, ...]:
        """Draws of the noise over which means and spreads are taken."""
        return self.spec.noise_seeds

    @abstractmethod
    def score(self, noise_seed: int, first: int, count: int, *, keep: int) -> Scored:
        """Score `count` (maybe none) of them from the `first` on; of the first `keep` of these a picture is kept."""

    @abstractmethod
    def counts(self) -> dict[str, float]:
        """How many were scored, and without what."""

    def means(self, per_image: dict[str, np.ndarray]) -> dict[str, float]:
        """Scores of a noise seed from the columns of all its images, in order."""
        return mean_scores(per_image)

    def pieces(self) -> list[tuple[int, int]]:
        """(noise seed, first image) of each piece, in order."""
        return [(seed, start) for seed in self.noise_seeds for start in range(0, self.count, self.piece_size)]

    def restore(self) -> int:
        """Pieces that are done already, on every rank."""
        done = 0
        if self.run.is_main:
            if (restored := self.run.restore_point()) is not None:
                self.progress, done = Progress.load(restored.path), restored.step
            assert self.run.journal is not None
            self.run.journal.event(done, START, steps=len(self.pieces()))
            self.run.journal.flush()
        return self.group.tell_number(done)

    def steps(self, done: int) -> None:
        """Score the pieces from number `done` on, each with a checkpoint; leave in between when told to."""
        pieces = self.pieces()
        self.run.at_work(done)
        for position in range(done, len(pieces)):
            self.watchdog.beat()
            stop, _ = self.group.agree(position, stop=bool(self.run.flag), save=False)
            if stop:
                leave_together(self.run, self.group, position)
            noise_seed, start = pieces[position]
            scored = self._together(noise_seed, start, keep=self.spec.panel_images if position == 0 else 0)
            if scored is None:
                continue
            self.progress.add(scored, first_seed=noise_seed == pieces[0][0])
            if position + 1 == len(pieces) or pieces[position + 1][0] != noise_seed:
                self.progress.finish(noise_seed, self.means)
            panels.save_panel(scored.kept, self.run.run_dir.artifacts / "masks.png")
            part_panels.save_part_panel(scored.parts, self.run.run_dir.artifacts / "masks.png")
            films.save_films(scored.films, self.run.run_dir.artifacts)
            self.run.checkpoint(position + 1, self.progress.save)

    def _together(self, noise_seed: int, start: int, *, keep: int) -> Scored | None:
        """The scores of a piece on rank 0; None on the others, which have sent it theirs."""
        first, count = share_of_piece(
            start,
            min(self.piece_size, self.count - start),
            batch_size=self.batch_size,
            rank=self.group.rank,
            world_size=self.group.world_size,
        )
        parts = self.group.collect(self.score(noise_seed, first, count, keep=max(0, keep - (first - start))))
        return joined(parts, keep=keep) if parts else None

    def finish(self) -> Finished:
        """The means, written down (rank 0)."""
        assert self.run.journal is not None
        progress, pieces = self.progress, len(self.pieces())
        plots.save_kept_slots(progress.kept, self.run.run_dir.artifacts)
        values = summarise(progress.per_seed) | self.counts()
        self.run.journal.metrics(pieces, values)
        self.run.run_dir.output.mkdir(exist_ok=True)
        result = self.run.run_dir.output / "scores.json"
        if not self.run.owns():
            raise Superseded
        content = {
            "per_noise_seed": progress.per_seed,
            "values": values,
            "protocol": self.spec.protocol,
            "trained_steps": self.trained.steps,
        }
        write_atomically(result, json.dumps(content, indent=1) + "\n")
        return Finished(step=pieces, values=values, files=(result,))
