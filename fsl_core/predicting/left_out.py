"""How well labelled pictures predict one another: each is left out in turn, and predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import binomtest  # type: ignore[import-untyped]
from torch import Tensor

from fsl_core.data.draws import draw_bits
from fsl_core.episode import Episode, LabelledSet
from fsl_core.learner import Learner

MOST = 300
"""Pictures that are left out: more take longer and say little more."""

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
        found = binomtest(int(self.right.sum()), len(self.y)).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

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
    rows = []
    with torch.no_grad():
        for place in places.tolist():
            others = torch.arange(len(support.y)) != place
            others = others.to(support.y.device)
            x = support.x[place : place + 1]
            rest = LabelledSet(support.x[others], support.y[others])
            unlabelled = LabelledSet(x, x.new_zeros(1))
            episode = Episode(rest, unlabelled, torch.tensor(0, device=x.device))
            rows.append(learner.adapt(episode)(x).softmax(-1).cpu())
    return LeftOut(torch.cat(rows), support.y.cpu()[places])
