"""Training throughput and memory of DINOSAUR on cached features against the plain formulation, side by side.

    OMP_NUM_THREADS=1 python tests/bench/bench_dinosaur.py [--slots 7 33] [--repeats 5] [--threads 1] [--bf16] [--json]

A step is forward, mean squared error and backward on one fixed batch (no optimiser, no loader, no ViT). The variants take
turns, so that a busy machine slows both, and with one thread on the CPU the seconds are the process's own. Memory is what
a step adds at its peak (on the CPU: of a forked process, which takes one step), and what autograd holds between forward
and backward beside the parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "models")]

from plain_dinosaur import twins  # noqa: E402  # found through the path above
from steps import Step, held_bytes, training_step  # noqa: E402

from models.spec import DinosaurSpec, PatchMlpDecoder  # noqa: E402

PAGE = os.sysconf("SC_PAGE_SIZE")


def measure(steps: dict[str, Step], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds per step; the caller has warmed up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_mib(step: Step, device: str) -> float:
    """What one step adds to the memory in use, at its peak."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        step()
        os.write(send, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as answer:
        added = int(answer.read())
    os.waitpid(child, 0)
    return added / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[7, 33])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    alone = options.device == "cpu" and options.threads == 1
    clock = time.process_time if alone else time.perf_counter

    report: dict[str, float] = {"batch": options.batch, "threads": options.threads}
    for slots in options.slots:
        spec = DinosaurSpec(num_slots=slots, decoder=PatchMlpDecoder(hidden=2048, layers=4))
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(options.batch, spec.tokens, spec.feature_size, generator=generator).to(options.device)
        noise = torch.randn(options.batch, slots, spec.slot_size, generator=generator).to(options.device)
        ours, plain = twins(spec)
        models = {"plain": plain.to(options.device), "ours": ours.to(options.device)}
        steps = {name: training_step(model, tokens, tokens, noise, low_precision=options.bf16) for name, model in models.items()}
        label = f"K={slots}"
        for name, step in steps.items():
            report[f"{label}/{name}_peak_mib"] = peak_mib(step, options.device)
        for name, step in steps.items():
            report[f"{label}/{name}_held_mib"] = held_bytes(step, list(models[name].parameters())) / 2**20
        report[f"{label}/max_difference"] = float((steps["ours"]() - steps["plain"]()).abs().max())
        medians = measure(steps, options.repeats, clock)
        report |= {f"{label}/{name}_s": value for name, value in medians.items()}
        report[f"{label}/ratio"] = medians["plain"] / medians["ours"]
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:28s} {value:.6g}")


if __name__ == "__main__":
    main()
