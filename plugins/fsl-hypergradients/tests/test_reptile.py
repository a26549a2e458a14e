"""`reptile`: the direction, its batches, its memory and what it cannot train."""

import pytest
import torch

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, tiny_episodes, tiny_task
from fsl_hypergradients import Reptile
from fsl_hypergradients.problems import Quadratic, gradient
from fsl_maml import Maml

TASK = tiny_task()


def learner(estimate, **options):
    torch.manual_seed(0)
    backbone = TinyBackbone()
    return fsl.Learner(backbone, Maml(TASK, backbone, **options), estimate)


def direction(made, task=0):
    """The meta-gradient of a task by parameter name."""
    value, _ = made.objective(tiny_episodes(TASK, task + 1).unbatch()[task], TASK.loss)
    named = dict(made.named_parameters())
    return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))


def flat(gradients):
    return torch.cat([part.flatten() for part in gradients.values()])


def joint_loss(made, episode, rows=slice(None)):
    x, y = (torch.cat(pair)[rows] for pair in zip(episode.support, episode.query, strict=True))
    return TASK.loss(made.adapter.head(made.backbone(x)), y)


def test_one_plain_step_is_joint_training():
    made = learner(Reptile(), inner_steps=1, inner_lr=0.3)
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    slopes = torch.autograd.grad(joint_loss(made, episode), list(made.parameters()))
    expected = 0.3 * torch.cat([slope.flatten() for slope in slopes])
    torch.testing.assert_close(flat(direction(made)), expected)
    scaled = learner(Reptile(scale=2.0), inner_steps=1, inner_lr=0.3)
    torch.testing.assert_close(flat(direction(scaled)), 2 * expected)


def test_two_steps_hold_the_second_derivative():
    """g / a = g_1 + g_2, and g_2 = grad l(phi_0) - a H grad l(phi_0) for a quadratic."""
    adapter = Quadratic(steps=2)
    slope = adapter.A @ (adapter.theta - adapter.c).detach()
    expected = 2 * slope - adapter.rate * adapter.A @ slope
    torch.testing.assert_close(gradient(Reptile(), adapter) / adapter.rate, expected)


def test_the_outer_step_is_an_interpolation():
    adapter = Quadratic()
    theta, end = adapter.theta.detach().clone(), adapter.walk().detach()
    adapter.theta.grad = gradient(Reptile(), adapter)
    torch.optim.SGD(adapter.parameters(), lr=0.25).step()
    torch.testing.assert_close(adapter.theta.detach(), theta + 0.25 * (end - theta))


def test_the_support_set_alone():
    made = learner(Reptile(data="support"), inner_steps=1, inner_lr=0.3)
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    loss = joint_loss(made, episode, slice(len(episode.support.y)))
    expected = torch.autograd.grad(loss, list(made.parameters()))
    found = flat(direction(made))
    torch.testing.assert_close(found, 0.3 * torch.cat([slope.flatten() for slope in expected]))


def test_batches_are_whole_epochs_in_the_episodes_own_order():
    estimate = Reptile(inner_batch=4)
    items = fsl.LabelledSet(torch.zeros(6, 1), torch.zeros(6))
    batches = estimate._batches(items, torch.tensor(5), steps=4)
    assert [len(batch) for batch in batches] == [4] * 4
    order = torch.cat(batches)
    assert sorted(order[:6].tolist()) == sorted(order[6:12].tolist()) == list(range(6))
    again = torch.cat(estimate._batches(items, torch.tensor(5), steps=4))
    assert torch.equal(again, order)
    assert not torch.equal(torch.cat(estimate._batches(items, torch.tensor(6), 4)), order)
    estimate.on_step(torch.tensor([5]))
    assert not torch.equal(torch.cat(estimate._batches(items, torch.tensor(5), 4)), order)


def test_steps_on_batches_by_hand():
    made = learner(Reptile(inner_batch=4), inner_steps=3, inner_lr=0.3)
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    items = fsl.LabelledSet(*map(torch.cat, zip(episode.support, episode.query, strict=True)))
    found = flat(direction(made))
    batches = made.hypergradient._batches(items, episode.id, 3)
    begun = torch.cat([p.detach().flatten() for p in made.parameters()])
    for rows in batches:
        slopes = torch.autograd.grad(joint_loss(made, episode, rows), list(made.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(made.parameters(), slopes, strict=True):
                parameter.sub_(0.3 * slope)
    ended = torch.cat([p.detach().flatten() for p in made.parameters()])
    torch.testing.assert_close(found, begun - ended)


def test_adam_is_that_of_torch_without_a_first_moment():
    adapter = Quadratic(steps=4)
    phi = adapter.theta.detach().clone().requires_grad_()
    adam = torch.optim.Adam([phi], lr=0.01, betas=(0.0, 0.999), eps=1e-12)
    for _ in range(4):
        phi.grad = adapter.A @ (phi - adapter.c).detach()
        adam.step()
    found = gradient(Reptile(adam_lr=0.01), adapter)
    torch.testing.assert_close(found, (adapter.theta - phi).detach(), rtol=1e-5, atol=1e-8)


def test_adams_memory_goes_on_from_step_to_step():
    adapter, carry = Quadratic(steps=2), Reptile(adam_lr=0.01, inner_state="carry")
    assert not carry.vectorizable
    first = gradient(carry, adapter)
    assert torch.equal(gradient(carry, adapter), first)  # the order of tasks plays no part
    torch.testing.assert_close(first, gradient(Reptile(adam_lr=0.01), adapter))
    carry.on_step(torch.tensor([0]))
    assert carry.taken == 2
    squares = carry.squares
    second = gradient(carry, adapter)
    assert not torch.allclose(second, first)

    phi, total = adapter.theta.detach(), squares
    for taken in (3, 4):
        slope = adapter.A @ (phi - adapter.c)
        total = 0.999 * total + 0.001 * slope.square()
        phi = phi - 0.01 * slope / (total / (1 - 0.999**taken)).sqrt()
    torch.testing.assert_close(second, adapter.theta.detach() - phi, rtol=1e-5, atol=1e-8)

    resumed = Reptile(adam_lr=0.01, inner_state="carry")
    resumed.load_state_dict(carry.state_dict())
    assert torch.equal(gradient(resumed, adapter), second)


def test_what_is_trained_and_not_moved_is_refused():
    for options, name in (
        ({"learn_inner_lr": "scalar"}, "inner_lr.rate"),
        ({"adapted": "head"}, "backbone.conv.weight"),
    ):
        with pytest.raises(fsl.FslError, match=f"'reptile': {name} is trained and no inner step"):
            direction(learner(Reptile(), **options))
    made = learner(Reptile(), proximal=0.5)
    assert flat(direction(made)).norm() > 0
    with pytest.raises(ValueError, match="inner_state: carry without adam_lr"):
        Reptile(inner_state="carry")


def test_it_says_which_outer_loop_it_is_for():
    estimate = Reptile()
    assert estimate.advice("sgd", "linear") == ""
    assert "this recipe has adam and constant" in estimate.advice("adam", "constant")
