"""easyfsl 1.5.0: `PrototypicalNetworks`, with squared distances as in the paper.

The library's own are not squared.
"""

from __future__ import annotations

from collections.abc import Callable

from easyfsl.methods import (  # type: ignore[import-not-found]  # only in `make bench`
    PrototypicalNetworks,
)
from torch import Tensor, nn

from benchmarks.peers import gradients


class SquaredDistances(PrototypicalNetworks):
    def l2_distance_to_prototypes(self, samples: Tensor) -> Tensor:
        return -super().l2_distance_to_prototypes(samples).square()


def centroid(model: nn.Module, episodes, loss) -> Callable[[], list[Tensor]]:
    classifier = SquaredDistances(model)
    tasks = episodes.unbatch()

    def run() -> list[Tensor]:
        model.zero_grad()
        for support, query, _ in tasks:
            classifier.process_support_set(support.x, support.y)
            (loss(classifier(query.x), query.y) / len(tasks)).backward()
        return gradients(model)

    return run
