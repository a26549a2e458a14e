"""Tasks, episodes and backbones small enough for finite differences in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

import fsl_core as fsl
from fsl_core.data.seeding import set_seed

INPUT_SHAPE = (2, 5, 5)


@contextmanager
def double_precision(dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """Within this context new tensors are float64 and the global generator is seeded.

    Both are restored afterwards.

    dtype: another default type for new tensors.
    """
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.set_default_dtype(dtype)
        set_seed(0)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def tiny_task(
    kind: Literal["classification", "regression"] = "classification",
    n_shot: int | None = None,
    n_query: int = 3,
    n_way: int = 3,
    input_shape: tuple[int, ...] = INPUT_SHAPE,
) -> fsl.TaskShape:
    """3-way 2-shot classification, or regression of 2 values from 5 items.

    Items have the shape (2, 5, 5).
    """
    if kind == "classification":
        return fsl.TaskShape(kind, n_way, n_shot or 2, n_query, input_shape, output_dim=n_way)
    return fsl.TaskShape(kind, 1, n_shot or 5, n_query, input_shape, output_dim=2)


def tiny_episodes(task: fsl.TaskShape, count: int, seed: int = 0) -> fsl.Episode:
    """A batch of `count` episodes in the default dtype, ids 0 .. count - 1, rows sorted by class.

    Items of a class are normal with unit variance around a normal class mean. Values are a linear
    map of the item.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        # In float64 first, so that float32 gets the same numbers, rounded.
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(torch.get_default_dtype())

    means = normal(count, task.n_way, 1, *task.input_shape)
    readout = normal(count, means[0, 0].numel(), task.output_dim)

    def draw(per_class: int) -> fsl.LabelledSet:
        x = (means + normal(count, task.n_way, per_class, *task.input_shape)).flatten(1, 2)
        if task.kind == "classification":
            y = torch.arange(task.n_way).repeat_interleave(per_class)
            return fsl.LabelledSet(x, y.expand(count, -1))
        return fsl.LabelledSet(x, x.flatten(2) @ readout / x[0, 0].numel() ** 0.5)

    return fsl.Episode(draw(task.n_shot), draw(task.n_query), torch.arange(count))


def unequal_episodes(
    task: fsl.TaskShape, count: int, shots: Sequence[int], seed: int = 0
) -> fsl.Episode:
    """A batch of `count` classification episodes whose class c has shots[c] support items.

    They are those of `tiny_episodes`, which has as many of each class as there are at most here,
    without the others.
    """
    episodes = tiny_episodes(replace(task, n_shot=max(shots)), count, seed)
    place = torch.arange(max(shots)).repeat(task.n_way)
    kept = place < torch.tensor(shots).repeat_interleave(max(shots))
    support = fsl.LabelledSet(*(tensor[:, kept] for tensor in episodes.support))
    return episodes._replace(support=support)


def as_batch(parts: Sequence[tuple[fsl.TaskShape, fsl.Episode]]) -> list[fsl.Group]:
    """Groups of one batch, in which the episodes of each are apart: the first of every group comes
    first, then the second of each."""
    order = [
        (place, which) for which, (_, batch) in enumerate(parts) for place in range(len(batch.id))
    ]
    rank = {key: i for i, key in enumerate(sorted(order))}
    return [
        fsl.Group(task, batch, tuple(rank[place, which] for place in range(len(batch.id))))
        for which, (task, batch) in enumerate(parts)
    ]


class TinyBackbone(fsl.NormedBackbone):
    """conv3x3(4) - norm - tanh - linear(5) - tanh: (n, 2, 5, 5) -> (n, 5).

    It is smooth, so that finite differences of its second derivatives exist. It has about 300
    parameters, and no bias if the normalisation would cancel it.
    """

    def __init__(self, norm: fsl.NormPolicy = "none"):
        super().__init__(norm)
        self.conv = nn.Conv2d(INPUT_SHAPE[0], 4, 3, bias=norm == "none")
        self.normalise = fsl.Norm(norm, 4)
        self.linear = nn.Linear(36, 5)
        self.feature_dim = 5

    def features(self, x: Tensor) -> Tensor:
        return self.linear(self.normalise(self.conv(x)).tanh().flatten(1)).tanh()


class GradientSteps(fsl.Adapter):
    """Plain gradient steps on the backbone and a linear head, 0.1 long, differentiated through.

    MAML at its barest. Weights that require no gradient when it is built are left alone.

    It asks of a backbone, or of an execution, what an inner loop asks: second derivatives, and
    calls with other weights than the backbone's own.
    """

    name = "gradient-steps"
    unequal_shots = True

    def __init__(self, task: fsl.TaskShape, backbone: nn.Module, inner_steps: int = 2):
        super().__init__()
        self.loss, self.inner_steps = task.loss, inner_steps
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = nn.Linear(feature_dim, task.output_dim)
        self.names = fsl.Functional(backbone, self.head).adapted()

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        net = fsl.Functional(backbone, self.head)
        start = {name: net.weights[name] for name in self.names}
        return fsl.InnerProblem(
            start=start,
            outer={name: w for name, w in net.weights.items() if name not in start},
            steps=self.inner_steps,
            loss=lambda phi, outer: self.loss(net(outer | phi, support.x), support.y),
            step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, 0.1),
            predict=lambda phi, outer, x: net(outer | phi, x),
        )


class Uneven(fsl.TaskWeighting):
    """weights[i] = (i + 1) / 10, so that a wrong order of tasks shows.

    needs: what it claims to read, which decides how the engine goes about the meta-gradient.
    """

    name = "uneven"
    total = "any"

    def __init__(self, needs: frozenset[str] = frozenset()):
        super().__init__()
        self.needs = needs

    def weigh(self, outcomes: fsl.Outcomes) -> Tensor:
        return torch.arange(1, len(outcomes.losses) + 1).to(outcomes.losses) / 10
