"""`gaussian-smoothing`: exact with enough directions, and rough in the way theory says."""

import pytest
import torch

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, tiny_episodes, tiny_task
from fsl_hypergradients import GaussianSmoothing, Truncated
from fsl_hypergradients.problems import Quadratic, gradient
from fsl_maml import Maml

TASK = tiny_task()


class Axes(GaussianSmoothing):
    """The 2 d directions +-sqrt(d) e_i."""

    def directions(self, size, task, k, like):
        self.count = 2 * size
        return torch.cat([torch.eye(size), -torch.eye(size)]) * size**0.5


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_exact_on_quadratics_with_all_axes(gamma):
    adapter = Quadratic(gamma=gamma)
    exact = gradient(Truncated(3), adapter)
    torch.testing.assert_close(gradient(Axes(), adapter), exact, rtol=1e-11, atol=1e-11)


OPTIONS = [
    {"adapted": "head"},
    {"adapted": ["head.*", "backbone.conv.bias"]},
    {"adapted": "head.bias", "learn_inner_lr": "scalar"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_axes_of_a_network(options):
    """Opposite directions: the error is O(delta^2), and mixed derivatives are there."""

    def found(estimate):
        torch.manual_seed(0)
        backbone = TinyBackbone()
        adapter = Maml(TASK, backbone, inner_steps=2, **options)
        learner = fsl.Learner(backbone, adapter, estimate)
        value, _ = learner.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)
        parts = torch.autograd.grad(value, list(learner.parameters()))
        return torch.cat([part.flatten() for part in parts])

    exact = found(Truncated(2))
    wide, narrow = (found(Axes(delta=delta)) - exact for delta in (0.02, 0.01))
    assert narrow.norm() <= 1e-2 * exact.norm()
    assert 3 < wide.norm() / narrow.norm() < 5


def test_values_in_place_of_gradients():
    adapter = Quadratic(size=3, steps=1)
    exact = gradient(Truncated(1), adapter)
    first = adapter.slope(adapter.walk().detach())
    errors = [
        (gradient(GaussianSmoothing(count, 0.1, curvature="value"), adapter) - exact).norm()
        for count in (200, 3200)
    ]
    assert errors[1] < 0.5 * (exact - first).norm()
    assert errors[1] < 0.6 * errors[0]


def test_the_error_is_that_of_a_mean_of_independent_draws():
    adapter = Quadratic(steps=1)
    exact = gradient(Truncated(1), adapter)

    def errors(count):
        found = [gradient(GaussianSmoothing(count, seed=seed), adapter) for seed in range(8)]
        return torch.stack(found) - exact

    few, many = errors(10), errors(160)
    assert 2.5 < few.norm() / many.norm() < 6.5  # sqrt(16) = 4
    assert few.mean(0).norm() < 0.6 * few.norm(dim=1).mean()  # 1 / sqrt(8) = 0.35: no bias


def test_directions_stay_unless_they_are_drawn_again():
    adapter = Quadratic()
    kept, again = GaussianSmoothing(), GaussianSmoothing(redraw="per-step")
    before = [gradient(estimate, adapter) for estimate in (kept, again)]
    assert torch.equal(gradient(again, adapter), before[1])
    assert torch.equal(gradient(kept, adapter, task=1), before[0])
    assert not torch.equal(gradient(again, adapter, task=1), before[1])
    for estimate in (kept, again):
        estimate.on_step(torch.tensor([0]))
    assert torch.equal(gradient(kept, adapter), before[0])
    moved = gradient(again, adapter)
    assert not torch.equal(moved, before[1])
    resumed = GaussianSmoothing(redraw="per-step")
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(gradient(resumed, adapter), moved)
    assert not torch.equal(gradient(GaussianSmoothing(seed=1), adapter), before[0])


@pytest.mark.parametrize(
    ("estimate", "options", "message"),
    [
        ({}, {"adapted": [["all"], ["head"]]}, "inner steps move different weights. One `adapted`"),
        ({}, {"inner_optimizer": "adam"}, "inner steps with a history or by autograd. Plain SGD"),
        (
            {"curvature": "value"},
            {"adapted": "head"},
            "curvature: value gives no derivative by backbone.conv.weight, which no inner step",
        ),
    ],
    ids=str,
)
def test_what_is_refused(estimate, options, message):
    backbone = TinyBackbone()
    learner = fsl.Learner(backbone, Maml(TASK, backbone, **options), GaussianSmoothing(**estimate))
    with pytest.raises(fsl.FslError, match=message):
        learner.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)
