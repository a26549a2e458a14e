"""The inner loop against derivatives that are known by hand, and against torch.autograd."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task

RATE, STEPS = 0.2, 3


@pytest.fixture(autouse=True)
def precision():
    with double_precision():
        yield


@pytest.fixture
def quadratic():
    """(hessian, centre, start) of l(phi) = 1/2 (phi - centre)^T H (phi - centre)."""
    root = torch.randn(4, 4)
    return root @ root.T / 4 + torch.eye(4), torch.randn(4), torch.randn(4, requires_grad=True)


def problem_of(hessian, centre, start, **further):
    def loss(phi, outer):
        offset = phi["w"] - outer["centre"]
        return offset @ hessian @ offset / 2

    return fsl.InnerProblem(
        **{
            "start": {"w": start},
            "outer": {"centre": centre},
            "steps": STEPS,
            "loss": loss,
            "step": lambda phi, gradient, k, outer: fsl.descend(phi, gradient, RATE),
            "predict": lambda phi, outer, x: x @ phi["w"],
            **further,
        }
    )


def last(problem, **how):
    return list(problem.points(**how))[-1].phi["w"]


@pytest.mark.parametrize("by_autograd", [False, True])
def test_exact_derivatives_are_those_of_a_quadratic(quadratic, by_autograd):
    hessian, centre, start = quadratic
    centre.requires_grad_()
    end = last(problem_of(*quadratic, by_autograd=by_autograd))
    contraction = torch.linalg.matrix_power(torch.eye(4) - RATE * hessian, STEPS)
    assert torch.allclose(end, centre + contraction @ (start - centre))
    direction = torch.randn(4)
    found = torch.autograd.grad(end @ direction, [start, centre])
    assert torch.allclose(found[0], contraction.T @ direction)
    assert torch.allclose(found[1], (torch.eye(4) - contraction).T @ direction)


@pytest.mark.parametrize("by_autograd", [False, True])
def test_first_order_takes_each_gradient_for_a_constant(quadratic, by_autograd):
    *_, start = quadratic
    end = last(problem_of(*quadratic, by_autograd=by_autograd), order=1)
    assert torch.equal(end, last(problem_of(*quadratic)))
    direction = torch.randn(4)
    assert torch.equal(torch.autograd.grad(end @ direction, start)[0], direction)


@pytest.mark.parametrize(("order", "by_autograd"), list(itertools.product((1, 2), (False, True))))
def test_a_learned_rate_has_its_derivative_in_either_order(quadratic, order, by_autograd):
    rate = torch.tensor(RATE, requires_grad=True)
    further = {
        "steps": 1,
        "step": lambda phi, gradient, k, outer: fsl.descend(phi, gradient, outer["rate"]),
        "by_autograd": by_autograd,
    }
    problem = problem_of(*quadratic, **further)
    problem.outer["rate"] = rate
    end = last(problem, order=order)
    hessian, centre, start = quadratic
    slope = hessian @ (start - centre)
    assert torch.allclose(torch.autograd.grad(end.sum(), rate)[0], -slope.sum())


@pytest.mark.parametrize("by_autograd", [False, True])
@pytest.mark.parametrize("grad_enabled", [False, True])
def test_untracked_points_are_equal_and_keep_no_graph(quadratic, by_autograd, grad_enabled):
    problem = problem_of(*quadratic, by_autograd=by_autograd)
    expected = [point.phi["w"] for point in problem.points()]
    with torch.set_grad_enabled(grad_enabled):
        found = list(problem.points(tracked=False))
        assert torch.is_grad_enabled() == grad_enabled
    assert len(found) == STEPS + 1
    for point, value in zip(found, expected, strict=True):
        assert torch.equal(point.phi["w"], value)
        assert not any(t.requires_grad for t in (*point.phi.values(), *point.outer.values()))


def test_it_works_under_vmap_of_grad(quadratic):
    hessian, _, start = quadratic
    centres = torch.randn(3, 4)

    def value(start, centre):
        return last(problem_of(hessian, centre, start)).square().sum()

    together = vmap(grad(value), (None, 0))(start.detach(), centres)
    for row, centre in zip(together, centres, strict=True):
        assert torch.allclose(row, grad(value)(start.detach(), centre))


@pytest.mark.parametrize("by_autograd", [False, True])
def test_steps_move_what_the_schedule_names_and_the_last_entry_goes_on(by_autograd):
    moved = []

    def step(phi, gradient, k, outer):
        moved.append((k, sorted(gradient)))
        return fsl.descend(phi, gradient, RATE)

    problem = fsl.InnerProblem(
        start={"a": torch.ones(()), "b": torch.ones(()), "c": torch.ones(())},
        outer={},
        steps=3,
        loss=lambda phi, outer: phi["a"] * phi["b"],
        step=step,
        predict=lambda phi, outer, x: x,
        schedule=[["a"], ["a", "b", "c"]],
        by_autograd=by_autograd,
    )
    list(problem.points())
    both = ["a", "b"] if by_autograd else ["a", "b", "c"]  # c takes no part in the loss
    assert moved == [(0, ["a"]), (1, both), (2, both)]


def test_what_is_shared_is_made_of_what_a_step_leaves_alone():
    seen, known = [], []

    def share(fixed):
        seen.append(sorted(fixed))
        return {"product": fixed["c"] * fixed["b"]} if "b" in fixed else {}

    def loss(phi, outer):
        known.append("product" in outer)
        weights = outer | phi
        return phi["a"] * outer.get("product", weights["c"] * weights["b"])

    problem = fsl.InnerProblem(
        start={"a": torch.ones(()), "b": 2 * torch.ones(())},
        outer={"c": torch.ones(())},
        steps=2,
        loss=loss,
        step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, RATE),
        predict=lambda phi, outer, x: x,
        schedule=[["a"], ["a", "b"]],
        share=share,
    )
    *_, (phi, outer) = problem.points()
    assert seen == [["b", "c"], ["c"]]
    assert known == [True, False]
    assert torch.allclose(phi["b"], torch.tensor(2 - RATE * (1 - RATE * 2)))
    assert set(outer) == {"c"}  # predictions see no more than there was


def test_what_a_step_sees_is_what_predictions_after_it_see(quadratic):
    hessian, _, start = quadratic
    centres = torch.randn(STEPS, 4)
    problem = problem_of(
        hessian,
        centres[-1],
        start,
        outer={"centres": centres, "centre": centres[-1]},
        at=lambda outer, k: outer | {"centre": outer["centres"][k]},
        predict=lambda phi, outer, x: outer["centre"],
    )
    predictions = [problem.predictor(point)(start) for point in problem.points()]
    assert torch.equal(torch.stack(predictions), centres[[0, 0, 1, 2]])
    expected = start
    for centre in centres:
        expected = expected - RATE * hessian @ (expected - centre)
    assert torch.allclose(last(problem), expected)


class Written(fsl.Adapter):
    """An adapter that writes its inner problem and nothing else."""

    name = "written"

    def __init__(self, task, backbone):
        super().__init__()
        self.task, self.head = task, nn.Linear(backbone.feature_dim, task.output_dim)

    def inner_problem(self, backbone, support):
        net = fsl.Functional(backbone, self.head)
        return fsl.InnerProblem(
            start=net.weights,
            outer={},
            steps=2,
            loss=lambda phi, outer: self.task.loss(net(phi, support.x), support.y),
            step=lambda phi, gradient, k, outer: fsl.descend(phi, gradient, RATE),
            predict=lambda phi, outer, x: net(phi, x),
        )


def test_an_adapter_with_an_inner_problem_adapts_by_it():
    task, backbone = tiny_task(), TinyBackbone()
    learner = fsl.Learner(backbone, Written(task, backbone))
    episode = tiny_episodes(task, 1).unbatch()[0]
    predictors = learner.trajectory(episode)
    assert len(predictors) == 3
    unadapted = learner.adapter.head(backbone(episode.query.x))
    assert torch.equal(predictors[0](episode.query.x), unadapted)
    end = learner.adapt(episode)(episode.query.x)
    assert torch.equal(predictors[-1](episode.query.x), end)
    assert end.requires_grad
    assert not learner.eval().adapt(episode)(episode.query.x).requires_grad
    loss = [task.loss(p(episode.support.x), episode.support.y) for p in predictors]
    assert loss[2] < loss[1] < loss[0]


def test_an_adapter_without_an_inner_problem_has_none():
    class Without(fsl.Adapter):
        name = "without"

    support = tiny_episodes(tiny_task(), 1).unbatch()[0].support
    assert Without().inner_problem(TinyBackbone(), support) is None
    with pytest.raises(NotImplementedError, match=r"Without\.adapt: not written\. .*inner_problem"):
        Without().adapt(TinyBackbone(), support)
