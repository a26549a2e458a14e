"""FIML for fsl-core: a linear head by a few Gauss-Newton steps from a closed-form start."""

import fsl_core as fsl
from fsl_fiml.adapter import Fiml

__all__ = ["Fiml", "fsl_register_adapters"]


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Fiml)
