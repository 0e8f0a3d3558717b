"""A DINOSAUR training step on stored tokens against the same step with the ViT in the loop, side by side in one process.

    OMP_NUM_THREADS=1 python tests/bench/bench_online.py [--backbone vit_base_patch16_224] [--batch 4] [--repeats 5] [--json]

A step is: read the batch (tokens from a memory map in bf16, or uint8 images), convert, forward, mean squared error, backward.
Weights are random. Peak memory is that of a forked child which makes two steps, above what it had before them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from jobs.samples import OnlineSamples, Samples, TokenSamples  # noqa: E402  # found through the path above
from jobs.weights import load_backbone  # noqa: E402
from models.build import build_model  # noqa: E402
from models.spec import BackboneSpec, DinosaurSpec  # noqa: E402

FEATURES = {"vit_tiny_patch16_224": 192, "vit_small_patch16_224": 384, "vit_base_patch16_224": 768}


@dataclass(frozen=True)
class Mapped:
    """bf16 tokens in one memory map."""

    bits_NTC: np.ndarray

    @property
    def count(self) -> int:
        return len(self.bits_NTC)

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(self.bits_NTC[indices])).view(torch.bfloat16)


def peak_mib(step: Callable[[], None]) -> float:
    """Memory above the present that two steps need, in a child of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        step()
        os.write(writing, str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return float(os.read(reading, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=sorted(FEATURES), default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--slots", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    width, images = FEATURES[options.backbone], 4 * options.batch
    device = torch.device("cpu")
    model = build_model(DinosaurSpec(feature_size=width, num_slots=options.slots), generator=torch.Generator().manual_seed(1))
    noise = torch.randn(options.batch, *model.noise_shape)

    def step_of(samples: Samples) -> Callable[[], None]:
        indices, mirrored = np.arange(options.batch), np.zeros(options.batch, dtype=np.bool_)

        def step() -> None:
            model.zero_grad()
            inputs, targets = samples.convert(samples.read(indices, mirrored))
            (model(inputs, noise).reconstruction - targets).square().mean().backward()

        return step

    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/tokens.npy", np.random.default_rng(0).integers(0x3E00, 0x3F80, (images, 196, width), dtype=np.uint16))
        features = Mapped(np.load(f"{folder}/tokens.npy", mmap_mode="r"))
        pixels = np.random.default_rng(0).integers(0, 256, (images, 224, 224, 3), dtype=np.uint8)
        spec = BackboneSpec(name=options.backbone, weights="random", feature_size=width)
        steps = {
            "tokens": step_of(TokenSamples(features=features)),
            "online": step_of(OnlineSamples(images_NHWC=pixels, backbone=load_backbone(spec, device))),
        }
        report: dict[str, float] = {f"{name}_peak_mib": peak_mib(step) for name, step in steps.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.repeats + 1):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                if turn:
                    seconds[name].append(time.perf_counter() - begun)
    report |= {f"{name}_s": statistics.median(found) for name, found in seconds.items()}
    report["online / tokens"] = report["online_s"] / report["tokens_s"]
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:20s} {value:.6g}")


if __name__ == "__main__":
    main()
