from fsl_core.builtin.uniform import Uniform
from fsl_core.testing import WeightingContract


class TestMean(WeightingContract):
    def make(self):
        return Uniform()


class TestSum(WeightingContract):
    def make(self):
        return Uniform(reduction="sum")
