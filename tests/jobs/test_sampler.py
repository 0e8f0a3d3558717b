"""Which images and which noise: functions of (seed, step), whatever the workers, the ranks and the place of the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.batches import Batch, StepDataset, step_batches
from jobs.data.sampler import StepSampler, share
from jobs.randomness import derived_seed, generator, permutation, standard_normal
from jobs.samples import ImageSamples

COUNT, SIZE = 23, 5
GOLDEN_NORMAL = [1.3911614418029785, -0.7280451655387878, 0.1358305960893631]
GOLDEN_ORDER = [1, 5, 0, 6, 2, 7, 3, 4]
GOLDEN_SEED = 2274797076078095558
IMAGES = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.uint8)


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_that_an_epoch_shows_every_image_once(count: int, batch_size: int, seed: int, drop_last: bool, epoch: int) -> None:
    if drop_last and batch_size > count:
        with pytest.raises(ValueError, match="larger than"):
            StepSampler(count=count, batch_size=batch_size, seed=seed, drop_last=drop_last)
        return
    sampler = StepSampler(count=count, batch_size=batch_size, seed=seed, drop_last=drop_last)
    length = sampler.steps_per_epoch
    batches = [sampler.global_batch(step) for step in range(epoch * length, (epoch + 1) * length)]
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen) == (count // batch_size * batch_size if drop_last else count)
    assert all(len(batch) == batch_size for batch in batches[: None if drop_last else -1])


@given(total=st.integers(0, 50), parts=st.integers(1, 9))
def test_that_shares_are_even_and_cover(total: int, parts: int) -> None:
    shares = [share(total, part, parts) for part in range(parts)]
    assert [row for one in shares for row in range(one.start, one.stop)] == list(range(total))
    sizes = [one.stop - one.start for one in shares]
    assert max(sizes) - min(sizes) <= 1


def batches(
    *, start: int = 0, stop: int = 12, workers: int = 0, rank: int = 0, world_size: int = 1, seed: int = 1
) -> list[Batch]:
    sampler = StepSampler(count=COUNT, batch_size=SIZE, seed=seed)
    dataset = StepDataset(
        samples=ImageSamples(images_NHWC=IMAGES), sampler=sampler, seed=seed, noise_shape=(2, 3), rank=rank, world_size=world_size
    )
    return list(step_batches(dataset, start=start, stop=stop, workers=workers, device=torch.device("cpu")))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.noise_BKZ, b.noise_BKZ) and a[3:] == b[3:]
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 4, 5, 11])
def test_that_a_batch_depends_on_seed_and_step_alone(workers: int, start: int) -> None:
    assert same(batches(start=start, workers=workers), batches()[start:])


def test_that_another_seed_and_another_step_are_other_batches() -> None:
    assert not same(batches(seed=2), batches(seed=1))
    first, again = batches(stop=1)[0], batches(start=5, stop=6)[0]
    assert not torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.noise_BKZ, again.noise_BKZ)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_that_ranks_share_the_same_global_batches(world_size: int) -> None:
    ranks = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(batches()):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        assert torch.equal(torch.cat([part.noise_BKZ for part in parts]), whole.noise_BKZ)
        assert {part.total for part in parts} == {whole.total}


def test_that_images_are_those_of_the_sampler_in_its_order() -> None:
    sampler = StepSampler(count=COUNT, batch_size=SIZE, seed=1)
    for step, batch in enumerate(batches()):
        assert (batch.inputs[:, 0, 0, 0] * 255).round().tolist() == sampler.global_batch(step).tolist()
        assert batch.total == len(batch.inputs) == (3 if step % 5 == 4 else 5)


def test_that_images_are_mirrored_as_a_function_of_seed_and_step() -> None:
    ramp = np.broadcast_to(np.array([0, 255], dtype=np.uint8)[None, None, :, None], (COUNT, 2, 2, 3))

    def mirrored(step: int, *, rank: int = 0, world_size: int = 1, seed: int = 1) -> list[float]:
        dataset = StepDataset(
            samples=ImageSamples(images_NHWC=ramp), sampler=StepSampler(count=COUNT, batch_size=SIZE, seed=seed), seed=seed,
            noise_shape=(2, 3), rank=rank, world_size=world_size, flip=True,
        )  # fmt: skip
        (batch,) = step_batches(dataset, start=step, stop=step + 1, workers=0, device=torch.device("cpu"))
        return [float(value) for value in batch.inputs[:, 0, 0, 0]]

    everything = [value for step in range(40) for value in mirrored(step)]
    assert 0.35 < np.mean(everything) < 0.65
    assert mirrored(7) == mirrored(7, rank=0, world_size=2) + mirrored(7, rank=1, world_size=2)
    assert [mirrored(step) for step in range(5)] != [mirrored(step, seed=2) for step in range(5)]


def test_that_draws_are_golden_for_ever() -> None:
    """A change here is another training run under the same id."""
    assert standard_normal((3,), 0, "slots", 7).tolist() == pytest.approx(GOLDEN_NORMAL, abs=0)
    assert permutation(8, 0, "order", 0).tolist() == GOLDEN_ORDER
    assert derived_seed(0, "weights") == GOLDEN_SEED


@given(st.integers(0, 2**40), st.text(max_size=5), st.integers(0, 100))
def test_that_a_draw_depends_on_its_names_alone(seed: int, name: str, step: int) -> None:
    first = generator(seed, name, step).random(4)
    generator(seed, name, step + 1).random(9)
    assert np.array_equal(generator(seed, name, step).random(4), first)
    assert not np.array_equal(generator(seed, name, step + 1).random(4), first)
    assert 0 <= derived_seed(seed, name, step) < 2**63


def test_that_noise_is_standard_normal() -> None:
    noise = standard_normal((200_000,), 3, "slots", 0)
    assert noise.dtype == np.float32
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
