"""Episodes of Gaussian blobs, far quicker than pictures."""

from typing import Annotated

import torch
from pydantic import Field

import fsl_core as fsl


class Blobs(fsl.EpisodeSource):
    """Classes are points in the plane, items are points around them."""

    name = "blobs"

    def __init__(
        self,
        n_way: Annotated[int, Field(gt=0)] = 3,
        n_shot: int = 2,
        n_query: int = 4,
        spread: float = 0.3,
    ):
        self.task = fsl.TaskShape("classification", n_way, n_shot, n_query, (2,), n_way)
        self.spread = spread

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        return torch.utils.data.default_collate(
            [self._episode(split, i, seed, task) for i in indices]
        )

    def _episode(self, split, index, seed, task):
        random = torch.Generator().manual_seed(hash_of(split, index, seed))
        centres = 3 * torch.randn(task.n_way, 1, 2, generator=random)

        def items(n):
            x = centres + self.spread * torch.randn(task.n_way, n, 2, generator=random)
            return fsl.LabelledSet(x.flatten(0, 1), torch.arange(task.n_way).repeat_interleave(n))

        return fsl.Episode(items(task.n_shot), items(task.n_query), torch.tensor(index))


def hash_of(split, index, seed):
    return ["train", "validation", "test"].index(split) * 10**9 + index * 1000 + seed


class Explodes(fsl.Adapter):
    """Gives a loss that is not a number from one step on.

    Not at progress 1, as the trial before a run would find it.
    """

    name = "explodes"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module, at_progress: float = 0.5):
        super().__init__()
        self.head, self.at, self.now = (
            torch.nn.Linear(backbone.feature_dim, task.output_dim),
            at_progress,
            0.0,
        )

    def on_progress(self, progress):
        self.now = progress

    def adapt(self, backbone, support):
        return lambda x: self.head(backbone(x)) * (float("nan") if self.at <= self.now < 1 else 1.0)


class Picky(fsl.Adapter):
    """Its constructor refuses what no type can."""

    name = "picky"

    def __init__(self, even: int):
        super().__init__()
        if even % 2:
            raise ValueError(f"even: {even}. A multiple of two")


class Steps(fsl.Adapter):
    """Gradient steps of a linear head."""

    name = "steps"

    def __init__(self, task: fsl.TaskShape, backbone: torch.nn.Module):
        super().__init__()
        self.loss, self.head = task.loss, torch.nn.Linear(backbone.feature_dim, task.output_dim)

    def inner_problem(self, backbone, support):
        net = fsl.Functional(backbone, self.head)
        start = {n: w for n, w in net.weights.items() if n.startswith("head.")}
        return fsl.InnerProblem(
            start=start,
            outer={n: w for n, w in net.weights.items() if n not in start},
            steps=2,
            loss=lambda phi, outer: self.loss(net(outer | phi, support.x), support.y),
            step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, 0.1),
            predict=lambda phi, outer, x: net(outer | phi, x),
        )


@fsl.hookimpl
def fsl_register_episodes(register):
    register(Blobs)


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Explodes)
    register(Picky)
    register(Steps)
