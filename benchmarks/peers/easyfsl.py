"""easyfsl 1.5.0: `PrototypicalNetworks`, with squared distances as in the paper.

The library's own are not squared.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from easyfsl.datasets import FeaturesDataset  # type: ignore[import-not-found]  # only in bench
from easyfsl.methods import (  # type: ignore[import-not-found]  # only in `make bench`
    PrototypicalNetworks,
)
from easyfsl.samplers import TaskSampler  # type: ignore[import-not-found]
from easyfsl.utils import evaluate  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from benchmarks.peers import gradients
from fsl_core import Episode


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


def judging(
    x: Tensor, y: Tensor, episodes: int, n_way: int, n_shot: int, n_query: int
) -> Callable[[], float]:
    """Its `evaluate` of precomputed features, as its notebook on classical training has it."""
    names = [str(label) for label in y.unique().tolist()]
    dataset = FeaturesDataset(y.tolist(), x, names)
    # It hands on `data_source`, which samplers of torch 2.13 do not take any more.
    with patch.object(Sampler, "__init__", lambda self, data_source=None: None):
        sampler = TaskSampler(dataset, n_way, n_shot, n_query, episodes)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    classifier = PrototypicalNetworks(nn.Identity())
    return lambda: evaluate(classifier, loader, device="cpu", use_tqdm=False)


def labels(episode: Episode) -> Tensor:
    classifier = PrototypicalNetworks(nn.Identity())
    classifier.process_support_set(episode.support.x, episode.support.y)
    return classifier(episode.query.x).argmax(-1)
