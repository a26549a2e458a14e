"""Gradient flow in function space up to a finite time.

Exact, or by Padé approximants of the matrix exponential.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fsl_kernel_closed_form.solver import solve

Exponential = Literal["exact", "pade11", "pade22"]
TERMS = 20  # of a power series on [-1, 0]: the next one is below 1e-20


def finite_time(
    gram: Tensor, residual: Tensor, time: float, exponential: Exponential = "exact"
) -> Tensor:
    """Dual weights gram^-1 (I - exp(-time * gram)) @ residual; float64.

    Equation (A) of arXiv:2102.03909.

    gram:     (..., n, n) symmetric positive semi-definite, singular or not: the function is smooth
              at zero, where it is `time`.
    residual: (..., n, k), labels minus predictions.
    time:     > 0, in units of 1 / gram's.

    exact:  by eigendecomposition. Its first derivative is exact too, at repeated eigenvalues as
            well; see `_exact`.
    pade11: exp(A) ~ (I - A/2)^-1 (I + A/2), so the weights are time * (I + X/2)^-1 @ residual with
            X = time * gram.
    pade22: exp(A) ~ (I - A/2 + A^2/12)^-1 (I + A/2 + A^2/12), so they are
            time * (I + X/2 + X^2/12)^-1 @ residual.

    For eigenvalues of X above about 1 the approximants leave the exponential: they tend to -1 and
    1 while it tends to 0.

    >>> finite_time(torch.zeros(1, 1), torch.ones(1, 1), time=3.0)
    tensor([[3.]], dtype=torch.float64)
    """
    gram, residual = gram.double(), residual.double()
    if exponential == "exact":
        return _exact(gram, residual, time)
    scaled = time * gram
    denominator = scaled / 2 + (scaled @ scaled / 12 if exponential == "pade22" else 0)
    return time * solve(denominator, residual, regularisation=1.0)


def _exact(gram: Tensor, residual: Tensor, time: float) -> Tensor:
    """V (f(L) + D * (V^T (gram - gram') V)) V^T @ residual.

    gram' has the same value without a graph, so the second term is 0. D holds the divided
    differences of f(l) = (1 - exp(-time * l)) / l (Daleckii and Krein), which are f' at equal
    eigenvalues: the gradient is that of the matrix function everywhere, while that of an
    eigendecomposition divides by the gaps between eigenvalues. Second derivatives with respect to
    gram are not those of f: `torch.linalg.matrix_exp` has them.
    """
    constant = gram.detach()
    finite = constant.isfinite().all(-1).all(-1)[..., None, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    eigenvalues, vectors = torch.linalg.eigh(torch.where(finite, constant, identity))
    exponents = -time * eigenvalues.clamp(min=0)  # below zero by rounding alone
    change = vectors.mT @ (gram - constant) @ vectors
    core = torch.diag_embed(time * _first(exponents)) - time**2 * _second(exponents) * change
    return torch.where(finite, vectors @ core @ (vectors.mT @ residual), torch.nan)


def _first(x: Tensor) -> Tensor:
    """Divided difference of exp at 0 and x: (exp(x) - 1) / x, which is 1 at 0."""
    zero = x == 0
    return torch.where(zero, 1.0, torch.expm1(x) / torch.where(zero, 1.0, x))


def _second(x: Tensor) -> Tensor:
    """Divided differences of exp at 0, x_i, x_j, for x <= 0: (..., n) -> (..., n, n).

    By the recursion over the widest gap if that is at least 1, else by the power series; neither
    loses digits.
    """
    high = torch.maximum(x[..., :, None], x[..., None, :])
    low = torch.minimum(x[..., :, None], x[..., None, :])
    near = low > -1
    by_recursion = (high.exp() * _first(low - high) - _first(high)) / torch.where(near, -1.0, low)
    return torch.where(near, _second_by_series(high.clamp(min=-1), low.clamp(min=-1)), by_recursion)


def _second_by_series(a: Tensor, b: Tensor) -> Tensor:
    """sum_k h_k(a, b) / (k + 2)!, with h_k the sum of all products of k factors a or b."""
    factorial, power = 2.0, torch.ones_like(b)
    products, total = torch.ones_like(a), torch.full_like(a, 0.5)
    for k in range(1, TERMS):
        factorial, power = factorial * (k + 2), power * b
        products = a * products + power
        total = total + products / factorial
    return total
