"""What the steps minimise, and its curvature along a direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Numbers = Mapping[str, Tensor]
"""Scalars by name: `own_target`, `other_target`, `own_weight`, `other_weight`, `own_slope`,
`other_slope`, `regularisation`, `entropy_weight`, `temperature`."""
Curvature = Literal["covariance", "hessian"]


@dataclass(frozen=True)
class Objective:
    """F(w) = 1/2 ||r||^2 + 1/2 regularisation^2 ||w||^2 + entropy_weight * mean_q H(p_q).

        r_jc = v act(sign (y - s_jc); a),    s = features w',    p_q = softmax(temperature w . q)
        act(x; a) = (1 - a)/2 |x| + (1 + a)/2 x

    sign is 1 for the class of item j and -1 for others; target y, weight v and slope a are a number
    for the own class and one for others. a = 1: least squares. a = 0: squared hinge.

    members:  (n, n_way), one-hot.
    features: (n, d).    queries: (n_q, d), or None: no entropy.
    """

    members: Tensor
    features: Tensor
    queries: Tensor | None
    numbers: Numbers
    curvature_of_entropy: Curvature = "covariance"

    def __call__(self, w: Tensor) -> Tensor:
        """F(w), a scalar. w: (n_way, d)."""
        x = self._missing(w)
        slope = self._of_class("slope")
        residual = self._of_class("weight") * ((1 - slope) / 2 * x.abs() + (1 + slope) / 2 * x)
        value = residual.square().sum() / 2
        value = value + (self.numbers["regularisation"] * w).square().sum() / 2
        if self.queries is None:
            return value
        logits = self.numbers["temperature"] * (self.queries @ w.mT)
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
        return value + self.numbers["entropy_weight"] * entropy.mean()

    def curvature(self, w: Tensor, g: Tensor) -> Tensor:
        """||J g||^2 + that of the entropy along g, a scalar; J is the Jacobian of r at w."""
        slope = self._of_class("slope")
        derivative = (1 - slope) / 2 * self._missing(w).sign() + (1 + slope) / 2
        moved = self._of_class("weight") * derivative * (self.features @ g.mT)
        value = moved.square().sum() + (self.numbers["regularisation"] * g).square().sum()
        return value if self.queries is None else value + self._of_entropy(w, g)

    def _missing(self, w: Tensor) -> Tensor:
        """sign (y - s), (n, n_way)."""
        return (2 * self.members - 1) * (self._of_class("target") - self.features @ w.mT)

    def _of_class(self, what: str) -> Tensor:
        """(n, n_way): the number for the own class of an item, and that for others."""
        own, other = self.numbers[f"own_{what}"], self.numbers[f"other_{what}"]
        return other + (own - other) * self.members

    def _of_entropy(self, w: Tensor, g: Tensor) -> Tensor:
        """Along dz = temperature (g . q), at least 0.

        covariance: Var_p(dz) of each query, which the authors' code takes.
        hessian:    the second derivative of the entropy, -Var_p(dz) - E_p[(z - E z)(dz - E dz)^2].
        """
        assert self.queries is not None
        temperature, weight = self.numbers["temperature"], self.numbers["entropy_weight"]
        z, dz = temperature * (self.queries @ w.mT), temperature * (self.queries @ g.mT)
        p = z.softmax(1)
        squares = (dz - (p * dz).sum(1, keepdim=True)).square()
        if self.curvature_of_entropy == "hessian":
            squares = -squares * (1 + z - (p * z).sum(1, keepdim=True))
        return (weight * (p * squares).sum(1).mean()).clamp_min(0)


def step(w: Tensor, g: Tensor, curvature: Tensor, step_regulariser: float) -> Tensor:
    """w - g.g / (max(curvature, 1e-8) + step_regulariser g.g) g, of the same shape as w."""
    square = g.square().sum()
    return w - square / (curvature.clamp_min(1e-8) + step_regulariser * square) * g
