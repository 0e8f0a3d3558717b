"""Score one training run on held-out images, over several named noise seeds. A run of its own, preemptible per seed."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import torch

from jobs import panels
from jobs.attempt import Finished, Refused, Run, Superseded
from jobs.contract import write_atomically
from jobs.data.store import ImageStore
from jobs.distributed import configure_precision
from jobs.randomness import derived_seed
from jobs.scoring import score_images
from jobs.spec import EvaluateSpec, FrozenRun, TrainSpec
from models.build import build_model
from models.slot_model import SlotModel


def load_trained(run: Run, device: torch.device) -> tuple[SlotModel, TrainSpec]:
    """The model of the needed training run, with its weights."""
    needed = run.run_dir.needed(run.frozen.needs["train"])
    spec = FrozenRun.model_validate_json(needed.spec.read_text(encoding="utf-8")).config
    if not isinstance(spec, TrainSpec):
        raise Refused(f"run {needed.id} is of kind {spec.kind!r}, not a training run")
    generator = torch.Generator().manual_seed(derived_seed(spec.seed, "weights") % 2**63)
    model = build_model(spec.model, generator=generator)
    model.load_state_dict(torch.load(needed.output / "model.pt", map_location="cpu", weights_only=True))
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
    """Mean scores over images and noise seeds; output is `output/scores.json`, and a panel among the artifacts."""
    spec = run.frozen.config
    assert isinstance(spec, EvaluateSpec)
    torch.set_num_threads(spec.runtime.threads)
    configure_precision("fp32")  # whatever the run was trained in
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    restored = run.restore_point()
    assert run.journal is not None
    per_seed: dict[str, dict[str, float]] = {}
    if restored is not None:
        per_seed = json.loads((restored.path / "scores.json").read_text(encoding="utf-8"))
    model, trained = load_trained(run, device)
    split = ImageStore.open(run.run_dir.needed(run.frozen.needs["prepare"]).output / "store").split("test")

    def write(folder: Path) -> None:
        (folder / "scores.json").write_text(json.dumps(per_seed), encoding="utf-8")

    for position, noise_seed in enumerate(spec.noise_seeds):
        if run.flag:
            run.leave(position)
        if str(noise_seed) in per_seed:
            continue
        scored = score_images(
            model,
            split.images,
            split.labels,
            noise_seed=noise_seed,
            batch_size=spec.batch_size,
            device=device,
            keep=spec.panel_images if position == 0 else 0,
        )
        per_seed[str(noise_seed)] = scored.means()
        panels.save_panel(scored.kept, run.run_dir.artifacts / "masks.png")
        run.checkpoint(position + 1, write)  # a kill without notice costs one noise seed at most
    values = summarise(per_seed) | {"eval/images": float(split.images.shape[0])}
    step = len(spec.noise_seeds)
    run.journal.metrics(step, values)
    run.run_dir.output.mkdir(exist_ok=True)
    result = run.run_dir.output / "scores.json"
    if not run.owns():
        raise Superseded
    content = {"per_noise_seed": per_seed, "values": values, "trained_steps": trained.steps}
    write_atomically(result, json.dumps(content, indent=1) + "\n")
    return Finished(step=step, values=values, files=(result,))
