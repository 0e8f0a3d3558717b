"""Score one training run on held-out images, over several named noise seeds. A run of its own, preemptible per piece.

A piece is one noise seed on at most PIECE_IMAGES images, an index range. Ranks share each piece by whole batches, in order, and
rank 0 puts their scores one behind the other: no image counts twice, and every batch is what one process would have made of it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from jobs import panels, plots, ranks
from jobs.attempt import Finished, Refused, Run, Superseded
from jobs.contract import write_atomically
from jobs.data.sampler import share
from jobs.distributed import Group, join, leave_together
from jobs.inputs import images_of, needed_run, open_samples, open_store
from jobs.protocols import LabelSet, label_set
from jobs.randomness import derived_seed
from jobs.samples import Pixels, Samples
from jobs.scoring import Scored, mean_scores, score_images
from jobs.spec import EvaluateSpec, TrainSpec
from jobs.state import WEIGHTS
from jobs.watchdog import Watchdog
from models.build import build_model
from models.slot_model import SlotModel
from models.spec import DinosaurSpec

PIECE_IMAGES = 1000
"""What a kill without notice costs at most."""


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

    def finish(self, noise_seed: int) -> None:
        """Average a noise seed's pieces."""
        whole = {name: np.concatenate([piece[name] for piece in self.pieces]) for name in self.pieces[0]}
        self.per_seed[str(noise_seed)] = mean_scores(whole)
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


def load_trained(run: Run, device: torch.device) -> tuple[SlotModel, TrainSpec]:
    """The model of the needed training run, with its weights."""
    needed, spec = needed_run(run, "train")
    assert isinstance(spec, TrainSpec)
    generator = torch.Generator().manual_seed(derived_seed(spec.seed, "weights") % 2**63)
    model = build_model(spec.model, generator=generator)
    model.load_state_dict(torch.load(needed.output / WEIGHTS, map_location="cpu", weights_only=True))
    return model.to(device).eval(), spec


def summarise(per_seed: dict[str, dict[str, float]]) -> dict[str, float]:
    """noise seed -> score -> mean over images: the mean over seeds, and their sd as `<score>_noise_sd`."""
    values: dict[str, float] = {}
    for name in next(iter(per_seed.values())):
        found = [scores[name] for scores in per_seed.values() if not math.isnan(scores[name])]
        if found:
            values[f"eval/{name}"] = statistics.fmean(found)
            values[f"eval/{name}_noise_sd"] = statistics.stdev(found) if len(found) > 1 else 0.0
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
    objects_N = np.concatenate([part.objects_N for part in parts])
    return Scored(per_image=per_image, objects_N=objects_N, kept=[look for part in parts for look in part.kept][:keep])


@dataclass(kw_only=True)
class Evaluation:
    """One rank's share of one attempt."""

    run: Run
    spec: EvaluateSpec
    group: Group
    watchdog: Watchdog
    model: SlotModel = field(init=False)
    trained: TrainSpec = field(init=False)
    samples: Samples = field(init=False)
    labels: LabelSet = field(init=False)
    pictures_NHWC: Pixels = field(init=False)
    progress: Progress = field(default_factory=Progress)
    """Rank 0's; what the others hold of it is nothing."""

    def __post_init__(self) -> None:
        self.model, self.trained = load_trained(self.run, self.group.device)
        store = open_store(self.run)
        self.labels = label_set(store, self.spec.protocol, every=self.spec.every)
        self.samples = open_samples(self.run, self.trained, store, "test", self.group.device)
        self.pictures_NHWC = images_of(store, "test")
        if not self.images:
            masks = len(self.labels.instances_NHW)
            raise Refused(f"protocol {self.spec.protocol} scores none of the {masks} test images")

    @property
    def images(self) -> int:
        """How many images the protocol scores."""
        return len(self.labels.scored())

    def pieces(self) -> list[tuple[int, int]]:
        """(noise seed, first image) of each piece, in order."""
        return [(seed, start) for seed in self.spec.noise_seeds for start in range(0, self.images, PIECE_IMAGES)]

    def restore(self) -> int:
        """Pieces that are done already, on every rank."""
        done = 0
        if self.run.is_main and (restored := self.run.restore_point()) is not None:
            self.progress, done = Progress.load(restored.path), restored.step
        return self.group.tell_number(done)

    def steps(self, done: int) -> None:
        """Score the pieces from number `done` on, each with a checkpoint; leave in between when told to."""
        pieces = self.pieces()
        for position in range(done, len(pieces)):
            self.watchdog.beat()
            stop, _ = self.group.agree(position, stop=bool(self.run.flag), save=False)
            if stop:
                leave_together(self.run, self.group, position)
            noise_seed, start = pieces[position]
            scored = self._score(noise_seed, start, keep=self.spec.panel_images if position == 0 else 0)
            if scored is None:
                continue
            self.progress.add(scored, first_seed=noise_seed == pieces[0][0])
            if position + 1 == len(pieces) or pieces[position + 1][0] != noise_seed:
                self.progress.finish(noise_seed)
            panels.save_panel(scored.kept, self.run.run_dir.artifacts / "masks.png")
            self.run.checkpoint(position + 1, self.progress.save)

    def _score(self, noise_seed: int, start: int, *, keep: int) -> Scored | None:
        """The scores of a piece on rank 0; None on the others, which have sent it theirs."""
        gated = isinstance(self.trained.model, DinosaurSpec) and self.trained.model.gate is not None
        batch_size = self.spec.batch_size
        first, count = share_of_piece(
            start,
            min(PIECE_IMAGES, self.images - start),
            batch_size=batch_size,
            rank=self.group.rank,
            world_size=self.group.world_size,
        )
        mine = score_images(
            self.model,
            self.samples,
            self.labels,
            noise_seed=noise_seed,
            batch_size=batch_size,
            device=self.group.device,
            first=first,
            count=count,
            gate_noise=not gated or self.spec.gate == "noisy",
            text_swap=True,
            pictures_NHWC=self.pictures_NHWC,
            keep=keep,
        )
        parts = self.group.collect(mine)
        return joined(parts, keep=keep) if parts else None

    def finish(self) -> Finished:
        """The means, written down (rank 0)."""
        assert self.run.journal is not None
        progress, pieces = self.progress, len(self.pieces())
        plots.save_kept_slots(progress.kept, self.run.run_dir.artifacts)
        counts = {"eval/images": float(self.images)}
        if self.labels.has_masks:
            counts["eval/images_without_objects"] = float(progress.without_objects)
        values = summarise(progress.per_seed) | counts
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


def evaluate(run: Run) -> Finished:
    """Mean scores over images and noise seeds; output is `output/scores.json`, and pictures among the artifacts."""
    spec = run.frozen.config
    assert isinstance(spec, EvaluateSpec)
    group = join(run, precision="fp32", timeout_s=spec.runtime.hang_timeout_s)  # whatever the run was trained in
    if run.is_main:
        ranks.withdraw(run.run_dir, run.ranks)  # everybody is here
    watchdog = Watchdog(timeout_s=spec.runtime.hang_timeout_s, on_hang=run.end_hung).start()
    try:
        evaluation = Evaluation(run=run, spec=spec, group=group, watchdog=watchdog)
        evaluation.steps(evaluation.restore())
        found = evaluation.finish() if run.is_main else Finished(step=0)
        group.tell("done")  # nobody leaves while another rank still needs it
        group.close()
    finally:
        watchdog.stop()
    return found
