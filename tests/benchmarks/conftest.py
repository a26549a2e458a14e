"""`benchmarks/` is a package of the repository, not of the distribution."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture
def root() -> Path:
    return ROOT
