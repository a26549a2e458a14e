"""The inner loss: the support loss, its penalties, and the mixture with the query loss of BDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

import fsl_core as fsl

Weights = dict[str, Tensor]
"""By name, such as `backbone.blocks.0.weight`, `head.bias` and `inner_lr.rate`."""
LossKind = Literal["mean", "sum-per-shot"]

CENTRE = "centre."
SHARE = "share of the query loss"
SUPPORT, QUERY = "features of the support set", "features of the query set"


class Aggregate(nn.Module):
    """alpha of the aggregated step, fixed or learned through a sigmoid.

    Step t = 1, 2, .. follows (1 - alpha / t) * support loss + (alpha / t) * query loss.
    """

    alpha: Tensor

    def __init__(self, alpha: float, learned: bool):
        super().__init__()
        if learned:
            self.logit = nn.Parameter(torch.tensor(alpha).logit())
        else:
            self.register_buffer("alpha", torch.tensor(alpha))

    def learned(self) -> Weights:
        """The meta-parameter, or nothing, by its name in the adapter."""
        return {f"aggregate.{name}": value for name, value in self.named_parameters()}

    def at(self, step: int, learned: Mapping[str, Tensor]) -> Weights:
        """alpha / t, of the step with this number from 0."""
        logit = learned.get("aggregate.logit")
        return {SHARE: (self.alpha if logit is None else logit.sigmoid()) / (max(step, 0) + 1)}


class Features:
    """Features of sets of items, computed once for as long as they come from the same weights."""

    def __init__(self, net: fsl.Functional, items: Mapping[str, Tensor]):
        self.net, self.items = net, items
        self.names = [name for name in net.weights if name.startswith("backbone.")]
        self.source: list[Tensor] | None = None

    def __call__(self, fixed: Weights) -> Weights:
        """Nothing if a step moves the backbone."""
        if not all(name in fixed for name in self.names):
            return {}
        source = [fixed[name] for name in self.names]
        if self.source is None or any(a is not b for a, b in zip(source, self.source, strict=True)):
            self.source = source
            self.known = {name: self.net.features(fixed, x) for name, x in self.items.items()}
        return self.known


class InnerLoss:
    """(phi, outer) -> the loss that inner steps of one task follow, a scalar.

        (1 - share) * [scale * l + weight_decay / 2 ||head||^2 + proximal / 2 ||phi - centre||^2]
            + share * L

    l, L:   support and query loss, means over items.
    scale:  1, or the number of support items divided by n_shot.
    share:  of the query loss, if `outer` has one.
    centre: `centre.<name>` of `outer`; without it no proximal term.
    """

    def __init__(
        self,
        task: fsl.TaskShape,
        net: fsl.Functional,
        episode: Mapping[str, fsl.LabelledSet],
        kind: LossKind = "mean",
        weight_decay: float = 0.0,
        proximal: float = 0.0,
    ):
        self.task, self.net, self.episode = task, net, episode
        self.scale = len(episode[SUPPORT].y) / task.n_shot if kind == "sum-per-shot" else 1.0
        self.weight_decay, self.proximal = weight_decay, proximal

    def __call__(self, phi: Weights, outer: Weights) -> Tensor:
        weights = outer | phi
        value = self._of(SUPPORT, weights)
        if self.scale != 1:
            value = self.scale * value
        if self.weight_decay:
            head = {name: weight for name, weight in weights.items() if name.startswith("head.")}
            value = value + self.weight_decay / 2 * _squares(head)
        if self.proximal and any(name.startswith(CENTRE) for name in outer):
            apart = {name: weight - outer[CENTRE + name] for name, weight in phi.items()}
            value = value + self.proximal / 2 * _squares(apart)
        share = outer.get(SHARE)
        return value if share is None else (1 - share) * value + share * self._of(QUERY, weights)

    def _of(self, which: str, weights: Weights) -> Tensor:
        items, known = self.episode[which], weights.get(which)
        features = self.net.features(weights, items.x) if known is None else known
        return self.task.loss(self.net.head(weights, features), items.y)


def _squares(weights: Weights) -> Tensor:
    return torch.stack([weight.square().sum() for weight in weights.values()]).sum()
