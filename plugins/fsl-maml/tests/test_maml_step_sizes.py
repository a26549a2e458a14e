"""A rate by the number of steps, what is told of it, and an objective on the support set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_maml import Maml

TASK = tiny_task()


@pytest.fixture(autouse=True)
def float64():
    with double_precision():
        yield


def make(**options) -> fsl.Learner:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    return fsl.Learner(backbone, Maml(TASK, backbone, **{"inner_steps": 4} | options))


def episode() -> fsl.Episode:
    return tiny_episodes(TASK, 1).unbatch()[0]


@pytest.mark.parametrize("test_steps", [4, 7])
def test_the_rate_is_shared_out_over_the_steps_of_training(test_steps: int):
    ruled = make(inner_lr=0.4, inner_lr_rule="per-step", test_steps=test_steps)
    plain = make(inner_lr=0.1, test_steps=test_steps)
    for mode in (True, False):
        found = [m.train(mode).adapt(episode())(episode().query.x) for m in (ruled, plain)]
        torch.testing.assert_close(*found)


def test_learned_rates_and_other_optimizers_begin_at_the_share():
    learned = make(inner_lr=0.4, inner_lr_rule="per-step", learn_inner_lr="scalar").adapter
    assert learned.inner_lr.rate.item() == pytest.approx(0.1)
    adam, plain = (
        make(inner_optimizer="adam", inner_lr=rate, inner_lr_rule=rule).eval()
        for rate, rule in [(0.04, "per-step"), (0.01, "none")]
    )
    torch.testing.assert_close(*[m.adapt(episode())(episode().query.x) for m in (adam, plain)])


def meta_lipschitz(hessian: Tensor, rate: float, steps: int) -> float:
    """Of theta -> f(phi_steps(theta)) with f(w) = w' H w / 2: the largest |eigenvalue| of
    (I - rate H)^steps H (I - rate H)^steps."""
    contraction = torch.linalg.matrix_power(torch.eye(len(hessian)) - rate * hessian, steps)
    return torch.linalg.eigvalsh(contraction @ hessian @ contraction).abs().max().item()


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 32])
def test_the_rule_bounds_the_meta_gradient_of_quadratics(steps: int):
    """Curvatures from -1 to 1, rate c = 1: at most e^2 with the rule, 4^N without."""
    hessian = torch.diag(torch.linspace(-1, 1, 9))
    assert meta_lipschitz(hessian, 1 / steps, steps) <= torch.e**2
    assert meta_lipschitz(hessian, 1.0, steps) == pytest.approx(4**steps)


@pytest.mark.parametrize("head", ["zero", "learned"])
def test_a_run_of_maml_has_that_lipschitz_constant(head: str):
    """The adapter itself on a regression whose support loss is a quadratic of the head."""
    x = torch.randn(6, 3)
    task = fsl.TaskShape("regression", 1, 6, 6, (3,), 1)
    backbone = nn.Identity()
    backbone.feature_dim = 3
    options = {"adapted": "head.weight", "inner_lr": 0.9, "inner_lr_rule": "per-step"}
    adapter = Maml(task, backbone, inner_steps=5, **options)
    nn.init.zeros_(adapter.head.bias).requires_grad_(False)
    items = fsl.LabelledSet(x, torch.zeros(6, 1))
    hessian = 2 * x.T @ x / 6
    contraction = torch.linalg.matrix_power(torch.eye(3) - 0.18 * hessian, 5)
    w = adapter.head.weight
    if head == "zero":
        nn.init.zeros_(w)
    value, _ = adapter.objective(backbone, fsl.Episode(items, items, torch.tensor(0)), task.loss)
    (slope,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(slope, w.detach() @ (contraction @ hessian @ contraction))


def test_many_steps_of_a_large_rate_are_told():
    told = make(inner_lr=0.4, inner_steps=5).adapter.advice()
    assert told.startswith("5 inner steps of rate 0.4. ")
    assert told.endswith("inner_lr_rule: per-step divides the rate by 5")
    for options in ({"inner_lr_rule": "per-step"}, {"inner_steps": 1}, {"inner_lr": 0.1}):
        assert make(**{"inner_lr": 0.4, "inner_steps": 5} | options).adapter.advice() == ""


def test_the_objective_on_the_support_set():
    learner = make(query="support")
    value, prediction = learner.objective(episode(), TASK.loss)
    (x, y), asked = episode().support, episode().query
    predict = make().adapt(episode())
    torch.testing.assert_close(value, F.cross_entropy(predict(x), y))
    torch.testing.assert_close(prediction, predict(asked.x))
    found, expected = (
        torch.autograd.grad(loss, [*learner_.parameters()])
        for loss, learner_ in [(value, learner), _support_loss()]
    )
    torch.testing.assert_close(found, expected)
    evaluated = learner.eval().objective(episode(), TASK.loss)[0]
    torch.testing.assert_close(evaluated, make().eval().objective(episode(), TASK.loss)[0])


def _support_loss() -> tuple[Tensor, fsl.Learner]:
    learner, items = make(), episode().support
    return F.cross_entropy(learner.adapt(episode())(items.x), items.y), learner


def test_what_the_support_objective_does_not_go_with():
    with pytest.raises(ValueError, match=r"query: support with multi_step_loss: 0\.5, .*the two"):
        make(query="support", multi_step_loss=0.5)
    assert (
        make(query="support").adapter.unrolled_only() == "query: support follows the support loss"
    )
