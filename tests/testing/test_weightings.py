"""The kit passes sound weightings, and catches each faulty one by the property named."""

import pytest

from fsl_core.builtin.uniform import Uniform
from fsl_core.testing import WeightingContract
from tests.parts.kit import caught, check, every, named
from tests.parts.kit.weightings import FAULTS, Agreement, Drawn, SoftmaxOfLoss


class UniformContract(WeightingContract):
    def make(self):
        return Uniform()


class UniformSumContract(WeightingContract):
    def make(self):
        return Uniform(reduction="sum")


class SoftmaxContract(WeightingContract):
    def make(self):
        return SoftmaxOfLoss()


class AgreementContract(WeightingContract):
    def make(self):
        return Agreement()


class DrawnContract(WeightingContract):
    random = True

    def make(self):
        return Drawn()


SOUND = [UniformContract, UniformSumContract, SoftmaxContract, AgreementContract, DrawnContract]


@pytest.mark.parametrize(("contract", "property_name"), every(*SOUND), ids=named)
def test_sound_weightings_pass(contract, property_name):
    check(contract, property_name)


@pytest.mark.parametrize(("fault", "property_name"), FAULTS, ids=named)
def test_faulty_weightings_are_caught(fault, property_name):
    class Contract(WeightingContract):
        def make(self):
            return fault()

    caught(Contract, property_name)
