"""Runs jobs for the tests: tiny configurations, real `python -m jobs` processes, forks, and process groups."""

from __future__ import annotations

import copy
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from jobs import distributed, forks, ranks
from jobs.attempt import Run
from jobs.contract import Attempt, Outcome, RunDir, read_outcome
from jobs.distributed import Group, join
from jobs.preemption import Flag
from jobs.ranks import Ranks
from jobs.spec import FrozenRun

REPOSITORY = Path(__file__).parents[2]
MODEL = {
    "kind": "slot_autoencoder", "resolution": 16, "num_slots": 4, "num_iterations": 2, "slot_size": 8,
    "encoder_channels": 8, "encoder_layers": 2, "slot_mlp_size": 16,
    "decoder": {"kind": "full_resolution", "channels": 8, "layers": 2},
}  # fmt: skip
HEAD = {"kind": "mlp", "size": 12, "norm": "layernorm"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "reconstruction": {"kind": "reconstruction"},
    "covariance, layernorm": {
        "kind": "covariance", "weight": 5.0, "var_weight": 0.5, "std_target": 2.0, "divide_by": "features", "projection": HEAD
    },
    "covariance, batchnorm": {
        "kind": "covariance", "weight": 5.0, "divide_by": "features", "projection": HEAD | {"norm": "batchnorm"}
    },
    "covariance, identity": {
        "kind": "covariance", "weight": 5.0, "var_weight": 0.5, "std_target": 2.0, "divide_by": "features",
        "projection": {"kind": "identity", "size": 8},
    },
    "cosine, identity": {"kind": "cosine", "weight": 0.5, "margin": -0.5, "projection": {"kind": "identity", "size": 8}},
    "cosine, batchnorm": {"kind": "cosine", "weight": 0.5, "margin": -0.5, "projection": HEAD | {"norm": "batchnorm"}},
}  # fmt: skip
DATA = {
    "kind": "prepare",
    "data": {
        "kind": "mdsprites",
        "generator": {"seed": 3, "resolution": 16, "min_sprites": 1, "max_sprites": 3, "palette": "saturated"},
        "train": {"first": 0, "count": 22},
        "test": {"first": 22, "count": 6},
    },
}
NEEDS = {"prepare": "data"}


def train_config(**changes: Any) -> dict[str, Any]:
    """Ten steps of six images (22 images: the fourth batch of an epoch has four); `runtime` and `validation` are merged."""
    config: dict[str, Any] = {
        "kind": "train", "steps": 10, "batch_size": 6, "model": MODEL, "objective": OBJECTIVES["covariance, layernorm"],
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 3, "decay_steps": 20},
        "validation": {"every_steps": 4, "images": 4},
        "runtime": {"log_every": 1, "checkpoint_every_steps": 3, "hang_timeout_s": 60.0, "max_attempts_without_progress": 1000},
    }  # fmt: skip
    for part in ("runtime", "validation"):
        config[part] = config[part] | changes.pop(part, {})
    return copy.deepcopy(config | changes)


def make_data(root: Path) -> None:
    """Execute the `prepare` run `data` below a root."""
    run_dir = forks.make_run(root, "data", DATA, {})
    assert forks.wait(forks.start(run_dir)).code == 0, said(run_dir)


def train_run(root: Path, data: Path, config: Mapping[str, Any], *, run_id: str = "trained") -> RunDir:
    """A training run that needs the prepared `data`, not yet started."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "data").exists():
        (root / "data").symlink_to(data / "data")
    return forks.make_run(root, run_id, config, NEEDS)


def said(run_dir: RunDir) -> str:
    """What a run's forks wrote."""
    log = run_dir.path / "rehearsal.log"
    return log.read_text() if log.exists() else "nothing"


def attempt(run_dir: RunDir, *, world_size: int = 1, hook: Callable[[], None] | None = None) -> list[int]:
    """Run one attempt in forks to its end; the exit codes of its ranks."""

    def prepared() -> None:
        logging.getLogger().handlers.clear()  # pytest's
        distributed.AGREE_EVERY_S = 0.0  # at every step: a second is a whole run here
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if hook is not None:
            hook()

    if world_size == 1:
        return [forks.wait(forks.start(run_dir, hook=prepared)).code]
    launch = f"test-{time.monotonic_ns()}"
    return [one.code for one in forks.end_group(forks.run_group(run_dir, ranks=world_size, launch=launch, hook=prepared))]


def killed_at(step: int) -> Callable[[], None]:
    """A hook: SIGKILL to rank 0 at the boundary after `step` finished steps."""

    def hook() -> None:
        agree = distributed.Group.agree

        def watched(group: Group, at: int, **named: Any) -> tuple[bool, bool]:
            if at == step and group.rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return agree(group, at, **named)

        distributed.Group.agree = watched  # type: ignore[method-assign]  # in this fork only

    return hook


def outcome_of(run_dir: RunDir) -> Outcome:
    """The outcome, which must be there."""
    found = read_outcome(run_dir)
    assert found is not None, said(run_dir)
    return found


def python_m_jobs(run_dir: RunDir, *, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A real job process outside Slurm, its working directory the run's, as the launchers start it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ORCH_"))}
    clean |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | dict(environment or {})
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", str(run_dir.path)],
        cwd=run_dir.path, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def until(fact: Callable[[], Any], *, timeout_s: float = 30.0) -> Any:
    """Poll for a fact; what it was, once true."""
    deadline = time.monotonic() + timeout_s
    while not (found := fact()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
    return found


def in_group(folder: Path, world_size: int, body: Callable[[Group], Any]) -> list[Any]:
    """Call `body(group)` in `world_size` forked ranks that met through jobs.distributed; what each returned."""
    listening = ranks.listen() if world_size > 1 else None
    folder.mkdir(parents=True, exist_ok=True)
    pids: list[int] = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            try:
                place = Ranks(rank=rank, world_size=world_size, local_rank=rank, launch="group", address="127.0.0.1")
                run = Run(
                    run_dir=RunDir(folder), frozen=FrozenRun.model_validate({"id": "group", "config": train_config()}),
                    attempt=Attempt(number=1, claimant=""), ranks=place, flag=Flag(), slurm=None,
                    port=listening.getsockname()[1] if listening else 0,
                    listening_fd=listening.detach() if listening and rank == 0 else None,
                )  # fmt: skip
                group = join(run, precision="fp32", timeout_s=60.0)
                torch.save(body(group), folder / f"{rank}.pt")
                group.close()
                os._exit(0)
            except BaseException:
                (folder / f"{rank}.error").write_text(traceback.format_exc())
            finally:
                os._exit(1)
        pids.append(pid)
    if listening:
        listening.close()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * world_size, "\n".join(error.read_text() for error in folder.glob("*.error"))
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]
