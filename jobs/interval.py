"""How many seconds between two checkpoints: from what a save costs and how often runs are interrupted. Pure, torch-free.

Young (1974), Daly (2006): with a cost c per save and a mean uptime M between interruptions, sqrt(2 c M) loses least time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs.spec import IntervalSpec


def mean_uptime_s(ended_s: Sequence[float], running_s: float, *, prior_s: float) -> float:
    """Seconds between interruptions as observed: `ended_s` of earlier attempts, `running_s` of this one.

    The prior counts as one interruption after `prior_s`, so nothing divides by zero and one early eviction is no rule.
    """
    return (prior_s + sum(ended_s) + running_s) / (1 + len(ended_s))


def young_daly_s(*, cost_s: float, uptime_s: float) -> float:
    """The interval that loses least to saves of `cost_s` and to repeated work."""
    return math.sqrt(2 * cost_s * uptime_s)


def interval_s(spec: IntervalSpec, *, cost_s: float | None, write_s: float, uptime_s: float) -> float:
    """Seconds from one save to the next.

    `cost_s` is what a save keeps training waiting (None: nobody knows yet, so the first one comes early, at the floor);
    `write_s` its whole duration: a shorter interval would only make a save wait for the one before.
    """
    wanted_s = 0.0 if cost_s is None else young_daly_s(cost_s=cost_s, uptime_s=uptime_s)
    return max(min(max(wanted_s, spec.floor_s), spec.ceiling_s), write_s)
