"""Training throughput of the slot autoencoder against the plain formulation, side by side in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_models.py [--repeats 7] [--threads 1] [--json]

A step is forward, mean squared error and backward on one fixed batch (no optimiser, no loader). The variants take
turns, so that a busy machine slows all of them. `plain_nhwc` is the plain formulation in channels-last memory: what
it leaves between itself and ours is the algebra alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "models")]

from plain import PlainAutoencoder, twins  # noqa: E402  # found through the path above
from steps import Step, training_step  # noqa: E402

from models.spec import SlotAutoencoderSpec  # noqa: E402


def measure(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds per step, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    spec = SlotAutoencoderSpec()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(options.batch, 3, spec.resolution, spec.resolution, generator=generator).to(options.device)
    noise = torch.randn(options.batch, spec.num_slots, spec.slot_size, generator=generator).to(options.device)
    ours, plain = twins(spec)
    nhwc = PlainAutoencoder(spec)
    nhwc.load_state_dict(plain.state_dict())
    for model in (ours, plain, nhwc):
        model.to(options.device)
    nhwc.to(memory_format=torch.channels_last)
    last = images.contiguous(memory_format=torch.channels_last)

    report: dict[str, float] = {"batch": options.batch, "threads": options.threads}
    for label, low in (("fp32", False), ("bf16", True)):
        steps = {
            "plain": training_step(plain, images, images, noise, low_precision=low),
            "plain_nhwc": training_step(nhwc, last, last, noise, low_precision=low),
            "ours": training_step(ours, images, images, noise, low_precision=low),
        }
        report[f"{label}/max_difference"] = float((steps["ours"]() - steps["plain"]()).abs().max())
        medians = measure(steps, options.repeats)
        report |= {f"{label}/{name}_s": value for name, value in medians.items()}
        report[f"{label}/ratio"] = medians["plain"] / medians["ours"]
        report[f"{label}/ratio_to_plain_nhwc"] = medians["plain_nhwc"] / medians["ours"]
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:28s} {value:.6g}")


if __name__ == "__main__":
    main()
