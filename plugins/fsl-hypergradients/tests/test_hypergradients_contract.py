"""The conformance kit over the estimates."""

from fsl_core.testing import HypergradientContract
from fsl_hypergradients import (
    FiniteDifference,
    GaussianSmoothing,
    Implicit,
    Reptile,
    Sgld,
    Truncated,
)


class TestTruncated(HypergradientContract):
    exact = "at the minimum"
    inner_steps = 3

    def make(self):
        return Truncated(2)


class TestAllSteps(HypergradientContract):
    def make(self):
        return Truncated(2)

    def test_other_inner_problems(self, shape):
        super().test_other_inner_problems(shape)


class TestImplicit(HypergradientContract):
    exact = "at the minimum"

    def make(self):
        return Implicit(iterations=12)


class TestWarmStart(HypergradientContract):
    exact = "at the minimum"

    def make(self, tasks):
        return Implicit(tasks, iterations=12, warm_start=True)


class TestFiniteDifference(HypergradientContract):
    exact = "no"

    def make(self):
        return FiniteDifference()


class TestGaussianSmoothing(HypergradientContract):
    exact = "no"

    def make(self):
        return GaussianSmoothing(directions=4, redraw="per-step")


class TestReptile(HypergradientContract):
    exact = "no"
    own_value = True

    def make(self):
        return Reptile(inner_batch=4)


class TestSgld(HypergradientContract):
    exact = "no"
    own_value = True

    def make(self, task):
        return Sgld(task, steps=6, burn_in=3, eps=0.1)
