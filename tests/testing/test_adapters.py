"""The kit passes sound adapters, and catches each faulty one by the property named."""

import pytest

from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.testing import AdapterContract, double_precision
from tests.parts.kit import COMPILED, caught, check, every, named
from tests.parts.kit.adapters import (
    FAULTS,
    AutogradSteps,
    ChangesFrozenWeights,
    DrawsByHand,
    Dropping,
    FirstOrderMaml,
    FunctionalMaml,
    IgnoresLabels,
    WeighsByQueries,
)


class MamlContract(AdapterContract):
    kinds = ("classification", "regression")

    def make(self, task, backbone):
        return FunctionalMaml(task, backbone)

    def permute_classes(self, adapter, permutation):
        for parameter in adapter.head.parameters():
            parameter[permutation] = parameter.clone()


class CentroidContract(AdapterContract):
    def make(self, task):
        return NearestCentroid(task)


class FirstOrderContract(MamlContract):
    def make(self, task, backbone):
        return FirstOrderMaml(task, backbone)


class TransductiveContract(AdapterContract):
    def make(self, task):
        return WeighsByQueries(task)


class AutogradContract(AdapterContract):
    def make(self, task):
        return AutogradSteps(task)


class DroppingContract(AdapterContract):
    def make(self, task):
        return Dropping(task)


class ChangesFrozenContract(MamlContract):
    adapts_frozen = True

    def make(self, task, backbone):
        return ChangesFrozenWeights(task, backbone)


OTHERS = [
    MamlContract,
    FirstOrderContract,
    TransductiveContract,
    AutogradContract,
    DroppingContract,
    ChangesFrozenContract,
]


@pytest.mark.parametrize(
    ("contract", "property_name"),
    [*every(CentroidContract), *every(*OTHERS, without=(COMPILED,))],
    ids=named,
)
def test_sound_adapters_pass(contract, property_name):
    check(contract, property_name)


@pytest.mark.parametrize(("fault", "property_name"), FAULTS, ids=named)
def test_faulty_adapters_are_caught(fault, property_name):
    base = MamlContract if issubclass(fault, FunctionalMaml) else CentroidContract

    class Contract(base):
        kinds = ("classification",)

        def make(self, task, backbone):
            return fault(task, backbone) if base is MamlContract else fault(task)

    first_line = caught(Contract, property_name).splitlines()[0]
    assert "assert " not in first_line  # a message for people, not pytest's rewriting


def test_what_draws_in_a_way_of_its_own_is_not_compared():
    class Contract(CentroidContract):
        def make(self, task):
            return DrawsByHand(task)

    message = "not run: it draws random numbers other than by"
    with double_precision(), pytest.raises(pytest.skip.Exception, match=message):
        Contract().test_every_execution_equals_the_loop(("classification", "none"))


def test_a_claim_to_adapt_frozen_weights_is_measured():
    class Contract(MamlContract):
        adapts_frozen = True

    with pytest.raises(AssertionError, match=r"adapts_frozen = True is claimed, and they stay\."):
        check(Contract, "frozen_weights_stay")


def test_without_gradient_is_measured():
    class Contract(CentroidContract):
        without_gradient = ("backbone.conv.*",)

    message = r"without_gradient: backbone\.conv\.bias, backbone\.conv\.weight gets one\. Drop it"
    with pytest.raises(AssertionError, match=message):
        check(Contract, "gradient_reaches_every_parameter")


class SortedRowsContract(CentroidContract):
    any_row_order = False

    def make(self, task):
        return IgnoresLabels(task)


@pytest.mark.parametrize(
    ("contract", "property_name"), every(SortedRowsContract, without=(COMPILED,)), ids=named
)
def test_sorted_rows_may_be_relied_upon(contract, property_name):
    check(contract, property_name)
