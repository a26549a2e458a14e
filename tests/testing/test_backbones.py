"""The kit passes sound backbones, and catches each faulty one by the property named."""

import pytest

from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.mlp import Mlp
from fsl_core.testing import BackboneContract
from tests.parts.kit import COMPILED, caught, check, every, named
from tests.parts.kit.backbones import FAULTS, Plain


class MlpContract(BackboneContract):
    input_shape = (4,)

    def make(self, task):
        return Mlp(task, hidden=(6,))


class SupportNormContract(MlpContract):
    def make(self, task):
        return Mlp(task, hidden=(6,), norm="support")


class ConvContract(BackboneContract):
    input_shape = (2, 5, 5)

    def make(self, task):
        return Conv4(task, channels=4, blocks=1)


class PlainContract(BackboneContract):
    """Of what the faulty backbones spoil."""

    input_shape = (4,)
    kind = Plain

    def make(self, task):
        return self.kind(task)


OTHERS = [MlpContract, ConvContract, SupportNormContract]


@pytest.mark.parametrize(
    ("contract", "property_name"),
    [*every(PlainContract), *every(*OTHERS, without=(COMPILED,))],
    ids=named,
)
def test_sound_backbones_pass(contract, property_name):
    check(contract, property_name)


@pytest.mark.parametrize(("fault", "property_name"), FAULTS, ids=named)
def test_faulty_backbones_are_caught(fault, property_name):
    caught(type("Contract", (PlainContract,), {"kind": fault}), property_name)
