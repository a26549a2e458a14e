"""What holds for every contract of the kit."""

import contextlib
import warnings

import pytest
import torch

from fsl_core.testing import (
    AdapterContract,
    BackboneContract,
    EpisodesContract,
    HypergradientContract,
    WeightingContract,
    checks,
    double_precision,
)
from tests.parts.kit import (
    adapters,
    backbones,
    episodes,
    hypergradients,
    named,
    properties,
    weightings,
)

CONTRACTS = [
    (AdapterContract, adapters.FAULTS),
    (BackboneContract, backbones.FAULTS),
    (EpisodesContract, episodes.FAULTS),
    (HypergradientContract, hypergradients.FAULTS),
    (WeightingContract, weightings.FAULTS),
]


@pytest.mark.parametrize(("contract", "faults"), CONTRACTS, ids=named)
def test_every_property_has_caught_a_fault(contract, faults):
    found = {property_name for _, property_name in faults}
    needs_cuda = {"device"} if contract is EpisodesContract else set()
    assert set(properties(contract)) == found | needs_cuda


@pytest.mark.parametrize(("contract", "faults"), CONTRACTS, ids=named)
def test_make_has_to_be_written(contract, faults):
    message = rf"{contract.__name__}\.make: not written\. A method make"
    arguments = ["classification"] if contract is AdapterContract else []
    with pytest.raises(NotImplementedError, match=message):
        contract().test_claims(*arguments)


def test_the_default_dtype_and_generator_are_restored():
    before = torch.get_rng_state()
    with contextlib.suppress(ZeroDivisionError), double_precision():
        assert torch.rand(3).dtype == torch.float64
        raise ZeroDivisionError
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_what_torch_says_of_its_threads_on_a_gpu_is_no_failure():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with checks.on_device("cuda"):
            warnings.warn("Attempting to run cuBLAS, but there was no context", stacklevel=1)
            with pytest.raises(UserWarning, match="other"):
                warnings.warn("other", stacklevel=1)
