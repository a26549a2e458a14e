"""The probe against scikit-learn, and its derivative through the optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.builtin.linear_probe import LinearProbe, logistic_regression
from fsl_core.testing import AdapterContract, TinyBackbone, tiny_episodes, tiny_task


class TestLinearProbe(AdapterContract):
    def make(self, task):
        return LinearProbe(task)


class TestStrong(AdapterContract):
    def make(self, task):
        return LinearProbe(task, c=30.0, unit_length=False)


def features(n: int, d: int, k: int, apart: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    means = apart * torch.randn(k, d, generator=generator, dtype=torch.float64)
    z = means[y] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return F.normalize(z, dim=1), y


@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
@pytest.mark.parametrize(
    ("n", "d", "k"), [(5, 64, 5), (25, 64, 5), (25, 8, 5), (23, 40, 4), (60, 3, 7)]
)
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_the_numbers_are_those_of_scikit_learn(n, d, k, c, apart):
    """More items than features and fewer, separable classes and noise, unequal shots."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, y = features(n, d, k, apart)
    theirs = linear_model.LogisticRegression(C=c, tol=1e-10, max_iter=100, solver="newton-cholesky")
    theirs.fit(z.numpy(), y.numpy())
    weights, bias = logistic_regression(z, fsl.one_hot(y, k).double(), c)
    np.testing.assert_allclose(weights.mT.numpy(), theirs.coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), theirs.intercept_, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_adapters_probabilities_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    task, backbone = tiny_task(), TinyBackbone()
    episode = tiny_episodes(task, 1).unbatch()[0]
    z, q = (F.normalize(backbone(s.x), dim=1).detach() for s in (episode.support, episode.query))
    theirs = linear_model.LogisticRegression(tol=1e-10, solver="newton-cholesky")
    expected = theirs.fit(z.numpy(), episode.support.y.numpy()).predict_proba(q.numpy())
    learner = fsl.Learner(backbone, LinearProbe(task))
    found = learner(episode.support, episode.query.x).softmax(1).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_float32_is_near_float64():
    z, y = features(25, 64, 5, 1.0)
    targets = fsl.one_hot(y, 5)
    exact, _ = logistic_regression(z, targets.double(), 1.0)
    rounded, _ = logistic_regression(z.float(), targets.float(), 1.0)
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("d", [3, 12])
def test_the_derivative_is_that_of_the_whole_iteration(d):
    """With more features than items and fewer, against gradcheck's finite differences."""
    z, y = features(8, d, 3, 1.0)
    targets = fsl.one_hot(y, 3).double()

    def optimum(z):
        return logistic_regression(z, targets, 2.0)

    assert torch.autograd.gradcheck(optimum, (z.requires_grad_(),), atol=1e-6)


def test_twenty_ways_of_five_shots_need_no_matrix_of_all_unknowns():
    """2,020 unknowns. The matrix of all of them would be 16 MB in float32, and that of a way 40 KB."""
    z, y = features(100, 128, 20, 1.0)
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in torch.utils._pytree.tree_leaves(found) if torch.is_tensor(t)
            )
            return found

    with Largest():
        weights, _ = logistic_regression(z, fsl.one_hot(y, 20).double(), 1.0)
    assert weights.isfinite().all()
    assert max(sizes) <= 20 * 100 * 100


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_stay_so(bad):
    """An evaluation then says which episode it was; there is no error of a solver."""
    z, y = features(6, 4, 3, 1.0)
    z[3, 2] = bad
    weights, _ = logistic_regression(z, fsl.one_hot(y, 3).double(), 1.0)
    assert not weights.isfinite().any()


@pytest.mark.usefixtures("float64")
def test_unequal_shots_and_vmap():
    task = tiny_task()
    episodes = tiny_episodes(task, 4)
    keep = torch.tensor([0, 1, 2, 3, 5])  # 2, 2 and 1 of each class
    x, y = episodes.support.x[:, keep], episodes.support.y[:, keep]
    adapter = LinearProbe(task)

    def predict(x, y, q):
        return adapter.adapt(nn.Flatten(), fsl.LabelledSet(x, y))(q)

    together = torch.func.vmap(predict)(x, y, episodes.query.x)
    alone = [predict(*rows) for rows in zip(x, y, episodes.query.x, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-9)


def test_refused():
    with pytest.raises(ValueError, match=r"linear-probe: a regression task\. Classification"):
        LinearProbe(tiny_task("regression"))
    with pytest.raises(ValueError, match=r"linear-probe: c: 0\.0\. A number above 0"):
        LinearProbe(tiny_task(), c=0.0)
