"""`truncated`: between first-order and unrolled, and its error at the fixed point."""

from itertools import pairwise

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.hypergradients import FirstOrder, Unrolled
from fsl_core.testing import TinyBackbone, tiny_episodes, tiny_task
from fsl_hypergradients import Implicit, Truncated
from fsl_hypergradients.problems import Quadratic, gradient
from fsl_maml import Maml

TASK = tiny_task()


def meta_gradient(estimate, **options):
    torch.manual_seed(0)
    backbone = TinyBackbone()
    learner = fsl.Learner(backbone, Maml(TASK, backbone, inner_steps=3, **options), estimate)
    value, _ = learner.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.cat([part.flatten() for part in found])


OPTIONS = [
    {},
    {"learn_inner_lr": "per-parameter-and-step"},
    {"adapted": "head"},
    {"inner_optimizer_options": {"momentum": 0.9}},
    {"adapt_norms": False, "clip_inner_grad": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_step_is_first_order_and_all_steps_are_unrolled(options):
    for steps, other in ((0, FirstOrder()), (3, Unrolled())):
        value, found = meta_gradient(Truncated(steps), **options)
        expected_value, expected = meta_gradient(other, **options)
        assert value == expected_value
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    between = meta_gradient(Truncated(1), **options)[1]
    assert (between - expected).norm() > 1e-3 * expected.norm()


def test_one_quadratic_step():
    """1.1 and 1.2: exact (I - a H) grad L(phi_1), first-order grad L(phi_1)."""
    adapter = Quadratic(steps=1)
    slope = adapter.slope(adapter.walk().detach())
    exact = slope - adapter.rate * adapter.A @ slope
    torch.testing.assert_close(gradient(Truncated(1), adapter), exact)
    torch.testing.assert_close(gradient(Unrolled(), adapter), exact)
    torch.testing.assert_close(gradient(Truncated(0), adapter), slope)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_the_neumann_sum_at_an_exact_minimiser(steps):
    adapter = Quadratic(gamma=0.7, rate=0.2, steps=160)
    q = adapter.slope(adapter.minimiser(adapter.theta.detach()))
    regular = adapter.A + 0.7 * torch.eye(20)
    total = torch.zeros(20)
    for _ in range(steps):
        total, q = total + 0.2 * 0.7 * q, q - 0.2 * regular @ q
    # The rest of phi_0's own path, which is there at K < T: (I - a (H + gamma I))^K.
    found = gradient(Truncated(steps), adapter)
    torch.testing.assert_close(found - q, total, rtol=0, atol=1e-13)


def test_the_error_falls_with_the_condition_of_the_problem():
    """By (1 - a mu) for each step or faster, mu the smallest curvature; a <= 1 / M."""
    adapter = Quadratic(gamma=0.3, rate=1 / 2.3, steps=100)
    exact = gradient(Implicit(iterations=40), adapter)
    counts = torch.arange(1.0, 21)
    errors = [(gradient(Truncated(int(k)), adapter) - exact).norm() for k in counts]
    logs = torch.stack(errors).log()
    slope = ((counts - counts.mean()) * (logs - logs.mean())).sum() / counts.var() / 19
    assert slope <= torch.tensor(1 - adapter.rate * 0.8).log() + 1e-9
    assert all(later < sooner for sooner, later in pairwise(errors))


def test_more_steps_than_there_are_is_refused():
    assert Truncated(4).unfit(Quadratic(steps=3)) == (
        "steps: 4, and there are 3 inner steps in training. At most 3"
    )
    with pytest.raises(fsl.FslError, match=r"'truncated': steps: 4, and there are 3 inner"):
        meta_gradient(Truncated(4))


def test_first_order_adapters_are_refused():
    backbone = TinyBackbone()
    assert Truncated().unfit(Maml(TASK, backbone, order=1)) == (
        "order: 1 is an estimate of its own. order: 2"
    )
