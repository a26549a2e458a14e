"""The kit passes sound sources of episodes, and catches each faulty one by the property named."""

import pytest

from fsl_core.builtin.sinusoid import Sinusoid
from fsl_core.testing import EpisodesContract
from tests.data.test_shapes import Varying
from tests.parts.kit import caught, check, every, named
from tests.parts.kit.episodes import FAULTS, Blobs, SingleNumbers, TokenIds, VaryingBlobs


class SinusoidContract(EpisodesContract):
    def make(self):
        return Sinusoid(tasks=5)


class BlobsContract(EpisodesContract):
    def make(self):
        return Blobs()


class TokenIdsContract(EpisodesContract):
    def make(self):
        return TokenIds()


class SingleNumbersContract(EpisodesContract):
    def make(self):
        return SingleNumbers()


class VaryingContract(EpisodesContract):
    def make(self):
        return VaryingBlobs()


class Apart(Varying):
    """Splits whose pictures differ."""

    def load(self, split):
        pool = super().load(split)
        pool.items[:, 0, 0, 0] += {"train": 0, "validation": 80, "test": 160}[split]
        return pool


class UnequalContract(EpisodesContract):
    def make(self):
        return Apart(n_shot=(1, 3), sampling="class")


SOUND = (
    SinusoidContract,
    BlobsContract,
    TokenIdsContract,
    SingleNumbersContract,
    VaryingContract,
    UnequalContract,
)


@pytest.mark.parametrize(("contract", "property_name"), every(*SOUND), ids=named)
def test_sound_sources_pass(contract, property_name):
    check(contract, property_name)


@pytest.mark.parametrize(("fault", "property_name"), FAULTS, ids=named)
def test_faulty_sources_are_caught(fault, property_name):
    class Contract(EpisodesContract):
        def make(self):
            return fault()

    caught(Contract, property_name)
