"""The inner steps of one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fsl_maml.losses import CENTRE, Weights
from fsl_maml.optimizers import InnerOptimizer, PlainSgd
from fsl_maml.rates import InnerRates


@dataclass
class Steps:
    """(phi, gradient, k, outer) -> the next phi; step 0 begins without history.

    names:    of phi, in the order of the optimizer's tensors.
    clip:     greatest Euclidean norm of the gradient.
    proximal: gamma of one plain step on gamma / 2 ||phi - centre||^2 after step `last`.
    """

    names: Sequence[str]
    optimizer: PlainSgd | InnerOptimizer
    rates: InnerRates
    clip: float | None = None
    proximal: float = 0.0
    last: int | None = None

    def __call__(self, phi: Weights, gradient: Weights, k: int, outer: Weights) -> Weights:
        if k == 0:
            self.started = self.optimizer.start(tracked=torch.is_grad_enabled())
        if self.clip is not None and gradient:
            gradient = clipped(gradient, self.clip)
        updated = self.started.update(
            [phi[name] for name in self.names],
            [gradient.get(name) for name in self.names],
            self.rates.at(k, outer),
        )
        phi = dict(zip(self.names, updated, strict=True))
        centred = all(CENTRE + name in outer for name in self.names)
        if self.proximal and k == self.last and centred:
            return self._towards_centre(phi, k, outer)
        return phi

    def _towards_centre(self, phi: Weights, k: int, outer: Weights) -> Weights:
        slopes = [self.proximal * (phi[name] - outer[CENTRE + name]) for name in self.names]
        plain = PlainSgd(self.rates.initial)
        updated = plain.update([*phi.values()], [*slopes], self.rates.at(k, outer))
        return dict(zip(self.names, updated, strict=True))


def clipped(gradient: Weights, limit: float) -> Weights:
    """gradient * min(1, limit / norm over all tensors); differentiable, also at zero."""
    squared = torch.stack([slope.square().sum() for slope in gradient.values()]).sum()
    scale = limit * squared.clamp(min=limit**2).rsqrt()
    return {name: slope * scale for name, slope in gradient.items()}
