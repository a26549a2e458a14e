"""How a meta-gradient is estimated: the seam between adapters and estimates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.hypergradients import FirstOrder, Unrolled
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.engine.choice import rules_out
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import meta_gradient
from fsl_core.testing.tiny import (
    GradientSteps,
    TinyBackbone,
    Uneven,
    double_precision,
    tiny_episodes,
    tiny_task,
)

TASK = tiny_task()


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def made(hypergradient: fsl.Hypergradient | None, inner_steps: int = 2) -> fsl.Learner:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    return fsl.Learner(backbone, GradientSteps(TASK, backbone, inner_steps), hypergradient)


def gradients(learner: fsl.Learner, execution: Execution = Execution()) -> torch.Tensor:
    meta_gradient(learner, Uneven(), tiny_episodes(TASK, 3), TASK.loss, execution)
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def test_unrolled_follows_the_adapters_own_objective():
    assert torch.equal(gradients(made(Unrolled())), gradients(made(None)))


def test_first_order_is_the_gradient_at_the_fast_weights():
    """By hand: steps on detached copies, and the query gradient where they end."""
    learner, batch = made(FirstOrder()), tiny_episodes(TASK, 3)
    by_hand = copy.deepcopy(learner)
    total = None
    for weight, episode in zip((0.1, 0.2, 0.3), batch.unbatch(), strict=True):
        net = copy.deepcopy(by_hand)
        for _ in range(2):
            value = TASK.loss(net.adapter.head(net.backbone(episode.support.x)), episode.support.y)
            slopes = torch.autograd.grad(value, list(net.parameters()))
            with torch.no_grad():
                for parameter, slope in zip(net.parameters(), slopes, strict=True):
                    parameter.sub_(0.1 * slope)
        value = TASK.loss(net.adapter.head(net.backbone(episode.query.x)), episode.query.y)
        flat = [g.flatten() for g in torch.autograd.grad(value, list(net.parameters()))]
        total = weight * torch.cat(flat) + (0 if total is None else total)
    torch.testing.assert_close(gradients(learner), total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("execution", [Execution("vmap"), Execution(workers=2)], ids=str)
def test_every_execution_equals_the_loop(execution):
    found = gradients(made(FirstOrder()), execution)
    torch.testing.assert_close(found, gradients(made(FirstOrder())), rtol=0, atol=1e-12)


def test_it_is_no_part_of_what_is_saved_and_judged():
    class Remembers(Unrolled):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

    learner = made(Remembers())
    assert not [name for name in learner.state_dict() if "hyper" in name]
    assert copy.deepcopy(learner).hypergradient is not learner.hypergradient


def test_an_adapter_without_an_inner_problem_takes_unrolled_alone():
    adapter = NearestCentroid(TASK)
    assert FirstOrder().unfit(adapter) == "adapter 'nearest-centroid' has no inner problem"
    assert Unrolled().unfit(adapter) == ""


def test_an_adapter_with_an_objective_of_its_own_takes_unrolled_alone():
    class Penalised(GradientSteps):
        def objective(self, backbone, episode, loss):
            return super().objective(backbone, episode, loss)

    backbone = TinyBackbone()
    assert FirstOrder().unfit(Penalised(TASK, backbone)) == (
        "adapter 'gradient-steps' follows another objective than the query loss"
    )


def test_an_inner_problem_that_is_none_at_present_is_one_line():
    class Closed(GradientSteps):
        def inner_problem(self, backbone, support):
            return None

    backbone = TinyBackbone()
    learner = fsl.Learner(backbone, Closed(TASK, backbone), FirstOrder())
    with pytest.raises(fsl.FslError, match="gives no inner problem with these options"):
        learner.objective(tiny_episodes(TASK, 1).unbatch()[0], TASK.loss)


def test_what_it_cannot_do_rules_executions_out():
    class Alone(FirstOrder):
        vectorizable = threadable = False

    learner = made(Alone())
    assert rules_out(Execution("vmap"), learner) == (
        "hypergradient 'first-order' takes one task at a time"
    )
    assert rules_out(Execution(workers=2), learner)
    assert rules_out(Execution("vmap"), made(FirstOrder())) is None


def test_parts_are_told_of_progress_and_of_steps():
    told = []

    class Listens(Unrolled):
        def on_progress(self, progress):
            told.append(progress)

        def on_step(self, ids):
            told.append(ids.tolist())

    learner = made(Listens())
    learner.on_progress(0.5)
    learner.on_step(torch.tensor([4, 7]))
    assert told == [0.5, [4, 7]]


def test_a_direction_becomes_the_gradient_of_a_scalar_with_the_right_value():
    theta = nn.Parameter(torch.tensor([1.0, 2.0]))
    start = {"w": 3 * theta, "unused": theta.sum()}
    scalar = fsl.with_gradient(torch.tensor(5.0), start, {"w": torch.tensor([1.0, -1.0])})
    scalar.backward()
    assert scalar.item() == 5.0
    assert theta.grad.tolist() == [3.0, -3.0]


def test_only_training_offers_the_labelled_queries():
    told = []

    class Asks(GradientSteps):
        def inner_problem(self, backbone, support, query=None):
            told.append(query)
            return super().inner_problem(backbone, support)

        def adapt(self, backbone, support, query=None):
            self.inner_problem(backbone, support, query)
            return super().adapt(backbone, support)

    backbone, episode = TinyBackbone(), tiny_episodes(TASK, 1).unbatch()[0]
    for estimate in (None, FirstOrder()):
        learner = fsl.Learner(backbone, Asks(TASK, backbone), estimate)
        told.clear()
        learner.objective(episode, TASK.loss)
        assert told[0] is episode.query
        told.clear()
        learner.eval().objective(episode, TASK.loss)
        learner.adapt(episode)
        learner.trajectory(episode)
        assert set(told) == {None}


def test_an_estimate_has_neither_metrics_nor_advice_by_default():
    assert Unrolled().metrics() == {}
    assert Unrolled().advice("adam", "cosine") == ""
