"""What the tests of the `prepare` job share: a run of it, its attempts, and what it left."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

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


def below_output(store: Mapping[str, str]) -> dict[str, str]:
    """`tree` of a folder with nothing but the output, from that of the output."""
    return {f"output/{name}": checksum for name, checksum in store.items()}


def interrupted(spec: PrepareSpec, folder: Path, stops: Sequence[int], forgotten: int) -> int:
    """Prepare anew: up to each stop in turn, each time with the last `forgotten` records to do again, then to the end."""
    shutil.rmtree(folder, ignore_errors=True)
    done = 0
    for stop_after in stops:
        done = run(spec, folder, start=done, stop_after=stop_after)
        done = done if (folder / "output").exists() else max(0, done - forgotten)
    return run(spec, folder, start=done)


def killed_in(victim: str, spec: PrepareSpec, folder: Path) -> None:
    """Prepare up to the call of a function that `jobs.prepare` knows by this name."""

    def die(*_: object, **__: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"jobs.prepare.{victim}", die)
        with pytest.raises(Killed):
            run(spec, folder)


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
