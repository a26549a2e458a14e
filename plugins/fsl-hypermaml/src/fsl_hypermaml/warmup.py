"""The way from gradient steps to the hypernetwork."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad

ROUNDING = 1e-9  # of shares of training: 0.1 + 0.2 is more than 0.3
Weights = dict[str, Tensor]
Move = Callable[[Weights, Weights], Weights]
"""(fast weights, gradient) -> the next fast weights."""


def gradient_share(progress: float, warmup: float, switch: float) -> float:
    """The share p of gradient steps in the update: 1, then falling linearly, then 0.

    progress: step / total.
    warmup:   share of training in which p is 1.
    switch:   share after it in which p falls; 0 is a jump.

    >>> [gradient_share(p, warmup=0.25, switch=0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    past, left = progress - warmup, warmup + switch - progress
    if left < ROUNDING:
        return 0.0
    return 1.0 if past < ROUNDING else left / switch


def steps_from_start(
    loss: Callable[[Weights], Tensor], start: Weights, steps: int, move: Move
) -> list[Weights]:
    """`start` and the fast weights after each step, steps + 1 in all.

    The gradient at step k is that of loss(fast weights k) with respect to `start`, through all
    steps before, and not with respect to the fast weights; it takes 2**steps - 1 gradients.

    loss: of the support set, a scalar.
    move: makes a step from fast weights and a gradient.
    """
    heads = [start]
    for step in range(steps):
        gradient = grad(lambda head, k=step: loss(steps_from_start(loss, head, k, move)[-1]))(start)
        heads.append(move(heads[-1], gradient))
    return heads
