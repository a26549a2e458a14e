"""Random numbers as a function of keys, in plain integer operations.

Keys may be tensors, such as `Episode.id`, also where a meta-batch is one computation and no value
can be read (torch.func.vmap, torch.compile). Nothing is kept: the same keys give the same numbers,
whichever task, worker or run asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

Key = int | Tensor
_WORD = 2**32 - 1
_A, _B = 0x9E3779B9, 0x7F4A7C15


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64, in which each bit of x moves half of the others.

    Source: the constants of github.com/skeeto/hash-prospector (lowbias32, 16 15 15).
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _WORD
    # The factor less 2**32 is the same modulo 2**32, and no product leaves int64.
    x = (x ^ (x >> 15)) * (0xD35A2D97 - 2**32) & _WORD
    return x ^ (x >> 15)


def words(count: int, keys: Sequence[Key], device: torch.device) -> Tensor:
    """(count,) int64, random numbers from 0 to 2**32 - 1."""
    first = torch.full((), _A, dtype=torch.int64, device=device)
    second = torch.full((), _B, dtype=torch.int64, device=device)
    for key in keys:
        for part in (key & _WORD, (key >> 32) & _WORD):
            first = _mixed((first ^ part) + _A & _WORD)
            second = _mixed((second + part & _WORD) ^ _B)
    index = torch.arange(count, device=device)
    return _mixed(_mixed(index + first & _WORD) ^ second)


def normal(count: int, keys: Sequence[Key], like: Tensor) -> Tensor:
    """(count,) standard normal numbers, of the dtype and on the device of `like`.

    Source: Box and Muller 1958. The largest of them are about 6.7.
    """
    drawn = (words(2 * count, keys, like.device).to(torch.float64) + 0.5) / 2**32
    radius, angle = drawn[:count], drawn[count:]
    return ((-2 * radius.log()).sqrt() * (2 * pi * angle).cos()).to(like.dtype)


def permutation(count: int, keys: Sequence[Key], device: torch.device) -> Tensor:
    """(count,) int64, the numbers below `count` in random order."""
    return words(count, keys, device).argsort()
