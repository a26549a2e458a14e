"""Episodes that nobody drew: no data is read for them."""

from __future__ import annotations

import torch
from torch import Tensor

from fsl_core.episode import Episode, LabelledSet, TaskShape

SHOTS = 2
"""Of each class but the first, where they differ."""


def made_up_episodes(
    task: TaskShape,
    count: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    vocabulary: int | None = None,
) -> list[Episode]:
    """Episodes of random items that are alike within a class.

    Items have values 0 .. 1, or are token ids 0 .. vocabulary - 1; labels are as in any episode of
    this task.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def items(means: Tensor, per_class: int, left_out: int = 0) -> LabelledSet:
        x = (means + uniform(task.n_way, per_class, *task.input_shape)).flatten(0, 1) / 2
        x = x if vocabulary is None else _token_ids(x, vocabulary)
        y = torch.arange(task.n_way).repeat_interleave(per_class)
        x, y = x[left_out:], y[left_out:]
        y = y if task.kind == "classification" else 2 * uniform(len(x), task.output_dim) - 1
        return LabelledSet(x.to(device), y.to(device))

    drawn: list[Episode] = []
    for index in range(count):
        means = uniform(task.n_way, 1, *task.input_shape)
        # Of unequal classes the first one has an item less.
        support = items(means, SHOTS, 1) if task.varies.class_shots else items(means, task.n_shot)
        query = items(means, task.n_query)
        drawn.append(Episode(support, query, torch.tensor(index, device=device)))
    return drawn


def _token_ids(x: Tensor, vocabulary: int) -> Tensor:
    """Numbers 0 .. 1 as token ids; the largest id is among them, for a table that is too short."""
    ids = (x * vocabulary).long().clamp(max=vocabulary - 1)
    ids.view(-1)[0] = vocabulary - 1
    return ids
