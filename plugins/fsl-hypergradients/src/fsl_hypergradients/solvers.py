"""Iterative solvers of A q = b that read no value, so that a meta-batch can share them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def conjugate_gradients(
    operator: Operator, b: Tensor, q: Tensor, iterations: int, tolerance: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """q after so many iterations from q, and whether A was found to be indefinite, () bool.

    operator: v -> A v, symmetric, positive definite.    b, q: (n,).
    From the first direction p with p'A p <= 0 on, q stays; as it does once
    ||b - A q|| <= tolerance * ||b||.

    Source: Hestenes and Stiefel 1952.
    """
    indefinite = torch.zeros_like(b[0], dtype=torch.bool)
    if iterations == 0:
        return q, indefinite
    residual = b - operator(q)
    direction, squared = residual, residual @ residual
    enough = tolerance**2 * (b @ b)
    going = squared > enough
    for _ in range(iterations):
        image = operator(direction)
        curvature = direction @ image
        indefinite = indefinite | (going & (curvature <= 0))
        going = going & (curvature > 0)
        length = torch.where(going, squared / torch.where(going, curvature, 1.0), 0.0)
        q, residual = q + length * direction, residual - length * image
        left = residual @ residual
        direction = residual + torch.where(going, left / torch.where(going, squared, 1.0), 0.0) * (
            direction
        )
        squared, going = left, going & (left > enough)
    return q, indefinite


def neumann(operator: Operator, b: Tensor, q: Tensor, iterations: int, rate: float) -> Tensor:
    """q <- q + rate (b - A q), so many times.

    From q = rate b this is rate * sum_{k <= iterations} (I - rate A)^k b. It converges if every
    eigenvalue of A is between 0 and 2 / rate.
    """
    for _ in range(iterations):
        q = q + rate * (b - operator(q))
    return q
