"""A simulated day of training under preemption without notice: how much of it counts, for a rule that chooses the interval."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.interval import interval_s, mean_uptime_s, young_daly_s
from jobs.spec import IntervalSpec

DAY_S = 86400.0
RESTART_S = 30.0
"""From an eviction to the next first step."""

Rule = Callable[[Sequence[float], float, bool], float]
"""(lifetimes of earlier attempts, seconds this attempt has run, whether it has saved yet) -> seconds to the next save."""


@dataclass(frozen=True, kw_only=True)
class Day:
    """What became of a day."""

    goodput: float
    """Share of the day whose steps were not lost."""
    saves: int


def uptimes(between: tuple[float, float], seed: int) -> list[float]:
    """Seconds between evictions, more than a day of them: uniform between two bounds; equal bounds: exponential of that mean."""
    draw, (low, high) = random.Random(seed), between
    return [draw.expovariate(1 / low) if low == high else draw.uniform(low, high) for _ in range(int(10 * DAY_S / low))]


def live(evictions: Sequence[float], rule: Rule, *, cost_s: float) -> Day:
    """One day: work up to the next save counts when the save ends before the eviction."""
    clock_s, counted_s, saves = 0.0, 0.0, 0
    lifetimes: list[float] = []
    for uptime_s in evictions:
        uptime_s = min(uptime_s, DAY_S - clock_s)
        now_s, saved = 0.0, False
        while True:
            work_s = rule(lifetimes, now_s, saved)
            if now_s + work_s + cost_s > uptime_s:
                break
            now_s += work_s + cost_s
            counted_s, saves, saved = counted_s + work_s, saves + 1, True
        lifetimes.append(uptime_s)
        clock_s += uptime_s + RESTART_S
        if clock_s >= DAY_S:
            break
    return Day(goodput=counted_s / DAY_S, saves=saves)


def chosen(spec: IntervalSpec, cost_s: float) -> Rule:
    """As a run chooses: it knows its own earlier attempts, and the cost once it has saved."""

    def rule(lifetimes: Sequence[float], now_s: float, saved: bool) -> float:
        uptime_s = mean_uptime_s(lifetimes, now_s, prior_s=spec.prior_uptime_s)
        return interval_s(spec, cost_s=cost_s if saved else None, write_s=0.0, uptime_s=uptime_s)

    return rule


def always(seconds: float) -> Rule:
    """A fixed interval."""
    return lambda lifetimes, now_s, saved: seconds


def best_fixed(evictions: Sequence[float], cost_s: float) -> Day:
    """The best fixed interval in hindsight, of 60 from twice the cost (at least 2 s) to four hours."""
    low = max(2.0, 2 * cost_s)
    tried = (low * math.exp(math.log(14400 / low) * number / 59) for number in range(60))
    return max((live(evictions, always(seconds), cost_s=cost_s) for seconds in tried), key=lambda day: day.goodput)


def main() -> None:
    """Print goodput of the chosen interval, of the optimum that knows the mean, of the best in hindsight, and of 600 s."""
    spec, seeds = IntervalSpec(), range(10)
    print("goodput, mean of 10 days; restart 30 s; prior 4 h, floor 30 s, ceiling 1800 s")
    for between in ((600.0, 600.0), (3600.0, 3600.0), (14400.0, 14400.0), (600.0, 14400.0)):
        for cost_s in (0.1, 1.0, 10.0):
            days = [uptimes(between, seed) for seed in seeds]
            known = young_daly_s(cost_s=cost_s, uptime_s=sum(between) / 2)
            ours, optimum, hindsight, fixed = (
                sum(day.goodput for day in found) / len(found)
                for found in (
                    [live(day, chosen(spec, cost_s), cost_s=cost_s) for day in days],
                    [live(day, always(known), cost_s=cost_s) for day in days],
                    [best_fixed(day, cost_s) for day in days],
                    [live(day, always(600.0), cost_s=cost_s) for day in days],
                )
            )
            print(
                f"every {between[0] / 60:3.0f} to {between[1] / 60:3.0f} min, save {cost_s:4.1f} s: chosen {ours:.4f}"
                f"  optimum {optimum:.4f}  hindsight {hindsight:.4f}  600 s {fixed:.4f}  chosen / optimum {ours / optimum:.4f}"
            )


if __name__ == "__main__":
    main()
