"""Statistics held against scipy's own tests, definitions computed by brute force, and published
figures."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import integrate, stats

from fsl_core.reporting.statistics import holm, mean_ranks, paired_difference, ranks

RANDOM = np.random.default_rng(0)


def test_paired_difference_is_the_paired_t_test():
    first = RANDOM.random(80)
    second = first + 0.05 + 0.2 * RANDOM.standard_normal(80)
    paired, reference = paired_difference(first, second), stats.ttest_rel(second, first)
    low, high = reference.confidence_interval(0.95)
    assert paired.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert paired.difference - paired.interval == pytest.approx(low, rel=1e-9)
    assert paired.difference + paired.interval == pytest.approx(high, rel=1e-9)
    assert (paired.wins, paired.ties, paired.losses) == (
        (second > first).sum(),
        0,
        (second < first).sum(),
    )


def test_a_lower_error_wins():
    paired = paired_difference(
        np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 3.5]), higher_is_better=False
    )
    assert (paired.wins, paired.ties, paired.losses, paired.difference) == (1, 1, 1, 0.0)


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_a_constant_difference_has_no_interval(shift: float, p: float):
    first = RANDOM.integers(0, 5, 20) / 4
    paired = paired_difference(first, first + shift)
    assert (paired.difference, paired.interval, paired.p) == (shift, 0.0, p)


def test_holm_is_closed_testing_with_bonferroni():
    """Adjusted p of a hypothesis: the largest Bonferroni p of all sets of hypotheses that it
    belongs to."""
    p = [0.02, 0.001, 0.3, 0.02, 0.9]
    sets = [s for size in range(1, 6) for s in combinations(range(5), size)]
    closed = [
        max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(5)
    ]
    assert holm(p) == pytest.approx(closed, rel=1e-12)
    assert holm([]) == []


def test_equal_scores_share_a_rank():
    assert ranks(np.array([0.9, 0.5, 0.9])).tolist() == [1.5, 3.0, 1.5]
    assert ranks(np.array([0.9, 0.5, 0.9]), higher_is_better=False).tolist() == [2.5, 1.0, 2.5]


def test_demsars_critical_difference():
    """Demsar 2006, section 3.2.2: four methods on 14 data sets, critical difference 1.25 (q =
    2.569)."""
    found = mean_ranks(RANDOM.random((14, 4)))
    assert found.critical_difference == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=1e-3)
    assert round(found.critical_difference, 2) == 1.25


def test_friedman_by_hand():
    """12 / (n k (k + 1)) * sum_j R_j^2 - 3 n (k + 1), R_j the sum of ranks, against chi-square of k
    - 1 degrees."""
    scores = RANDOM.random((30, 4)) + np.array([0.0, 0.1, 0.2, 0.0])
    found = mean_ranks(scores)
    order = (-scores).argsort(axis=1).argsort(axis=1) + 1
    statistic = 12 / (30 * 4 * 5) * (order.sum(axis=0) ** 2).sum() - 3 * 30 * 5
    assert found.p == pytest.approx(stats.chi2.sf(statistic, 3), rel=1e-9)
    assert found.ranks == pytest.approx(order.mean(axis=0))


@pytest.mark.parametrize(("blocks", "methods"), [(11, 3), (14, 4), (40, 10)])
def test_friedman_is_that_of_scipy(blocks: int, methods: int):
    """With ties, in both directions; scipy ranks the lowest first, which changes no statistic."""
    scores = RANDOM.integers(0, 5, (blocks, methods)) / 4 + 0.3 * np.arange(methods)
    for sign in (1, -1):
        found = mean_ranks(sign * scores, higher_is_better=sign > 0)
        assert found.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue, rel=1e-12)
        assert found.blocks == blocks
        ranked = [stats.rankdata(-row) for row in scores]
        assert found.ranks == pytest.approx(np.mean(ranked, axis=0), rel=1e-12)


def range_beyond(q: float, k: int) -> float:
    """The chance that the range of k standard normal numbers exceeds q, by its definition."""

    def density(x: float) -> float:
        return k * stats.norm.pdf(x) * (stats.norm.cdf(x) - stats.norm.cdf(x - q)) ** (k - 1)

    return 1 - integrate.quad(density, -9, 9 + q)[0]


@pytest.mark.parametrize(
    ("k", "q"),  # Demsar 2006, table 5a: the studentized range at 0.05, divided by sqrt(2)
    [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102)],
)
def test_nemenyi_is_that_of_the_range_of_normal_numbers(k: int, q: float):
    """From the table, from the definition, and from scipy with many degrees of freedom."""
    blocks = 20
    unit = (k * (k + 1) / (6 * blocks)) ** 0.5
    found = mean_ranks(RANDOM.random((blocks, k))).critical_difference / unit
    assert found == pytest.approx(q, abs=2e-3)
    assert range_beyond(found * 2**0.5, k) == pytest.approx(0.05, abs=1e-5)
    scipys = stats.studentized_range.isf(0.05, k, 1e5) / 2**0.5
    assert found == pytest.approx(scipys, rel=1e-3)


def test_groups_are_the_largest_sets_within_the_critical_difference():
    found = mean_ranks(RANDOM.random((40, 5)))
    found.ranks[:] = [4.0, 1.0, 1.4, 1.8, 3.9]
    object.__setattr__(found, "critical_difference", 0.5)
    assert found.groups() == [(0, 1), (1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (RANDOM.random((40, 2)), "2 methods to rank, and Friedman's test needs 3"),
        (RANDOM.random((8, 4)), "8 blocks, and Friedman's test needs 11"),
        (np.ones((40, 4)), "all methods have equal scores in every block"),
    ],
)
def test_where_ranks_are_not_valid(scores: np.ndarray, reason: str):
    with pytest.raises(ValueError, match=reason):
        mean_ranks(scores)
