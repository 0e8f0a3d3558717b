"""Training throughput and memory of the video model against the plain loop over frames, side by side in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_video.py [--batch 2] [--frames 6] [--repeats 5] [--threads 1] [--bf16] [--json]

A step is forward, mean squared error and backward on one fixed batch of clips (no optimiser, no loader). `plain` runs
encoder, attention and decoder on one frame after the other, as the reference code's formulation of them; `looped` is our
model given one frame after the other with its state carried: what is between it and `ours` is the loop alone. The variants
take turns, so that a busy machine slows all, and with one thread on the CPU the seconds are the process's own. Memory is what
a step adds at its peak (on the CPU: of a forked process, which takes one step).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "models")]

from bench_dinosaur import measure, peak_mib  # noqa: E402  # found through the path above
from plain_video import twins  # noqa: E402
from steps import Step, training_step  # noqa: E402

from models.spec_video import Recurrence, VideoSlotsSpec  # noqa: E402
from models.video_slots import VideoSlots, signed  # noqa: E402

VARIANTS = {"per frame": None, "recurrent": Recurrence(detach_every=1)}


def trimmed_peak_mib(step: Step, device: str) -> float:
    """`peak_mib`, after the C library gave back what earlier steps freed: a child would use that again unseen."""
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)
    return peak_mib(step, device)


class Looped(nn.Module):
    """Our model on one frame at a time."""

    def __init__(self, model: VideoSlots) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor, noise: Tensor) -> tuple[Tensor]:
        state, frames = None, []
        for index in range(clips.shape[1]):
            output = self.model(clips[:, index : index + 1], noise[:, index : index + 1], state)
            state = output.state
            frames.append(output.reconstruction)
        return (torch.cat(frames, dim=1),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.device == "cpu" and options.threads == 1 else time.perf_counter

    report: dict[str, float] = {"batch": options.batch, "frames": options.frames, "threads": options.threads}
    for label, recurrence in VARIANTS.items():
        spec = VideoSlotsSpec(resolution=options.resolution, recurrence=recurrence)
        generator = torch.Generator().manual_seed(1)
        clips = torch.rand(options.batch, options.frames, 3, spec.resolution, spec.resolution, generator=generator)
        noise = torch.randn(options.batch, options.frames, spec.num_slots, spec.slot_size, generator=generator)
        clips, noise = clips.to(options.device), noise.to(options.device)
        ours, plain = (model.to(options.device) for model in twins(spec))
        models = {"plain": plain, "looped": Looped(ours), "ours": ours}
        steps = {
            name: training_step(model, clips, signed(clips), noise, low_precision=options.bf16) for name, model in models.items()
        }
        for name, step in steps.items():
            report[f"{label}/{name}_peak_mib"] = trimmed_peak_mib(step, options.device)
        report[f"{label}/max_difference"] = float((steps["ours"]() - steps["plain"]()).abs().max())
        medians = measure(steps, options.repeats, clock)
        report |= {f"{label}/{name}_s": value for name, value in medians.items()}
        report |= {f"{label}/{name}/ours": value / medians["ours"] for name, value in medians.items() if name != "ours"}
        peaks = {name: report[f"{label}/{name}_peak_mib"] for name in steps}
        report |= {f"{label}/{name}/ours_peak": value / peaks["ours"] for name, value in peaks.items() if name != "ours"}
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:32s} {value:.6g}")


if __name__ == "__main__":
    main()
