"""`implicit` against dense solves, finite differences and unrolled derivatives."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.hypergradients import FirstOrder, Unrolled
from fsl_core.testing import TinyBackbone, tiny_episodes, tiny_task
from fsl_hypergradients import Implicit, Truncated
from fsl_hypergradients.problems import Quadratic, episode, gradient
from fsl_maml import Maml

TASK = tiny_task()


def long(gamma=0.7, **options):
    """So many steps that the last one is the minimiser."""
    return Quadratic(gamma=gamma, rate=0.9 / (2.0 + gamma), steps=70, **options)


def exact(adapter, damping=0.0, offset=0.0):
    """The dense solve of iMAML's system."""
    slope, gamma = adapter.slope(adapter.walk().detach()), adapter.gamma
    system = (1 + damping) * torch.eye(len(slope)) + adapter.A / (gamma + offset)
    return torch.linalg.solve(system, slope)


def test_dense_solve():
    adapter = long()
    errors = [
        (gradient(Implicit(iterations=n), adapter) - exact(adapter)).norm() for n in range(21)
    ]
    assert errors[20] <= 1e-8 * exact(adapter).norm()
    ahead = [(a, b) for a, b in pairwise(errors) if a > 1e-11]
    assert all(later < sooner for sooner, later in ahead)


@pytest.mark.parametrize(("damping", "offset"), [(1.0, 0.0), (0.0, 10.0), (1.0, 10.0)])
def test_the_damped_system_of_the_code(damping, offset):
    adapter = long()
    estimate = Implicit(iterations=25, damping=damping, curvature_offset=offset)
    torch.testing.assert_close(gradient(estimate, adapter), exact(adapter, damping, offset))


def test_the_differentiated_closed_form_and_finite_differences():
    adapter = long()
    theta = adapter.theta.detach().requires_grad_()
    loss = adapter.query_loss(adapter.minimiser(theta)[:, None], None)
    (closed,) = torch.autograd.grad(loss, theta)
    found = gradient(Implicit(iterations=30), adapter)
    torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-13)
    step = 1e-5 * torch.eye(20)
    sides = [
        [
            adapter.query_loss(adapter.minimiser(theta.detach() + s * row)[:, None], None)
            for s in (1, -1)
        ]
        for row in step
    ]
    differences = torch.stack([(up - down) / 2e-5 for up, down in sides])
    torch.testing.assert_close(found, differences, rtol=1e-8, atol=1e-8)


def test_no_iteration_and_a_large_gamma_are_first_order():
    adapter = long()
    none = gradient(Implicit(iterations=0), adapter)
    torch.testing.assert_close(none, adapter.slope(adapter.walk().detach()))
    apart = []
    for gamma in (1e2, 1e3, 1e4):
        near = long(gamma=gamma)
        first = near.slope(near.walk().detach())
        apart.append((gradient(Implicit(iterations=30), near) - first).norm() / first.norm())
    ratios = [apart[0] / apart[1], apart[1] / apart[2]]
    assert all(abs(float(ratio) - 10) < 0.5 for ratio in ratios)


def test_neumann_is_truncated_back_propagation_at_the_minimiser():
    """Less what phi_0 itself contributes there, (I - a (H + gamma I))^K grad L."""
    adapter = long()
    a, gamma, count = adapter.rate, adapter.gamma, 6
    found = gradient(Implicit(solver="neumann", iterations=count - 1, rate=a * gamma), adapter)
    rest = adapter.slope(adapter.minimiser(adapter.theta.detach()))
    for _ in range(count):
        rest = rest - a * (adapter.A @ rest + gamma * rest)
    torch.testing.assert_close(found, gradient(Truncated(count), adapter) - rest)
    many = Implicit(solver="neumann", iterations=400, rate=a * gamma)
    torch.testing.assert_close(gradient(many, adapter), exact(adapter))


def ridge_head(steps, estimate=None):
    task = tiny_task("regression")
    torch.manual_seed(0)
    backbone = TinyBackbone()
    adapter = Maml(
        task,
        backbone,
        inner_lr=0.4,
        inner_steps=steps,
        adapted="head",
        head_start="zero",
        weight_decay=0.5,
    )
    return fsl.Learner(backbone, adapter, estimate), task


def backbone_gradient(learner, task):
    value, _ = learner.objective(tiny_episodes(task, 1).unbatch()[0], task.loss)
    found = torch.autograd.grad(value, list(learner.backbone.parameters()))
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("engine", ["functional", "higher"])
def test_a_ridge_head_equals_the_unrolled_derivative(engine):
    learner, task = ridge_head(150, Implicit(iterations=40))
    learner.adapter.vectorizable = engine == "functional"  # derivatives by torch.func or autograd
    unrolled = ridge_head(150, Unrolled())[0]
    found, expected = backbone_gradient(learner, task), backbone_gradient(unrolled, task)
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_a_tolerance_stops_the_solver():
    adapter = long()
    loose = gradient(Implicit(iterations=30, tolerance=0.1), adapter)
    residual = exact(adapter) - loose
    image = residual + adapter.A @ residual / adapter.gamma
    slope = adapter.slope(adapter.walk().detach())
    assert 1e-6 * slope.norm() < image.norm() <= 0.1 * slope.norm()
    falling = Implicit(iterations=30, tolerance=0.1, tolerance_decay=0.1)
    for _ in range(12):
        falling.on_step(torch.tensor([0]))
    torch.testing.assert_close(gradient(falling, adapter), exact(adapter))


def test_negative_curvature_is_counted_and_leaves_the_iterate():
    adapter = Quadratic(gamma=0.1, rate=0.01, steps=2, extra=lambda w: -5 * w.square().sum())
    estimate = Implicit(count_negative_curvature=True)
    assert not estimate.vectorizable
    assert not estimate.threadable
    found = gradient(estimate, adapter)
    assert found.isfinite().all()
    first = gradient(FirstOrder(), adapter)
    torch.testing.assert_close(found, first, rtol=0.2, atol=0.2)
    estimate.on_step(torch.tensor([0]))
    assert estimate.metrics() == {"negative_curvature": 1.0}
    gradient(estimate, long())
    estimate.on_step(torch.tensor([0]))
    assert estimate.metrics() == {"negative_curvature": 0.0}
    assert Implicit().metrics() == {}


def test_a_warm_start_goes_on_where_the_task_ended():
    adapter, cold = long(), Implicit(iterations=4)
    warm = Implicit(tasks=3, iterations=4, warm_start=True)
    apart = []
    for _ in range(3):
        apart.append((gradient(warm, adapter, task=1) - exact(adapter)).norm())
        warm.on_step(torch.tensor([1]))
    assert torch.equal(gradient(cold, adapter, task=1), gradient(warm, adapter, task=2))
    assert apart[2] < 1e-2 * apart[1] < 1e-4 * apart[0] or apart[2] < 1e-6 * apart[0]
    assert warm.met.tolist() == [False, True, False]

    fresh = Implicit(tasks=3, iterations=4, warm_start=True)
    fresh.load_state_dict(warm.state_dict())
    assert torch.equal(gradient(fresh, adapter, task=1), gradient(warm, adapter, task=1))
    assert torch.equal(
        gradient(copy.deepcopy(warm), adapter, task=1), gradient(warm, adapter, task=1)
    )


def test_a_task_is_the_same_before_the_step_is_made():
    """What is kept changes in on_step alone: the order of tasks plays no part."""
    adapter, warm = long(), Implicit(tasks=2, iterations=3, warm_start=True)
    first = gradient(warm, adapter)
    assert torch.equal(gradient(warm, adapter), first)


def test_what_is_refused():
    no_curvature = "has no curvature of its own that depends on what is trained. maml with proximal"
    with pytest.raises(
        fsl.FslError, match=f"hypergradient 'implicit': the inner loss {no_curvature}"
    ):
        gradient(Implicit(), Quadratic())
    backbone = TinyBackbone()
    for options in ({"weight_decay": 1.0}, {"adapted": "head"}, {"aggregate": 0.5}):
        learner = fsl.Learner(backbone, Maml(TASK, backbone, **options), Implicit())
        with pytest.raises(fsl.FslError, match=no_curvature):
            learner.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)
    learner, task = ridge_head(2, Implicit(curvature_offset=10.0))
    with pytest.raises(fsl.FslError, match="curvature_offset without a proximal term"):
        backbone_gradient(learner, task)
    with pytest.raises(ValueError, match="warm_start: true, and these episodes have no finite set"):
        Implicit(warm_start=True)
    with pytest.raises(fsl.DataError, match=r"implicit: task 7\. A number in 0 \.\. 2"):
        gradient(Implicit(tasks=3, warm_start=True), long(), task=7)


def saved_bytes(estimate, steps, proximal=0.5):
    """Bytes of the tensors that are saved for backward passes and alive at the same time, at most.

    Deterministic, unlike the resident memory of a process.
    """
    task = tiny_task()
    torch.manual_seed(0)
    backbone = TinyBackbone()
    adapter = Maml(task, backbone, inner_steps=steps, inner_lr=0.01, proximal=proximal)
    learner = fsl.Learner(backbone, adapter, estimate)
    alive, most = 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal alive, most
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            alive += self.bytes
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        learner.adapter.vectorizable = False  # torch.func has no such hooks
        value, _ = learner.objective(tiny_episodes(task, 1).unbatch()[0], task.loss)
        torch.autograd.grad(value, list(learner.parameters()))
    return most


def test_memory_does_not_depend_on_the_number_of_steps():
    few, many = (saved_bytes(Implicit(iterations=3), steps) for steps in (5, 100))
    assert 0.9 * few <= many <= 1.1 * few
    unrolled = [saved_bytes(Unrolled(), steps) for steps in (5, 100)]
    assert 15 < unrolled[1] / unrolled[0] < 21
    truncated = [saved_bytes(Truncated(1), steps) for steps in (5, 100)]
    assert truncated[1] <= 1.1 * truncated[0]


def test_the_prediction_is_that_of_the_adapter():
    adapter = long()
    _, prediction = Implicit().objective(adapter, nn.Identity(), episode(), adapter.query_loss)
    torch.testing.assert_close(prediction[:, 0], adapter.walk().detach())
