"""Distances of features against textbook formulas, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA

from fsl_core.diagnosing.similarity import MEASURES, distances

N, P, Q = 60, 5, 7


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def related() -> tuple[torch.Tensor, torch.Tensor]:
    x = random(N, P)
    return x, x @ random(P, Q, seed=1) + 2 * random(N, Q, seed=2) + 3


def values(x: torch.Tensor, y: torch.Tensor) -> dict[str, float | None]:
    return {name: found.value for name, found in distances(x, y).items()}


def test_cka_by_centring_matrices(related):
    x, y = (part.numpy() for part in related)
    h = np.eye(N) - np.ones((N, N)) / N
    k, m = x @ x.T, y @ y.T

    def hsic(k, m):
        return np.trace(k @ h @ m @ h)

    cka = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert values(*related)["cka"] == pytest.approx(1 - cka, abs=1e-12)


def test_debiased_cka_by_sums_over_distinct_items():
    """Unbiased HSIC is a mean over four distinct items, here summed one by one."""
    n = 7
    x, y = random(n, 2), random(n, 3, seed=1)
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()

    def hsic(k, m):
        terms = [
            k[a, b] * (m[a, b] + m[c, d] - 2 * m[a, c])
            for a, b, c, d in itertools.permutations(range(n), 4)
        ]
        return np.mean(terms)

    cka = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert values(x, y)["cka-debiased"] == pytest.approx(1 - cka, abs=1e-12)


def correlations(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Canonical correlations and variates of x: eigenvectors of a product of covariances."""
    x, y = x - x.mean(0), y - y.mean(0)
    product = np.linalg.solve(x.T @ x, x.T @ y) @ np.linalg.solve(y.T @ y, y.T @ x)
    squares, vectors = np.linalg.eig(product)
    order = np.argsort(-squares.real)
    variates = x @ vectors.real[:, order]
    return np.sqrt(squares.real[order]), variates / np.linalg.norm(variates, axis=0)


def test_pwcca_by_an_eigenproblem(related):
    x, y = (part.numpy() for part in related)
    r, h = correlations(x, y)
    a = np.abs(h.T @ (x - x.mean(0))).sum(1)
    assert values(*related)["pwcca"] == pytest.approx(1 - (a * r).sum() / a.sum(), abs=1e-10)


def test_svcca_by_scikit_learn_of_the_leading_directions():
    def truncated(x):
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        kept = np.searchsorted(np.cumsum(s) / s.sum(), 0.99) + 1
        assert kept < len(s)
        return u[:, :kept] * s[:kept]

    scale = torch.tensor([5, 3, 1, 0.01, 0.01], dtype=torch.float64)
    x = random(N, 5)
    y = x + torch.tensor([0.2, 1, 4, 1, 1]) * random(N, 5, seed=2)
    x, y = x * scale, y * scale
    low, high = truncated(x.numpy()), truncated(y.numpy())
    count = min(low.shape[1], high.shape[1])
    fitted = CCA(count, scale=False, max_iter=2000, tol=1e-14).fit(low, high)
    pairs = zip(*(part.T for part in fitted.transform(low, high)), strict=True)
    r = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    assert values(x, y)["svcca"] == pytest.approx(1 - np.mean(r), abs=1e-6)


def test_procrustes_is_half_the_least_squared_distance(related):
    x = random(N, Q, seed=4).numpy()
    y = related[1].numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    turn, _ = orthogonal_procrustes(y, x)
    least = np.linalg.norm(x - y @ turn) ** 2 / 2
    found = values(random(N, Q, seed=4), related[1])["procrustes"]
    assert found == pytest.approx(least, abs=1e-12)


def test_equal_features_are_at_distance_zero_however_few():
    x = random(3, 50)
    assert values(x, x.clone()) == dict.fromkeys(MEASURES, 0.0)


def test_what_leaves_a_distance_unchanged(related):
    x, y = related
    turn, _ = torch.linalg.qr(random(Q, Q, seed=3))
    before, turned = values(x, y), values(x, 2.5 * y @ turn + 4)
    assert turned == pytest.approx(before, abs=1e-10)
    mapped = values(x, y @ random(Q, Q, seed=5))
    assert mapped["pwcca"] == pytest.approx(before["pwcca"], abs=1e-10)
    assert mapped["cka"] != pytest.approx(before["cka"], abs=1e-3)


def test_only_pwcca_depends_on_the_order():
    x = random(N, P) * torch.tensor([9.0, 3, 1, 1, 0.3])
    y = x @ random(P, P, seed=1) + random(N, P, seed=2)
    one, other = values(x, y), values(y, x)
    changed = {name for name in MEASURES if abs(one[name] - other[name]) > 1e-10}
    assert changed == {"pwcca"}


def test_independent_features_are_at_debiased_distance_one():
    n = 2000
    found = values(random(n, 10), random(n, 10, seed=1))
    assert abs(found["cka-debiased"] - 1) < 1 / n**0.5
    many = values(random(40, 500), random(40, 500, seed=1))
    assert abs(many["cka-debiased"] - 1) < 0.1
    assert many["cka"] < 0.3  # which is why it is not told alone


def test_few_items_give_null_with_the_reason():
    found = distances(random(10, 8), random(10, 8, seed=1))
    assert found["pwcca"].value is None
    assert found["pwcca"].reason == (
        "10 items for 8 directions before and 8 after adaptation: 7 correlations are 1 by "
        "construction. More than 16 items"
    )
    assert found["cka"].value is not None
    assert distances(random(3, 2), random(3, 2, seed=1))["cka-debiased"].value is None


def test_the_reason_counts_correlations_of_one():
    x, y = random(10, 8), random(10, 8, seed=1)
    u, v = (torch.linalg.qr(part - part.mean(0))[0] for part in (x, y))
    ones = (torch.linalg.svdvals(u.T @ v) > 1 - 1e-10).sum()
    assert ones == 7


def test_not_many_items_are_noted():
    assert distances(random(60, 13), random(60, 13, seed=1))["pwcca"].note == (
        "60 items for 13 directions"
    )
    assert not distances(random(60, 12), random(60, 12, seed=1))["pwcca"].note


def test_a_constant_layer_gives_null():
    found = distances(torch.ones(20, 4), torch.randn(20, 4))
    assert {each.value for each in found.values()} == {None}
    assert found["cka"].reason == "the layer is the same for every item before adaptation"
