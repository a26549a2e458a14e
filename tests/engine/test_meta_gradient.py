"""The meta-gradient is sum_i w_i grad loss_i, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.engine.execution import Execution
from fsl_core.engine.meta_gradient import meta_gradient


class Affine(fsl.Adapter):
    """A head that is not adapted, and a parameter that no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.head, self.unused = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))

    def adapt(self, backbone, support):
        shift = support.x.mean()
        return lambda x: self.head(backbone(x)) + shift * self.head.weight.sum()


class ByLoss(fsl.TaskWeighting):
    """Softmax of the losses with a learned temperature."""

    def __init__(self, needs: frozenset[str]):
        super().__init__()
        self.needs, self.temperature = needs, nn.Parameter(torch.tensor(2.0))
        self.seen = None

    def weigh(self, outcomes):
        self.seen = outcomes
        return torch.softmax(outcomes.losses / self.temperature, 0)


class Fixed(fsl.TaskWeighting):
    needs = frozenset()

    def weigh(self, outcomes):
        self.seen = outcomes
        return torch.tensor([0.5, 0.2, 0.3]).to(outcomes.losses)


def case() -> tuple[fsl.Learner, fsl.Episode]:
    torch.manual_seed(0)
    learner = fsl.Learner(nn.Linear(4, 3), Affine()).double()
    tasks = 3

    def items(n):
        return fsl.LabelledSet(
            torch.randn(tasks, n, 4).double(), torch.arange(2).repeat(tasks, n // 2)
        )

    return learner, fsl.Episode(items(2), items(6), torch.tensor([4, 0, 7]))


def by_hand(
    learner: fsl.Learner, episodes: fsl.Episode, weights: torch.Tensor
) -> list[torch.Tensor]:
    losses = torch.stack(
        [learner.objective(task, F.cross_entropy)[0] for task in episodes.unbatch()]
    )
    return list(
        torch.autograd.grad(
            (weights * losses).sum(),
            list(learner.parameters()),
            allow_unused=True,
            materialize_grads=True,
        )
    )


def assert_equal_gradients(learner: fsl.Learner, expected: list[torch.Tensor]) -> None:
    for parameter, gradient in zip(learner.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_weights_that_depend_on_nothing():
    learner, episodes = case()
    result = meta_gradient(learner, Fixed(), episodes, F.cross_entropy)
    assert_equal_gradients(learner, by_hand(learner, episodes, result.weights))
    assert result.predictions.shape == (3, 6, 2)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"losses"})], ids=str)
def test_where_no_gradient_reaches_it_is_zero_for_an_optimizer_to_count(mode, needs):
    """Adam corrects its averages by the steps in which a parameter had a gradient."""
    learner, episodes = case()
    learner.adapter.unused = nn.Parameter(torch.ones(2).double())
    meta_gradient(learner, ByLoss(needs).double(), episodes, F.cross_entropy, Execution(mode))
    assert learner.adapter.unused.grad.tolist() == [0, 0]


def test_weights_that_depend_on_the_losses():
    learner, episodes = case()
    weighting = ByLoss(frozenset({"losses"})).double()
    result = meta_gradient(learner, weighting, episodes, F.cross_entropy)
    assert weighting.seen.gradients is None
    torch.testing.assert_close(result.weights, torch.softmax(result.losses / 2, 0))
    assert_equal_gradients(learner, by_hand(learner, episodes, result.weights))


def test_a_weighting_that_asks_for_gradients_sees_each_tasks_own():
    learner, episodes = case()
    weighting = ByLoss(frozenset({"gradients"})).double()
    meta_gradient(learner, weighting, episodes, F.cross_entropy)
    for row in range(3):
        expected = torch.cat(
            [g.flatten() for g in by_hand(learner, episodes, torch.eye(3).double()[row])]
        )
        torch.testing.assert_close(weighting.seen.gradients[row], expected, rtol=1e-12, atol=1e-14)


def test_a_weightings_own_parameters_get_their_gradient():
    learner, episodes = case()
    weighting = ByLoss(frozenset({"losses"})).double()
    result = meta_gradient(learner, weighting, episodes, F.cross_entropy)
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (torch.softmax(result.losses / temperature, 0) * result.losses).sum().backward()
    torch.testing.assert_close(weighting.temperature.grad, temperature.grad)


def test_columns_are_where_the_parameters_gradients_lie():
    learner, episodes = case()
    learner.backbone.bias.requires_grad_(False)
    weighting = ByLoss(frozenset({"gradients"})).double()
    meta_gradient(learner, weighting, episodes, F.cross_entropy)
    columns = fsl.gradient_columns(learner)
    assert list(columns) == [
        "backbone.weight",
        "adapter.unused",
        "adapter.head.weight",
        "adapter.head.bias",
    ]
    loss, _ = learner.objective(episodes.unbatch()[1], F.cross_entropy)
    for name, where in columns.items():
        (expected,) = torch.autograd.grad(
            loss,
            [learner.get_parameter(name)],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        torch.testing.assert_close(
            weighting.seen.gradients[1, where], expected.flatten(), rtol=1e-12, atol=1e-14
        )
    assert columns["adapter.head.bias"].stop == weighting.seen.gradients.shape[1]


@pytest.mark.parametrize(
    "weighting", [Fixed(), ByLoss(frozenset({"losses"})), ByLoss(frozenset({"gradients"}))]
)
def test_a_weighting_is_told_which_tasks_these_are(weighting):
    learner, episodes = case()
    meta_gradient(learner, weighting.double(), episodes, F.cross_entropy)
    assert weighting.seen.ids.tolist() == [4, 0, 7]


def test_a_weighting_chooses_what_its_own_parameters_minimise():
    class Adversary(ByLoss):
        def objective(self, weights, outcomes):
            return -(weights * outcomes.losses).sum()

    learner, episodes = case()
    friend, adversary = (kind(frozenset({"losses"})).double() for kind in (ByLoss, Adversary))
    first, second = (
        meta_gradient(learner, weighting, episodes, F.cross_entropy)
        for weighting in (friend, adversary)
    )
    torch.testing.assert_close(adversary.temperature.grad, -friend.temperature.grad)
    torch.testing.assert_close(first.weights, second.weights)


def test_old_gradients_are_dropped():
    learner, episodes = case()
    for _ in range(2):
        result = meta_gradient(learner, Fixed(), episodes, F.cross_entropy)
    assert_equal_gradients(learner, by_hand(learner, episodes, result.weights))
