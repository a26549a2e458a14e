"""How well labelled pictures predict one another: each is left out in turn, and predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import torch
from torch import Tensor

from fsl_core.data.draws import draw_bits
from fsl_core.episode import Episode, LabelledSet
from fsl_core.learner import Learner

MOST = 300
"""Pictures that are left out: more take longer and say little more."""

TOGETHER = 1 << 22
"""Numbers of labelled items that are adapted to at a time, each without one of them."""

KEPT = 0.95
"""Share of the pictures predicted right that a suggested threshold keeps."""


@dataclass(frozen=True)
class LeftOut:
    """What an adapter says of labelled pictures that it did not see.

    probabilities: (n, n_way), each row summing to 1.    y: (n,) right classes.
    """

    probabilities: Tensor
    y: Tensor

    @cached_property
    def right(self) -> Tensor:
        """(n,) bool."""
        return self.probabilities.argmax(-1) == self.y

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy; pictures count as independent."""
        # By hand, because to import scipy.stats takes as long as all the rest of a prediction.
        n, p, z = len(self.y), self.accuracy, NormalDist().inv_cdf(0.975)
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
        return max(0.0, low), min(1.0, high)

    @property
    def log_loss(self) -> float:
        """Mean of -log p(right class): it tells apart what is right equally often."""
        p = self.probabilities.double().gather(1, self.y[:, None]).clamp(min=1e-12)
        return float(-p.log().mean())

    @property
    def chance(self) -> float:
        """Accuracy of always saying the most frequent class."""
        return float(self.y.bincount().max() / len(self.y))

    @property
    def near_chance(self) -> bool:
        """Whether the interval reaches down to chance."""
        return self.interval[0] <= self.chance

    @property
    def threshold(self) -> float:
        """A probability that 95 % of the pictures predicted right reach, rounded down to 0.01."""
        sure = self.probabilities.amax(-1)[self.right].double()
        if not len(sure):
            return 0.0
        return math.floor(100 * float(sure.quantile(1 - KEPT))) / 100


def leave_one_out(learner: Learner, support: LabelledSet) -> LeftOut | None:
    """Predict each labelled item from the others, 300 of them at most.

    Items whose class has no other are not left out. None if that is so for all.
    """
    counts = support.y.bincount()
    places = (counts[support.y] > 1).nonzero().flatten().cpu()
    if not len(places):
        return None
    if len(places) > MOST:
        order = torch.from_numpy(draw_bits(0, "left out", [0], len(places)).astype("float64"))
        places = places[order.flatten().argsort()[:MOST]].sort().values
    learner.eval()

    def predict(place: Tensor, others: Tensor) -> Tensor:
        x = support.x[place[None]]
        rest = LabelledSet(support.x[others], support.y[others])
        unlabelled = LabelledSet(x, torch.zeros_like(place)[None])
        episode = Episode(rest, unlabelled, torch.zeros_like(place))
        return learner.adapt(episode)(x).softmax(-1)[0]

    left = places.to(support.y.device)
    others = torch.arange(len(support.y) - 1, device=left.device).expand(len(left), -1)
    others = others + (others >= left[:, None])  # all but one
    with torch.no_grad():
        found = _together(predict, left, others, support) if learner.adapter.vectorizable else None
        if found is None:
            found = torch.stack([predict(*each) for each in zip(left, others, strict=True)])
    return LeftOut(found.cpu(), support.y.cpu()[places])


def _together(
    predict: Callable[[Tensor, Tensor], Tensor], left: Tensor, others: Tensor, support: LabelledSet
) -> Tensor | None:
    """What `predict` gives for each row, many at a time; None if vmap refuses the adapter."""
    rows = max(1, TOGETHER // support.x.numel())
    batched = torch.func.vmap(predict, randomness="different")
    try:
        return torch.cat(
            [batched(*part) for part in zip(left.split(rows), others.split(rows), strict=True)]
        )
    except RuntimeError:  # it is written for one task at a time
        return None
