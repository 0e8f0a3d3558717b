"""`python -m jobs.rehearse REQUEST`: put each distinct pipeline through build, steps, checkpoint, kill, restore, evaluate.

The request is JSON: {"folder", "chains": [{"name", "steps": [{"name", "id", "kind", "config", "needs"}]}]}; the configurations
are already cut short (jobs.rehearsal_config). The job code is the real one, run in forks; the kill is a SIGKILL right after
the first checkpoint. One JSON object per chain goes to stdout.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import attempt, forks
from jobs.compare import differences, newest_state, output_differences
from jobs.contract import Attempt, ExitCode, RunDir, Status, read_outcome
from jobs.forks import Ended, make_run, start, wait
from jobs.journal import CHECKPOINT, read_journal
from jobs.preemption import Flag
from jobs.ranks import Ranks
from jobs.samples import ImageSamples, Samples
from jobs.spec import FrozenRun, TrainSpec

WORKERS = (0, 1, 2, 4)
LOADER_S = 1.0
"""Seconds of loading that are measured for each number of workers."""


def _kill_after_first_checkpoint() -> None:
    """In the fork: the first checkpoint is the last thing this process does."""
    save = attempt.Run.checkpoint

    def dying(run: attempt.Run, step: int, write: Any, **named: Any) -> Any:
        saved = save(run, step, write, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return saved

    attempt.Run.checkpoint = dying  # type: ignore[method-assign,assignment]  # only in the fork that is about to die


def _done(run_dir: RunDir, ended: Ended) -> str:
    """Why a run did not finish; empty when it did."""
    outcome = read_outcome(run_dir)
    if outcome is not None and outcome.status is Status.DONE:
        return ""
    cause = f"{outcome.cause.value}: " if outcome and outcome.cause else ""
    return f"{cause}{outcome.reason}" if outcome else f"ended with code {ended.code} and no outcome"


def step_seconds(run_dir: RunDir) -> float | None:
    """Median seconds from one checkpoint to the next step's metrics; None when there were too few steps."""
    gaps: list[float] = []
    saved_ms: int | None = None
    for entry in read_journal(run_dir.journals).counting():
        if entry.metrics and saved_ms is not None:
            gaps.append((entry.time_ms - saved_ms) / 1000)
            saved_ms = None
        if entry.event == CHECKPOINT:
            saved_ms = entry.time_ms
    return statistics.median(gaps) if gaps else None


def _measure(run_dir: RunDir, ended: Ended) -> dict[str, Any]:
    """Parameters, memory, step time, checkpoint size and embedding rate of an untouched short run."""
    saved = [entry.detail for entry in read_journal(run_dir.journals).counting() if entry.event == CHECKPOINT]
    sizes = {
        name: leaf.numel() for name, leaf in newest_state(run_dir).items()
        if hasattr(leaf, "numel") and name.startswith(("state/model/", "state/objective/"))
    }  # fmt: skip
    outcome = read_outcome(run_dir)
    device_mib = outcome.values.get("train/peak_memory_mib") if outcome else None
    rates = [one for entry in read_journal(run_dir.journals).counting() if (one := entry.metrics.get("embed/images_per_s"))]
    return {
        "parameters": sum(sizes.values()),
        "peak_mib": device_mib or ended.peak_mib,
        "step_s": step_seconds(run_dir),
        "checkpoint_bytes": max((int(one["bytes"]) for one in saved), default=0),
        "checkpoint_s": max((float(one["seconds"]) for one in saved), default=0.0),
        "images_per_s": rates[-1] if rates else None,
    }


def rehearse_run(folder: Path, step: Mapping[str, Any]) -> dict[str, Any]:
    """One run of a chain; training and embedding also killed after the first checkpoint, restored and compared."""
    run_dir = make_run(folder, step["id"], step["config"], step["needs"])
    before = read_outcome(run_dir)
    if before is not None:  # a run that an earlier chain shares
        done = before.status is Status.DONE
        return {"kind": step["kind"], "reused": True} if done else {"kind": step["kind"], "error": before.reason}
    ended = wait(start(run_dir))
    failed = _done(run_dir, ended)
    if failed:
        return {"kind": step["kind"], "error": failed}
    found: dict[str, Any] = {"kind": step["kind"], "seconds": ended.seconds} | _measure(run_dir, ended)
    embeds = step["kind"] == "embed"
    if embeds or step["config"].get("steps", 0) > 1:
        for need in step["needs"].values():
            (folder / "struck").mkdir(exist_ok=True)
            link = folder / "struck" / need
            if not link.exists():  # a need that was struck itself is there already
                link.symlink_to(folder / need)
        struck = make_run(folder / "struck", step["id"], step["config"], step["needs"])
        first = wait(start(struck, hook=_kill_after_first_checkpoint))
        second = wait(start(struck))
        failed = _done(struck, second)
        if first.code != -signal.SIGKILL or failed:
            return found | {"error": f"after a kill at the first checkpoint: {failed or 'it was not killed'}"}
        found["differences"] = output_differences(run_dir, struck) if embeds else differences(run_dir, struck)
    return found


def _stored_samples(run_dir: RunDir, frozen: FrozenRun, spec: TrainSpec) -> Samples:
    """What a loader process reads for a training run: stored images, or stored tokens."""
    import torch

    from jobs.inputs import images_of, open_samples, open_store

    ranks = Ranks(rank=0, world_size=1, local_rank=0, launch="loader", address="127.0.0.1")
    run = attempt.Run(
        run_dir=run_dir, frozen=frozen, attempt=Attempt(number=1, claimant=""), ranks=ranks, flag=Flag(), slurm=None, port=0
    )
    store = open_store(run)
    if spec.online is not None:  # the backbone is the step's work, not the loader's
        return ImageSamples(images_NHWC=images_of(store, "train"))
    return open_samples(run, spec, store, "train", torch.device("cpu"))


def _loader_rates(run_dir: RunDir, target: Path) -> None:
    """In a fork: images per second of the loader for a few worker counts."""
    import torch

    from jobs.batches import StepDataset, step_batches
    from jobs.data.sampler import StepSampler

    frozen = FrozenRun.model_validate_json(run_dir.spec.read_text(encoding="utf-8"))
    spec = frozen.config
    assert isinstance(spec, TrainSpec)
    samples = _stored_samples(run_dir, frozen, spec)
    sampler = StepSampler(count=samples.count, batch_size=spec.batch_size, seed=0)
    dataset = StepDataset(samples=samples, sampler=sampler, seed=0, noise_shape=(7, 64), rank=0, world_size=1, flip=spec.flip)
    rates: dict[str, float] = {}
    for workers in WORKERS:
        batches = step_batches(dataset, start=0, stop=10**6, workers=workers, device=torch.device("cpu"))
        next(batches)
        begun, seen = time.monotonic(), 0
        while time.monotonic() - begun < LOADER_S:
            seen += next(batches).noise_BKZ.shape[0]
        rates[str(workers)] = seen / (time.monotonic() - begun)
        del batches
    target.write_text(json.dumps(rates), encoding="utf-8")


def loader_rates(folder: Path, run_dir: RunDir) -> dict[str, float]:
    """Images per second by number of workers, from a warm page cache; empty when the measurement failed."""
    target = folder / "loader.json"
    target.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            _loader_rates(run_dir, target)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    try:
        return dict(json.loads(target.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def rehearse(folder: Path, chain: Mapping[str, Any], measured: dict[tuple[str, ...], dict[str, float]]) -> dict[str, Any]:
    """All steps of one distinct pipeline, up to the first that fails."""
    report: dict[str, Any] = {"name": chain["name"], "steps": {}}
    for step in chain["steps"]:
        found = rehearse_run(folder, step)
        report["steps"][step["name"]] = found
        if "error" in found:
            break
        if step["kind"] == "train" and not found.get("reused"):
            sources = [step["needs"].get(kind, "") for kind in ("prepare", "embed")]
            key = (*sources, str(step["config"]["batch_size"]), str(step["config"].get("flip")), str(step["config"].get("clip")))
            if key not in measured:
                measured[key] = loader_rates(folder, RunDir(folder / step["id"]))
            found["loader"] = measured[key]
    return report


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    folder = Path(request["folder"])
    forks.warm()
    measured: dict[tuple[str, ...], dict[str, float]] = {}
    for chain in request["chains"]:
        sys.stdout.write(json.dumps(rehearse(folder, chain, measured)) + "\n")
        sys.stdout.flush()
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
