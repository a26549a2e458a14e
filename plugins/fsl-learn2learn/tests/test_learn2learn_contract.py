"""The conformance kit over every adapter."""

import pytest

from fsl_core.errors import PluginError
from fsl_core.testing import AdapterContract
from fsl_learn2learn.gradient import L2lAnil, L2lGbml, L2lMaml, L2lMetaCurvature, L2lMetaSgd
from fsl_learn2learn.library import require_qpth
from fsl_learn2learn.metaoptnet import L2lMetaOptNet


class GradientContract(AdapterContract):
    kinds = ("classification", "regression")

    def permute_classes(self, adapter, permutation):
        for rows in adapter.head.parameters():
            rows[permutation] = rows.clone()


class TestMaml(GradientContract):
    def make(self, task, backbone):
        return L2lMaml(task, backbone, inner_steps=2)


class TestFirstOrder(GradientContract):
    def make(self, task, backbone):
        return L2lMaml(task, backbone, inner_steps=2, order=1)


class TestAnil(GradientContract):
    def make(self, task, backbone):
        return L2lAnil(task, backbone, inner_steps=2)


class TestMetaSgd(GradientContract):
    def make(self, task, backbone):
        return L2lMetaSgd(task, backbone, inner_steps=2)

    def permute_classes(self, adapter, permutation):
        for rows in (*adapter.head.parameters(), *adapter.rates[-2:]):
            rows[permutation] = rows.clone()


class TestKronecker(GradientContract):
    label_equivariant = False  # the transform of the head mixes classes

    def make(self, task, backbone):
        return L2lGbml(task, backbone, "kronecker", inner_steps=2)


class TestScaleThatIsAdapted(GradientContract):
    label_equivariant = False

    def make(self, task, backbone):
        return L2lGbml(task, backbone, "scale", adapt_transform=True, inner_steps=3)


class TestMetaCurvature(GradientContract):
    label_equivariant = False

    def make(self, task, backbone):
        return L2lMetaCurvature(task, backbone, inner_steps=2)


class TestMetaOptNet(AdapterContract):
    @pytest.fixture(autouse=True)
    def _needs_qpth(self):
        try:
            require_qpth()
        except PluginError as error:
            pytest.skip(str(error))

    def make(self, task):
        return L2lMetaOptNet(task, max_iterations=30)
