"""How far two sets of features of the same items are apart, by measures of the literature."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MEASURES = ("cka", "cka-debiased", "svcca", "pwcca", "procrustes")
HELD = 0.99
"""Share of the sum of singular values that svcca keeps."""
FEW = 5
"""Items for each kept direction, below which correlations of unlike features are still high."""


class Distance(NamedTuple):
    """A distance, or why there is none. note: what to know of its value."""

    value: float | None
    reason: str = ""
    note: str = ""


class _Directions(NamedTuple):
    """The singular directions of centred features: u (n, r), s (r,), v (r, features)."""

    u: Tensor
    s: Tensor
    v: Tensor

    def first(self, count: int) -> _Directions:
        return _Directions(self.u[:, :count], self.s[:count], self.v[:count])


def distances(before: Tensor, after: Tensor) -> dict[str, Distance]:
    """Distances of features x = before, (n, p), from y = after, (n, q), of the same n items.

    Columns are centred and computed with in float64. 0: alike.

    cka:          1 - ||y' x||^2 / (||x' x|| ||y' y||), Frobenius norms.
    cka-debiased: the same from unbiased estimates of HSIC; about 1 for unrelated features, also
                  where there are more features than items, and above 1 by chance.
    svcca:        1 - the mean canonical correlation of the leading singular directions, those that
                  hold 0.99 of the sum of singular values.
    pwcca:        1 - sum_i a_i r_i over all directions; a_i, in proportion to
                  sum_j |<h_i, x_j>|, is the share of x that its canonical variate h_i explains. It
                  is not symmetric.
    procrustes:   1 - ||y' x||_*, the nuclear norm, of x and y scaled to Frobenius norm 1: half the
                  least squared distance after a rotation.

    A measure is None, with the reason, if a layer is constant, or if it has so many directions for
    so few items that some correlations are 1 by construction: n - 1 below those of x and y
    together. Equal features are at distance 0 in any case.

    Sources: Kornblith et al. 2019, arXiv:1905.00414 (CKA); Song et al. 2012, JMLR 13 (unbiased
    HSIC); Raghu et al. 2017, arXiv:1706.05806 (SVCCA); Morcos et al. 2018, arXiv:1806.05759
    (PWCCA); Ding et al. 2021, arXiv:2108.01661 (Procrustes).
    """
    tolerance = torch.finfo(before.dtype).eps
    x, y = _centred(before), _centred(after)
    for which, features in (("before", x), ("after", y)):
        if _constant(features, before if which == "before" else after, tolerance):
            reason = f"the layer is the same for every item {which} adaptation"
            return dict.fromkeys(MEASURES, Distance(None, reason))
    if before.shape == after.shape and torch.equal(before, after):
        return dict.fromkeys(MEASURES, Distance(0.0))
    of_x, of_y = _directions(x, tolerance), _directions(y, tolerance)
    inner = (of_x.s[:, None] * of_x.u.T) @ (of_y.u * of_y.s)
    lengths = of_x.s.square().norm() * of_y.s.square().norm()
    scale = of_x.s.norm() * of_y.s.norm()
    return {
        "cka": Distance(float(1 - inner.square().sum() / lengths)),
        "cka-debiased": _debiased(x, y, of_x.s, of_y.s, inner),
        "svcca": _svcca(of_x.first(_kept(of_x.s)), of_y.first(_kept(of_y.s))),
        "pwcca": _pwcca(of_x, of_y),
        "procrustes": Distance(float(1 - torch.linalg.svdvals(inner).sum() / scale)),
    }


def _centred(features: Tensor) -> Tensor:
    features = features.double()
    return features - features.mean(0)


def _constant(centred: Tensor, features: Tensor, tolerance: float) -> bool:
    return bool(centred.norm() <= tolerance * features.double().norm())


def _directions(x: Tensor, tolerance: float) -> _Directions:
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    rank = int((s > s[0] * max(x.shape) * tolerance).sum())
    return _Directions(u, s, v).first(rank)


def _kept(s: Tensor) -> int:
    """The number of leading directions that hold HELD of the sum."""
    return int((s.cumsum(0) < HELD * s.sum()).sum()) + 1


def _debiased(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, inner: Tensor) -> Distance:
    """of_x, of_y: singular values. inner: (r, q), of the singular values of x' y."""
    n = len(x)
    if n < 4:
        return Distance(None, f"{n} items, and its estimates need 4")
    dx, dy = x.square().sum(1), y.square().sum(1)
    own = _hsic(of_x.square(), dx, dx), _hsic(of_y.square(), dy, dy)
    if min(own) <= 0:
        return Distance(None, f"the estimate of a layer's own HSIC is {min(own):.3g}, not above 0")
    return Distance(1 - _hsic(inner, dx, dy) / (own[0] ** 0.5 * own[1] ** 0.5))


def _hsic(inner: Tensor, dx: Tensor, dy: Tensor) -> float:
    """The unbiased estimate, up to 1 / (n (n - 3)), from x' y and the diagonals of x x' and y y'.

    The rows of both Gram matrices sum to zero, since x and y are centred: without their diagonals,
    they sum to minus the diagonals.
    """
    n = len(dx)
    sums = dx.sum() * dy.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (dx @ dy)
    return float(inner.square().sum() - dx @ dy + sums)


def _svcca(x: _Directions, y: _Directions) -> Distance:
    def distance() -> float:
        return float(1 - torch.linalg.svdvals(x.u.T @ y.u).mean())

    return _if_valid(x, y, distance)


def _pwcca(x: _Directions, y: _Directions) -> Distance:
    def distance() -> float:
        p, r, _ = torch.linalg.svd(x.u.T @ y.u, full_matrices=False)
        a = (p.T @ (x.s[:, None] * x.v)).abs().sum(1)
        return float(1 - (a / a.sum()) @ r)

    return _if_valid(x, y, distance)


def _if_valid(x: _Directions, y: _Directions, distance: Callable[[], float]) -> Distance:
    n, kept = len(x.u), (len(x.s), len(y.s))
    if n - 1 < sum(kept):
        reason = (
            f"{n} items for {kept[0]} directions before and {kept[1]} after adaptation: "
            f"{sum(kept) - n + 1} correlations are 1 by construction. More than {sum(kept)} items"
        )
        return Distance(None, reason)
    few = n < FEW * max(kept)
    return Distance(distance(), note=f"{n} items for {max(kept)} directions" if few else "")
