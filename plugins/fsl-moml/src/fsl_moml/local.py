"""LocalMOML: several steps of a task by itself, as one direction for the outer loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

import fsl_core as fsl

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class LocalSteps:
    """What a client of LocalMOML does between two messages to the server.

    steps: H, each on items of its own.    first_items: K_0 a class, for the start of u.
    """

    task: fsl.TaskShape
    beta: float
    steps: int
    first_items: int
    rate: float

    def __post_init__(self) -> None:
        left = self.task.n_shot - self.first_items
        if left < self.steps or left % self.steps:
            raise ValueError(
                f"local: n_shot {self.task.n_shot} with first_items {self.first_items} and "
                f"local_steps {self.steps}. first_items + local_steps times a whole number, such "
                f"as {self.first_items + self.steps}: every local step has items of its own"
            )
        if self.task.n_query % self.steps:
            raise ValueError(
                f"local: n_query {self.task.n_query} with local_steps {self.steps}. "
                f"A multiple of {self.steps}: every local step has items of its own"
            )

    def __call__(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        """The query loss at the last u, whose derivative by theta is (theta - theta_i) / rate.

        The prediction is that of the last u as well.
        """
        first, *rounds = self._parts(episode)
        problem = fsl.inner_problem_of(adapter, backbone, first)
        if others := sorted(name for name, w in problem.outer.items() if w.requires_grad):
            raise fsl.FslError(
                f"memory: local steps move what the inner loop adapts, and {others[0]} is trained "
                "besides. `adapted: all` with fixed rates"
            )
        order: Literal[1, 2] = 1 if adapter.order == 1 else 2
        *_, point = problem.points(tracked=False)
        theta, u = _constants(problem.start), point.phi
        for part in rounds:
            leaf = {name: weight.requires_grad_() for name, weight in theta.items()}
            there = replace(fsl.inner_problem_of(adapter, backbone, part), start=leaf)
            *_, point = there.points(order)
            mixed = {n: (1 - self.beta) * u[n] + self.beta * v for n, v in point.phi.items()}
            value = loss(there.predict(mixed, point.outer, part.query.x), part.query.y)
            slopes = torch.autograd.grad(value, list(leaf.values()))
            theta = _constants(fsl.descend(leaf, dict(zip(leaf, slopes, strict=True)), self.rate))
            u = _constants(mixed)
        prediction = problem.predict(u, point.outer, episode.query.x)
        away = {name: (problem.start[name] - w) / self.rate for name, w in theta.items()}
        value = loss(prediction, episode.query.y)
        return fsl.with_gradient(value, problem.start, away), prediction

    def _parts(self, episode: fsl.Episode) -> Iterator[fsl.Episode]:
        """The items for the start of u, and those of each step; of every class as many."""
        first, rest = self._cut(episode.support, self.first_items)
        yield fsl.Episode(first, first, episode.id)
        query = episode.query
        size = (self.task.n_shot - self.first_items) // self.steps
        for _ in range(self.steps):
            support, rest = self._cut(rest, size)
            asked, query = self._cut(query, self.task.n_query // self.steps)
            yield fsl.Episode(support, asked, episode.id)

    def _cut(self, items: fsl.LabelledSet, n: int) -> tuple[fsl.LabelledSet, fsl.LabelledSet]:
        """The first n items of each class, and the others; rows are sorted by class."""
        by_class = [part.unflatten(0, (self.task.n_way, -1)) for part in items]
        pieces = [(part[:, :n].flatten(0, 1), part[:, n:].flatten(0, 1)) for part in by_class]
        (x, later_x), (y, later_y) = pieces
        return fsl.LabelledSet(x, y), fsl.LabelledSet(later_x, later_y)


def _constants(weights: Weights) -> Weights:
    return {name: weight.detach() for name, weight in weights.items()}
