"""Random numbers as a function of (seed, split, episode index): no state, the same on every machine and in every process.

Raw Philox bits alone, for NumPy keeps the stream of a bit generator fixed but not what its Generator methods make of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def draw_bits(seed: int, split: str, indices: Sequence[int], n: int) -> np.ndarray:
    """(len(indices), n) uint64 random bits. Row i depends on (seed, split, indices[i]) alone; a longer row starts the same.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": (seed, split) is the key, the index the counter.
    """
    key = np.frombuffer(hashlib.blake2b(f"{seed}/{split}".encode(), digest_size=16).digest(), "<u8")
    philox = np.random.Philox(key=key)
    fresh = philox.state
    bits = np.empty((len(indices), n), np.uint64)
    for row, index in zip(bits, indices, strict=True):
        fresh["state"]["counter"] = np.array(
            [0, 0, index, 0], np.uint64
        )  # 2**128 blocks for each episode
        philox.state = fresh
        row[:] = philox.random_raw(n)
    return bits


def to_uniform(bits: np.ndarray) -> np.ndarray:
    """Random bits -> float64 in [0, 1), multiples of 2**-53; the shape is kept."""
    return (bits >> np.uint64(11)) * 2.0**-53


def to_distinct(bits: np.ndarray, population: np.ndarray) -> np.ndarray:
    """(rows, n) random bits -> (rows, n) int64: row r holds n different numbers below population[r], in random order.

    population: (rows,) int, each at least n and below 2**32. Fisher and Yates' shuffle, stopped after n cards; its departure
    from uniform is below population / 2**32.
    """
    rows, n = bits.shape
    deck = np.tile(np.arange(population.max(initial=0)), (rows, 1))
    row = np.arange(rows)
    for i in range(n):
        pick = i + (
            (bits[:, i] >> np.uint64(32)) * (population - i).astype(np.uint64) >> np.uint64(32)
        ).astype(np.int64)
        deck[row, i], deck[row, pick] = deck[row, pick], deck[row, i]
    return deck[:, :n]
