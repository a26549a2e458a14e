"""The variants by hand: one vector of weights, eager memories, explicit Hessians; float64."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import fsl_core as fsl
from fsl_core.testing import GradientSteps, TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_moml import Memory

RATE = 0.1
"""Of the inner steps of `GradientSteps`."""

TASK = tiny_task("regression", n_shot=7, n_query=5)
TASKS = 4


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def made(inner_steps: int = 1, **options) -> fsl.Learner:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    estimate = Memory(TASK, TASKS, **options) if options else None
    return fsl.Learner(backbone, GradientSteps(TASK, backbone, inner_steps), estimate)


class ByHand:
    """The same network as a function of one vector, and an inner step of its own."""

    def __init__(self, learner: fsl.Learner):
        self.net = copy.deepcopy(nn.Sequential(learner.backbone, learner.adapter.head))

    def loss(self, vector: torch.Tensor, items: fsl.LabelledSet) -> torch.Tensor:
        shapes = dict(self.net.named_parameters())
        parts = vector.split([p.numel() for p in shapes.values()])
        weights = {n: v.view_as(p) for (n, p), v in zip(shapes.items(), parts, strict=True)}
        return (functional_call(self.net, weights, items.x) - items.y).square().mean()

    def slope(self, vector: torch.Tensor, items: fsl.LabelledSet) -> torch.Tensor:
        leaf = vector.detach().requires_grad_()
        return torch.autograd.grad(self.loss(leaf, items), leaf)[0]

    def curved(self, vector: torch.Tensor, items: fsl.LabelledSet, by: torch.Tensor):
        """Hessian times a vector."""
        return torch.autograd.functional.vhp(lambda w: self.loss(w, items), vector, by)[1]

    def step(self, vector: torch.Tensor, items: fsl.LabelledSet) -> torch.Tensor:
        return vector - RATE * self.slope(vector, items)


def visit(learner: fsl.Learner, episode: fsl.Episode) -> torch.Tensor:
    """The direction of one task; what is kept of it moves."""
    value, _ = learner.objective(episode, TASK.loss)
    return parameters_to_vector(torch.autograd.grad(value, list(learner.parameters())))


def move(learner: fsl.Learner, by: torch.Tensor) -> None:
    theta = parameters_to_vector(learner.parameters()).detach()
    vector_to_parameters(theta - by, learner.parameters())


def theta_of(learner: fsl.Learner) -> torch.Tensor:
    return parameters_to_vector(learner.parameters()).detach()


def drawn(steps: int, size: int, replacement: bool = False) -> list[list[fsl.Episode]]:
    """Meta-batches of random tasks at fresh points."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for step in range(steps):
        chances = torch.ones(TASKS)
        ids = torch.multinomial(chances, size, replacement, generator=generator)
        fresh = tiny_episodes(TASK, size, seed=step)
        batches.append(fresh._replace(id=ids).unbatch())
    return batches


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_without_memory_it_is_the_gradient_of_maml_exactly(inner_steps):
    with_memory, maml = made(inner_steps, beta=1.0), made(inner_steps)
    for batch in drawn(4, 2):
        for episode in batch:
            found, expected = visit(with_memory, episode), visit(maml, episode)
            assert torch.equal(found, expected)
        for learner in (with_memory, maml):
            move(learner, 0.1 * expected)


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_every_task_begins_from_where_training_began(variant):
    """v1 and v2 with eager memories of all tasks, over 50 steps; tasks come when they come."""
    beta, size = 0.3, 2
    learner = made(variant=variant, beta=beta, meta_batch_size=size)
    hand, theta = ByHand(learner), theta_of(learner)
    batches = drawn(50, size)
    first = {}
    for episode in (e for batch in batches for e in batch):
        first.setdefault(int(episode.id), episode)
    u = {i: hand.step(theta, episode.support) for i, episode in first.items()}
    assert len(u) == TASKS
    for batch in batches:
        total = torch.zeros_like(theta)
        share = TASKS / size if variant == "v2" else 1.0
        before = dict(u)
        if variant == "v2":
            u = {i: (1 - beta) * w + beta * theta for i, w in before.items()}
        for episode in batch:
            i = int(episode.id)
            v = hand.step(theta, episode.support)
            near = theta if variant == "v2" else torch.zeros_like(theta)
            u[i] = (1 - beta) * before[i] + beta * near + beta * share * (v - near)
            slope = hand.slope(u[i], episode.query)
            bent = hand.curved(theta, episode.support, slope)
            expected = beta * (slope - share * RATE * bent)
            torch.testing.assert_close(visit(learner, episode), expected, rtol=0, atol=1e-12)
            total += expected / size
        move(learner, 0.2 * total)
        theta = theta - 0.2 * total
        learner.on_step(torch.stack([episode.id for episode in batch]))
    torch.testing.assert_close(theta_of(learner), theta, rtol=0, atol=1e-12)


def test_the_value_is_the_query_loss_at_the_personalised_weights():
    learner = made(beta=0.4)
    hand, theta = ByHand(learner), theta_of(learner)
    (first,), (again,) = (batch[:1] for batch in drawn(2, 1))
    again = again._replace(id=first.id)
    visit(learner, first)
    value, prediction = learner.objective(again, TASK.loss)
    u = 0.6 * hand.step(theta, first.support) + 0.4 * hand.step(theta, again.support)
    assert value.item() == pytest.approx(hand.loss(u, again.query).item(), abs=1e-12)
    assert TASK.loss(prediction, again.query.y).item() == pytest.approx(value.item())


def test_weights_that_stand_still_are_reached_at_the_rate_of_beta():
    """v1 on one support set: u begins at v; started elsewhere it comes (1 - beta) nearer."""
    learner = made(beta=0.3)
    hand, theta = ByHand(learner), theta_of(learner)
    episode = drawn(1, 1)[0][0]
    visit(learner, episode)
    v, rows = hand.step(theta, episode.support), learner.hypergradient.store.rows
    rows[episode.id] += 1.0
    distances = [(rows[episode.id] - v).norm().item()]
    for _ in range(6):
        visit(learner, episode)
        distances.append((rows[episode.id] - v).norm().item())
    for before, after in pairwise(distances):
        assert after / before == pytest.approx(0.7, rel=1e-9)


def test_a_task_that_comes_twice_in_a_step_of_v2_adds_its_term_twice():
    beta, size = 0.3, 2
    learner = made(variant="v2", beta=beta, meta_batch_size=size)
    hand, theta = ByHand(learner), theta_of(learner)
    episodes = tiny_episodes(TASK, 2)._replace(id=torch.tensor([1, 1])).unbatch()
    for episode in episodes:
        found = visit(learner, episode)
    first, second = (hand.step(theta, episode.support) - theta for episode in episodes)
    u = theta + (1 - beta) * first + beta * TASKS / size * (first + second)
    slope = hand.slope(u, episodes[1].query)
    bent = hand.curved(theta, episodes[1].support, slope)
    expected = beta * (slope - TASKS / size * RATE * bent)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_local_steps_are_averaged_by_the_outer_step():
    """Server and clients by hand; n_shot 7 = 3 first items and 2 steps of 2, n_query 6 = 2 x 3."""
    beta, eta = 0.4, 0.05
    task = tiny_task("regression", n_shot=7, n_query=6)
    options = {"beta": beta, "local_steps": 2, "first_items": 3, "local_lr": eta}
    learner = made()
    estimate = Memory(task, variant="local", **options)
    learner = fsl.Learner(learner.backbone, learner.adapter, estimate)
    hand, theta = ByHand(learner), theta_of(learner)
    episodes = tiny_episodes(task, 2).unbatch()
    ends = []
    for episode in episodes:
        support, query = episode.support, episode.query

        def part(items, low, high):
            return fsl.LabelledSet(items.x[low:high], items.y[low:high])

        u, own = hand.step(theta, part(support, 0, 3)), theta
        for k in range(2):
            local, asked = part(support, 3 + 2 * k, 5 + 2 * k), part(query, 3 * k, 3 * k + 3)
            u = (1 - beta) * u + beta * hand.step(own, local)
            slope = hand.slope(u, asked)
            own = own - eta * beta * (slope - RATE * hand.curved(own, local, slope))
        ends.append(own)
        value, _ = learner.objective(episode, task.loss)
        assert value.item() == pytest.approx(hand.loss(u, query).item(), abs=1e-12)
    mean = sum(visit(learner, episode) for episode in episodes) / 2
    torch.testing.assert_close(theta - eta * mean, sum(ends) / 2, rtol=0, atol=1e-12)


def test_local_parts_hold_every_class():
    task = tiny_task("classification", n_shot=4, n_query=2)
    estimate = Memory(task, variant="local", local_steps=2, first_items=2, local_lr=0.1)
    episode = tiny_episodes(task, 1).unbatch()[0]
    first, *rounds = estimate.local._parts(episode)
    assert first.support.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert [part.support.y.tolist() for part in rounds] == [[0, 1, 2]] * 2
    assert [part.query.y.tolist() for part in rounds] == [[0, 1, 2]] * 2
    together = torch.cat([part.query.x for part in rounds])
    assert len({tuple(x.flatten().tolist()) for x in together}) == len(episode.query.x)


def test_the_average_of_nasa_is_momentum_with_dampening():
    """z <- (1 - m) z + m g from z = g, as torch's sgd and the recipe's optimizer take it."""
    from fsl_core.config.outer import sgd

    m, eta = 0.1, 0.05
    weight, z = nn.Parameter(torch.zeros(3)), None
    optimizer, by_hand = sgd([weight], eta, momentum=1 - m, dampening=1 - m), torch.zeros(3)
    for _ in range(5):
        gradient = torch.randn(3)
        z = gradient if z is None else (1 - m) * z + m * gradient
        by_hand = by_hand - eta * z
        weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(weight.detach(), by_hand, rtol=0, atol=1e-14)
