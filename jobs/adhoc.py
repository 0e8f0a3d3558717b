"""Ad-hoc Hydra runs of the job code, without the control plane: `python -m jobs.train [--multirun hydra/launcher=slurm] ...`.

The spec is written once into Hydra's output directory; when Slurm requeues the task, the file wins over YAML edited since.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from jobs import __main__ as entry
from jobs.contract import ExitCode, RunDir, write_atomically
from jobs.ranks import Ranks
from jobs.spec import FrozenRun

SPEC_WAIT_S = 120.0


def write_once(run_dir: RunDir, config: dict[str, Any], needs: dict[str, str], *, first: bool) -> None:
    """Freeze a run unless it is frozen already; other ranks wait for the first one's file."""
    if first and not run_dir.spec.exists():
        run_dir.path.mkdir(parents=True, exist_ok=True)
        frozen = FrozenRun.model_validate({"id": run_dir.id, "config": config, "needs": needs})
        write_atomically(run_dir.spec, frozen.model_dump_json(indent=1) + "\n")
    deadline = time.monotonic() + SPEC_WAIT_S
    while not run_dir.spec.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run_dir.spec} was not written within {SPEC_WAIT_S:.0f} s")
        time.sleep(0.1)


def run_adhoc(cfg: DictConfig) -> None:
    """Prepare the data and train, in Hydra's output directory; raises SystemExit when the run did not finish."""
    import os

    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    data = config.pop("data")
    folder = Path(HydraConfig.get().runtime.output_dir) / "runs"
    first = Ranks.from_environment(os.environ).rank == 0
    prepare, train = RunDir(folder / "prepare-adhoc"), RunDir(folder / "train-adhoc")
    write_once(prepare, {"kind": "prepare", "data": data}, {}, first=first)
    write_once(train, {str(key): value for key, value in config.items()}, {"prepare": prepare.id}, first=first)
    for run_dir in (prepare, train):
        code = entry.main([str(run_dir.path)])
        if code != ExitCode.DONE:
            raise SystemExit(code)


def main() -> None:
    """Entry point of `python -m jobs.train`."""
    conf = Path(__file__).resolve().parent / "conf"
    decorate = hydra.main(version_base="1.3", config_path=str(conf), config_name="adhoc_train")
    decorate(run_adhoc)()
    sys.stdout.flush()
