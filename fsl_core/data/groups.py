"""A batch of episodes as groups of one shape each: what vmap can compute together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fsl_core.episode import Episode, TaskShape

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Group(NamedTuple):
    """The episodes of one shape in a batch. A batch in which nothing varies is one group.

    task:     their shape, in which nothing varies but, at most, the shots of classes. None if it is
              that of the learner that they are for.
    episodes: with a leading (len(places),) axis.
    places:   where each of them stands in the batch.
    """

    task: TaskShape | None
    episodes: Episode
    places: tuple[int, ...]


def by_key(keys: Iterable[Key]) -> dict[Key, tuple[int, ...]]:
    """The places of each key, in the order in which keys come first.

    >>> by_key("abca")
    {'a': (0, 3), 'b': (1,), 'c': (2,)}
    """
    found: dict[Key, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return {key: tuple(places) for key, places in found.items()}


def in_order(groups: Sequence[Group], values: Iterable[Iterable[Value]]) -> list[Value]:
    """Values of the episodes, given for each group, in the order of the batch."""
    placed = {
        place: value
        for group, of_group in zip(groups, values, strict=True)
        for place, value in zip(group.places, of_group, strict=True)
    }
    return [placed[place] for place in range(len(placed))]


def as_groups(batch: Episode | Sequence[Group]) -> Sequence[Group]:
    """Episodes of one shape are one group."""
    if isinstance(batch, Episode):
        return [Group(None, batch, tuple(range(len(batch.id))))]
    return batch


def ids_of(groups: Sequence[Group]) -> Tensor:
    """`Episode.id` of each, (meta_batch_size,), in the order of the batch."""
    if len(groups) == 1:
        return groups[0].episodes.id
    return torch.stack(in_order(groups, (group.episodes.id for group in groups)))


def unbatch(groups: Sequence[Group]) -> list[tuple[TaskShape | None, Episode]]:
    """The single episodes, each with its shape, in the order of the batch."""
    return in_order(groups, ([(g.task, e) for e in g.episodes.unbatch()] for g in groups))
