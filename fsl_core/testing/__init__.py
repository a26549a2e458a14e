"""The conformance kit: pytest classes that tell the author of an adapter or a weighting whether it is right.

    from fsl_centroid import NearestCentroid
    from fsl_core.testing import AdapterContract


    class TestNearestCentroid(AdapterContract):
        def make(self, task):
            return NearestCentroid(task)

Every check runs in float64 on episodes and backbones of a few hundred numbers. Needs pytest: `pip install fsl-core[testing]`.
"""

from fsl_core.testing.adapters import AdapterContract
from fsl_core.testing.tiny import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_core.testing.weightings import WeightingContract

__all__ = ["AdapterContract", "TinyBackbone", "WeightingContract", "double_precision", "tiny_episodes", "tiny_task"]
