"""The conformance kit: pytest classes that tell whether a component is right.

There is one for adapters, hypergradients, weightings, backbones, episodes, launchers,
searchers and stores.

    from fsl_centroid import NearestCentroid
    from fsl_core.testing import AdapterContract


    class TestNearestCentroid(AdapterContract):
        def make(self, task):
            return NearestCentroid(task)

What is installed is checked without a test: `pytest --fsl-adapter nearest-centroid`. Most checks
run in float64 on episodes and backbones of a few hundred numbers.

Needs pytest: `pip install fsl-core[testing]`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsl_core.testing.adapters import AdapterContract
    from fsl_core.testing.backbones import BackboneContract
    from fsl_core.testing.episodes import EpisodesContract
    from fsl_core.testing.hypergradients import HypergradientContract
    from fsl_core.testing.inner_problems import RidgeSteps
    from fsl_core.testing.launchers import LauncherContract
    from fsl_core.testing.searchers import SearcherContract
    from fsl_core.testing.stores import StoreContract
    from fsl_core.testing.tiny import (
        GradientSteps,
        TinyBackbone,
        Uneven,
        double_precision,
        tiny_episodes,
        tiny_task,
    )
    from fsl_core.testing.weightings import WeightingContract

_HOME = {
    "AdapterContract": "adapters",
    "BackboneContract": "backbones",
    "EpisodesContract": "episodes",
    "HypergradientContract": "hypergradients",
    "LauncherContract": "launchers",
    "RidgeSteps": "inner_problems",
    "SearcherContract": "searchers",
    "StoreContract": "stores",
    "WeightingContract": "weightings",
    **dict.fromkeys(
        (
            "GradientSteps",
            "TinyBackbone",
            "Uneven",
            "double_precision",
            "tiny_episodes",
            "tiny_task",
        ),
        "tiny",
    ),
}

__all__ = [
    "AdapterContract",
    "BackboneContract",
    "EpisodesContract",
    "GradientSteps",
    "HypergradientContract",
    "LauncherContract",
    "RidgeSteps",
    "SearcherContract",
    "StoreContract",
    "TinyBackbone",
    "Uneven",
    "WeightingContract",
    "double_precision",
    "tiny_episodes",
    "tiny_task",
]


def __getattr__(name: str) -> object:
    """Names are imported when first used.

    pytest loads the plugin of this package in every project, and must not wait for torch there.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'fsl_core.testing' has no attribute {name!r}")
    return getattr(import_module(f"fsl_core.testing.{_HOME[name]}"), name)
