"""`sgld` against closed forms of Gaussian distributions."""

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, tiny_episodes, tiny_task
from fsl_hypergradients import Implicit, Sgld
from fsl_hypergradients.problems import Quadratic, episode, gradient
from fsl_hypergradients.sgld import _Means
from fsl_maml import Maml

TASK = tiny_task()
VALUES = tiny_task("regression")


def expected_loss(adapter, theta):
    """E[L] under the Gaussian of precision A + gamma I around the minimiser."""
    mean = adapter.minimiser(theta)
    covariance = torch.linalg.inv(adapter.A + adapter.gamma * torch.eye(len(theta)))
    return adapter.query_loss(mean[:, None], None) + (adapter.B @ covariance).trace() / 2


def test_the_closed_form_of_the_gradient():
    """gamma S B (m - c), which the covariance of exact samples gives too."""
    adapter = Quadratic(size=6, gamma=0.8)
    theta = adapter.theta.detach().requires_grad_()
    (exact,) = torch.autograd.grad(expected_loss(adapter, theta), theta)
    precision = adapter.A + 0.8 * torch.eye(6)
    mean = adapter.minimiser(theta).detach()
    closed = 0.8 * torch.linalg.solve(precision, adapter.slope(mean))
    torch.testing.assert_close(closed, exact, rtol=1e-12, atol=1e-14)

    generator = torch.Generator().manual_seed(3)
    half = torch.linalg.cholesky(torch.linalg.inv(precision))
    samples = mean + torch.randn(400_000, 6, generator=generator) @ half.T
    values = ((samples - adapter.m) @ adapter.B * (samples - adapter.m)).sum(1) / 2
    slopes = -0.8 * (samples - theta.detach())
    from_all = -((values - values.mean())[:, None] * slopes).sum(0) / (len(values) - 1)
    assert (from_all - closed).norm() <= 0.006 * closed.norm()

    means = _Means()  # the running sums of the estimate, over some of them
    for value, slope in zip(values[:3000], slopes[:3000], strict=True):
        means.add(value, {"w": torch.zeros(6)}, {"w": slope})
    some = values[:3000] - values[:3000].mean()
    direct = -(some[:, None] * slopes[:3000]).sum(0) / 2999
    torch.testing.assert_close(means.gradient()["w"], direct, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(means.value, values[:3000].mean())


def test_a_chain_gives_the_gradient_of_the_expectation():
    """gamma S' B (m - c), with the covariance S' = (P (I - eps^2 P / 4))^-1 of such a chain."""
    adapter, eps = Quadratic(size=2, gamma=0.8), 0.8
    mean = adapter.minimiser(adapter.theta.detach())
    precision = adapter.A + 0.8 * torch.eye(2)
    chained = precision @ (torch.eye(2) - eps**2 * precision / 4)
    exact = 0.8 * torch.linalg.solve(chained, adapter.slope(mean))
    found = gradient(Sgld(TASK, "covariance", steps=900, burn_in=20, eps=eps), adapter)
    assert (found - exact).norm() <= 0.2 * exact.norm()


def test_without_noise_the_whole_chain_is_the_implicit_gradient():
    adapter = Quadratic(gamma=0.8, rate=0.3, steps=120)
    chain = Sgld(TASK, "pathwise", steps=120, burn_in=119, eps=0.6**0.5, noise=0.0)
    exact = gradient(Implicit(iterations=30), adapter)
    torch.testing.assert_close(gradient(chain, adapter), exact, rtol=1e-9, atol=1e-11)


def test_first_order_averages_the_slopes_of_the_chain():
    """d phi_k / d phi_0 = 1 there, so without noise it is the mean of grad L(phi_k)."""
    adapter = Quadratic(gamma=0.8, rate=0.1, steps=5)
    chain = Sgld(TASK, steps=5, burn_in=3, noise=0.0)
    slopes = [adapter.slope(adapter.walk(steps=k).detach()) for k in (4, 5)]
    torch.testing.assert_close(gradient(chain, adapter), torch.stack(slopes).mean(0))


def test_a_noiseless_step_is_that_of_the_adapter():
    """eps = sqrt(2 inner_lr), temperature N: the chain is the adapter's inner loop."""
    torch.manual_seed(0)
    backbone = TinyBackbone()
    adapter = Maml(VALUES, backbone, inner_steps=3, inner_lr=0.2, proximal=0.5, clip_inner_grad=1e4)
    learner = fsl.Learner(backbone, adapter)
    drawn = tiny_episodes(VALUES, 1).unbatch()[0]
    _, expected = learner.objective(drawn, VALUES.loss)
    options = {"steps": 3, "burn_in": 2, "noise": 0.0, "temperature": 5.0}
    for estimate in ("pathwise", "pathwise-first-order", "covariance"):
        if estimate == "covariance":
            options["chains"] = 2
        chain = fsl.Learner(backbone, adapter, Sgld(VALUES, estimate, **options))
        _, found = chain.objective(drawn, VALUES.loss)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_variance_of_a_chain_has_the_bias_of_its_steps():
    """1 / (h (1 - eps^2 h / 4)), against 1 / h of the distribution; eps^2 h = 2 doubles it."""
    adapter = Quadratic(size=400, gamma=1.0)
    adapter.A, adapter.c = torch.eye(400), torch.zeros(400)
    adapter.theta.data.zero_()
    adapter.B, adapter.m = torch.eye(400), torch.zeros(400)
    chain = Sgld(TASK, steps=140, burn_in=20, eps=1.0)
    value, _ = chain.objective(adapter, nn.Identity(), episode(), adapter.query_loss)
    variance = 2 * value / 400  # h = A + gamma = 2
    assert abs(variance - 1 / (2 * (1 - 2 / 4))) < 0.03


def test_a_double_well_is_averaged():
    """E[L] lies between the wells' losses and moves smoothly where the argmin jumps."""

    def loss_at(theta):
        adapter = Quadratic(size=1, gamma=0.2, extra=lambda w: 0.6 * (w[0] ** 2 - 1) ** 2)
        adapter.A, adapter.c = torch.zeros(1, 1), torch.zeros(1)
        adapter.B, adapter.m = torch.eye(1), torch.ones(1)
        adapter.theta.data.fill_(theta)
        chain = Sgld(TASK, steps=300, burn_in=20, eps=0.5)
        value, _ = chain.objective(adapter, nn.Identity(), episode(), adapter.query_loss)
        return value.item()

    left, right = loss_at(-0.05), loss_at(0.05)
    assert 0.2 < right < 1.8  # 0 and 2 at the minima
    assert 0.2 < left < 1.8
    assert right < left < right + 0.1


def test_predictions_are_averaged_as_probabilities():
    torch.manual_seed(0)
    backbone = TinyBackbone()
    adapter, drawn = Maml(TASK, backbone, proximal=1.0), tiny_episodes(TASK, 1).unbatch()[0]

    def shown(**options):
        estimate = Sgld(TASK, steps=3, burn_in=1, eps=0.1, **options)
        return fsl.Learner(backbone, adapter, estimate).objective(drawn, TASK.loss)

    value, mean = shown()
    torch.testing.assert_close(mean.exp().sum(1), torch.ones(9))
    _, last = shown(predict="last")
    assert not torch.allclose(mean, last.log_softmax(1))
    assert not torch.equal(shown(seed=1)[0], value)
    assert torch.equal(shown()[0], value)


def test_what_is_refused():
    with pytest.raises(fsl.FslError, match="'sgld': no proximal term keeps the chain near theta"):
        gradient(Sgld(TASK), Quadratic())
    with pytest.raises(ValueError, match="steps: 5 with burn_in: 5, so that 0 samples count"):
        Sgld(TASK, steps=5, burn_in=5)
    with pytest.raises(ValueError, match="so that 1 samples count"):
        Sgld(TASK, "covariance", steps=5, burn_in=4)
