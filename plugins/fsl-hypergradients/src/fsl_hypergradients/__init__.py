"""Estimates of the meta-gradient for fsl-core."""

import fsl_core as fsl
from fsl_hypergradients.differences import FiniteDifference
from fsl_hypergradients.implicit import Implicit
from fsl_hypergradients.reptile import Reptile
from fsl_hypergradients.sgld import Sgld
from fsl_hypergradients.smoothing import GaussianSmoothing
from fsl_hypergradients.truncated import Truncated

HYPERGRADIENTS = (Truncated, Implicit, FiniteDifference, GaussianSmoothing, Reptile, Sgld)

__all__ = [
    "HYPERGRADIENTS",
    "FiniteDifference",
    "GaussianSmoothing",
    "Implicit",
    "Reptile",
    "Sgld",
    "Truncated",
    "fsl_register_hypergradients",
]


@fsl.hookimpl
def fsl_register_hypergradients(register):
    for hypergradient in HYPERGRADIENTS:
        register(hypergradient)
