"""The conformance kit over the variants."""

from fsl_core.testing import HypergradientContract
from fsl_moml import Memory


class TestWithoutMemory(HypergradientContract):
    def make(self, task, tasks):
        return Memory(task, tasks, beta=1.0)


class TestMemory(HypergradientContract):
    exact = "no"

    def make(self, task, tasks):
        return Memory(task, tasks)


class TestDrifting(HypergradientContract):
    exact = "no"
    own_value = True

    def make(self, task, tasks):
        return Memory(task, tasks, meta_batch_size=2, variant="v2", beta=0.1)
