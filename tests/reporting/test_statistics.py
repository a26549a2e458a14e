"""Statistics held against scipy's own tests, definitions computed by brute force, and published
figures."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import integrate, stats

from fsl_core.reporting.statistics import (
    TwoLevel,
    holm,
    mean_ranks,
    over_seeds,
    paired_difference,
    ranks,
    tied_with_best,
    two_level,
)

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


def test_two_level_is_the_variance_of_crossed_effects():
    seeds, episodes = 40, 300
    scores = (
        0.6
        + 0.03 * RANDOM.standard_normal((seeds, 1))
        + 0.1 * RANDOM.standard_normal((1, episodes))
        + 0.05 * RANDOM.standard_normal((seeds, episodes))
    )
    of_seeds, of_episodes = scores.mean(axis=1), scores.mean(axis=0)
    variance = of_seeds.var(ddof=1) / seeds + of_episodes.var(ddof=1) / episodes
    found = two_level(scores)
    assert found.mean == scores.mean()
    assert found.interval == pytest.approx(1.96 * variance**0.5, rel=0.06)
    assert found.interval > 1.96 * stats.sem(of_episodes)
    assert two_level(scores) == found  # whatever was drawn in between


def test_two_level_p_values():
    noise = 0.1 * RANDOM.standard_normal((5, 200))
    assert two_level(noise - noise.mean() + 0.1).p == pytest.approx(2 / 4001)
    assert two_level(noise - noise.mean()).p > 0.5
    assert two_level(np.zeros((3, 10))) == TwoLevel(0.0, 0.0, 1.0, 3)
    with pytest.raises(ValueError, match="1 seeds and 10 episodes"):
        two_level(np.zeros((1, 10)))


def test_only_seeds_of_both_are_compared():
    first = {str(seed): RANDOM.random(50) for seed in range(3)}
    second = {seed: scores + 0.1 for seed, scores in first.items() if seed != "0"}
    found = over_seeds(first, second)
    assert (found.seeds, found.mean) == (2, pytest.approx(0.1))
    assert over_seeds(first, {"0": second["1"]}) is None


def test_ties_with_the_best():
    base = RANDOM.random(400)
    near = base - 0.001 + 0.1 * RANDOM.standard_normal(400)
    methods = [{"0": base}, {"0": near}, {"0": base - 0.2}]
    assert tied_with_best(methods) == [True, True, False]
    assert tied_with_best(methods, higher_is_better=False) == [False, False, True]
    apart = [{s: base + d for s, d in (("0", 0.3), ("1", -0.3))}, {"0": base, "1": base - 0.01}]
    assert tied_with_best(apart) == [True, True]  # one training is far ahead, the other behind
