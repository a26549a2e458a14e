"""Hypernetworks for fsl-core: one forward pass maps a support set to weights."""

import fsl_core as fsl
from fsl_hypernet.adapter import Hypernet

__all__ = ["Hypernet", "fsl_register_adapters"]


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Hypernet)
