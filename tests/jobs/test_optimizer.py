"""The learning rate as a function of the step, by hand-computed values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.optimizer import build_adam, learning_rate, set_rate
from jobs.spec import AdamSpec

SPEC = AdamSpec(learning_rate=4e-4, warmup_steps=10_000, decay_rate=0.5, decay_steps=100_000)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 4e-4 / 10_000 * 0.5 ** (1 / 100_000)),
        (4_999, 4e-4 * 0.5 * 0.5**0.05),
        (9_999, 4e-4 * 0.5**0.1),
        (99_999, 2e-4),
        (499_999, 4e-4 / 32),
    ],
)
def test_that_the_rate_is_the_originals(step: int, expected: float) -> None:
    assert learning_rate(SPEC, step) == pytest.approx(expected, rel=1e-12)


def test_that_decay_after_warmup_starts_there() -> None:
    spec = SPEC.model_copy(update={"decay": "after_warmup"})
    assert learning_rate(spec, 9_999) == 4e-4
    assert learning_rate(spec, 109_999) == pytest.approx(2e-4, rel=1e-12)


@given(st.integers(0, 10**6))
def test_that_without_warmup_and_decay_the_rate_is_constant(step: int) -> None:
    assert learning_rate(AdamSpec(learning_rate=0.1, warmup_steps=0, decay_rate=1.0), step) == 0.1


def test_that_adam_has_the_papers_constants() -> None:
    adam = build_adam(SPEC, [torch.nn.Parameter(torch.zeros(1))], cuda=False)
    assert adam.defaults["betas"] == (0.9, 0.999)
    assert adam.defaults["eps"] == 1e-8
    assert adam.defaults["weight_decay"] == 0


@pytest.mark.parametrize("trunk_rate", [None, 1e-5])
def test_that_a_trunk_has_a_rate_of_its_own_through_warm_up_and_decay(trunk_rate: float | None) -> None:
    spec = SPEC.model_copy(update={"trunk_rate": trunk_rate})
    rest, trunk = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    adam = build_adam(spec, [trunk, rest], trunk=[trunk], cuda=False)
    rate = learning_rate(spec, 77_777)
    set_rate(adam, rate)
    rates = {id(parameter): group["lr"] for group in adam.param_groups for parameter in group["params"]}
    assert rates == {id(rest): rate, id(trunk): rate if trunk_rate is None else pytest.approx(rate / 40)}
