"""HyperMAML for fsl-core: a hypernetwork updates the head, without inner gradient steps.

It reads the support set.
"""

import fsl_core as fsl
from fsl_hypermaml.adapter import HyperMaml

__all__ = ["HyperMaml", "fsl_register_adapters"]


@fsl.hookimpl
def fsl_register_adapters(register):
    register(HyperMaml)
