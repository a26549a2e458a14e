"""What was taken for what: how often queries of a class were predicted as which class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Counts = dict[tuple[str, str], int]
"""Queries by (right class, predicted class), where there are any."""

NONE_OF_THEM = "none of its classes"
"""What is predicted by a head with more ways than the episode has classes."""


class Confusion:
    """Counts over many episodes, each of few of all classes."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._found: Counter[int] = Counter()

    def add(
        self, names: Sequence[Sequence[str]], right: Sequence[Tensor], predicted: Sequence[Tensor]
    ) -> None:
        """Count the queries of some episodes.

        names: of the classes of each episode, in the order of its labels.
        right, predicted: (n_queries,) labels, for each episode.
        """
        pairs = []
        for own, is_label, as_label in zip(names, right, predicted, strict=True):
            known = [*own, NONE_OF_THEM]
            numbers = np.array([self._numbers.setdefault(n, len(self._numbers)) for n in known])
            beyond = np.minimum(as_label.numpy(force=True), len(own))
            # Two numbers in one, so that all episodes are counted at once.
            pairs.append(numbers[is_label.numpy(force=True)] << 32 | numbers[beyond])
        values, counts = np.unique(np.concatenate(pairs), return_counts=True)
        self._found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def counts(self) -> Counts:
        """In the order of the names."""
        names = list(self._numbers)
        pairs = {(names[p >> 32], names[p & 0xFFFFFFFF]): n for p, n in self._found.items()}
        return dict(sorted(pairs.items()))


def per_class(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, Any]]:
    """Of each class: its number of `queries`, and the share of them that were predicted `right`."""
    queries: Counter[str] = Counter()
    for (name, _), count in counts.items():
        queries[name] += count
    return {
        name: {"queries": total, "right": counts.get((name, name), 0) / total}
        for name, total in sorted(queries.items())
    }
