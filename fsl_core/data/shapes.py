"""How many classes and items an episode has, where that differs from one episode to the next.

Options of sources (`Ways`, `Shots`, ...) and the rules that draw numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, Tag

from fsl_core.data.draws import draw_bits, to_between, to_uniform
from fsl_core.episode import Range, TaskShape, Varies

MOST_SUPPORT = 500
"""Items of a support set at most, by the rule `meta-dataset`."""

Sampling = Annotated[
    Literal["episode", "class", "meta-dataset"],
    Field(
        description="who draws a number of shots that is a range: each episode, uniformly; each "
        "class, uniformly; or meta-dataset, the rule of Triantafillou et al. 2020, where n_query "
        "is the most"
    ),
]
ItemsPerClass = Annotated[
    int | None,
    Field(
        ge=2,
        description="support and query items of a class together; the queries are then the rest, "
        "and n_query is not read",
    ),
]
EpisodesPerDraw = Annotated[
    int,
    Field(
        ge=1,
        description="consecutive episodes that share their numbers of ways and shots; with "
        "outer.meta_batch_size, those of a meta-batch do",
    ),
]


def _ordered(value: Range) -> Range:
    if value[0] > value[1]:
        raise ValueError(f"the least first: [{value[1]}, {value[0]}]")
    return value


def _kind(value: Any) -> str:
    return "range" if isinstance(value, list | tuple) else "number"


_Two = Annotated[int, Field(ge=2)]
_One = Annotated[int, Field(ge=1)]
_TwoOrMore = Annotated[tuple[_Two, _Two], AfterValidator(_ordered), Tag("range")]
_OneOrMore = Annotated[tuple[_One, _One], AfterValidator(_ordered), Tag("range")]
Ways = Annotated[
    Annotated[_Two, Tag("number")] | _TwoOrMore,
    Discriminator(_kind),
    Field(description="classes per episode, or [least, most]"),
]
Shots = Annotated[
    Annotated[_One, Tag("number")] | _OneOrMore,
    Discriminator(_kind),
    Field(description="labelled items per class, or [least, most]"),
]


class Sizes(NamedTuple):
    """Of one episode. shots: of each class; n_query: of every class."""

    shots: tuple[int, ...]
    n_query: int

    @property
    def key(self) -> tuple[int, int, int]:
        """What episodes of one group have in common: ways, support items in all, queries."""
        return len(self.shots), sum(self.shots), self.n_query


def most(number: int | Range) -> int:
    return number if isinstance(number, int) else number[1]


def varying(
    n_way: int | Range,
    n_shot: int | Range,
    n_query: int,
    items_per_class: int | None,
    sampling: str,
) -> tuple[int, Varies]:
    """The most queries of a class, and what varies. Raises ValueError for what does not fit."""
    shots = None if isinstance(n_shot, int) else (n_shot[0], n_shot[1])  # lists, too
    ways = None if isinstance(n_way, int) else (n_way[0], n_way[1])
    if sampling != "episode" and shots is None:
        raise ValueError(
            f"sampling: {sampling!r} with n_shot: {n_shot}. A range of shots such as [1, 9]"
        )
    class_shots = sampling != "episode"
    if sampling == "meta-dataset":
        if items_per_class is not None or (shots and shots[0] != 1):
            found = f"n_shot: {n_shot}" if items_per_class is None else "items_per_class"
            raise ValueError(
                f"sampling: 'meta-dataset' with {found}. n_shot: [1, 100] and n_query: 10 are the "
                "published numbers, and it draws the rest"
            )
        return n_query, Varies(ways, shots, (1, n_query) if n_query > 1 else None, class_shots)
    if items_per_class is None:
        return n_query, Varies(ways, shots, None, class_shots)
    low, high = shots or (most(n_shot), most(n_shot))
    if items_per_class <= high:
        raise ValueError(
            f"items_per_class: {items_per_class} with n_shot: {high}, which leaves no query. "
            f"At least {high + 1}"
        )
    queries = (items_per_class - high, items_per_class - low) if low < high else None
    return items_per_class - low, Varies(ways, shots, queries, class_shots)


def shape_bits(
    seed: int, split: str, indices: Sequence[int], episodes_per_draw: int, most_ways: int
) -> np.ndarray:
    """(len(indices), 2 + most_ways) random bits: for ways, for shots, for the shots of a class."""
    draws = [index // episodes_per_draw for index in indices]
    return draw_bits(seed, f"{split}/shape", draws, 2 + most_ways)


def ways_of(bits: np.ndarray, task: TaskShape, classes: int) -> int:
    """Classes of an episode, of a split that has this many."""
    if task.varies.n_way is None:
        return task.n_way
    low, high = task.varies.n_way
    return to_between(bits[0], (low, min(high, classes)))


def uniform_shots(bits: np.ndarray, task: TaskShape, n_way: int) -> tuple[int, ...]:
    """Shots of each class: one number for all, or one for each, uniform in their range."""
    if task.varies.n_shot is None:
        return (task.n_shot,) * n_way
    if not task.varies.class_shots:
        return (to_between(bits[1], task.varies.n_shot),) * n_way
    return tuple(to_between(b, task.varies.n_shot) for b in bits[2 : 2 + n_way])


def meta_dataset_sizes(bits: np.ndarray, task: TaskShape, counts: np.ndarray) -> Sizes:
    """Sizes of an episode of classes that have these many items.

    q   = min(n_query, half of the smallest class)                queries of every class
    S   = min(500, sum_c ceil(beta * min(n_shot, counts[c] - q)))  support items, beta in (0, 1]
    R_c = exp(alpha_c) counts[c] / sum_c' exp(alpha_c') counts[c']    alpha_c in log 1/2 .. log 2
    shots[c] = min(floor(R_c * (S - n_way)) + 1, counts[c] - q)

    beta and alpha are uniform. bits: one for beta, then one for each class.

    Source: Triantafillou et al. 2020, arXiv:1903.03096, section 3.2 and appendix, and its code,
    google-research/meta-dataset, data/sampling.py. Differs: classes are drawn uniformly, without
    the hierarchies that its ImageNet and Omniglot have.
    """
    n_way = len(counts)
    n_query = int(min(task.n_query, counts.min() // 2)) if task.varies.n_query else task.n_query
    left = counts - n_query
    uniform = to_uniform(bits)
    beta, alpha = uniform[0], np.log(0.5) + uniform[1 : 1 + n_way] * np.log(4.0)
    size = min(MOST_SUPPORT, int(np.floor(beta * np.minimum(task.n_shot, left) + 1).sum()))
    weights = np.exp(alpha) * counts
    wanted = np.floor(weights / weights.sum() * (size - n_way)).astype(np.int64) + 1
    return Sizes(tuple(np.minimum(wanted, left).tolist()), n_query)
