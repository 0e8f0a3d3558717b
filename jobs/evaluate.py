"""Score one training run on held-out images, over several named noise seeds. A run of its own, preemptible per piece.

A piece is one noise seed on at most PIECE_IMAGES images. One process does it all: pieces are index ranges, so no image can
count twice.
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

from jobs import panels, plots
from jobs.attempt import Finished, Refused, Run, Superseded
from jobs.contract import write_atomically
from jobs.distributed import configure_precision
from jobs.inputs import images_of, needed_run, open_samples, open_store
from jobs.protocols import label_set
from jobs.randomness import derived_seed
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


def evaluate(run: Run) -> Finished:
    """Mean scores over images and noise seeds; output is `output/scores.json`, and pictures among the artifacts."""
    spec = run.frozen.config
    assert isinstance(spec, EvaluateSpec)
    torch.set_num_threads(spec.runtime.threads)
    configure_precision("fp32")  # whatever the run was trained in
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    restored = run.restore_point()
    assert run.journal is not None
    progress = Progress() if restored is None else Progress.load(restored.path)
    done = 0 if restored is None else restored.step
    model, trained = load_trained(run, device)
    store = open_store(run)
    labels = label_set(store, spec.protocol)
    samples = open_samples(run, trained, store, "test", device)
    pictures_NHWC = images_of(store, "test")
    gated = isinstance(trained.model, DinosaurSpec) and trained.model.gate is not None
    images = len(labels.scored())
    if not images:
        raise Refused(f"protocol {spec.protocol} scores none of the {len(labels.instances_NHW)} test images")
    starts = range(0, images, PIECE_IMAGES)
    pieces = [(seed, start) for seed in spec.noise_seeds for start in starts]

    watchdog = Watchdog(timeout_s=spec.runtime.hang_timeout_s, on_hang=run.end_hung).start()
    for position, (noise_seed, start) in enumerate(pieces):
        watchdog.beat()
        if run.flag:
            run.leave(position)
        if position < done:
            continue
        scored = score_images(
            model,
            samples,
            labels,
            noise_seed=noise_seed,
            batch_size=spec.batch_size,
            device=device,
            first=start,
            count=PIECE_IMAGES,
            gate_noise=not gated or spec.gate == "noisy",
            pictures_NHWC=pictures_NHWC,
            keep=spec.panel_images if position == 0 else 0,
        )
        progress.add(scored, first_seed=position < len(starts))
        if start == starts[-1]:
            progress.finish(noise_seed)
        panels.save_panel(scored.kept, run.run_dir.artifacts / "masks.png")
        run.checkpoint(position + 1, progress.save)
    watchdog.stop()

    plots.save_kept_slots(progress.kept, run.run_dir.artifacts)
    counts = {"eval/images": float(images), "eval/images_without_objects": float(progress.without_objects)}
    values = summarise(progress.per_seed) | counts
    run.journal.metrics(len(pieces), values)
    run.run_dir.output.mkdir(exist_ok=True)
    result = run.run_dir.output / "scores.json"
    if not run.owns():
        raise Superseded
    content = {"per_noise_seed": progress.per_seed, "values": values, "protocol": spec.protocol, "trained_steps": trained.steps}
    write_atomically(result, json.dumps(content, indent=1) + "\n")
    return Finished(step=len(pieces), values=values, files=(result,))
