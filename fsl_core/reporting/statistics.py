"""Statistics of runs judged on the same frozen episodes.

Paired differences over episodes, and over trainings too; Holm's correction, mean ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# scipy is imported where it is called: scipy.stats takes half as long as torch, and every run that
# could be compared imports this module.

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
    from scipy import special  # type: ignore[import-untyped]  # it ships no types

    differences = np.asarray(second, float) - np.asarray(first, float)
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-15 * max(1.0, abs(mean)):  # the same difference on every episode
        p, interval = float(mean == 0), 0.0
    else:
        p = float(2 * special.stdtr(n - 1, -abs(mean) / error))
        interval = float(special.stdtrit(n - 1, 0.975)) * error
    better = differences if higher_is_better else -differences
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    return PairedDifference(mean, interval, p, wins, n - wins - losses, losses, n)


DRAWS = 4000
"""Of the bootstrap: a p-value is then no finer than 0.0005."""


@dataclass(frozen=True)
class TwoLevel:
    """A mean over trainings and test episodes together.

    interval: half the width of its 95 % interval, in the metric's unit.
    p: two-sided, of a mean of zero.
    seeds: how many trainings there were.
    """

    mean: float
    interval: float
    p: float
    seeds: int


def two_level(scores: np.ndarray, draws: int = DRAWS) -> TwoLevel:
    """Bootstrap of scores (seeds, episodes) that draws both, so that both vary.

    Every training has the same frozen episodes, so seeds and episodes are drawn independently: of n
    there are, n - 1 with replacement, which makes the variance of a mean unbiased. The interval
    lies between the 2.5th and the 97.5th percentile. With two or three seeds it is a rough figure.
    Random numbers have a seed of their own: the same scores give the same interval.

    ValueError for fewer than two seeds or episodes.
    """
    seeds, episodes = scores.shape
    if min(seeds, episodes) < 2:
        raise ValueError(f"{seeds} seeds and {episodes} episodes. At least two of each")
    random = np.random.Generator(np.random.Philox(0))
    of_seeds, of_episodes = (
        random.multinomial(n - 1, np.full(n, 1 / n), size=draws) / (n - 1) for n in scores.shape
    )
    means = ((of_seeds @ scores) * of_episodes).sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (1 + float(beyond)) / (1 + draws))
    return TwoLevel(float(scores.mean()), float(high - low) / 2, p, seeds)


def over_seeds(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> TwoLevel | None:
    """Second minus first over the seeds that both have; None if these are fewer than two.

    first, second: scores (n_episodes,) of each training by its seed, on the same episodes.
    """
    shared = [seed for seed in first if seed in second]
    if len(shared) < 2:
        return None
    return two_level(np.stack([np.subtract(second[seed], first[seed]) for seed in shared]))


def tied_with_best(
    methods: Sequence[Mapping[str, np.ndarray]], higher_is_better: bool = True
) -> list[bool]:
    """Which of the methods are best, or not worse than the best beyond the paired 95 % interval.

    methods: of each its scores (n_episodes,) by seed, on the same episodes. The interval is over
    seeds and episodes if a pair shares two seeds, else over episodes.
    """
    means = [np.mean(list(scores.values()), axis=0) for scores in methods]
    order = [float(mean.mean()) if higher_is_better else -float(mean.mean()) for mean in means]
    best = max(range(len(order)), key=order.__getitem__)
    found = []
    for scores, mean in zip(methods, means, strict=True):
        both = over_seeds(methods[best], scores)
        paired = both or paired_difference(means[best], mean)
        gap = abs(both.mean if both else float((mean - means[best]).mean()))
        found.append(gap <= paired.interval)
    return found


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
    from scipy import stats  # type: ignore[import-untyped]

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
    from scipy import stats

    p = float(stats.friedmanchisquare(*scores.T).pvalue)
    studentized = float(stats.studentized_range.ppf(0.95, k, np.inf))
    critical = studentized / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * blocks))
    return MeanRanks(ranks(scores, higher_is_better).mean(axis=0), blocks, p, critical)
