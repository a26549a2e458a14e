"""Where the head starts: in closed form, from the means of each class and of all others."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-6
"""Of the determinant, which is 0 where the two means are parallel (the authors' code)."""


def closed_form(features: Tensor, members: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """The vector in span(p, m) of each class with w . p = own and w . m = other, (n_way, d).

    p, m: means of the features of a class, and of those of all other classes.

        D = max((p . p)(m . m) - (p . m)^2, 1e-6)
        w = [(own (m . m) - other (p . m)) p - (own (p . m) - other (p . p)) m] / D

    features: (n, d).    members: (n, n_way), one-hot.    own, other: ().
    In float64: D is a small difference of large numbers. Where p and m are parallel, w is zero up
    to rounding.
    """
    z, members = features.double(), members.double()
    sums, counts = members.mT @ z, members.sum(0)[:, None]
    p, m = sums / counts, (z.sum(0) - sums) / (len(z) - counts)
    pp, mm, pm = (p * p).sum(1), (m * m).sum(1), (p * m).sum(1)
    determinant = (pp * mm - pm.square()).clamp_min(SMALLEST)
    of_p, of_m = own * mm - other * pm, own * pm - other * pp
    w = (of_p / determinant)[:, None] * p - (of_m / determinant)[:, None] * m
    return w.to(torch.promote_types(features.dtype, own.dtype))
