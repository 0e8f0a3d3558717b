"""The peer in bench_scale.py: the same trivial configuration through Hydra's own multirun and its submitit launcher."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[2] / "jobs" / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="count")
def main(cfg: DictConfig) -> int:
    """What a cell would do."""
    return int(cfg.steps)


if __name__ == "__main__":
    main()
