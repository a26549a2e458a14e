"""The conformance kit with and without the entropy of the queries."""

from fsl_core.testing import AdapterContract
from fsl_fiml import Fiml


class TestTransductive(AdapterContract):
    def make(self, task):
        return Fiml(task, inner_steps=2, entropy_weight=2.0, temperature=0.5)


class TestInductive(AdapterContract):
    def make(self, task):
        return Fiml(
            task,
            inner_steps=1,
            entropy_weight=None,
            own_slope=0.4,
            other_slope=0.7,
            regularisation=0.2,
        )
