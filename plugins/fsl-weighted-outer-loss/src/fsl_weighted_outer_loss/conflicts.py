"""The weighting `conflict-free`: combinations of the gradients that go against no task.

Or against a task as little as can be.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import fsl_core as fsl
from fsl_weighted_outer_loss.geometry import Columns, GradientPart, Part, compare

SHORTEST = 1e-12
"""A gradient below this share of the longest counts as zero."""


@fsl.validated
class ConflictFree(fsl.TaskWeighting):
    """The shortest combination of the gradients, or one with conflicting components taken out.

    min-norm: weights = argmin |sum_i w_i g_i|^2 over w_i >= 0 with sum 1. Following it lowers every
    task's loss to first order, or it is zero, as it is when one task's gradient is.
    Sources: Desideri 2012 (MGDA); Sener and Koltun 2018, arXiv:1810.04650. Differs: pairwise
    Frank-Wolfe steps (Lacoste-Julien and Jaggi 2015, arXiv:1511.05932), which converge faster; over
    all parameters, as there are no decoders.

    pcgrad: each g_i loses, for every other task j in random order, its component along g_j if their
    product is negative; the result is the mean of the tasks' remainders. Every remainder is a sum
    of gradients with factors >= 0 that follow from their cosines and lengths, so it is a weighting;
    its weights may sum to more than one. Random orders come from torch's generator.
    Source: Yu et al. 2020, arXiv:2001.06782. Differs: the mean over tasks instead of their sum.
    """

    name = "conflict-free"
    needs = frozenset({"gradients"})

    def __init__(
        self,
        columns: Columns,
        method: Annotated[
            Literal["min-norm", "pcgrad"], Field(description="MGDA, or gradient surgery")
        ] = "min-norm",
        gradient: Part = "all",
    ):
        super().__init__()
        self.method, self.total = method, "one" if method == "min-norm" else "any"
        self.part = GradientPart(columns, gradient, self.name)

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        compared = compare(self.part(outcomes.gradients))
        cosines, lengths = (tensor.double().cpu().numpy() for tensor in compared)
        if self.method == "min-norm":
            weights = min_norm(cosines * np.outer(lengths, lengths))
        else:
            weights = pcgrad(cosines, lengths, _orders(len(lengths)))
        return torch.from_numpy(weights).to(outcomes.losses)


def _orders(n: int) -> np.ndarray:
    """For each task an order in which it meets the others, from torch's generator."""
    return np.stack([torch.randperm(n).numpy() for _ in range(n)])


def min_norm(gram: np.ndarray, tolerance: float = 1e-12, steps: int = 10_000) -> np.ndarray:
    """argmin w' gram w over the simplex.

    Weight moves from the tasks of largest to those of smallest slope. Tasks that tie share it, so
    that equal ones weigh the same.

    gram: (n, n) positive semi-definite with a largest entry of about 1.

    >>> min_norm(np.array([[1.0, 0.0], [0.0, 0.25]]))
    array([0.2, 0.8])
    """
    weights = np.full(len(gram), 1 / len(gram))
    for _ in range(steps):
        slopes = gram @ weights
        low, high = slopes.min(), slopes[weights > 0].max()
        if not high - low > tolerance:  # `not >`: nan, of gradients that are not finite, ends it
            break
        giving = (weights > 0) & (slopes >= high - tolerance)
        taking = slopes <= low + tolerance
        direction = taking / taking.sum() - giving / giving.sum()
        curvature = direction @ gram @ direction
        longest = weights[giving].min() * giving.sum()
        best = -(direction @ slopes) / curvature if curvature > 0 else longest
        weights = weights + min(best, longest) * direction
        weights[weights < 1e-15] = 0
    return weights / weights.sum()


def pcgrad(cosines: np.ndarray, lengths: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Factors (n,) of the gradients in the mean of their projections.

    orders: (n, n), row i a permutation: the order in which task i meets the others.

    >>> cosines, orders = np.array([[1.0, -0.5], [-0.5, 1.0]]), np.array([[0, 1], [1, 0]])
    >>> pcgrad(cosines, np.array([1.0, 1.0]), orders)
    array([0.75, 0.75])
    """
    n, task = len(cosines), np.arange(len(cosines))
    long_enough = np.minimum.outer(lengths, lengths) > SHORTEST * lengths.max()
    cosines = np.where(long_enough, cosines, 0.0)
    # [i, j]: factor of the unit vector along g_j in the remainder of task i, over |g_i|
    factors = np.eye(n)
    for other in orders.T:
        products = (factors * cosines[other]).sum(1)
        factors[task, other] -= np.where(other == task, 0.0, products.clip(max=0))
    used = (factors > 0) & (task[:, None] != task)  # elsewhere a length of zero may divide
    ratios = np.divide.outer(lengths, lengths, out=np.ones((n, n)), where=used)
    return (factors * ratios).sum(0) / n
