"""The solver that every closed form shares: Cholesky in float64.

Its jitter is raised if it has to be.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

RUNGS = (1e-8, 1e-6, 1e-4)
"""Relative jitters tried, in this order, if the one asked for leaves the matrix indefinite."""


class JitterWarning(UserWarning):
    """A kernel matrix was not positive definite and got a larger jitter than was asked for."""


def solve(
    gram: Tensor, targets: Tensor, regularisation: Tensor | float, jitter: float = 0.0
) -> Tensor:
    """Dual weights (gram + (regularisation + jitter * m) I)^-1 @ targets; float64.

    m is the mean of gram's diagonal.

    gram:    (..., n, n) symmetric positive semi-definite; computed in float64 whatever its dtype.
    targets: (..., n, k), in the units of the labels.
    regularisation: >= 0, in the units of gram's diagonal.
    jitter:  >= 0, relative to m, so that it has no unit.

    If Cholesky refuses the matrix, the first larger jitter of `RUNGS` that it accepts is used.
    torch.where makes the choice, so that no value is read under vmap or compilation. Outside of
    both, a raised jitter is reported as JitterWarning. If nothing is accepted, as with NaN, the
    result is NaN: training stops there and names the episode. Exactly differentiable any number of
    times at the jitter chosen, which itself has no gradient.

    >>> solve(torch.eye(2), torch.tensor([[1.0], [3.0]]), regularisation=1.0)
    tensor([[0.5000],
            [1.5000]], dtype=torch.float64)
    """
    gram, targets = gram.double(), targets.double()
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    unit = torch.where(mean > 0, mean, torch.ones_like(mean))
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)

    def regularised(level: Tensor | float) -> Tensor:
        return gram + (regularisation + level * unit)[..., None, None] * identity

    level = _lowest_rung(lambda rung: regularised(rung).detach(), jitter, unit.detach())
    factor, info = torch.linalg.cholesky_ex(regularised(level))
    solved = info == 0
    _report(torch.where(solved, level, jitter), jitter, gram.shape[-1])
    return torch.where(solved[..., None, None], torch.cholesky_solve(targets, factor), torch.nan)


def _lowest_rung(matrix: Callable[[float], Tensor], jitter: float, like: Tensor) -> Tensor:
    """The smallest relative jitter that Cholesky accepts.

    Of the one asked for, and those of `RUNGS` above it.
    """
    rungs = [jitter, *(rung for rung in RUNGS if rung > jitter)]
    level = torch.full_like(like, rungs[-1])
    for rung in reversed(rungs[:-1]):
        accepted = torch.linalg.cholesky_ex(matrix(rung)).info == 0
        level = torch.where(accepted, rung, level)
    return level


def _report(level: Tensor, jitter: float, n: int) -> None:
    if torch.compiler.is_compiling():
        return
    try:
        raised = float(level.max())
    except RuntimeError:
        # Under vmap no value can be read; evaluation, which is not vectorised, reports it.
        return
    if raised > jitter:
        warnings.warn(
            f"solve: a kernel matrix of {n} rows is not positive definite in float64 with relative "
            f"jitter {jitter:g}, so {raised:g} was used. A larger regularisation or jitter",
            JitterWarning,
            stacklevel=3,
        )
