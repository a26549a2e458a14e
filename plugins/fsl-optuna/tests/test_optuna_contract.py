"""Checks optuna with the conformance kit."""

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

from fsl_core.testing import SearcherContract
from fsl_optuna import Optuna


class TestTpe(SearcherContract):
    def make(self):
        return Optuna(startup=4, pruner="percentile", percentile=40, prune_after=3)


class TestRandom(SearcherContract):
    def make(self):
        return Optuna(sampler="random", pruner="median", prune_after=3)
