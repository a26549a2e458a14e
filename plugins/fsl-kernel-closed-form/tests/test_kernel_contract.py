"""The conformance kit over each adapter, kernel and exponential."""

from fsl_core.testing import AdapterContract
from fsl_kernel_closed_form import KernelClosedForm, MetaRkhsI, MetaRkhsII, Ridge


class ClosedFormContract(AdapterContract):
    kinds = ("classification", "regression")

    def permute_classes(self, adapter, permutation):
        head = getattr(adapter, "head", None)
        for rows in () if head is None else head.parameters():
            rows[permutation] = rows.clone()


class TestLinear(ClosedFormContract):
    def make(self, task, backbone):
        return KernelClosedForm(
            task, backbone, kernel="linear", residual=False, learn_regularisation=True
        )


class TestRbf(ClosedFormContract):
    def make(self, task, backbone):
        return KernelClosedForm(task, backbone, residual=True)


class TestRbfOfGivenWidth(ClosedFormContract):
    def make(self, task, backbone):
        return KernelClosedForm(
            task, backbone, residual=False, width=0.7, targets="one-hot", learn_regularisation=True
        )


class TestCosine(ClosedFormContract):
    def make(self, task, backbone):
        return KernelClosedForm(
            task, backbone, kernel="cosine", residual=True, targets="plus-minus"
        )


class TestTangent(ClosedFormContract):
    def make(self, task, backbone):
        return KernelClosedForm(
            task, backbone, kernel="ntk", residual=True, learn_regularisation=True
        )


class TestTangentBetweenOutputs(ClosedFormContract):
    without_gradient = (
        "adapter.head.bias",
    )  # no derivative of f depends on it, and f itself is left out

    def make(self, task, backbone):
        return KernelClosedForm(task, backbone, kernel="ntk", outputs="full", residual=False)


class TestTangentOfTheHead(ClosedFormContract):
    def make(self, task, backbone):
        return KernelClosedForm(
            task, backbone, kernel="ntk", residual=True, parameters="head", regularisation=0.01
        )


class TestRidge(ClosedFormContract):
    def make(self, task, backbone):
        return Ridge(task, backbone, regularisation=0.5)


class TestRidgePrimal(ClosedFormContract):
    def make(self, task, backbone):
        return Ridge(
            task,
            backbone,
            regularisation=0.5,
            learn_regularisation=True,
            form="primal",
            targets="centred",
        )


class TestMetaRkhsI(ClosedFormContract):
    def make(self, task, backbone):
        return MetaRkhsI(task, backbone, inner_steps=2)


class TestMetaRkhsIOfTwoBatches(ClosedFormContract):
    def make(self, task, backbone):
        return MetaRkhsI(task, backbone, inner_steps=1, estimator="two-batch")


class TestMetaRkhsII(ClosedFormContract):
    def make(self, task, backbone):
        return MetaRkhsII(task, backbone, time=0.3)


class TestMetaRkhsIIBetweenOutputs(ClosedFormContract):
    def make(self, task, backbone):
        return MetaRkhsII(task, backbone, time=0.3, outputs="full", learn_scale=True)


class TestMetaRkhsIIPade(ClosedFormContract):
    def make(self, task, backbone):
        return MetaRkhsII(
            task,
            backbone,
            time=0.3,
            exponential="pade22",
            parameters=["head.*", "backbone.linear.*"],
        )


class TestMetaRkhsIIPadeOfOrderOne(ClosedFormContract):
    def make(self, task, backbone):
        return MetaRkhsII(task, backbone, time=0.3, exponential="pade11")


class TestMetaRkhsIIAtInfinity(ClosedFormContract):
    def make(self, task, backbone):
        return MetaRkhsII(task, backbone, time="infinite", jitter=0.01)
