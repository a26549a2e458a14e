"""Leaving out labelled pictures: against loops written out, scikit-learn and known intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import nn
from torch.nn.functional import normalize

import fsl_core as fsl
from fsl_core.builtin.linear_probe import LinearProbe
from fsl_core.builtin.nearest_centroid import NearestCentroid as Centroid
from fsl_core.learner import Learner
from fsl_core.predicting import left_out
from fsl_core.predicting.left_out import LeftOut, leave_one_out

TASK = fsl.TaskShape("classification", 3, 1, 1, (5,), 3)


def clouds(*counts: int, spread: float = 1.0) -> fsl.LabelledSet:
    """Of each class so many points about a place of its own, sorted by class."""
    generator = torch.Generator().manual_seed(len(counts))
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    places = 1 + 2 * torch.eye(5, dtype=torch.float64)[: len(counts)]
    noise = torch.randn(len(y), 5, generator=generator, dtype=torch.float64)
    return fsl.LabelledSet(places[y] + spread * noise, y)


def learner(adapter: fsl.Adapter) -> Learner:
    return Learner(nn.Identity(), adapter)


def test_a_probe_gives_the_numbers_of_a_loop_over_scikit_learn():
    support = clouds(4, 6, 3)
    found = leave_one_out(learner(LinearProbe(TASK, c=2.0)), support)
    z, y = normalize(support.x, dim=1).numpy(), support.y.numpy()
    expected = []
    for i in range(len(y)):
        fitted = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000)
        fitted.fit(np.delete(z, i, 0), np.delete(y, i))
        expected.append(fitted.predict_proba(z[i : i + 1])[0])
    np.testing.assert_allclose(found.probabilities.numpy(), expected, atol=1e-6)
    right = np.argmax(expected, 1) == y
    assert found.accuracy == right.mean()
    assert found.log_loss == pytest.approx(-np.log(np.array(expected)[range(len(y)), y]).mean())


def test_class_means_are_taken_without_the_picture():
    support = clouds(4, 6, 3, spread=2.0)
    found = leave_one_out(learner(Centroid(TASK)), support)
    x, y = support.x.numpy(), support.y.numpy()
    expected = [
        NearestCentroid().fit(np.delete(x, i, 0), np.delete(y, i)).predict(x[i : i + 1])[0]
        for i in range(len(y))
    ]
    assert found.probabilities.argmax(1).tolist() == expected
    assert 0 < found.accuracy < 1  # so that a picture that is not left out would show


@pytest.mark.parametrize("adapter", [LinearProbe(TASK), Centroid(TASK, power=0.5)])
def test_any_number_at_a_time_gives_the_same(adapter: fsl.Adapter, monkeypatch):
    support = clouds(4, 6, 3)
    together = leave_one_out(learner(adapter), support)
    for numbers in (1, 4 * 13 * 5):  # one by one; four, four, four and one
        monkeypatch.setattr(left_out, "TOGETHER", numbers)
        found = leave_one_out(learner(adapter), support)
        torch.testing.assert_close(found.probabilities, together.probabilities, rtol=0, atol=1e-12)


class Masked(Centroid):
    """Vectorizable as far as it says, but written for one task at a time."""

    def adapt(self, backbone, support):
        means = torch.stack([support.x[support.y == c].mean(0) for c in range(self.n_way)])
        return lambda x: -(x[:, None] - means).square().sum(-1)


def test_an_adapter_for_one_task_at_a_time_predicts_so():
    support = clouds(4, 6, 3)
    found, expected = (leave_one_out(learner(kind(TASK)), support) for kind in (Masked, Centroid))
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=1e-12)


def test_the_only_picture_of_a_class_is_not_left_out():
    support = clouds(1, 3, 2)
    found = leave_one_out(learner(Centroid(TASK)), support)
    assert found.y.tolist() == [1, 1, 1, 2, 2]
    assert found.probabilities.shape == (5, 3)
    assert leave_one_out(learner(Centroid(TASK)), clouds(1, 1, 1)) is None


def test_of_many_pictures_the_same_300_are_left_out(monkeypatch):
    support = clouds(200, 150, 50)
    first, again = (leave_one_out(learner(Centroid(TASK)), support) for _ in range(2))
    assert len(first.y) == 300
    assert torch.equal(first.probabilities, again.probabilities)
    assert 0 < (first.y == 2).sum() < 50  # not the first ones, nor the last
    monkeypatch.setattr(left_out, "MOST", 400)
    everything = leave_one_out(learner(Centroid(TASK)), support)
    assert len(everything.y) == 400
    # Others are computed beside them, and how many there are may change the last bits.
    apart = (everything.probabilities[:, None] - first.probabilities).abs().amax(-1)
    nearest = apart.min(0)
    assert (nearest.values < 1e-12).all()
    assert len(nearest.indices.unique()) == 300


def said(right: int, wrong: int, classes: int = 2) -> LeftOut:
    """So many right and so many wrong, of classes in turn, with probability 0.9 and 0.6."""
    y = torch.arange(right + wrong) % classes
    shown = y.clone()
    shown[right:] = (y[right:] + 1) % classes
    sure = torch.tensor([0.9] * right + [0.6] * wrong, dtype=torch.float64)
    rest = (1 - sure) / (classes - 1)
    probabilities = rest[:, None].repeat(1, classes)
    probabilities[range(len(y)), shown] = sure
    return LeftOut(probabilities, y)


def test_the_interval_is_that_of_wilson():
    """Newcombe 1998, Statistics in Medicine 17: 81 of 263 gives 0.2553 to 0.3662."""
    assert said(81, 182).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert said(0, 20).interval == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("right", "wrong"), [(25, 0), (0, 7), (1, 1), (290, 10)])
def test_the_interval_is_that_of_scipy(right: int, wrong: int):
    found = stats.binomtest(right, right + wrong).proportion_ci(method="wilson")
    assert said(right, wrong).interval == pytest.approx(tuple(found), abs=1e-12)


@pytest.mark.parametrize(("right", "near"), [(12, True), (14, True), (19, False)])
def test_near_chance_is_what_the_interval_reaches(right: int, near: bool):
    found = said(right, 20 - right)
    assert found.chance == 0.5
    assert found.near_chance == near


def test_chance_is_the_most_frequent_class():
    y = torch.tensor([0, 0, 0, 1])
    assert LeftOut(torch.eye(2)[y], y).chance == 0.75


def test_the_threshold_keeps_95_of_100_that_are_right():
    y = torch.zeros(120, dtype=torch.long)
    sure = torch.linspace(0.505, 0.995, 100, dtype=torch.float64)
    first = torch.cat([sure, torch.full((20,), 0.01, dtype=torch.float64)])  # the last 20 are wrong
    found = LeftOut(torch.stack([first, 1 - first], 1), y)
    assert found.threshold == 0.52
    assert (sure >= found.threshold).sum() >= 95
    assert LeftOut(torch.eye(2)[1 - y], y).threshold == 0.0  # none is right


def test_what_is_left_out_of_float_weights_says_no_infinite_loss():
    y = torch.tensor([0, 1])
    assert LeftOut(torch.eye(2)[1 - y], y).log_loss == pytest.approx(-np.log(1e-12))
