"""What the tests of the `prepare` job share: a run of it, its attempts, and what it left."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

from jobs.attempt import Run
from jobs.contract import Attempt, RunDir, claim
from jobs.data_spec import MultiDSpritesSpec, RecordRange, SpriteGeneratorSpec
from jobs.preemption import Flag
from jobs.prepare import prepare
from jobs.ranks import Ranks
from jobs.spec import FrozenRun, PrepareSpec

SMALL = SpriteGeneratorSpec(seed=9, resolution=16, min_sprites=3, max_sprites=3, palette="saturated")
RANGES = {"train": RecordRange(first=0, count=23), "test": RecordRange(first=40, count=7)}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the code's own clean-up may matter."""


def generated(generator: SpriteGeneratorSpec = SMALL) -> PrepareSpec:
    """Multi-dSprites, drawn: 30 records."""
    return PrepareSpec(data=MultiDSpritesSpec(generator=generator, **RANGES))  # type: ignore[arg-type]  # the ranges


def run(
    spec: PrepareSpec,
    folder: Path,
    *,
    start: int = 0,
    stop_after: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Prepare into folder/output; `stop_after` chunks the flag is up."""
    looks = itertools.count()
    return prepare(
        spec,
        work=folder / "work",
        output=folder / "output",
        should_stop=lambda: stop_after is not None and next(looks) >= stop_after,
        on_progress=on_progress or (lambda done: None),
        start=start,
    )


def tree(path: Path) -> dict[str, str]:
    """Every file below a directory with its checksum."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def attempt(path: Path, *, config: PrepareSpec | None = None, flag: Flag | None = None, claimant: str = "one") -> Run:
    """A new attempt of the `prepare` run in directory `path`, outside Slurm."""
    run_dir = RunDir(path)
    return Run(
        run_dir=run_dir,
        frozen=FrozenRun(id=path.name, config=config or generated()),
        attempt=claim(run_dir, Attempt(number=0, claimant=claimant)),
        ranks=Ranks(rank=0, world_size=1, local_rank=0, launch="", address=""),
        flag=Flag() if flag is None else flag,
        slurm=None,
    )


class FlagAfter(Flag):
    """Up from the n-th look on."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = itertools.count()
        self._after = looks

    def __bool__(self) -> bool:
        return next(self._looks) >= self._after
