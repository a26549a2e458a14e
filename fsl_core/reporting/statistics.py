"""Statistics of runs judged on the same frozen episodes.

Paired differences, Holm's correction, mean ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # it ships no types

MIN_METHODS, MIN_BLOCKS = 3, 11
"""Below, chi-square does not approximate Friedman's statistic (Demsar 2006, section 3.2.2)."""


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first, episode by episode.

    difference, interval: mean and half-width of its 95 % interval, in the metric's unit.
    p: two-sided, of Student's paired t.
    wins, ties, losses: episodes on which the second is better, equal, worse; a lower mse is better.
    """

    difference: float
    interval: float
    p: float
    wins: int
    ties: int
    losses: int
    episodes: int


def paired_difference(
    first: np.ndarray, second: np.ndarray, higher_is_better: bool = True
) -> PairedDifference:
    """Compare scores (n_episodes,) of two methods on the same episodes, by Student's paired t.

    >>> first, second = np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.6, 0.6, 0.9, 0.9])
    >>> round(paired_difference(first, second).difference, 3)
    0.1
    """
    differences = np.asarray(second, float) - np.asarray(first, float)
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-15 * max(1.0, abs(mean)):  # the same difference on every episode
        p, interval = float(mean == 0), 0.0
    else:
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
        interval = float(stats.t.ppf(0.975, n - 1)) * error
    better = differences if higher_is_better else -differences
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    return PairedDifference(mean, interval, p, wins, n - wins - losses, losses, n)


def holm(p: list[float]) -> list[float]:
    """Adjust the p-values of a family of tests.

    Afterwards the chance of any false discovery among them stays below the level (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for position, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - position) * p[i]))
        adjusted[i] = highest
    return adjusted


def ranks(scores: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
    """Ranks along the last axis, 1 for the best; equal scores share the mean of their ranks."""
    return stats.rankdata(-scores if higher_is_better else scores, axis=-1)


@dataclass(frozen=True)
class MeanRanks:
    """Friedman's test of (n_blocks, k) scores, and Nemenyi's critical difference.

    Two mean ranks that differ by more than that differ at the level 0.05.
    Source: Demsar 2006, Statistical comparisons of classifiers over multiple data sets, JMLR 7.
    """

    ranks: np.ndarray
    blocks: int
    p: float
    critical_difference: float

    def groups(self) -> list[tuple[int, int]]:
        """(first, last) positions of the largest sets within one critical difference.

        Positions are those of the sorted ranks, best first.
        """
        ordered = np.sort(self.ranks)
        found, reached = [], 0
        for first, rank in enumerate(ordered):
            within = np.searchsorted(ordered, rank + self.critical_difference, side="right")
            last = int(within) - 1
            if last > max(first, reached):  # otherwise the set before it holds this one
                found.append((first, last))
            reached = last
        return found


def mean_ranks(scores: np.ndarray, higher_is_better: bool = True) -> MeanRanks:
    """Friedman and Nemenyi over blocks, (n_blocks, k). ValueError says why they are not valid.

    A block is a data set, or a seed on a data set: what shows how methods would rank elsewhere.
    Test episodes of one trained run are not blocks.
    """
    blocks, k = scores.shape
    if k < MIN_METHODS:
        raise ValueError(f"{k} methods to rank, and Friedman's test needs {MIN_METHODS}")
    if blocks < MIN_BLOCKS:
        raise ValueError(f"{blocks} blocks, and Friedman's test needs {MIN_BLOCKS}")
    if (scores == scores[:, :1]).all():
        raise ValueError("all methods have equal scores in every block")
    p = float(stats.friedmanchisquare(*scores.T).pvalue)
    studentized = float(stats.studentized_range.ppf(0.95, k, np.inf))
    critical = studentized / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * blocks))
    return MeanRanks(ranks(scores, higher_is_better).mean(axis=0), blocks, p, critical)
