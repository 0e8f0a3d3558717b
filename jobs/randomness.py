"""Counter-based randomness: every draw is a function of (seed, names), never of what was drawn before. Torch-free.

Restoring at step s therefore needs no generator state, and another world size sees the same draws: a step's noise is
drawn for the whole global batch and each rank takes its rows.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *names: int | str) -> np.random.Generator:
    """A generator whose stream depends on `seed` and `names` alone (Philox 4x64, keyed by a hash of both)."""
    text = "/".join(str(name) for name in (seed, *names))
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def derived_seed(seed: int, *names: int | str) -> int:
    """A 63-bit integer seed for libraries that want one (initial weights)."""
    return int(generator(seed, *names).integers(0, 2**63 - 1))


def standard_normal(shape: tuple[int, ...], seed: int, *names: int | str) -> np.ndarray:
    """Standard normal float32 of `shape`, the draw named by (seed, names)."""
    return generator(seed, *names).standard_normal(shape, dtype=np.float32)


def permutation(count: int, seed: int, *names: int | str) -> np.ndarray:
    """A permutation of 0 .. count-1, the draw named by (seed, names)."""
    return generator(seed, *names).permutation(count)
