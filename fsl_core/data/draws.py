"""Random numbers as a function of (seed, split, episode index), without a state.

They are the same on every machine and in every process. So an episode does not depend on which
episodes were drawn before it: a run that is resumed draws what it would have drawn, and two methods
that are compared see the same tasks.

Only raw Philox bits are used: NumPy promises that the stream of a bit generator stays the same, but
not what the methods of its Generator make of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def draw_bits(seed: int, split: str, indices: Sequence[int], n: int) -> np.ndarray:
    """(len(indices), n) uint64 random bits.

    Row i depends on (seed, split, indices[i]) alone, and a longer row starts the same.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": (seed, split) is the
    key, the index the counter.
    """
    # The order of the bytes is named ("<u8"), so that the key is the same on every machine.
    key = np.frombuffer(hashlib.blake2b(f"{seed}/{split}".encode(), digest_size=16).digest(), "<u8")
    philox = np.random.Philox(key=key)
    fresh = philox.state
    bits = np.empty((len(indices), n), np.uint64)
    for row, index in zip(bits, indices, strict=True):
        # The counter has 256 bits. The index goes into the upper half, so each episode has 2**128
        # blocks of its own before it reaches the next one's.
        fresh["state"]["counter"] = np.array([0, 0, index, 0], np.uint64)
        philox.state = fresh  # all of the state: no words are left over from the row before
        row[:] = philox.random_raw(n)
    return bits


def to_uniform(bits: np.ndarray) -> np.ndarray:
    """Random bits -> float64 in [0, 1), multiples of 2**-53; the shape is kept."""
    return (bits >> np.uint64(11)) * 2.0**-53


def to_between(bits: int | np.integer, bounds: tuple[int, int]) -> int:
    """64 random bits -> a whole number from bounds[0] to bounds[1], both included.

    Its departure from uniform is below their distance / 2**32.
    """
    low, high = bounds
    return low + ((int(bits) >> 32) * (high - low + 1) >> 32)


def to_distinct(bits: np.ndarray, population: np.ndarray) -> np.ndarray:
    """(rows, n) random bits -> (rows, n) int64, different numbers in random order.

    Row r holds different numbers below population[r]. This is Fisher and Yates' shuffle, stopped
    after n cards; its departure from uniform is below population / 2**32.

    population: (rows,) int, below 2**32. What a row holds beyond as many numbers means nothing.
    """
    rows, n = bits.shape
    width = max(n, population.max(initial=0))
    deck = np.tile(np.arange(width), (rows, 1))
    half, step = np.uint64(32), np.arange(n)
    # Numbers below `left` by a product and a shift of whole numbers, which rounds nowhere.
    left = np.maximum(population[:, None] - step, 1).astype(np.uint64)
    picks = step + ((bits >> half) * left >> half).astype(np.int64)
    # One index into all decks, laid end to end: to swap by two costs a third more.
    cards, first = deck.reshape(-1), np.arange(rows) * width
    for i, there in enumerate(np.ascontiguousarray((first[:, None] + picks).T)):
        here = first + i
        cards[here], cards[there] = cards[there], cards[here]
    return deck[:, :n]
