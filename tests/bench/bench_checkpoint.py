"""How long a checkpoint keeps training waiting: blocking, and written behind training from a copy, side by side.

usage: python tests/bench/bench_checkpoint.py [FOLDER] [TURNS]

One to two minutes; 7 GiB of memory and as much disk.

A state of 45 M and of 300 M float32 parameters under Adam is saved in turns, one way and the other, into FOLDER (a temporary
one by default); the checkpoints are whole, fsynced and summed as in a run. The stall is the time of the saving call on the
training thread, which then goes on with small steps of its own until the write has ended: `steps meanwhile` is how many times
slower those ran than without a write (they share the machine's cores and, at times, the interpreter's lock with it).
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from jobs.background import Background  # noqa: E402
from jobs.checkpoint import CheckpointStore  # noqa: E402
from jobs.snapshot import Snapshot  # noqa: E402
from jobs.state import save_content  # noqa: E402

SIZES = {"45 M": 45_000_000, "300 M": 300_000_000}
LAYER = 1024


def adam_state(parameters: int) -> dict[str, Any]:
    """A checkpoint's content: layers of about a million parameters, after one step of Adam."""
    model = torch.nn.ModuleList(torch.nn.Linear(LAYER, LAYER, bias=False) for _ in range(round(parameters / LAYER**2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}


def step_s(weights_DD: torch.Tensor) -> float:
    """Seconds of one small training step of products and many small calls."""
    begun = time.perf_counter()
    inputs_ND = torch.ones(64, LAYER)
    for _ in range(20):
        inputs_ND = torch.tanh(inputs_ND @ weights_DD)
    return time.perf_counter() - begun


def measure(parameters: int, folder: Path, turns: int) -> dict[str, list[float]]:
    """Seconds of each figure, a value per turn."""
    content, weights_DD = adam_state(parameters), torch.eye(LAYER)
    store = CheckpointStore(directory=folder / "checkpoints", config_hash="bench", keep=1)
    snapshot, background = Snapshot(), Background("checkpoint")
    quiet_s = statistics.median(step_s(weights_DD) for _ in range(100))
    found: dict[str, list[float]] = {"blocking": [], "copy": [], "whole": [], "slower": []}
    step = 0

    def save(what: dict[str, Any]) -> Callable[[], None]:
        def work(step: int = step) -> None:
            store.save(step, lambda place: save_content(what, place), world_size=1, threads=1, may_commit=lambda: True)

        return work

    snapshot.take(content)  # the first one makes the memory
    for _ in range(turns):
        step += 1
        begun = time.perf_counter()
        save(content)()
        found["blocking"].append(time.perf_counter() - begun)
        step += 1
        begun = time.perf_counter()
        taken = snapshot.take(content)
        background.start(save(taken))
        found["copy"].append(time.perf_counter() - begun)
        steps: list[float] = []
        while background.busy:
            steps.append(step_s(weights_DD))
        background.wait()
        found["whole"].append(time.perf_counter() - begun)
        found["slower"].append(statistics.mean(steps) / quiet_s)
    shutil.rmtree(store.directory)
    return found


def main() -> None:
    """Print the medians and their ratio."""
    torch.set_num_threads(1)
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
        for name, parameters in SIZES.items():
            turned = turns if parameters < 10**8 else max(1, turns - 3)
            found = {key: statistics.median(values) for key, values in measure(parameters, Path(place), turned).items()}
            print(
                f"{name:>5s} parameters, {12 * parameters / 2**30:.2f} GiB, {turned} turns: training waits"
                f"  blocking {found['blocking']:7.3f} s  background {found['copy']:7.3f} s"
                f"  ratio {found['blocking'] / found['copy']:6.1f};"
                f"  whole after {found['whole']:.2f} s, steps meanwhile {found['slower']:.2f} times slower"
            )


if __name__ == "__main__":
    main()
