"""Time and memory of part slots' semantic loss against the form that materialises features and prediction, side by side.

    OMP_NUM_THREADS=1 python tests/bench/bench_parts.py [--batch 4] [--resolutions 128 32 8] [--repeats 5] [--threads 1] [--json]

A step is the loss of VGG19's last features ([B,512,8,8], of 128 px) with 5 parts and a foreground, forward and backward to masks
and basis; neither a model nor a net runs. The variants take turns, so that a busy machine slows all, and with one thread on
the CPU the seconds are the process's own. Memory is what a step adds at its peak (on the CPU: of a forked process, which
takes one step), and what autograd holds between forward and backward beside masks and basis.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "models")]

from bench_dinosaur import measure  # noqa: E402  # found through the path above
from bench_video import trimmed_peak_mib  # noqa: E402
from plain_part_terms import plain_semantic  # noqa: E402
from steps import Step, held_bytes  # noqa: E402

from models.part_terms import semantic_error  # noqa: E402

PARTS, CHANNELS, SIDE, PIXELS = 5, 512, 8, 128


def ours(masks: Tensor, basis: Tensor, features: Tensor, foreground: Tensor, resolution: int) -> Tensor:
    return semantic_error(masks, basis, features, foreground, resolution=resolution).error_B


def step_of(form: Callable[..., Tensor], given: tuple[nn.Parameter, nn.Parameter, Tensor, Tensor], resolution: int) -> Tensor:
    """The gradient to the masks, for comparison."""
    masks, basis = given[:2]
    masks.grad = basis.grad = None
    form(*given, resolution).mean().backward()
    if masks.is_cuda:
        torch.cuda.synchronize()
    assert masks.grad is not None
    return masks.grad.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 32, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.device == "cpu" and options.threads == 1 else time.perf_counter

    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(options.batch, PARTS + 1, PIXELS, PIXELS, generator=generator)
    masks = nn.Parameter(logits.softmax(dim=1)[:, 1:].contiguous().to(options.device))
    basis = nn.Parameter(torch.randn(PARTS, CHANNELS, generator=generator).abs().to(options.device))
    features = torch.randn(options.batch, CHANNELS, SIDE, SIDE, generator=generator).relu().to(options.device)
    foreground = (torch.rand(options.batch, PIXELS, PIXELS, generator=generator) > 0.5).float().to(options.device)
    given = (masks, basis, features, foreground)
    report: dict[str, float] = {"batch": options.batch, "threads": options.threads}
    for resolution in options.resolutions:
        forms = {"plain": plain_semantic, "ours": ours}
        steps: dict[str, Step] = {name: partial(step_of, form, given, resolution) for name, form in forms.items()}
        found = {name: step() for name, step in steps.items()}
        largest = found["plain"].abs().max()
        report[f"r={resolution}/max_relative_difference"] = float((found["ours"] - found["plain"]).abs().max() / largest)
        report |= {f"r={resolution}/{name}_peak_mib": trimmed_peak_mib(step, options.device) for name, step in steps.items()}
        report |= {f"r={resolution}/{name}_held_mib": held_bytes(step, [masks, basis]) / 2**20 for name, step in steps.items()}
        medians = measure(steps, options.repeats, clock)
        report |= {f"r={resolution}/{name}_s": value for name, value in medians.items()}
        for what in ("s", "peak_mib", "held_mib"):
            report[f"r={resolution}/plain/ours_{what}"] = (
                report[f"r={resolution}/plain_{what}"] / report[f"r={resolution}/ours_{what}"]
            )
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:32s} {value:.6g}")


if __name__ == "__main__":
    main()
