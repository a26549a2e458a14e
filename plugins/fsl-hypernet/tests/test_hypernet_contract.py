"""The conformance kit over the forms of the adapter."""

from fsl_core.testing import AdapterContract
from fsl_hypernet import Hypernet

SIZES = {"embedding": 4, "hidden": 6, "target": 5}


class TestHypernet(AdapterContract):
    def make(self, task, backbone):
        return Hypernet(task, backbone, **SIZES)


class TestFromScratch(AdapterContract):
    def make(self, task, backbone):
        return Hypernet(task, backbone, base="none", support_loss=True, **SIZES)


class TestFilm(AdapterContract):
    adapts_frozen = True

    def make(self, task, backbone):
        return Hypernet(task, backbone, modulate="film", **SIZES)


class TestLowRank(AdapterContract):
    adapts_frozen = True

    def make(self, task, backbone):
        return Hypernet(task, backbone, modulate="low-rank", rank=2, **SIZES)


class TestCheckpoint(AdapterContract):
    adapts_frozen = True

    def make(self, task, backbone):
        return Hypernet(task, backbone, modulate="film", checkpoint=True, **SIZES)


class TestWholeHead(AdapterContract):
    kinds = ("classification", "regression")
    label_equivariant = False

    def make(self, task, backbone):
        return Hypernet(task, backbone, head="task", **SIZES)


class TestWholeHeadAndFilm(AdapterContract):
    adapts_frozen = True
    kinds = ("classification", "regression")
    label_equivariant = False

    def make(self, task, backbone):
        return Hypernet(task, backbone, head="task", base="none", modulate="film", **SIZES)


class TestKernel(AdapterContract):
    label_equivariant = False

    def make(self, task, backbone):
        return Hypernet(task, backbone, head="kernel", **SIZES)


class TestCosineKernel(AdapterContract):
    label_equivariant = False

    def make(self, task, backbone):
        return Hypernet(
            task,
            backbone,
            head="kernel",
            kernel="cosine",
            support_rows="items",
            support_loss=True,
            **SIZES,
        )


class TestKernelAndLowRank(AdapterContract):
    adapts_frozen = True
    label_equivariant = False

    def make(self, task, backbone):
        return Hypernet(
            task, backbone, head="kernel", modulate="low-rank", support_loss=True, **SIZES
        )
