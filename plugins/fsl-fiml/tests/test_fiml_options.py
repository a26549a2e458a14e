"""What the options mean and what is refused, each in one line."""

from __future__ import annotations

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.hypergradients import FirstOrder
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_fiml import Fiml


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": -1}, r"fiml: inner_steps: -1\. An? .*number"),
        ({"entropy_weight": 0.0}, r"fiml: entropy_weight: 0\.0\. A number above 0, or None"),
        ({"regularisation": -1.0}, r"fiml: regularisation: -1\.0\. A number from 0"),
        ({"learn": ["heads"]}, r"fiml: learn.*heads"),
        ({"entropy_curvature": "exact"}, r"'covariance' or 'hessian'"),
    ],
    ids=str,
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        Fiml(tiny_task(), **options)


@pytest.mark.parametrize(
    ("task", "found"),
    [(tiny_task("regression"), "a regression task"), (tiny_task(n_way=1), "with 1 way")],
    ids=["values", "one class"],
)
def test_tasks_without_classes_to_tell_apart(task, found):
    with pytest.raises(ValueError, match=rf"fiml: .*{found}.*\. Classification with two ways"):
        Fiml(task)


def learned(**options) -> set[str]:
    return {name for name, _ in Fiml(tiny_task(), **options).numbers.named_parameters()}


def test_learn_names_what_is_trained():
    twos = ("start", "target", "weight", "slope")
    pairs = {f"{own}_{what}" for what in twos for own in ("own", "other")}
    assert learned() == pairs
    assert learned(regularisation=0.1) - learned() == {"regularisation"}
    assert learned(entropy_weight=10.0) == pairs | {"entropy_weight", "temperature"}
    assert learned(learn=["slopes", "regularisation"]) == {"own_slope", "other_slope"}
    assert learned(learn=[]) == set()


def test_a_regularisation_of_zero_would_have_no_gradient():
    """Which is why it is no parameter: the objective has its square."""
    with double_precision():
        task = tiny_task()
        learner = fsl.Learner(TinyBackbone(), Fiml(task, regularisation=0.1))
        rho = learner.adapter.numbers.regularisation
        episode = tiny_episodes(task, 1).unbatch()[0]
        slopes = []
        for value in (0.1, 0.0):
            rho.data.fill_(value)
            loss = learner.objective(episode, task.loss)[0]
            slopes.append(torch.autograd.grad(loss, rho)[0].item())
    assert slopes[0] != 0
    assert slopes[1] == 0


def test_numbers_are_told_beside_the_score():
    told = Fiml(tiny_task(), own_target=4.0, entropy_weight=1000.0).describe()
    assert told["own_target"] == 4.0
    assert told["entropy_weight"] == pytest.approx(1000)


def test_hypergradients_follow_its_steps():
    """First-order derivatives of the last steps differ from exact ones, at the same value."""
    with double_precision():
        task, backbone = tiny_task(), TinyBackbone()
        adapter, episode = Fiml(task, entropy_weight=1.0), tiny_episodes(task, 1).unbatch()[0]
        found = []
        for estimate in (None, FirstOrder()):
            learner = fsl.Learner(backbone, adapter, estimate)
            value = learner.objective(episode, task.loss)[0]
            found.append((value, torch.autograd.grad(value, backbone.conv.weight)[0]))
    (exact, slope), (same, other) = found
    torch.testing.assert_close(exact, same)
    assert not torch.allclose(slope, other)
    assert other.isfinite().all()
