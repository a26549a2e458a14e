"""MAML and its relatives for fsl-core, with the differentiable inner optimizers of higher."""

import fsl_core as fsl
from fsl_maml.adapter import Maml

__all__ = ["Maml", "fsl_register_adapters"]


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Maml)
