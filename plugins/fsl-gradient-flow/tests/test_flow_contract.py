"""The conformance kit over gradients and integrators."""

from fsl_core.testing import AdapterContract
from fsl_gradient_flow import GradientFlow


class FlowContract(AdapterContract):
    def permute_classes(self, adapter, permutation):
        if adapter.head is not None:
            adapter.head.weight[permutation] = adapter.head.weight.clone()


class TestFlow(FlowContract):
    kinds = ("classification", "regression")

    def make(self, task, backbone):
        return GradientFlow(task, backbone)


class TestForwardInStepsOfTheirOwn(FlowContract):
    def make(self, task, backbone):
        return GradientFlow(task, backbone, gradient="forward", steps=2, head_start="zero")
