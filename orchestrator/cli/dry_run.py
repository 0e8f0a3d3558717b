"""`orch submit SWEEP --dry-run`: every distinct cell through its whole life in miniature; what fails, fails here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from jobs.data_spec import ClipsSpec, CocoSpec, ToyClevrSpec
from jobs.spec import EmbedSpec, PrepareSpec, TrainSpec
from orchestrator.errors import Problem, RunsFailed
from orchestrator.rehearsal import Chain, distinct_chains, in_warm_process
from orchestrator.sweep.plan import Plan, PlannedRun

MIB = 2**20
FRAMES = 34
"""Of a pick-and-place clip."""


def batch_size(chain: Chain) -> int:
    """Images per step of the chain's training run (8 when it trains nothing)."""
    return max([run.spec.batch_size for run in chain.runs.values() if isinstance(run.spec, TrainSpec)], default=8)


def request(chains: list[Chain], folder: Path) -> dict[str, Any]:
    """What the warm process is asked for: each chain's configurations, cut short."""
    from jobs.rehearsal_config import shorten

    asked: list[dict[str, Any]] = []
    for chain in chains:
        size = batch_size(chain)
        names = {run.id: f"{run.id}-b{size}" if run.kind in ("prepare", "embed") else run.id for run in chain.runs.values()}
        steps = [
            {
                "name": step, "id": names[run.id], "kind": run.kind,
                "config": shorten(run.spec.model_dump(mode="json"), batch_size=size),
                "needs": {kind: names[need] for kind, need in run.needs.items()},
            }
            for step, run in chain.runs.items()
        ]  # fmt: skip
        asked.append({"name": chain.name, "steps": steps})
    return {"folder": str(folder), "chains": asked}


def gpus(run: PlannedRun) -> int:
    """Devices that a run occupies (1 when it asks for none: then hours are those of one CPU process)."""
    return max(1, int(run.resources.get("gpus_per_node") or 1)) * int(run.resources.get("nodes") or 1)


def hours(run: PlannedRun, found: Mapping[str, Any]) -> float | None:
    """Projected device-hours of the whole run at the measured step time; None when nothing was measured."""
    if not isinstance(run.spec, TrainSpec) or not found.get("step_s"):
        return None
    return run.spec.steps * float(found["step_s"]) / 3600 * gpus(run)


def prepared_by(chain: Chain, run: PlannedRun) -> PrepareSpec:
    """The data that a run reads."""
    spec = next(one.spec for one in chain.runs.values() if one.id == run.needs["prepare"])
    assert isinstance(spec, PrepareSpec)
    return spec


def image_counts(spec: PrepareSpec) -> tuple[int, int]:
    """Training and validation images of a whole data set: what lies in COCO's folders, what a generator makes, or the frames of
    clips (of a folder's lists: clips with too many objects are left out later)."""
    data = spec.data
    if isinstance(data, ToyClevrSpec):
        return data.train.count * FRAMES, data.test.count * FRAMES
    if isinstance(data, ClipsSpec):
        lists = (Path(data.path) / name for name in ("train_annos.json", "val_annos.json"))
        clips_train, clips_val = (len(json.loads(path.read_text(encoding="utf-8"))) for path in lists)
        return clips_train * FRAMES, clips_val * FRAMES
    assert isinstance(data, CocoSpec)
    if data.generator is not None:
        found = (data.generator.train_images, data.generator.val_images)
    else:
        assert data.path is not None
        names = (os.listdir(Path(data.path) / folder) for folder in ("train2017", "val2017"))
        train, val = (sum(name.endswith(".jpg") for name in folder) for folder in names)
        found = (train, val)
    return min(found[0], data.max_train or found[0]), min(found[1], data.max_val or found[1])


def embed_bytes(spec: EmbedSpec, prepared: PrepareSpec) -> int:
    """Size of the whole feature store (at most: some images may be left out); of images=none nothing is counted."""
    if spec.images == "none":
        return 0
    train, val = image_counts(prepared)
    copies = train * (2 if spec.flips else 1) + val
    return copies * spec.backbone.tokens * spec.backbone.feature_size * (4 if spec.dtype == "fp32" else 2)


def embed_cost(spec: EmbedSpec, prepared: PrepareSpec, found: Mapping[str, Any], *, gpus: int) -> str:
    """Bytes and time of an embed run over the whole data set, at the rate measured here (sentences are few beside images)."""
    if spec.images == "none":
        return "sentences alone (images=none)"
    train, val = image_counts(prepared)
    copies = train * (2 if spec.flips else 1) + val
    size = embed_bytes(spec, prepared)
    shown = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
    what = f"whole data set: {train:,} training images{' and their mirrors' if spec.flips else ''}, {val:,} validation, {shown}"
    rate = found.get("images_per_s")
    if not rate:
        return what
    hours = copies / float(rate) / 3600 / gpus
    time = f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    return f"{what}, about {time} at {float(rate):{',.0f' if rate >= 10 else '.2g'}} images/s per process"


def disk_bytes(run: PlannedRun, found: Mapping[str, Any]) -> int:
    """Checkpoints that a run keeps, plus one being written."""
    keep = run.spec.runtime.keep_checkpoints if isinstance(run.spec, TrainSpec) else 1
    return int(found.get("checkpoint_bytes", 0)) * (keep + 1)


def lines_of(chain: Chain, report: Mapping[str, Any]) -> list[str]:
    """One chain in words: a line of figures, or the reason why it would fail."""
    title = chain.name + (f" (+{len(chain.cells) - 1} that differ only in seed)" if len(chain.cells) > 1 else "")
    lines = [title]
    for step, found in report["steps"].items():
        run = chain.runs[step]
        if "error" in found:
            lines.append(f"  {step}: FAILS: {found['error']}")
            continue
        if found.get("reused"):
            continue
        parts = [f"  {step}: ok"]
        if found.get("parameters"):
            parts.append(f"{found['parameters']:,} parameters")
        if run.kind == "train":
            parts.append(f"peak {found['peak_mib']:.0f} MiB")
        stepwise = getattr(run.spec, "steps", 0) > 0
        if stepwise and found.get("step_s"):
            parts.append(f"{found['step_s']:.3f} s/step")
        if stepwise and found.get("checkpoint_bytes"):
            parts.append(f"checkpoint {found['checkpoint_bytes'] / MIB:.2f} MiB in {found['checkpoint_s']:.2f} s")
        if "differences" in found:
            count = len(found["differences"])
            parts.append("restored bit for bit" if not count else f"{count} DIFFERENCES after restore: {found['differences'][0]}")
        if isinstance(run.spec, EmbedSpec):
            parts.append(embed_cost(run.spec, prepared_by(chain, run), found, gpus=gpus(run)))
        projected = hours(run, found)
        if projected is not None:
            parts.append(f"{projected:.1f} h for {run.spec.steps:,} steps" if isinstance(run.spec, TrainSpec) else "")
        lines.append(", ".join(part for part in parts if part))
        if found.get("loader") and found.get("step_s"):
            lines.append("  " + loader_line(found["loader"], batch_size(chain) / float(found["step_s"])))
    return lines


def loader_line(rates: Mapping[str, float], needed: float) -> str:
    """Images/s by worker count, and the fewest workers that feed the step with room to spare."""
    enough = [int(workers) for workers, rate in rates.items() if rate >= 1.5 * needed]
    advice = min(enough) if enough else int(max(rates, key=lambda workers: rates[workers]))
    shown = ", ".join(f"{workers}: {rate:,.0f}" for workers, rate in rates.items())
    return f"loader images/s by workers: {shown}; a step needs {needed:,.0f}: runtime.workers={advice}"


def failed(report: Mapping[str, Any]) -> bool:
    """Whether a chain would fail, or is not restored exactly."""
    return any("error" in found or found.get("differences") for found in report["steps"].values())


def rehearse(made: Plan) -> None:
    """Run the rehearsal and print it; raises RunsFailed when a cell would fail."""
    chains = distinct_chains(made)
    click.echo(f"{len(made.cells)} cells, {len(made.runs)} runs, {len(chains)} distinct pipelines (seeds apart)", err=True)
    bad: list[str] = []
    total_hours, total_disk, unknown = 0.0, 0, 0
    for chain, report in zip(chains, in_warm_process("jobs.rehearse", lambda folder: request(chains, folder)), strict=False):
        for line in lines_of(chain, report):
            click.echo(line)
        if failed(report):
            bad.append(chain.name)
        for step, found in report["steps"].items():
            run = chain.runs[step]
            projected = hours(run, found)
            trains = isinstance(run.spec, TrainSpec) and run.spec.steps > 0
            unknown += trains and projected is None and not found.get("reused")
            total_hours += (projected or 0.0) * len(chain.cells)
            if not found.get("reused"):
                total_disk += disk_bytes(run, found) * len(chain.cells)
    click.echo(
        f"projected for the sweep: {total_hours:.1f} device-hours as measured on this machine, "
        f"{total_disk / MIB:,.0f} MiB of checkpoints" + (f" ({unknown} pipelines without a measurement)" if unknown else "")
    )
    if bad:
        raise RunsFailed(
            Problem(what=f"{len(bad)} of {len(chains)} pipelines would fail: {', '.join(bad[:5])}", hint="nothing was queued")
        )
    click.echo("every distinct cell ran, was killed, restored and evaluated; nothing was queued")
