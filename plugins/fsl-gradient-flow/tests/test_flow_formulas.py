"""The flow, its end and its derivatives against independent routes, in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_gradient_flow import GradientFlow
from fsl_gradient_flow.flow import Flow, Integrate, exact, forward, reverse
from fsl_gradient_flow.integrators import dormand_prince, rk4, steps_for

HORIZON = 1.7


@pytest.fixture(autouse=True)
def float64():
    with double_precision():
        yield


def support(items: int = 6, d: int = 9, outputs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Features, where the head starts, and labels."""
    y = torch.arange(items) % outputs
    return torch.randn(items, d), 0.3 * torch.randn(outputs, d), y


def flow_of(features: Tensor, start: Tensor, y: Tensor) -> Flow:
    classes = not y.is_floating_point()
    targets = F.one_hot(y, len(start)).to(features) if classes else y
    kind = "classification" if classes else "regression"
    return Flow(features @ start.T, features @ features.T, targets, kind)


def fine(count: int = 200) -> Integrate:
    return partial(rk4, steps=count)


def loss_of(features: Tensor, y: Tensor, head: Tensor) -> Tensor:
    of = F.mse_loss if y.is_floating_point() else F.cross_entropy
    return of(features @ head.T, y)


def weights_by_scipy(features: Tensor, start: Tensor, y: Tensor, horizon: float) -> Tensor:
    """W at the horizon from SciPy's DOP853 in weight space, with gradients by autograd."""
    gradient = torch.func.grad(partial(loss_of, features, y))

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        return -gradient(torch.from_numpy(flat).view_as(start)).flatten().numpy()

    begun = start.detach().flatten().numpy()
    solved = solve_ivp(velocity, (0, horizon), begun, "DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(solved.y[:, -1]).view_as(start)


@pytest.mark.parametrize("kind", ["classes", "values"])
@pytest.mark.parametrize("integrate", [fine(), dormand_prince], ids=["rk4", "dopri5"])
def test_the_dual_flow_is_that_of_the_weights(kind: str, integrate: Integrate):
    features, start, y = support()
    y = y if kind == "classes" else torch.randn(6, 3)
    s = reverse(flow_of(features, start, y), torch.tensor(HORIZON), integrate)
    expected = weights_by_scipy(features, start, y, HORIZON)
    torch.testing.assert_close(start - s.T @ features, expected, rtol=1e-6, atol=1e-7)


def test_gradient_descent_tends_to_it_with_more_steps():
    """ANIL: T steps of rate horizon / T. The error halves as T doubles."""
    features, start, y = support()
    end = start - reverse(flow_of(features, start, y), torch.tensor(HORIZON), fine()).T @ features
    gradient, apart = torch.func.grad(partial(loss_of, features, y)), []
    for count in (100, 200, 400):
        w = start
        for _ in range(count):
            w = w - HORIZON / count * gradient(w)
        apart.append((w - end).norm().item())
    assert apart[-1] < 1e-2
    assert apart[0] / apart[1] == pytest.approx(2, rel=0.05)
    assert apart[1] / apart[2] == pytest.approx(2, rel=0.05)


def test_no_time_is_no_change():
    features, start, y = support()
    s = reverse(flow_of(features, start, y), torch.tensor(1e-9), fine(8))
    assert s.abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_forward_derivatives_are_those_of_autograd_through_rk4(kind: str):
    """By features and the start of the head, to rounding: the derivative of RK4 is RK4 of the
    derivative. By the horizon, up to the error of the steps."""
    features, start, y = support()
    y = y if kind == "classes" else torch.randn(6, 3)
    leaves = [features, start, torch.tensor(HORIZON)]
    direction, found = torch.randn_like(start), []
    for way in (reverse, forward):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        s = way(flow_of(own[0], own[1], y), own[2], fine(20))
        end = own[1] - s.T @ own[0]
        found.append((end, *torch.autograd.grad((direction * end).sum(), own)))
    torch.testing.assert_close(found[0][:3], found[1][:3], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[0][3], found[1][3], rtol=1e-4, atol=0)


def test_the_slope_along_time_is_that_of_the_loss():
    """dL/dtau = -<dL/dW, grad l(W(tau))>."""
    features, start, y = support()
    horizon, q = torch.tensor(HORIZON, requires_grad=True), torch.randn_like(start)
    end = start - reverse(flow_of(features, start, y), horizon, fine()).T @ features
    (found,) = torch.autograd.grad((q * end).sum(), horizon)
    gradient = torch.func.grad(partial(loss_of, features, y))(end.detach())
    torch.testing.assert_close(found, -(q * gradient).sum(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("items", [4, 20], ids=["fewer than features", "more"])
def test_regression_in_closed_form(items: int):
    """W* + exp(-H t) (W0 - W*), in weight space, by the eigenvectors of H."""
    features, start, _ = support(items)
    y = torch.randn(items, 3)
    hessian = 2 * features.T @ features / y.numel()
    values, vectors = torch.linalg.eigh(hessian)
    decay = vectors @ torch.diag((-HORIZON * values).exp()) @ vectors.T
    optimum = torch.linalg.lstsq(features, y, driver="gelsd").solution.T
    kept = start - start @ torch.linalg.pinv(features) @ features  # what no item sees stays
    expected = optimum + kept + (start - optimum - kept) @ decay
    s = exact(flow_of(features, start, y), torch.tensor(HORIZON))
    torch.testing.assert_close(start - s.T @ features, expected, rtol=1e-8, atol=1e-9)


def test_equal_items_have_a_regression_too():
    features = torch.ones(5, 4, requires_grad=True)
    flow = flow_of(features, torch.zeros(2, 4), torch.randn(5, 2))
    s = exact(flow, torch.tensor(HORIZON))
    torch.testing.assert_close(s, reverse(flow, torch.tensor(HORIZON), fine()))
    s.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_the_rule_for_steps_keeps_the_fastest_component():
    """Of steepness 40: 80 steps a unit of time, and the error is far below that of training."""
    features, start, y = support(10, 30)
    features = features * (40 * 20 / torch.linalg.eigvalsh(features @ features.T)[-1]).sqrt()
    flow, horizon = flow_of(features, start, y), torch.tensor(4.0)
    assert flow.steepness().item() == pytest.approx(40)
    steps = steps_for(flow, horizon)
    assert steps == pytest.approx(320, abs=1)
    rough, exact_end = [reverse(flow, horizon, i) for i in (fine(steps), dormand_prince)]
    assert (rough - exact_end).norm() / exact_end.norm() < 1e-4


def kept_bytes(gradient: str, horizon: float) -> int:
    """Bytes that autograd keeps for the backward pass of a task."""
    task, seen = tiny_task(), {}
    backbone = TinyBackbone()
    adapter = GradientFlow(task, backbone, horizon, gradient=gradient)
    learner = fsl.Learner(backbone, adapter)
    episode = tiny_episodes(task, 1).unbatch()[0]

    def keep(tensor: Tensor) -> Tensor:
        seen[id(tensor.untyped_storage())] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.objective(episode, task.loss)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def test_memory_of_forward_is_flat_in_the_horizon():
    of_forward = [kept_bytes("forward", horizon) for horizon in (1.0, 30.0, 300.0)]
    of_reverse = [kept_bytes("reverse", horizon) for horizon in (1.0, 300.0)]
    assert len(set(of_forward)) == 1
    assert of_reverse[1] > 4 * of_reverse[0]
    assert of_reverse[1] > 4 * of_forward[1]


def test_both_gradients_train_the_same():
    """The adapter's meta-gradient of every parameter, either way and by Dormand-Prince."""
    task, found = tiny_task(), []
    episode = tiny_episodes(task, 1).unbatch()[0]
    for options in ({}, {"gradient": "forward"}, {"gradient": "forward", "integrator": "dopri5"}):
        torch.manual_seed(0)
        backbone = TinyBackbone()
        learner = fsl.Learner(backbone, GradientFlow(task, backbone, **options))
        value = learner.objective(episode, task.loss)[0]
        found.append(torch.autograd.grad(value, list(learner.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], found[2], rtol=1e-4, atol=1e-6)


def test_the_trajectory_begins_with_the_learned_head():
    task = tiny_task()
    backbone = TinyBackbone()
    learner = fsl.Learner(backbone, GradientFlow(task, backbone)).eval()
    episode = tiny_episodes(task, 1).unbatch()[0]
    first, last = (predict(episode.query.x) for predict in learner.trajectory(episode))
    torch.testing.assert_close(first, learner.adapter.head(backbone(episode.query.x)))
    assert not torch.allclose(first, last)


def test_separable_items_move_the_head_without_end():
    """Logits of separable items grow like the logarithm of time: no fixed point."""
    features, y = torch.eye(3), torch.arange(3)
    flow = flow_of(features, torch.zeros(3, 3), y)
    norms = [reverse(flow, torch.tensor(t), dormand_prince).norm().item() for t in (10.0, 1e2, 1e3)]
    assert norms[1] - norms[0] > 1
    assert norms[2] - norms[1] == pytest.approx(norms[1] - norms[0], rel=0.5)


class Identity(nn.Module):
    feature_dim = 4

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_flow_of_nan_is_nan():
    """Which stops training, and names the episode there."""
    x = torch.full((6, 4), torch.nan)
    task = fsl.TaskShape("classification", 3, 2, 1, (4,), 3)
    for options in ({}, {"integrator": "dopri5"}, {"steps": 8}):
        adapter = GradientFlow(task, Identity(), **options)
        predict = adapter.adapt(Identity(), fsl.LabelledSet(x, torch.arange(3).repeat(2)))
        assert predict(torch.ones(1, 4)).isnan().all()
