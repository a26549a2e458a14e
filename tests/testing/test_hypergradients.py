"""The kit passes sound hypergradients, and catches each faulty one by the property named."""

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.hypergradients import FirstOrder, Unrolled
from fsl_core.testing import AdapterContract, HypergradientContract, checks, tiny_episodes
from fsl_core.testing.inner_problems import SHAPES, RidgeSteps
from fsl_core.testing.tiny import TinyBackbone, double_precision, tiny_task
from tests.parts.kit import COMPILED, caught, check, every, named
from tests.parts.kit.hypergradients import FAULTS, Averages, Noisy, Solved


class UnrolledContract(HypergradientContract):
    def make(self):
        return Unrolled()


class FirstOrderContract(HypergradientContract):
    exact = "no"

    def make(self):
        return FirstOrder()


class SolvedContract(HypergradientContract):
    exact = "at the minimum"

    def make(self):
        return Solved()


class NoisyContract(HypergradientContract):
    exact, reaches_outer = "no", False

    def make(self):
        return Noisy()


class AveragesContract(HypergradientContract):
    exact = "no"

    def make(self, tasks):
        return Averages(tasks)


OTHERS = [FirstOrderContract, SolvedContract, NoisyContract, AveragesContract]


@pytest.mark.parametrize(
    ("contract", "property_name"),
    [*every(UnrolledContract), *every(*OTHERS, without=(COMPILED,))],
    ids=named,
)
def test_sound_hypergradients_pass(contract, property_name):
    check(contract, property_name)


@pytest.mark.parametrize(("fault", "property_name"), FAULTS, ids=named)
def test_faulty_hypergradients_are_caught(fault, property_name):
    claims = vars(fault).get("claims", getattr(fault, "claims", {}))
    contract = type("Contract", (HypergradientContract,), {"make": lambda self: fault(), **claims})
    caught(contract, property_name)


class RidgeStepsContract(AdapterContract):
    kinds = ("regression",)

    def make(self, task, backbone):
        if task.kind != "regression":
            raise ValueError("a ridge regression fits values. Episodes of regression")
        return RidgeSteps(task, backbone)


@pytest.mark.parametrize(
    ("contract", "property_name"),
    every(RidgeStepsContract, without=(COMPILED,)),
    ids=named,
)
def test_the_convex_problem_is_a_sound_adapter(contract, property_name):
    check(contract, property_name)


def test_the_convex_problem_ends_where_it_says():
    task = tiny_task("regression")
    with double_precision():
        backbone = TinyBackbone()
        adapter = RidgeSteps(task, backbone, inner_steps=150)
        (episode,) = tiny_episodes(task, 1).unbatch()
        value, _ = adapter.objective(backbone, episode, task.loss)
        expected = adapter.at_the_minimum(backbone, episode)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_the_other_problems_are_slopes(name):
    task = tiny_task()
    with double_precision():
        backbone = TinyBackbone()
        learner = fsl.Learner(backbone, SHAPES[name](task, backbone))
        (episode,) = tiny_episodes(task, 1).unbatch()

        def value():
            return learner.objective(episode, task.loss)[0]

        found = checks.gradients_by_name(value(), dict(learner.named_parameters()))
        assert not checks.wrong_slopes(lambda: value().item(), learner, found)
