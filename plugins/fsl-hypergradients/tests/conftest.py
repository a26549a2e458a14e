from __future__ import annotations

import pytest

from fsl_core.testing import double_precision


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield
