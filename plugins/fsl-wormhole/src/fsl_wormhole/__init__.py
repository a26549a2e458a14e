"""MAML with a multiplier that the inner loop adapts, and episodes whose tasks conflict.

After the abstract of arXiv 2212.14094. The update rule, defaults and tasks are this project's
interpretation; the paper's text was not available.
"""

import fsl_core as fsl
from fsl_wormhole.adapter import Wormhole
from fsl_wormhole.threshold import ThresholdComparison
from fsl_wormhole.wavelet import WaveletTransform

__all__ = [
    "ThresholdComparison",
    "WaveletTransform",
    "Wormhole",
    "fsl_register_adapters",
    "fsl_register_episodes",
]


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Wormhole)


@fsl.hookimpl
def fsl_register_episodes(register):
    register(ThresholdComparison)
    register(WaveletTransform)
