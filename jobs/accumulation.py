"""Into how many micro-batches a rank cuts its share of a step, at the planned world size and at any other. Pure."""

from __future__ import annotations


def micro_batches(accumulation: int, *, planned_tasks: int, world_size: int, batch_size: int) -> int:
    """Micro-batches of each rank, so that none is larger than it would be at the planned world size.

    `accumulation`: what was asked for at `planned_tasks` ranks; with 0 of these, at any number of ranks. With more ranks they are
    fewer; with fewer ranks more, though not more than a rank has rows of `batch_size`.
    """
    if planned_tasks == 0:
        return accumulation
    most_rows = -(-batch_size // world_size)
    return max(1, min(-(-accumulation * planned_tasks // world_size), most_rows))
