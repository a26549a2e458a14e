"""`finite-difference` against `truncated` with one step."""

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import meta_gradient
from fsl_core.testing import TinyBackbone, Uneven, tiny_episodes, tiny_task
from fsl_hypergradients import FiniteDifference, Truncated
from fsl_hypergradients.problems import Quadratic, episode, gradient
from fsl_maml import Maml

TASK = tiny_task()


def learner(estimate, **options):
    torch.manual_seed(0)
    backbone = TinyBackbone("transductive")
    return fsl.Learner(backbone, Maml(TASK, backbone, inner_steps=2, **options), estimate)


def of_maml(estimate, **options):
    made = learner(estimate, **options)
    value, _ = made.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)
    parameters = [p for p in made.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("radius", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_exact_for_a_quadratic_at_any_radius(steps, radius):
    adapter = Quadratic(steps=steps)
    found, exact = gradient(FiniteDifference(radius), adapter), gradient(Truncated(1), adapter)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-11)


OPTIONS = [
    {},
    {"adapted": "head", "weight_decay": 0.1},
    {"proximal": 0.5},
    {"aggregate": 0.5},
    {"learn_inner_lr": "elementwise"},
    {"inner_optimizer_options": {"momentum": 0.9}},
    {"inner_optimizer": "adam", "inner_lr": 0.01, "inner_optimizer_options": {"eps": 0.01}},
    {"clip_inner_grad": 0.3, "adapt_norms": False, "norms_per_step": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_half_the_radius_has_a_quarter_of_the_error(options):
    exact = of_maml(Truncated(1), **options)
    errors = [(of_maml(FiniteDifference(r), **options) - exact).norm() for r in (0.04, 0.02, 0.01)]
    assert errors[2] <= 1e-4 * exact.norm()
    for wide, narrow in ((0, 1), (1, 2)):
        assert 3.5 < errors[wide] / errors[narrow] < 4.5


def test_a_query_gradient_of_zero_leaves_the_direct_part():
    adapter = Quadratic()
    value, _ = FiniteDifference().objective(
        adapter, nn.Identity(), episode(), lambda prediction, y: 0 * prediction.sum()
    )
    (found,) = torch.autograd.grad(value, adapter.theta)
    assert torch.equal(found, torch.zeros(20))


def test_no_inner_step():
    adapter = Quadratic(steps=0)
    expected = adapter.slope(adapter.theta.detach())
    torch.testing.assert_close(gradient(FiniteDifference(), adapter), expected)


def test_less_than_float32_is_refused():
    message = (
        r"differences of gradients in torch\.bfloat16 are noise\. execution\.precision: float32"
    )
    made = learner(FiniteDifference()).float()
    batch = tiny_episodes(TASK, 2)
    batch = fsl.Episode(
        fsl.LabelledSet(batch.support.x.float(), batch.support.y),
        fsl.LabelledSet(batch.query.x.float(), batch.query.y),
        batch.id,
    )
    with pytest.raises(fsl.FslError, match=message):
        meta_gradient(made, Uneven(), batch, TASK.loss, Execution(precision="bf16"))
