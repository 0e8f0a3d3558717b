"""Runs the fuzzer: `python -m tests.fuzz.campaign [MINUTES] [--seed N] [--only TARGET]`; of each fault, how to repeat it.

Input number i of a target depends on (seed, target, i) alone. Each input has a limit of time and of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target

LIMIT_S = 20.0
"""Longest that one input may take; ordinary ones take below 50 ms."""
MEMORY_BYTES = 1 << 30
"""What reading one input may allocate on top of what the process had."""


class Hung(BaseException):
    """An input took longer than LIMIT_S. No `except Exception` may swallow it."""


@dataclass(kw_only=True)
class Count:
    """What one target has been through."""

    tried: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Allocations beyond MEMORY_BYTES fail with MemoryError, which no reader may raise."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def made(target: Target, corpus: Sequence[bytes], *, seed: int, number: int) -> bytes:
    """Input `number` of a target; 0 .. len(corpus) - 1 are the corpus unchanged."""
    if number < len(corpus):
        return corpus[number]
    return target.change(random.Random(f"{seed}/{target.name}/{number}"), corpus)


def attempt(target: Target, data: bytes, folder: Path, count: Count, *, label: str) -> None:
    """Read one input and book what came out."""
    count.tried += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(data, folder)
    except target.allowed:
        count.refused += 1
    except (Exception, Hung) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        count.faults.append(f"{label}: {type(error).__name__}: {str(error)[:100]!r} at {Path(last.filename).name}:{last.lineno}")


def _hang(_number: int, _frame: object) -> None:
    raise Hung(f"longer than {LIMIT_S:.0f} s")


def run(targets: Sequence[Target], *, seed: int, minutes: float, first: int = 0) -> dict[str, Count]:
    """Fuzz the targets in turn until the time is over (every target at least its corpus and 100 changed inputs)."""
    signal.signal(signal.SIGALRM, _hang)
    counts = {target.name: Count() for target in targets}
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="orch-fuzz-") as place:
        corpora = {}
        for target in targets:
            (Path(place) / f"{target.name}-corpus").mkdir()
            (Path(place) / target.name).mkdir()
            corpora[target.name] = target.corpus(Path(place) / f"{target.name}-corpus")
        begin, rounds = first, 0
        while rounds == 0 or time.monotonic() < end:
            for target in targets:
                corpus, count = corpora[target.name], counts[target.name]
                until = time.monotonic() + 1.0
                number = begin + count.tried
                stop = number + len(corpus) + 100 if rounds == 0 else sys.maxsize
                while number < stop and (rounds == 0 or time.monotonic() < until):
                    data = made(target, corpus, seed=seed, number=number)
                    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
                    with limited_memory():
                        attempt(
                            target,
                            data,
                            Path(place) / target.name,
                            count,
                            label=f"--seed {seed} --only {target.name} --at {number}",
                        )
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    number += 1
            rounds += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 when there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[target.name for target in TARGETS], action="append")
    parser.add_argument("--at", type=int, help="this one input: its traceback, and the input itself on stdout")
    chosen = parser.parse_args(arguments)
    targets = [target for target in TARGETS if chosen.only is None or target.name in chosen.only]
    if chosen.at is not None:
        for target in targets:
            with (
                tempfile.TemporaryDirectory(prefix="orch-fuzz-") as place,
                tempfile.TemporaryDirectory(prefix="orch-fuzz-") as other,
            ):
                data = made(target, target.corpus(Path(place)), seed=chosen.seed, number=chosen.at)
                sys.stdout.buffer.write(data[:4000] + b"\n")
                sys.stdout.flush()
                target.read(data, Path(other))
        return 0
    began = time.monotonic()
    counts = run(targets, seed=chosen.seed, minutes=chosen.minutes)
    print(f"{'target':10} {'inputs':>9} {'refused':>9} {'crashes':>8}")
    for name, count in counts.items():
        print(f"{name:10} {count.tried:9} {count.refused:9} {len(count.faults):8}")
        for fault in count.faults[:5]:
            print(f"  {fault}")
    tried, faults = sum(count.tried for count in counts.values()), sum(len(count.faults) for count in counts.values())
    print(f"seed {chosen.seed}: {(time.monotonic() - began) / 60:.1f} minutes, {tried} inputs, {faults} crashes")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
