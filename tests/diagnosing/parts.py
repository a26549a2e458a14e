"""A cheap source of episodes, and an adapter of gradient steps."""

from __future__ import annotations

import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.inner import InnerProblem, descend


class Blobs(fsl.EpisodeSource):
    """Normal clouds of items, one for each class."""

    name = "blobs"

    def __init__(self, n_way: int = 3, n_shot: int = 2, n_query: int = 8, shape: tuple = (5,)):
        self.task = fsl.TaskShape("classification", n_way, n_shot, n_query, shape, n_way)

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        drawn = [self._episode(split, index, seed, task) for index in indices]
        sets = [
            [torch.stack(part) for part in zip(*each, strict=True)]
            for each in zip(*drawn, strict=True)
        ]
        support, query = (fsl.LabelledSet(*each) for each in sets)
        return fsl.Episode(support, query, torch.tensor([*indices]))

    def _episode(self, split, index, seed, task):
        generator = torch.Generator().manual_seed(hash((len(split), index, seed)))
        shape = task.input_shape
        centres = torch.randn(task.n_way, 1, *shape, generator=generator)
        for count in (task.n_shot, task.n_query):
            x = centres + torch.randn(task.n_way, count, *shape, generator=generator)
            yield x.flatten(0, 1), torch.arange(task.n_way).repeat_interleave(count)


class Steps(fsl.Adapter):
    """Three gradient steps on what `moved` says."""

    name = "steps"

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module, moved: str = "all"):
        super().__init__()
        self.task, self.head = task, nn.Linear(backbone.feature_dim, task.output_dim)
        self.names = fsl.Functional(backbone, self.head).adapted(moved)

    def inner_problem(self, backbone, support):
        net = fsl.Functional(backbone, self.head)
        return InnerProblem(
            start={name: net.weights[name] for name in self.names},
            outer={n: w for n, w in net.weights.items() if n not in self.names},
            steps=3,
            loss=lambda phi, outer: self.task.loss(net(outer | phi, support.x), support.y),
            step=lambda phi, gradient, k, outer: descend(phi, gradient, 0.1),
            predict=lambda phi, outer, x: net(outer | phi, x),
        )


def learner(source: fsl.EpisodeSource, moved: str = "all", **options) -> fsl.Learner:
    torch.manual_seed(0)
    backbone = Mlp(source.task, hidden=[8, 6], **options)
    return fsl.Learner(backbone, Steps(source.task, backbone, moved))
