"""The chosen interval: the formula, its bounds, and what it is worth on a day of preemptions."""

from __future__ import annotations

import math

import pytest
from preempted_day import always, best_fixed, chosen, live, uptimes
from pydantic import ValidationError

from jobs.interval import interval_s, mean_uptime_s, young_daly_s
from jobs.spec import IntervalSpec, RuntimeSpec

SPEC = IntervalSpec(floor_s=30.0, ceiling_s=1800.0, prior_uptime_s=14400.0)


@pytest.mark.parametrize(("cost_s", "uptime_s"), [(0.5, 600.0), (1.0, 3600.0), (20.0, 14400.0)])
def test_that_the_formula_loses_least_time(cost_s: float, uptime_s: float) -> None:
    """Of T, saves cost c / T of the time and an interruption half an interval: no other T has a smaller sum."""

    def lost(seconds: float) -> float:
        return cost_s / seconds + seconds / (2 * uptime_s)

    found = young_daly_s(cost_s=cost_s, uptime_s=uptime_s)
    assert found == pytest.approx(math.sqrt(2 * cost_s * uptime_s))
    assert all(lost(found) <= lost(found * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


def test_that_the_uptime_is_a_mean_with_one_believed_interruption() -> None:
    assert mean_uptime_s([], 0.0, prior_s=100.0) == 100.0
    assert mean_uptime_s([], 50.0, prior_s=100.0) == 150.0  # nobody has interrupted it for 50 s
    assert mean_uptime_s([10.0, 20.0, 30.0], 40.0, prior_s=100.0) == 50.0
    assert mean_uptime_s([7.0] * 10_000, 0.0, prior_s=100.0) == pytest.approx(7.0, rel=0.01)


@pytest.mark.parametrize(
    ("cost_s", "write_s", "expected"),
    [
        (1.0, 0.0, math.sqrt(2 * 14400)),
        (None, 0.0, 30.0),  # nothing measured yet
        (0.0, 0.0, 30.0),
        (0.001, 0.0, 30.0),
        (1000.0, 0.0, 1800.0),
        (0.001, 45.0, 45.0),  # the one before must be whole
        (1000.0, 2000.0, 2000.0),
    ],
)
def test_that_it_stays_within_its_bounds(cost_s: float | None, write_s: float, expected: float) -> None:
    assert interval_s(SPEC, cost_s=cost_s, write_s=write_s, uptime_s=14400.0) == pytest.approx(expected)


def test_that_bounds_out_of_order_are_refused_and_that_nothing_is_chosen_unasked() -> None:
    with pytest.raises(ValidationError, match="floor_s 50 is above ceiling_s 40"):
        IntervalSpec(floor_s=50.0, ceiling_s=40.0)
    assert RuntimeSpec().checkpoint_auto is None


@pytest.mark.parametrize("cost_s", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("between", [(600.0, 600.0), (3600.0, 3600.0), (14400.0, 14400.0), (600.0, 14400.0)], ids=str)
def test_that_a_day_of_preemptions_is_worth_nearly_the_optimum(between: tuple[float, float], cost_s: float) -> None:
    """Ten days each; the optimum knows the mean beforehand, and hindsight the whole day."""
    days = [uptimes(between, seed) for seed in range(10)]
    ours = sum(live(day, chosen(SPEC, cost_s), cost_s=cost_s).goodput for day in days)
    optimum = young_daly_s(cost_s=cost_s, uptime_s=sum(between) / 2)
    assert ours / sum(live(day, always(optimum), cost_s=cost_s).goodput for day in days) > 0.97
    assert ours / sum(best_fixed(day, cost_s).goodput for day in days) > 0.96


def test_that_the_simulation_counts_what_was_saved() -> None:
    day = live([100.0] * 2000, always(30.0), cost_s=3.0)  # three saves an attempt, ended at 99 s; then 30 s of restart
    assert day.saves == pytest.approx(3 * 86400 / 130, abs=3)
    assert day.goodput == pytest.approx(90 / 130, rel=0.01)
