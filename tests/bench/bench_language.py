"""Training throughput and memory of the language-guided model against the plain formulation, side by side.

    OMP_NUM_THREADS=1 python tests/bench/bench_language.py [--batch 1] [--slots 7] [--repeats 3] [--threads 1] [--bf16] [--json]

A step is forward, mean squared error and backward on one fixed batch of features (no optimiser, no loader, no CLIP). The
variants take turns, so that a busy machine slows all, and with one thread on the CPU the seconds are the process's own.
`held` is what autograd keeps between forward and backward beside the parameters, each storage once; it is the same for
every image, and its projection to `--projected` images is exact. `ours/N` recomputes N full-resolution maps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "models")]

from plain_language import twins  # noqa: E402  # found through the path above
from steps import Step, held_bytes, training_step  # noqa: E402

from models.slot_model import ConditionedInputs  # noqa: E402
from models.spec_language import ImageDecoderSpec, LanguageSlotsSpec  # noqa: E402

RECOMPUTED = (0, 1, 2)


def with_recomputed(model: nn.Module, step: Step, count: int) -> Step:
    def chosen() -> Tensor:
        model.decoder.recomputed_maps = count
        return step()

    return chosen


def peak_bytes(step: Step) -> int:
    """What one step adds to the accelerator's memory in use, at its peak."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--slots", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--projected", type=int, default=64)
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--upsample", default="deconv")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.device == "cpu" and options.threads == 1 else time.perf_counter

    spec = LanguageSlotsSpec(
        num_slots=options.slots, decoder=ImageDecoderSpec(kernel_size=options.kernel, upsample=options.upsample)
    )
    generator = torch.Generator().manual_seed(1)
    sizes = [(spec.tokens, spec.feature_size), (spec.text_size,), (3, spec.resolution, spec.resolution)]
    tokens, text, target = (torch.randn(options.batch, *size, generator=generator).to(options.device) for size in sizes)
    noise = torch.randn(options.batch, spec.num_slots, spec.slot_size, generator=generator).to(options.device)
    inputs = ConditionedInputs(tokens_BNC=tokens, text=text)
    ours, plain = (model.to(options.device) for model in twins(spec))
    plain_step, our_step = (training_step(model, inputs, target, noise, low_precision=options.bf16) for model in (plain, ours))
    steps = {"plain": plain_step} | {f"ours/{count}": with_recomputed(ours, our_step, count) for count in RECOMPUTED}

    report: dict[str, float] = {"batch": options.batch, "slots": options.slots, "threads": options.threads}
    known = [*plain.parameters(), *ours.parameters()]
    for name, step in steps.items():
        held = held_bytes(step, known)
        report[f"{name}/held_mib"] = held / 2**20
        report[f"{name}/held_gb_at_batch_{options.projected}"] = held / options.batch * options.projected / 1e9
        if options.device == "cuda":
            report[f"{name}/peak_gb"] = peak_bytes(step) / 1e9
    report["max_difference"] = max(float((step() - plain_step()).abs().max()) for step in steps.values())
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    medians = {name: statistics.median(found) for name, found in times.items()}
    report |= {f"{name}/step_s": value for name, value in medians.items()}
    report |= {f"{name}/ratio": medians["plain"] / value for name, value in medians.items() if name != "plain"}
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:28s} {value:.6g}")


if __name__ == "__main__":
    main()
