"""How an attempt of another world size cuts its batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.accumulation import micro_batches
from jobs.data.sampler import share
from jobs.spec import FrozenRun

COUNT = st.integers(1, 40)


def largest(batch_size: int, world_size: int, parts: int) -> int:
    """Rows of the largest micro-batch of any rank."""
    ranks = [share(batch_size, rank, world_size) for rank in range(world_size)]
    rows = [one.stop - one.start for one in ranks]
    return max(cut.stop - cut.start for own in rows for cut in (share(own, part, parts) for part in range(parts)))


@pytest.mark.parametrize(("world_size", "expected"), [(1, 8), (2, 4), (3, 3), (4, 2), (8, 1), (16, 1)])
def test_that_fewer_ranks_accumulate_more(world_size: int, expected: int) -> None:
    assert micro_batches(2, planned_tasks=4, world_size=world_size, batch_size=64) == expected


@given(accumulation=COUNT, planned=COUNT, world_size=COUNT, batch_size=COUNT)
def test_that_no_micro_batch_is_larger_than_planned(accumulation: int, planned: int, world_size: int, batch_size: int) -> None:
    as_planned = micro_batches(accumulation, planned_tasks=planned, world_size=planned, batch_size=batch_size)
    parts = micro_batches(accumulation, planned_tasks=planned, world_size=world_size, batch_size=batch_size)
    assert largest(batch_size, world_size, parts) <= largest(batch_size, planned, as_planned)
    assert 1 <= parts <= max(1, -(-batch_size // world_size))


@given(accumulation=COUNT, world_size=COUNT, batch_size=COUNT)
def test_that_without_a_planned_size_nothing_is_adapted(accumulation: int, world_size: int, batch_size: int) -> None:
    assert micro_batches(accumulation, planned_tasks=0, world_size=world_size, batch_size=batch_size) == accumulation


def test_that_a_run_frozen_before_there_were_planned_sizes_is_read_and_adapts_nothing() -> None:
    old = '{"id": "count-1", "config": {"kind": "count"}, "needs": {}, "code_tree": "t", "environment": "e"}'
    assert FrozenRun.model_validate_json(old).planned_tasks == 0
