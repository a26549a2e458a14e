"""A batch of episodes as groups of one shape each: what vmap can compute together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from fsl_core.episode import Episode, TaskShape

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Group(NamedTuple):
    """The episodes of one shape in a batch. A batch in which nothing varies is one group.

    task:     their shape, in which nothing varies but, at most, the shots of classes.
    episodes: with a leading (len(places),) axis.
    places:   where each of them stands in the batch.
    """

    task: TaskShape
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


def unbatch(groups: Sequence[Group]) -> list[tuple[TaskShape, Episode]]:
    """The single episodes, each with its shape, in the order of the batch."""
    return in_order(groups, ([(g.task, e) for e in g.episodes.unbatch()] for g in groups))
