"""COMLN for fsl-core: a linear head that follows the gradient flow of the support loss."""

import fsl_core as fsl
from fsl_gradient_flow.adapter import GradientFlow
from fsl_gradient_flow.integrators import StepsWarning

__all__ = ["GradientFlow", "StepsWarning", "fsl_register_adapters"]


@fsl.hookimpl
def fsl_register_adapters(register):
    register(GradientFlow)
