"""Hypergradients, sound ones first; each of the others is wrong in one way, and FAULTS says which
property shows it.

claims: what a test class of it states.
"""

import torch
from torch import nn
from torch.func import functional_call

import fsl_core as fsl
from fsl_core.builtin.hypergradients import FirstOrder, Unrolled

NOT_EXACT = {"exact": "no"}
AT_THE_MINIMUM = {"exact": "at the minimum"}
FROM_THE_START = {"exact": "no", "reaches_outer": False}
OWN_VALUE = {"own_value": True}


def query_loss(adapter, backbone, episode, loss, order=2):
    """The inner problem, where it ends, and query loss and prediction there."""
    problem = fsl.inner_problem_of(adapter, backbone, episode)
    *_, last = problem.points(order=order)
    prediction = problem.predict(*last, episode.query.x)
    return problem, last, loss(prediction, episode.query.y), prediction


class Solved(fsl.Hypergradient):
    """The implicit gradient by a dense solve; for ridge regressions."""

    name = "solved"
    claims = AT_THE_MINIMUM
    vectorizable = False

    def unfit(self, adapter):
        convex = getattr(adapter, "proximal", 0) > 0
        return super().unfit(adapter) or ("" if convex else "the inner loss is not convex")

    def objective(self, adapter, backbone, episode, loss):
        problem, (phi, outer), value, prediction = query_loss(adapter, backbone, episode, loss)
        ((name, weight),) = phi.items()
        weight = weight.detach()

        def at(weight, of=problem.loss):
            return of({name: weight}, outer)

        direct = loss(problem.predict({name: weight}, outer, episode.query.x), episode.query.y)
        slope = torch.func.grad(
            lambda w: loss(problem.predict({name: w}, outer, episode.query.x), episode.query.y)
        )(weight).flatten()
        curvature = torch.func.jacrev(torch.func.grad(at))(weight).reshape(len(slope), len(slope))
        solution = torch.linalg.solve(curvature, slope).view_as(weight).detach()
        indirect = (torch.func.grad(at)(weight) * solution).sum()
        towards = direct - indirect
        return value.detach() + towards - towards.detach(), prediction


class Noisy(fsl.Hypergradient):
    """The exact gradient by the start, with noise drawn for each episode."""

    name = "noisy"
    claims = FROM_THE_START
    vectorizable = False

    def objective(self, adapter, backbone, episode, loss):
        problem, _, value, prediction = query_loss(adapter, backbone, episode, loss)
        drawn = torch.Generator().manual_seed(int(episode.id))
        slopes = torch.autograd.grad(value, list(problem.start.values()))
        noisy = {
            name: slope * (1 + 0.1 * torch.randn(slope.shape, generator=drawn).to(slope))
            for name, slope in zip(problem.start, slopes, strict=True)
        }
        return fsl.with_gradient(value, problem.start, noisy), prediction


class Averages(fsl.Hypergradient):
    """Scales the gradient by a running average of the losses of each task."""

    name = "averages"
    claims = NOT_EXACT
    vectorizable = threadable = False

    def __init__(self, tasks=8):
        super().__init__()
        self.register_buffer("average", torch.ones(tasks))
        self.register_buffer("seen", torch.ones(tasks))

    def objective(self, adapter, backbone, episode, loss):
        _, _, value, prediction = query_loss(adapter, backbone, episode, loss)
        task = int(episode.id)
        self.seen[task] = value.detach()
        scaled = (1 + 0.1 * self.average[task].item()) * value
        return value.detach() + scaled - scaled.detach(), prediction

    def on_step(self, ids):
        self.average[ids] = 0.5 * self.average[ids] + 0.5 * self.seen[ids]


class Detached(Unrolled):
    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        return value.detach(), prediction


class DetachedStart(fsl.Hypergradient):
    name = "faulty"
    claims = NOT_EXACT

    def objective(self, adapter, backbone, episode, loss):
        *_, value, prediction = query_loss(adapter, backbone, episode, loss)
        nothing = sum(0 * p.sum() for p in [*backbone.parameters(), *adapter.parameters()])
        return value.detach() + nothing, prediction


class OuterLeftOut(fsl.Hypergradient):
    name = "faulty"
    claims = NOT_EXACT

    def objective(self, adapter, backbone, episode, loss):
        problem, _, value, prediction = query_loss(adapter, backbone, episode, loss)
        slopes = torch.autograd.grad(value, list(problem.start.values()))
        named = dict(zip(problem.start, slopes, strict=True))
        return fsl.with_gradient(value, problem.start, named), prediction


class WrongSign(Unrolled):
    claims = NOT_EXACT

    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        return value.detach() - (value - value.detach()), prediction


class WrongSignOfTheSolve(Solved):
    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        direct = loss(
            functional_call(backbone, {}, episode.query.x) @ adapter.head.weight.T, episode.query.y
        )
        return value.detach() + 2 * (direct - direct.detach()) - (
            value - value.detach()
        ), prediction


class FirstOrderClaimedAsExact(FirstOrder):
    claims = AT_THE_MINIMUM


class ExactClaimedAsNot(Unrolled):
    claims = NOT_EXACT


class SupportLoss(Unrolled):
    def objective(self, adapter, backbone, episode, loss):
        *_, prediction = super().objective(adapter, backbone, episode, loss)
        predict = adapter.adapt(backbone, episode.support)
        return loss(predict(episode.support.x), episode.support.y), prediction


class ValueClaimedAsItsOwn(Unrolled):
    claims = OWN_VALUE


class CountsSteps(Unrolled):
    claims = NOT_EXACT
    count = 0

    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        scaled = value * (1 + 0.1 * self.count)
        return value.detach() + scaled - scaled.detach(), prediction

    def on_step(self, ids):
        self.count += 1


class GlobalNoise(Unrolled):
    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        scaled = value * (1 + 1e-8 * torch.rand(()))
        return value.detach() + scaled - scaled.detach(), prediction


class ReplacesAdapt(FirstOrder):
    claims = NOT_EXACT

    def objective(self, adapter, backbone, episode, loss):
        found = super().objective(adapter, backbone, episode, loss)
        adapter.adapt = lambda backbone, support: lambda x: adapter.head(backbone(x))
        return found


class MovesTheHead(FirstOrder):
    claims = NOT_EXACT

    def objective(self, adapter, backbone, episode, loss):
        found = super().objective(adapter, backbone, episode, loss)
        adapter.head.weight.data += 1e-3
        return found


class TakesEverything(FirstOrder):
    claims = NOT_EXACT

    def unfit(self, adapter):
        return ""


class RemembersTheLastTask(Unrolled):
    claims = NOT_EXACT
    last = 1.0

    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        scaled = value * self.last
        self.last = 1 + 0.1 * value.detach()
        return value.detach() + scaled - scaled.detach(), prediction


class ReadsTheLoss(Unrolled):
    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        return (value if value > 0 else -value), prediction


class AveragesInThreads(Averages):
    threadable = True


class AsksTheCompiler(Unrolled):
    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        scaled = value * (1.01 if torch.compiler.is_compiling() else 1)
        return value.detach() + scaled - scaled.detach(), prediction


class DoubleConstants(Unrolled):
    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        return value, prediction * torch.ones(1, dtype=torch.float64)


class CpuConstants(Unrolled):
    def objective(self, adapter, backbone, episode, loss):
        value, prediction = super().objective(adapter, backbone, episode, loss)
        return (value * torch.ones(1)).sum(), prediction


class HasAParameter(Unrolled):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class NameOfAnInstance(fsl.Hypergradient):
    pass


class RefusesEverything(Unrolled):
    def unfit(self, adapter):
        return "never"


class TwoLines(Unrolled):
    def unfit(self, adapter):
        return "not this one\nbut another"


FAULTS = [
    (HasAParameter, "claims"),
    (NameOfAnInstance, "claims"),
    (RefusesEverything, "claims"),
    (TwoLines, "claims"),
    (Detached, "value_is_the_query_loss"),
    (SupportLoss, "value_is_the_query_loss"),
    (ValueClaimedAsItsOwn, "value_is_the_query_loss"),
    (MovesTheHead, "objective_changes_nothing"),
    (ReplacesAdapt, "evaluation_is_the_adapters"),
    (DetachedStart, "gradient_reaches_the_meta_parameters"),
    (OuterLeftOut, "gradient_reaches_the_meta_parameters"),
    (WrongSign, "gradient_is_as_exact_as_claimed"),
    (WrongSignOfTheSolve, "gradient_at_the_minimum"),
    (FirstOrderClaimedAsExact, "gradient_at_the_minimum"),
    (ExactClaimedAsNot, "gradient_at_the_minimum"),
    (FirstOrder, "gradient_is_as_exact_as_claimed"),
    (TakesEverything, "other_inner_problems"),
    (RemembersTheLastTask, "tasks_are_independent"),
    (GlobalNoise, "random_numbers_are_its_own"),
    (CountsSteps, "checkpoint_is_the_whole_state"),
    (ReadsTheLoss, "every_execution_equals_the_loop"),
    (AveragesInThreads, "every_execution_equals_the_loop"),
    (AsksTheCompiler, "compiled_equals_the_loop"),
    (DoubleConstants, "single_precision"),
    (CpuConstants, "device"),
]
