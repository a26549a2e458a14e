"""Checks hf with the conformance kit, on a stand-in of the hub."""

import pytest

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from fsl_core.testing import StoreContract
from fsl_hub import Hub


@pytest.mark.usefixtures("hub")
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's own
class TestHub(StoreContract):
    address, absent = "ada/tiny", "ada/absent"

    def make(self):
        return Hub()
