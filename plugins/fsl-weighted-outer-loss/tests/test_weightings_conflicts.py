"""`conflict-free` against SciPy, and against gradient surgery on the vectors themselves."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

import fsl_core as fsl
from fsl_weighted_outer_loss import ConflictFree, conflicts

COLUMNS = {"backbone.w": slice(0, 12)}


def rows(n, seed, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1.0, (n, 12)) * generator.uniform(0.2, 3.0, (n, 1))


def weigh(gradients, method):
    given = fsl.Outcomes(torch.ones(len(gradients)).double(), torch.from_numpy(gradients))
    return ConflictFree(COLUMNS, method).weigh(given).numpy()


def shortest_by_nnls(gradients):
    """The point of the convex hull nearest to the origin: argmin |G' x|^2 + (sum x - 1)^2 over x >=
    0, divided by its sum."""
    n = len(gradients)
    x, _ = nnls(
        np.vstack([gradients.T, np.ones((1, n))]), np.append(np.zeros(gradients.shape[1]), 1.0)
    )
    return x / x.sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "shift"), [(2, 0.0), (3, 0.5), (5, 0.0), (8, 0.3), (12, 1.0)])
def test_min_norm_is_scipys(n, shift, seed):
    gradients = rows(n, seed, shift)
    np.testing.assert_allclose(
        weigh(gradients, "min-norm"), shortest_by_nnls(gradients), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("seed", range(8))
def test_min_norm_of_two_tasks(seed):
    first, second = rows(2, seed, 0.7)
    share = np.clip((second - first) @ second / ((first - second) @ (first - second)), 0, 1)
    np.testing.assert_allclose(
        weigh(np.stack([first, second]), "min-norm"), [share, 1 - share], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("seed", range(5))
def test_min_norm_goes_against_no_task(seed):
    gradients = rows(6, seed)
    direction = weigh(gradients, "min-norm") @ gradients
    assert (gradients @ direction >= direction @ direction - 1e-8).all()


def test_min_norm_of_many_tasks_in_few_dimensions():
    """The hull holds the origin, and the minimiser is one of many."""
    gradients = rows(40, 0)
    assert np.linalg.norm(weigh(gradients, "min-norm") @ gradients) < 1e-5


def test_equal_tasks_share_the_weight_of_one():
    gradients = rows(4, 2, 0.6)
    alone = weigh(gradients, "min-norm")
    most = int(alone.argmax())
    shared = weigh(np.vstack([gradients, gradients[[most, most]]]), "min-norm")
    np.testing.assert_allclose(shared[[most, 4, 5]], alone[most] / 3, atol=1e-9)
    np.testing.assert_allclose(np.delete(shared[:4], most), np.delete(alone, most), atol=1e-9)


def surgery(gradients, orders):
    """Algorithm 1 of Yu et al. 2020 on the vectors, averaged over tasks."""
    projected = gradients.copy()
    for i, order in enumerate(orders):
        for j in order:
            product = projected[i] @ gradients[j]
            if j != i and product < 0:
                projected[i] -= product / (gradients[j] @ gradients[j]) * gradients[j]
    return projected.mean(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_pcgrad_is_gradient_surgery(n, seed):
    gradients = rows(n, seed)
    gradients[1] -= 2 * gradients[0]  # at least one conflict
    torch.manual_seed(seed)
    weights = weigh(gradients, "pcgrad")
    torch.manual_seed(seed)
    expected = surgery(gradients, [torch.randperm(n).tolist() for _ in range(n)])
    np.testing.assert_allclose(weights @ gradients, expected, rtol=1e-9, atol=1e-12)
    assert (weights >= 1 / n - 1e-15).all()
    assert weights.sum() > 1


def test_pcgrad_without_conflict_is_uniform():
    np.testing.assert_allclose(weigh(np.abs(rows(4, 0)), "pcgrad"), np.full(4, 0.25), rtol=1e-12)


def test_pcgrad_of_opposed_gradients_stands_still():
    first = rows(1, 0)
    gradients = np.vstack([first, -3 * first])
    np.testing.assert_allclose(weigh(gradients, "pcgrad") @ gradients, 0, atol=1e-12)


def test_orders_are_permutations_drawn_for_each_task():
    torch.manual_seed(0)
    orders = conflicts._orders(6)
    assert (np.sort(orders, 1) == np.arange(6)).all()
    assert len({tuple(order) for order in orders}) > 1


def test_totals():
    assert ConflictFree(COLUMNS).total == "one"
    assert ConflictFree(COLUMNS, "pcgrad").total == "any"
