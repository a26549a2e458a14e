"""MOML for fsl-core: personalised weights that are remembered for each task."""

import fsl_core as fsl
from fsl_moml.memory import Memory

__all__ = ["Memory", "fsl_register_hypergradients"]


@fsl.hookimpl
def fsl_register_hypergradients(register):
    register(Memory)
