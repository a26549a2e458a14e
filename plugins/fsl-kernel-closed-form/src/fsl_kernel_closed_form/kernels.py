"""Kernels between feature vectors.

Each is fitted to the support features and then compares any features with them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fsl_kernel_closed_form.positive import Positive

Similarity = Callable[[Tensor], Tensor]
"""(n, feature_dim) -> (n, n_support): kernel values of features with the support features."""

FLOAT32_ROUNDING = 1e-7


def linear(support: Tensor) -> Similarity:
    """k(z, z') = z . z'"""
    return lambda features: features @ support.mT


def cosine(support: Tensor) -> Similarity:
    """k(z, z') = z . z' / (||z|| ||z'||); a vector of zeros is not similar even to itself."""
    directions = _directions(support).mT
    return lambda features: _directions(features) @ directions


class Rbf(nn.Module):
    """k(z, z') = exp(-||z - z'||^2 / (2 width^2)).

    width:   a number > 0 in the units of features, or "median": the lower median of the distances
             between support items, taken again for each task and differentiated; 1 if that is zero
             or there is one item.
    learned: the outer loop trains the width, or the factor of the median.
    """

    def __init__(self, width: float | str, learned: bool):
        super().__init__()
        self.median = width == "median"
        self.factor = Positive(1.0 if self.median else float(width), learned)

    def forward(self, support: Tensor) -> Similarity:
        origin = support.mean(0)  # distances lose digits far from it
        centred = support - origin
        squared_width = self.factor() ** 2 * (
            _median_square(support, centred) if self.median else 1.0
        )
        return lambda features: (
            -_squared_distances(features - origin, centred) / (2 * squared_width)
        ).exp()

    def extra_repr(self) -> str:
        return "median width" if self.median else ""


def _directions(vectors: Tensor) -> Tensor:
    squares = vectors.square().sum(-1, keepdim=True)
    return vectors * torch.where(squares > 0, squares, 1.0).rsqrt()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m); zero, not a rounding error below it, for equal rows."""
    squares = a.square().sum(-1)[:, None] + b.square().sum(-1)[None, :]
    return (squares - 2 * a @ b.mT).clamp(min=0)


def _median_square(support: Tensor, centred: Tensor) -> Tensor:
    """Of the distances between the items; 1 if they are equal but for the rounding of float32."""
    n = len(centred)
    if n < 2:
        return centred.new_ones(())
    rows, columns = torch.triu_indices(n, n, offset=1, device=centred.device)
    median = _squared_distances(centred, centred)[rows, columns].median()
    return torch.where(median > FLOAT32_ROUNDING**2 * support.square().sum(1).mean(), median, 1.0)
